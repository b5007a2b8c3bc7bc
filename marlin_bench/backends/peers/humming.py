"""humming: just-in-time compiled mixed-precision GEMM (humming-kernels)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marlin_bench.backends import carried
from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Effort, Launch, Packed
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import QuantizedWeights

PREBUILT = "humming/prebuilt.tar.xz"
_LOCKS = 65536


@cache
def load_humming() -> None:
    """Import humming without its builds in the background, which would run beside what is timed."""
    os.environ.setdefault("HUMMING_DISABLE_PARALLEL_BUILD", "1")
    import humming  # noqa: F401

    if carried.path(PREBUILT) is not None:
        _use_prebuilt(carried.unpacked(PREBUILT))


def _use_prebuilt(folder: Path) -> None:
    """Let humming's compilers take a cubin of the carried folder where there is one of the very same source."""
    from humming.jit import compiler as jit

    cubins = {file.stem: str(file) for file in folder.rglob("*.cubin")}

    def wrap(compiler: Any) -> None:
        build = compiler.compile

        def compile_or_take(
            code: str, sm_version: str, kernel_expr: str, disable_fast_math: bool = False, **more: Any
        ) -> str:
            source = f"{sm_version}$${kernel_expr}$${disable_fast_math}$${code}"
            taken = cubins.get(hashlib.sha256(source.encode()).hexdigest()[:32])
            return taken or build(code, sm_version, kernel_expr, disable_fast_math, **more)

        compiler.compile = staticmethod(compile_or_take)

    for compiler in (jit.NVRTCCompiler, jit.NVCCCompiler):
        wrap(compiler)


class Humming(Peer):
    """humming (vllm-project/humming), Apache-2.0: compiled for each layer, mma.sync at small M, wgmma with TMA above.

    Weights: 4 + 16/128 bits. Meant for all M; vLLM takes it as a quantisation backend (vllm-project/vllm#34556), which
    met illegal memory accesses in mixtures of experts on an H20 (vllm-project/vllm#47281). Each configuration compiles
    once (about 2 s, NVRTC or nvcc) into its cache, before timing; records say how long. Tiles split over K meet by
    atomic additions in the output's precision: 0.0003 to 0.0005 of mean error in FP16. In BF16 that makes 0.002 to
    0.004, over the limit of this suite, so that it is measured in FP16 alone.
    """

    name = "humming"
    summary = "humming-kernels, compiled just in time (FP16)"
    project = "https://github.com/vllm-project/humming"
    license = "Apache-2.0"
    meant_for = "all M, best on Hopper"
    extra = "humming"
    packages = (Package("humming-kernels", "humming", at_least="0.1.19"),)

    def load(self) -> None:
        """humming and, where the folder of carried libraries has them, its prebuilt kernels."""
        load_humming()

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """sm_80, groups of 128, N in multiples of 64."""
        if device.capability is not None and device.capability < (8, 0):
            return f"compute capability {'.'.join(map(str, device.capability))} is below 8.0"
        return packing.unsupported(problem, multiple_n=64)

    def format(self, problem: Problem) -> Format:
        """4-bit codes with 16-bit scales."""
        return int4(problem.group_size)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Words along K for each output, then humming's own transformation."""
        from humming import dtypes
        from humming.schema import HummingInputSchema, HummingWeightSchema
        from humming.transform import prepare_and_transform_humming_tensors

        words = packing.words_along_k(packing.symmetric(weights).codes).t().contiguous()
        scales = weights.scales.t().contiguous()
        config, tensors = prepare_and_transform_humming_tensors(
            {"weight": words, "weight_scale": scales},
            shape_n=weights.N,
            shape_k=weights.K,
            weight_schema=HummingWeightSchema(b_dtype="int4", weight_scale_group_size=packing.GROUP_SIZE),
            input_schema=HummingInputSchema(a_dtype=dtypes.float16),
            torch_dtype=torch.float16,
        )
        locks = torch.zeros(_LOCKS, dtype=torch.int32, device=words.device)
        return Packed(
            {"codes": tensors["weight"], "scales": tensors["weight_scale"]}, extra={"config": config, "locks": locks}
        )

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """humming's own heuristic for this M."""
        from humming.tune import get_heuristics_config

        M = activations[0].shape[0]
        for above, most, config in get_heuristics_config(packed[0].extra["config"]):
            if above < M <= most:
                return {"config": json.dumps(config)}
        raise ValueError(f"humming has no configuration for M {M}")

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """humming_forward into `output`; the first call compiles."""
        from humming.forward import humming_forward

        config, locks = packed.extra["config"], packed.extra["locks"]
        codes, scales = packed.tensors["codes"], packed.tensors["scales"]
        tuning = choice["config"]

        def multiply() -> None:
            humming_forward(
                config,
                inputs=activations,
                weight=codes,
                weight_scale=scales,
                outputs=output,
                locks=locks,
                tuning_config=tuning,
            )

        return multiply
