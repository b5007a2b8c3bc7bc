"""vLLM's 4-bit operators: Marlin, Machete, GPTQ (exllama), AWQ.

Only the library of compiled operators is loaded, never vLLM itself: it would take seconds, threads and global settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from marlin_bench.backends import carried
from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

LIBRARY = "vllm/vllm_C.so.xz"
# its compiled operators change their operands from release to release
PACKAGE = Package("vllm", "vllm", at_least="0.26.0", below="0.27", carried=LIBRARY)
_STABLE_OPERATORS = "_C_stable_libtorch.abi3.so"
# vllm.scalar_type: an id is (mantissa bits | signed << 16 | bias << 17 | …) << 8, in this layout since 0.6
U4_MINUS_8 = 1125899907892224
"""Id of `uint4b8`: 4-bit codes of which 8 is taken off."""


@cache
def operators() -> Any:
    """torch.ops._C with vLLM's operators; OSError where their library does not load."""
    spec = find_spec("vllm")
    if spec is not None and spec.submodule_search_locations:
        library = Path(spec.submodule_search_locations[0]) / _STABLE_OPERATORS
    else:
        library = carried.unpacked(LIBRARY)
    torch.ops.load_library(str(library))
    return torch.ops._C


def no_indices(device: torch.device) -> Tensor:
    """What the operators take for "no activation order"."""
    return torch.empty(0, dtype=torch.int32, device=device)


