"""QuACK's W4A16 kernel (quack-kernels), written in NVIDIA's CuTe DSL."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from marlin_bench.backends import carried
from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Dtype, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

PREBUILT = "quack/kernels.tar.xz"
_RUNTIME = "quack/libcute_dsl_runtime.so.xz"
_PACKAGE = Package("quack-kernels", "quack", at_least="0.6.5", carried=PREBUILT)
_WORKED_TILES = 112  # of 128: a grid this large fills a Hopper GPU
_SWIZZLE = 8


def prebuilt_tile(M: int, N: int, K: int) -> tuple[int, int, int]:
    """(rows of W, rows of A, splits of K) that QuACK's own rule gives on sm_90: which prebuilt kernel to take.

    The largest tile whose grid fills the GPU with at most half a tile of padding; splits keep 24 K-tiles of 64 each.
    """
    strips, k_tiles = N // 128, K // 64
    if M > 256:
        return 128, 256, 1
    for columns in (256, 128, 64, 32, 16):
        if columns >= 2 * M and columns > 16:
            continue
        tiles = strips * -(-M // columns)
        for splits in (1, 2, 4):
            if splits > 1 and (columns > 128 or k_tiles // splits < 24):
                break
            if tiles * splits >= _WORKED_TILES:
                return 128, columns, splits
    columns = next((width for width in (16, 32, 64, 128) if width >= M), 192)
    starved = 2 * strips * -(-M // columns) < 128 and k_tiles >= 32
    return 64, columns, 2 if starved else 1


def _prebuilt_file(M: int, N: int, K: int) -> Path | None:
    """The carried kernel for a product, if there is one."""
    name = "_".join(map(str, prebuilt_tile(M, N, K)))
    return next(carried.unpacked(PREBUILT).rglob(f"{K}x{N}_{name}.so"), None)


@cache
def _runtime() -> Any:
    """tvm_ffi, with the libraries that prebuilt kernels are linked against found by their names."""
    import tvm_ffi

    ctypes.CDLL(str(Path(tvm_ffi.__file__).parent / "lib" / "libtvm_ffi.so"))
    ctypes.CDLL(str(carried.unpacked(_RUNTIME)))
    return tvm_ffi


@cache
def _prebuilt_kernel(file: Path) -> Any:
    """The function of a carried kernel; its library stays loaded with it."""
    library = ctypes.CDLL(str(file))
    address = ctypes.cast(library["__tvm_ffi_func"], ctypes.c_void_p).value
    return _runtime().Function.__from_extern_c__(address, keep_alive_object=library)


class Quack(Peer):
    """QuACK (Dao-AILab/quack), Apache-2.0: gemm_w4a16 with wformat="int4", wgmma with weights from registers.

    Weights: 4 + 32/128 bits (BF16 scales, stored once for each 64 inputs). BF16 activations only. Meant for Hopper and
    newer at all M. Kernels are compiled for each tile by the CuTe DSL (seconds to a minute, cached on disk). Each
    release asks for one release of that DSL and no other (vllm-project/vllm#51566): it may not install beside others.
    """

    name = "quack"
    summary = "QuACK gemm_w4a16 (CuTe DSL, BF16)"
    project = "https://github.com/Dao-AILab/quack"
    license = "Apache-2.0"
    meant_for = "Hopper, all M"
    extra = "quack"
    packages = (_PACKAGE,)
    activation_dtype: ClassVar[Dtype] = "bf16"
    output_dtype: ClassVar[Dtype] = "bf16"

    def __init__(self) -> None:
        self._partial_sums: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def load(self) -> None:
        """The package, or what its prebuilt kernels need."""
        if _PACKAGE.is_installed:
            import quack.gemm_w4  # noqa: F401
        else:
            _runtime()

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Hopper, groups of 128, N in multiples of 128; carried kernels exist for some shapes only."""
        if device.capability is None or device.capability[0] != 9:
            return f"{device.name} is not a Hopper GPU (sm_90)"
        sentence = packing.unsupported(problem, multiple_n=128)
        if sentence is None and not _PACKAGE.is_installed:
            M, N, K = problem.M, problem.N, problem.K
            if _prebuilt_file(M, N, K) is None:
                return f"no prebuilt kernel for M {M}, N {N}, K {K}: the package itself compiles one"
        return sentence

    def format(self, problem: Problem) -> Format:
        """4-bit codes; that each scale is stored twice is its own overhead."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """The blob of codes and the strip of scales, by QuACK itself where it is installed."""
        codes = packing.symmetric(weights).codes
        reference = packing.held_in_bf16(weights)
        if _PACKAGE.is_installed:
            from quack.gemm_w4 import prepare_w4_weight

            scales = weights.scales.bfloat16().t().contiguous()
            blob, strip = prepare_w4_weight(packing.bytes_along_k(codes), scales, wformat="int4")
        else:
            blob, strip = packing.quack_blob(codes), packing.quack_scales(weights.scales, weights.K)
        return Packed({"codes": blob, "scales": strip}, reference=reference)

    def candidates(self, problem: Problem, device: DeviceTraits, effort: str) -> Sequence[Choice]:
        """QuACK's own rule."""
        if _PACKAGE.is_installed:
            from quack.operand_transform.host import pick_w4_cfg

            tile = pick_w4_cfg(problem.M, problem.N, problem.K // 64)
        else:
            tile = prebuilt_tile(problem.M, problem.N, problem.K)
        return [{"tile": f"{tile[0]}x{tile[1]}", "split_k": str(tile[2])}]

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """One product into `output`."""
        rows, columns = map(int, choice["tile"].split("x"))
        splits = int(choice["split_k"])
        blob, strip = packed.tensors["codes"], packed.tensors["scales"]
        if not _PACKAGE.is_installed:
            return self._prebuilt_launch(blob, strip, activations, output, (rows, columns, splits))
        from quack.gemm_w4 import gemm_w4a16

        def multiply() -> None:
            gemm_w4a16(
                activations, blob, strip, out=output, tile_m=rows, tile_n=columns, split_k=splits, wformat="int4"
            )

        return multiply

    def _prebuilt_launch(
        self, blob: Tensor, strip: Tensor, activations: Tensor, output: Tensor, tile: tuple[int, int, int]
    ) -> Launch:
        (M, K), N = activations.shape, output.shape[1]
        file = _prebuilt_file(M, N, K)
        if file is None:
            raise ValueError(f"no prebuilt kernel for M {M}, N {N}, K {K}")
        kernel = _prebuilt_kernel(file)
        rows, columns, splits = tile
        k_tiles, strips, height = K // 64, N // rows, rows // 64
        # the views that QuACK hands over: inside a strip, its height, K-tiles, strips, batch
        codes = blob.view(strips, height, k_tiles, 8, 256).permute(4, 3, 1, 0, 2).unsqueeze(-1)
        scales = strip.view(torch.uint8).view(strips, height, k_tiles, 128).permute(3, 1, 0, 2).unsqueeze(-1)
        epilogue: tuple[object, ...] = (1.0, None, None)
        if splits > 1:
            epilogue = (1.0, *self._sums(strips, -(-M // columns), rows * columns, activations.device))
        sm_count = torch.cuda.get_device_properties(activations.device).multi_processor_count
        schedule = (sm_count, None, _SWIZZLE, None, None, None)

        def multiply() -> None:
            kernel((codes, scales), activations, output, None, epilogue, schedule, None, None, None)

        return multiply

    def _sums(self, strips: int, tiles: int, area: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Turnstiles, which the kernel leaves at nought, and partial sums of a split product; shared like QuACK's."""
        key = (strips, tiles, area, device)
        if key not in self._partial_sums:
            turnstiles = torch.zeros((1, strips, tiles), dtype=torch.int32, device=device)
            sums = torch.empty((1, strips, tiles, area), dtype=torch.float32, device=device)
            self._partial_sums[key] = turnstiles.permute(1, 2, 0), sums.permute(3, 1, 2, 0)
        return self._partial_sums[key]
