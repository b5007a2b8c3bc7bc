"""4-bit weights under 8-bit activations: vLLM's CUTLASS kernel and MSLK's (FP8), vLLM's Marlin (INT8).

Activations are quantised a row by the library's own operator, which is timed apart from the product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from marlin_bench.backends.peer import EightBitPeer
from marlin_bench.backends.peers import mslk, packing, vllm
from marlin_bench.backends.protocol import Choice, DeviceTraits, Dtype, EightBit, EightBitActivations, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

_FP8 = torch.float8_e4m3fn
_FP8_TOLERANCE = 0.008
"""Hopper's FP8 tensor cores keep about 14 bits of a partial sum: 0.0009 at K 4096 and 0.0014 at K 8192 on an H200, as
with cuBLAS, which comes to 0.0056 at K 73728."""
_LARGEST_FP8 = float(torch.finfo(_FP8).max)
_LARGEST_CODE = 8  # of code - 8 without its sign: what an FP8 scale is multiplied by at most
_INTEGER_SCALE = 4096  # the largest group scale of vLLM's INT8 Marlin, which holds them as 16-bit integers


def fp8_group_scales(scales: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Group scales [groups, N] as FP8 ones up to `most` and one FP32 factor a column [N]."""
    columns = scales.float().amax(dim=0).clamp_min(torch.finfo(torch.float32).tiny) / most
    return (scales.float() / columns).to(_FP8), columns


def held_under_fp8_scales(codes: Tensor, groups: Tensor, columns: Tensor) -> Callable[[slice], Tensor]:
    """The weights [K, columns] of a kernel that keeps every multiple of an FP8 scale, rounded to FP8, in a table."""

    def held(part: slice) -> Tensor:
        signed = codes[:, part].float().view(groups.shape[0], -1, codes[:, part].shape[1]) - SYMMETRIC_ZERO
        multiples = (signed * groups[:, None, part].float()).to(_FP8).float()
        return (multiples * columns[part]).view(codes.shape[0], -1)

    return held


class W4A8(EightBitPeer):
    """What the three share: BF16 handed over and given back, groups of 128, N in multiples of 128."""

    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """The FP8 kernels are written for Hopper; INT8 takes sm_80 and up."""
        capability = device.capability or (0, 0)
        if self.compute_dtype == "fp8" and capability[0] != 9:
            return f"{device.name} is not a Hopper GPU (sm_90)"
        if capability < (8, 0):
            return f"compute capability {'.'.join(map(str, capability))} is below 8.0"
        return packing.unsupported(problem, multiple_n=128)

    def format(self, problem: Problem) -> Format:
        """4-bit codes and 16 bits of scales a group, at most."""
        return int4(problem.group_size)


class W4A8Fp8(W4A8):
    """CUTLASS W4A8 of vLLM (vllm-project/vllm#23198), Apache-2.0: FP8 tensor cores of Hopper.

    Weights: 4 + 8·8/128 bits (each FP8 group scale with its eight multiples) and FP32 a column. Meant for Hopper at
    every M where FP8 activations are good enough. The multiples are rounded to FP8, which it is judged with. Groups of
    128 only: CUTLASS's kernel has none below the depth of its tile (NVIDIA/cutlass#1332).
    """

    name = "w4a8_fp8"
    summary = "CUTLASS W4A8 of vLLM (FP8 activations, BF16 out)"
    project = vllm.VllmPeer.project
    license = "Apache-2.0"
    meant_for = "Hopper, all M"
    extra = "vllm"
    packages = (vllm.PACKAGE,)
    compute_dtype: ClassVar[EightBit] = "fp8"
    tolerance = _FP8_TOLERANCE

    def load(self) -> None:
        """vLLM's operators."""
        vllm.operators()

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Signed nibbles through vLLM's reordering; group scales in FP8, with their multiples."""
        codes = packing.symmetric(weights).codes
        words = packing.words_along_k(codes ^ SYMMETRIC_ZERO).t().contiguous().t()
        groups, columns = fp8_group_scales(weights.scales, _LARGEST_FP8 / _LARGEST_CODE)
        ops = vllm.operators()
        tensors = {
            "codes": ops.cutlass_encode_and_reorder_int4b(words),
            "group_scales": ops.cutlass_pack_scale_fp8(groups),
            "column_scales": columns[:, None].contiguous(),
        }
        return Packed(tensors, reference=held_under_fp8_scales(codes, groups, columns))

    def quantize(self, activations: Tensor) -> EightBitActivations:
        """FP8 with a scale a row, by vLLM's operator."""
        return fp8_rows_by_vllm(activations)

    def multiply(self, packed: Packed, given: EightBitActivations, output: Tensor, choice: Choice) -> Launch:
        """cutlass_w4a8_mm, which makes its own result."""
        codes, groups, columns = (packed.tensors[name] for name in ("codes", "group_scales", "column_scales"))
        rows, scales = given.tensors["codes"], given.tensors["scales"]
        cutlass_w4a8_mm = vllm.operators().cutlass_w4a8_mm

        def multiply() -> Tensor:
            product: Tensor = cutlass_w4a8_mm(
                rows, codes, groups, packing.GROUP_SIZE, columns, scales, torch.bfloat16, None
            )
            return product

        return multiply