class VllmPeer(Peer):
    """What vLLM's backends share."""

    project = "https://github.com/vllm-project/vllm"
    license = "Apache-2.0"
    extra = "vllm"
    packages = (PACKAGE,)
    lowest_capability: ClassVar[tuple[int, int]] = (8, 0)
    multiple_n: ClassVar[int] = 64

    def load(self) -> None:
        """The library of operators."""
        operators()

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Its GPUs, groups of 128, and N in its multiples."""
        if device.capability is not None and device.capability < self.lowest_capability:
            return f"compute capability {'.'.join(map(str, device.capability))} is too low for {self.name}"
        return packing.unsupported(problem, multiple_n=self.multiple_n)

    def format(self, problem: Problem) -> Format:
        """4-bit codes, FP16 scales."""
        return int4(problem.group_size)


class VllmMarlin(VllmPeer):
    """Marlin as vLLM has it (csrc/quantization/marlin), Apache-2.0: mma.sync, FP32 sums.

    Weights: 4 + 16/128 bits. Meant for M up to about 64; vLLM takes it wherever nothing better is known. From M = 128
    on it is slower than cuBLAS (vllm-project/vllm#2497), at about half its rate on Hopper. vllm-project/vllm#4218 took
    the L2 hint out of the original, which crashed H100s.
    """

    name = "vllm_marlin"
    summary = "Marlin of vLLM (gptq_marlin, FP16)"
    meant_for = "M up to about 64"

    def pack(self, weights: QuantizedWeights) -> Packed:
        """GPTQ words through vLLM's own repacking, scales in Marlin's order."""
        K, N = weights.K, weights.N
        device = weights.codes.device
        words = packing.words_along_k(packing.symmetric(weights).codes)
        codes = operators().gptq_marlin_repack(words, no_indices(device), K, N, 4, False)
        scales = packing.scales_as_marlin(weights.scales, grouped=weights.group_rows < K)
        return Packed({"codes": codes, "scales": scales}, extra={"locks": marlin_locks(device)})

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """marlin_gemm into `output`, partial sums in FP32, without atomics: vLLM's defaults."""
        codes, scales, locks = packed.tensors["codes"], packed.tensors["scales"], packed.extra["locks"]
        (M, K), N = activations.shape, output.shape[1]
        none = no_indices(activations.device)
        marlin_gemm = operators().marlin_gemm

        def multiply() -> None:
            operands = (activations, output, codes, None, scales, None, None, none, none, none, locks)
            marlin_gemm(*operands, U4_MINUS_8, M, N, K, True, False, True, False)

        return multiply


def marlin_locks(device: torch.device) -> Tensor:
    """A lock for each SM; the kernel leaves them at nought."""
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return torch.zeros(count, dtype=torch.int32, device=device)


class VllmMachete(VllmPeer):
    """Machete (vllm-project/vllm#7174), Apache-2.0: CUTLASS mixed-input GEMM for Hopper, weights from registers.

    Weights: 4 + 16/128 bits. Meant for Hopper at M from 16 on; vLLM prefers it to Marlin there at every M (its
    memory-bound side: vllm-project/vllm#21556). vLLM's heuristic picks the schedule; "full" tries all that there are.
    """

    name = "vllm_machete"
    summary = "Machete of vLLM (CUTLASS for Hopper, FP16)"
    meant_for = "Hopper, M from 16 on"
    lowest_capability = (9, 0)
    multiple_n = 128

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Hopper alone."""
        if device.capability is None or device.capability[0] != 9:
            return f"{device.name} is not a Hopper GPU (sm_90)"
        return super().unsupported(problem, device)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """GPTQ words, column-major, through vLLM's prepacking."""
        words = packing.words_along_k(packing.symmetric(weights).codes).t().contiguous().t()
        half = torch.float16
        codes = operators().machete_prepack_B(words, half, U4_MINUS_8, half)
        return Packed({"codes": codes, "scales": weights.scales.contiguous()})

    def candidates(self, problem: Problem, device: DeviceTraits, effort: str) -> Sequence[Choice]:
        """vLLM's heuristic; for "full" also every schedule of the library."""
        first: list[Choice] = [{"schedule": "heuristic"}]
        if effort != "full":
            return first
        half = torch.float16
        names = operators().machete_supported_schedules(half, U4_MINUS_8, half, None, None, None, half)
        return [*first, *({"schedule": name} for name in names)]

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """machete_mm, which makes its own result."""
        codes, scales = packed.tensors["codes"], packed.tensors["scales"]
        schedule = None if choice["schedule"] == "heuristic" else choice["schedule"]
        machete_mm = operators().machete_mm

        def multiply() -> Tensor:
            product: Tensor = machete_mm(
                activations, codes, U4_MINUS_8, None, scales, None, packing.GROUP_SIZE, None, None, schedule
            )
            return product

        return multiply


class GptqExllama(VllmPeer):
    """The exllama kernel for GPTQ weights in vLLM (csrc/quantization/gptq, after exllamav2), MIT in origin.

    Weights: 4 + 16/128 + 4/128 bits (a zero point a group). Meant for M = 1; from M = 51 on it dequantises and calls
    cuBLAS, which the record's choice tells. Partial sums are FP16 and meet by atomics, so that results differ from run
    to run. No BF16 (vllm-project/vllm#4781).
    """

    name = "gptq_exllama"
    summary = "exllama kernel for GPTQ in vLLM (FP16 sums)"
    meant_for = "M = 1"
    license = "MIT AND Apache-2.0"
    multiple_n = 8
    most_fused_rows = 50  # MAX_Q_GEMM_ROWS of its q_gemm.cu
    # FP16 sums, in the cuBLAS product for large M too: on an H200 0.0015 at K 2048, 0.002 at K 4096, growing with √K
    tolerance = 0.015

    def format(self, problem: Problem) -> Format:
        """4-bit codes and zero points, FP16 scales."""
        return int4(problem.group_size, zero_points=True)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """GPTQ words shuffled in place by the library; GPTQ stores a zero point less one."""
        device = weights.codes.device
        words = packing.words_along_k(packing.symmetric(weights).codes)
        operators().gptq_shuffle(words, no_indices(device), 4)
        zeros = torch.full_like(weights.scales, SYMMETRIC_ZERO - 1, dtype=torch.uint8)
        return Packed({"codes": words, "scales": weights.scales.contiguous(), "zeros": packing.words_along_n(zeros)})

    def candidates(self, problem: Problem, device: DeviceTraits, effort: str) -> Sequence[Choice]:
        """The path that the operator takes for this M."""
        return [{"path": "dequantise" if self.most_fused_rows < problem.M else "fused"}]

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """gptq_gemm, which makes its own result."""
        codes, scales, zeros = (packed.tensors[name] for name in ("codes", "scales", "zeros"))
        none = no_indices(activations.device)
        gptq_gemm = operators().gptq_gemm

        def multiply() -> Tensor:
            product: Tensor = gptq_gemm(activations, codes, zeros, scales, none, True, False, 4)
            return product

        return multiply


class Awq(VllmPeer):
    """AWQ's own kernel in vLLM (csrc/quantization/awq), MIT in origin: mma.sync, split over K.

    Weights: 4 + 16/128 + 4/128 bits (a zero point a group). Meant for small M on Ampere; like vLLM it dequantises and
    calls cuBLAS from M = 256 on, which the record's choice tells. Slower than FP16 at most M (vllm-project/vllm#2268,
    #55462); vLLM itself now runs AWQ weights with Marlin.
    """

    name = "awq"
    summary = "AWQ kernel in vLLM (FP16)"
    meant_for = "M up to 16"
    license = "MIT AND Apache-2.0"
    lowest_capability = (7, 5)
    least_dense_rows = 256
    split_k = 8

    def format(self, problem: Problem) -> Format:
        """4-bit codes and zero points, FP16 scales."""
        return int4(problem.group_size, zero_points=True)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Words along N in AWQ's order, zero points likewise."""
        codes = packing.symmetric(weights).codes
        zeros = torch.full_like(weights.scales, SYMMETRIC_ZERO, dtype=torch.uint8)
        return Packed(
            {
                "codes": packing.words_along_n(codes, packing.AWQ_ORDER),
                "scales": weights.scales.contiguous(),
                "zeros": packing.words_along_n(zeros, packing.AWQ_ORDER),
            }
        )

    def candidates(self, problem: Problem, device: DeviceTraits, effort: str) -> Sequence[Choice]:
        """The path that vLLM takes for this M."""
        return [{"path": "dequantise" if self.least_dense_rows <= problem.M else "fused"}]

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """awq_gemm, or awq_dequantize and one torch.mm."""
        codes, scales, zeros = (packed.tensors[name] for name in ("codes", "scales", "zeros"))
        awq = operators()

        def multiply() -> Tensor:
            product: Tensor = awq.awq_gemm(activations, codes, scales, zeros, self.split_k)
            return product

        def dequantize_and_multiply() -> None:
            torch.mm(activations, awq.awq_dequantize(codes, scales, zeros, 0, 0, 0), out=output)

        return dequantize_and_multiply if choice["path"] == "dequantise" else multiply
