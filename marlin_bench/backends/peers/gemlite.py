"""GemLite: Triton kernels for low-bit products (gemlite)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marlin_bench.backends.peer import Package, Peer
from marlin_bench.backends.peers import packing
from marlin_bench.backends.protocol import Choice, DeviceTraits, Effort, Launch, Packed
from marlin_bench.cache import cache_folder
from marlin_bench.problem import Format, Problem, int4
from marlin_bench.quantize import SYMMETRIC_ZERO, QuantizedWeights

_TABLE = "h100.json"
_TYPE_ID = 104  # FP16 activations, 4-bit weights, in gemlite's tables
_CODES_A_WORD = 8

Key = tuple[int, int, int]
"""(M bucket, N, K) of gemlite's tables."""


@cache
def author_tables() -> dict[str, dict[Key, dict[str, Any]]]:
    """kernel → key → configuration: what gemlite's authors tuned on an H100 for FP16, groups of 128."""
    from gemlite import core

    file = Path(core.__file__).parent / "configs" / _TABLE
    tables: dict[str, dict[Key, dict[str, Any]]] = {}
    for kernel, entries in json.loads(file.read_text()).items():
        tables[kernel] = {}
        for text, config in entries.items():
            bucket, N, K, *weights = map(int, text.strip("()").split(","))
            if weights == [packing.GROUP_SIZE, _CODES_A_WORD, _TYPE_ID]:
                tables[kernel][bucket, N, K] = config
    return tables


def nearest(entries: dict[Key, dict[str, Any]], bucket: int, N: int, K: int) -> tuple[Key, dict[str, Any]] | None:
    """The tuned entry whose layer, then whose M, is nearest in ratio, of those whose tiles divide the layer.

    Others read beyond it: gemlite fits tiles to a layer in its own search, not in what comes from a table.
    """

    def distance(key: Key) -> tuple[float, float]:
        layer = abs(math.log(key[1] / N)) + abs(math.log(key[2] / K))
        return layer, abs(math.log(key[0] / bucket))

    fitting = [
        key
        for key, config in entries.items()
        if N % config["BLOCK_SIZE_N"] == 0 and K % (config["BLOCK_SIZE_K"] * config.get("SPLIT_K", 1)) == 0
    ]
    if not fitting:
        return None
    key = min(fitting, key=distance)
    return key, entries[key]


class Gemlite(Peer):
    """GemLite (dropbox/gemlite), Apache-2.0: Triton, another kernel for M = 1, small and large M.

    Weights: 4 + 32/128 bits (an FP16 scale and an FP16 zero point a group). Meant for M up to 64. Its autotuner
    compiles some 20 configurations for each layer and bucket of M, about a minute each. So "quick" takes what its
    authors tuned on an H100 for the nearest layer (the record names it), and "full" lets the autotuner run, within the
    suite's `timeout_seconds` (dropbox/gemlite#34 tells of both modes).
    """

    name = "gemlite"
    summary = "GemLite A16W4 (Triton, FP16)"
    project = "https://github.com/dropbox/gemlite"
    license = "Apache-2.0"
    meant_for = "M up to 64"
    extra = "gemlite"
    packages = (Package("gemlite", "gemlite", at_least="0.6.0"),)
    # M = 1 adds K / 32 partial sums in FP16 by atomics: on an H200 0.002 at K 4096, 0.003 at K 8192, growing with √K
    tolerance = 0.015

    def load(self) -> None:
        """The package; Triton comes with it."""
        import gemlite  # noqa: F401

    def unsupported(self, problem: Problem, device: DeviceTraits) -> str | None:
        """Groups of 128, N in multiples of 32."""
        return packing.unsupported(problem, multiple_n=32)

    def format(self, problem: Problem) -> Format:
        """4-bit codes; that its zero points have 16 bits is its own overhead."""
        return int4(problem.group_size, zero_points=True)

    def pack(self, weights: QuantizedWeights) -> Packed:
        """Its own packing of codes [N, K] with scales and zero points a group."""
        from gemlite.helper import A16Wn

        scales = packing.symmetric(weights).scales.t().contiguous().view(-1, 1)
        zeros = torch.full_like(scales, SYMMETRIC_ZERO)
        layer = A16Wn(device=str(weights.codes.device), dtype=torch.float16).from_weights(
            weights.codes.t().contiguous(), scales, zeros, 4, packing.GROUP_SIZE
        )
        codes, group_scales, group_zeros = (tensor.detach() for tensor in layer.get_tensor_args()[:3])
        return Packed(
            {"codes": codes, "scales": group_scales, "zeros": group_zeros}, extra={"meta": layer.get_meta_args()}
        )

    def tune(
        self, packed: Sequence[Packed], activations: Sequence[Tensor], outputs: Sequence[Tensor], effort: Effort
    ) -> Choice:
        """quick: the authors' configuration of the nearest layer; full, or without one: what gemlite's autotuner finds.

        Its findings are kept as gemlite keeps them, in a file of configurations, from which the next process starts.
        """
        from gemlite import core
        from gemlite.triton_kernels.utils import get_closest_m

        M, N, K = _sizes(activations[0], outputs[0])
        kernel = core.get_matmul_type(M, 4)
        found = nearest(author_tables()[kernel], get_closest_m(M), N, K) if effort == "quick" else None
        if found is not None:
            (bucket, nearest_n, nearest_k), config = found
            source = f"H100 table, M {bucket} N {nearest_n} K {nearest_k}"
            return {"kernel": kernel, "config": json.dumps(config), "source": source}
        name = f"{torch.cuda.get_device_name()}-{self.version()}.json".replace(" ", "-")
        file = cache_folder("gemlite") / name
        core.GemLiteLinear.load_config(str(file), print_error=False)
        key = _signature(M, N, K)
        if key not in core.GEMLITE_TRITON_CONFIG_CACHE.get(kernel, {}):
            self.launch(packed[0], activations[0], outputs[0], {"kernel": kernel})()  # searches at its first call
            file.parent.mkdir(parents=True, exist_ok=True)
            core.GemLiteLinear.cache_config(str(file))
            core.GemLiteLinear.load_config(str(file))
        config = core.GEMLITE_TRITON_CONFIG_CACHE[kernel][key]
        return {"kernel": kernel, "config": json.dumps(config), "source": "autotuned"}

    def launch(self, packed: Packed, activations: Tensor, output: Tensor, choice: Choice) -> Launch:
        """forward_functional with the configuration of the choice; it makes its own result, its first call compiles."""
        from gemlite import core

        if "config" in choice:
            known = core.GEMLITE_TRITON_CONFIG_CACHE.setdefault(choice["kernel"], {})
            known[_signature(*_sizes(activations, output))] = json.loads(choice["config"])
        tensors = [packed.tensors[name] for name in ("codes", "scales", "zeros")]
        meta = packed.extra["meta"]
        forward_functional = core.forward_functional

        def multiply() -> Tensor:
            product: Tensor = forward_functional(activations, None, tensors, meta)
            return product

        return multiply


def _sizes(activations: Tensor, output: Tensor) -> tuple[int, int, int]:
    return activations.shape[0], output.shape[1], activations.shape[1]


def _signature(M: int, N: int, K: int) -> str:
    """What gemlite looks a configuration up by."""
    from gemlite.triton_kernels.utils import get_closest_m

    return str((get_closest_m(M), N, K, packing.GROUP_SIZE, _CODES_A_WORD, _TYPE_ID))