def fp8_rows_by_vllm(activations: Tensor) -> EightBitActivations:
    """Codes FP8 [M, K] and scales FP32 [M, 1] of vLLM's dynamic quantiser."""
    M = activations.shape[0]
    codes = torch.empty(activations.shape, dtype=_FP8, device=activations.device)
    scales = torch.empty((M, 1), dtype=torch.float32, device=activations.device)
    quantizer = vllm.operators().dynamic_per_token_scaled_fp8_quant

    def quantize() -> None:
        quantizer(codes, activations, scales, None)

    return EightBitActivations({"codes": codes, "scales": scales}, quantize, lambda: codes.float() * scales)


class W4A8Fp8Mslk(W4A8):
    """f8i4bf16_shuffled of MSLK (pytorch/MSLK, once FBGEMM GenAI), BSD-3: CUTLASS on Hopper's FP8 tensor cores.

    Weights: 4 + 8·8/128 bits and FP32 a column. Meant for Hopper at every M where FP8 activations are good enough.
    Activations are quantised by plain torch: its own row quantiser is a Triton kernel that needs the whole package.
    Groups of 128 only, as in `w4a8_fp8` (NVIDIA/cutlass#1332).
    """

    name = "w4a8_fp8_mslk"
    summary = "MSLK f8i4bf16 (FP8 activations, BF16 out)"
    project = mslk.Mslk.project
    license = mslk.Mslk.license
    meant_for = "Hopper, all M"
    extra = "mslk"
    packages = mslk.Mslk.packages
    compute_dtype: ClassVar[EightBit] = "fp8"
    tolerance = _FP8_TOLERANCE

    def load(self) -> None:
        """MSLK's operators."""
        mslk.operators()

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Signed nibbles and FP8 group scales through MSLK's preshuffling."""
        codes = packing.symmetric(weights).codes
        groups, columns = fp8_group_scales(weights.scales, _LARGEST_FP8 / _LARGEST_CODE)
        shuffled, scales = mslk.operators().preshuffle_i4(packing.signed_bytes_along_k(codes), groups.contiguous())
        return Packed(
            {"codes": shuffled, "group_scales": scales, "column_scales": columns.contiguous()},
            reference=held_under_fp8_scales(codes, groups, columns),
        )

    def quantize(self, activations: Tensor) -> EightBitActivations:
        """FP8 with a scale a row, in plain torch."""
        return fp8_rows_by_torch(activations)

    def multiply(self, packed: Packed, given: EightBitActivations, output: Tensor, choice: Choice) -> Launch:
        """f8i4bf16_shuffled, which makes its own result."""
        codes, groups, columns = (packed.tensors[name] for name in ("codes", "group_scales", "column_scales"))
        rows, scales = given.tensors["codes"], given.tensors["scales"].view(-1)
        product_of = mslk.operators().f8i4bf16_shuffled

        def multiply() -> Tensor:
            product: Tensor = product_of(rows, codes, scales, columns, groups)
            return product

        return multiply


def fp8_rows_by_torch(activations: Tensor) -> EightBitActivations:
    """Codes FP8 [M, K] and scales FP32 [M, 1], in plain torch."""
    M = activations.shape[0]
    codes = torch.empty(activations.shape, dtype=_FP8, device=activations.device)
    scales = torch.empty((M, 1), dtype=torch.float32, device=activations.device)

    def quantize() -> None:
        exact = activations.float()
        torch.div(exact.abs().amax(dim=1, keepdim=True).clamp_min(1e-6), _LARGEST_FP8, out=scales)
        codes.copy_((exact / scales).clamp(-_LARGEST_FP8, _LARGEST_FP8))

    return EightBitActivations({"codes": codes, "scales": scales}, quantize, lambda: codes.float() * scales)


class W4A8Int8(W4A8):
    """Marlin of vLLM with INT8 activations, Apache-2.0: mma.sync on INT8, group scales as 16-bit integers.

    Weights: 4 + 16/128 bits. Meant for M up to about 64, on GPUs without FP8 too (vllm-project/vllm#24722). The factor
    that the integer scales are counted in goes onto the activations' scales, as vLLM does it. vLLM's own way to it from
    such a checkpoint leaves activations in 16 bits, silently (vllm-project/vllm#38066); here the operator is called.
    """

    name = "w4a8_int8"
    summary = "Marlin of vLLM with INT8 activations (BF16 out)"
    project = vllm.VllmPeer.project
    license = "Apache-2.0"
    meant_for = "M up to about 64"
    extra = "vllm"
    packages = (vllm.PACKAGE,)
    compute_dtype: ClassVar[EightBit] = "int8"

    def load(self) -> None:
        """vLLM's operators."""
        vllm.operators()

    def pack(self, weights: QuantizedWeights) -> Packed:
        """GPTQ words repacked for INT8; scales as integers up to 4096, in Marlin's order."""
        codes = packing.symmetric(weights).codes
        K, N = codes.shape
        unit = weights.scales.float().amax() / _INTEGER_SCALE
        integers = (weights.scales.float() / unit).round()
        ops = vllm.operators()
        words = ops.gptq_marlin_repack(packing.words_along_k(codes), vllm.no_indices(codes.device), K, N, 4, True)
        ordered = packing.scales_as_marlin(integers.to(torch.int16), grouped=False).view(torch.bfloat16)

        def held(part: slice) -> Tensor:
            signed = codes[:, part].float().view(integers.shape[0], -1, codes[:, part].shape[1]) - SYMMETRIC_ZERO
            return (signed * (integers[:, None, part] * unit)).view(K, -1)

        return Packed(
            {"codes": words, "scales": ordered, "unit": unit.view(1)},
            reference=held,
            extra={"locks": vllm.marlin_locks(codes.device)},
        )

    def quantize(self, activations: Tensor) -> EightBitActivations:
        """INT8 with a scale a row, by vLLM's operator, times the unit of the weights that they are to meet."""
        M = activations.shape[0]
        device = activations.device
        codes = torch.empty(activations.shape, dtype=torch.int8, device=device)
        scales = torch.empty((M, 1), dtype=torch.float32, device=device)
        unit = torch.ones(1, dtype=torch.float32, device=device)
        kernel_scales = torch.empty_like(scales)
        quantizer = vllm.operators().dynamic_scaled_int8_quant

        def quantize() -> None:
            quantizer(codes, activations, scales, None)
            torch.mul(scales, unit, out=kernel_scales)

        tensors = {"codes": codes, "scales": scales, "unit": unit, "kernel_scales": kernel_scales}
        return EightBitActivations(tensors, quantize, lambda: codes.float() * scales)

    def multiply(self, packed: Packed, given: EightBitActivations, output: Tensor, choice: Choice) -> Launch:
        """marlin_gemm into `output`, with the weights' unit set in `given` for every later quantisation."""
        given.tensors["unit"].copy_(packed.tensors["unit"])
        given.quantize()
        codes, scales, locks = packed.tensors["codes"], packed.tensors["scales"], packed.extra["locks"]
        rows, row_scales = given.tensors["codes"], given.tensors["kernel_scales"]
        (M, K), N = rows.shape, output.shape[1]
        none = vllm.no_indices(rows.device)
        marlin_gemm = vllm.operators().marlin_gemm

        def multiply() -> None:
            operands = (rows, output, codes, None, scales, row_scales, None, none, none, none, locks)
            marlin_gemm(*operands, vllm.U4_MINUS_8, M, N, K, True, False, True, False)

        return multiply
