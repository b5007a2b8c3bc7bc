"""The registry of backends: the built-in ones and those other packages add by entry point.

A built-in backend is one module in this folder, named like the backend (or a family of them), listed in `_MODULES`.
Another package adds one through the entry point group `marlin_bench.backends`, whose value names a `Backend` class.
Modules are imported on first use, so that listing names never imports torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from marlin_bench.backends.protocol import Backend

ENTRY_POINT_GROUP = "marlin_bench.backends"

_BUILT_IN: dict[str, str] = {
    # backend name -> "module:Class" inside this package; the order is the order of tables
    "cublas_fp16": "cublas:CublasFp16",
    "cublas_bf16": "cublas:CublasBf16",
    "cublas_fp8": "cublas_eight_bit:CublasFp8",
    "cublas_fp8_tensor": "cublas_eight_bit:CublasFp8Tensor",
    "cublas_int8": "cublas_eight_bit:CublasInt8",
    "dequantize_cublas": "cublas:DequantizeCublas",
    "tinygemm": "tinygemm:Tinygemm",
    "triton_w4a16": "triton_w4a16:TritonW4A16",
    "naive_w4a16": "naive_w4a16:NaiveW4A16",
    "marlin": "marlin:Marlin",
    "marlin_bf16": "marlin:MarlinBf16",
    "marlin_hopper": "marlin_hopper:MarlinHopper",
    "marlin_hopper_bf16": "marlin_hopper:MarlinHopperBf16",
    "marlin_sparse": "marlin_sparse:MarlinSparse",
    "marlin_sparse_bf16": "marlin_sparse:MarlinSparseBf16",
    "cusparselt_fp16": "cusparselt:CusparseltFp16",
    "humming": "peers.humming:Humming",
    "quack": "peers.quack:Quack",
    "vllm_marlin": "peers.vllm:VllmMarlin",
    "vllm_machete": "peers.vllm:VllmMachete",
    "mslk": "peers.mslk:Mslk",
    "turbomind": "peers.turbomind:Turbomind",
    "gemlite": "peers.gemlite:Gemlite",
    "conch": "peers.conch:Conch",
    "torchao": "peers.torchao:TorchaoInt4",
    "bitsandbytes_nf4": "peers.bitsandbytes:BitsandbytesNf4",
    "bitsandbytes_fp4": "peers.bitsandbytes:BitsandbytesFp4",
    "gptq_exllama": "peers.vllm:GptqExllama",
    "awq": "peers.vllm:Awq",
    "exllamav2": "peers.exllamav2:Exllamav2",
    "w4a8_fp8": "peers.w4a8:W4A8Fp8",
    "w4a8_fp8_mslk": "peers.w4a8:W4A8Fp8Mslk",
    "w4a8_int8": "peers.w4a8:W4A8Int8",
    "dense_fp32": "cpu:DenseFp32",
    "dense_bf16": "cpu:DenseBf16",
    "tinygemm_cpu": "cpu:TinygemmCpu",
}


class UnknownBackendError(ValueError):
    """A backend name that nothing registers."""


_registered: dict[str, type[Backend]] = {}


def register(backend_class: type[Backend]) -> type[Backend]:
    """Add a backend to this process, for code that has no package to declare an entry point in (use as decorator).

    Worker processes are their own: they must register it too.
    """
    _registered[backend_class.name] = backend_class
    load_backend.cache_clear()
    return backend_class


def backend_names() -> list[str]:
    """Every registered name, built-in ones first."""
    declared = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return [*_BUILT_IN, *sorted((declared | set(_registered)) - set(_BUILT_IN))]


TWIN_SUFFIX = "@twin"
"""`marlin@twin` is marlin once more under another name: an A/A pair shows what measuring cannot tell apart."""


@cache
def load_backend(name: str) -> Backend:
    """The backend called `name`; UnknownBackendError names the near ones when there is none."""
    if not name.endswith(TWIN_SUFFIX):
        return _load(name)
    original = type(_load(name.removesuffix(TWIN_SUFFIX)))
    twin_class: type[Backend] = type(original.__name__, (original,), {"name": name, "is_baseline": False})
    return twin_class()


def _load_point(point: EntryPoint) -> Backend:
    """What another package declares; a stand-in with the reason where that cannot be imported or is no backend."""
    from marlin_bench.backends.protocol import Backend
    from marlin_bench.backends.unloadable import unloadable

    try:
        found = point.load()
        if not (isinstance(found, type) and issubclass(found, Backend)):
            raise ImportError(f"{point.value} is no class derived from marlin_bench.backends.protocol.Backend")
        if found.name != point.name:
            raise ImportError(f"{point.value} calls itself {found.name}")
    except (ImportError, OSError, AttributeError) as error:
        return unloadable(point.name, point.dist.name if point.dist else None, error)()
    return found()


def _load(name: str) -> Backend:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        loaded: type[Backend] = getattr(import_module(f"marlin_bench.backends.{module}"), attribute)
        return loaded()
    if name in _registered:
        return _registered[name]()
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return _load_point(point)
    from difflib import get_close_matches

    near = get_close_matches(name, backend_names(), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "see `marlin-bench list backends`"
    raise UnknownBackendError(f"unknown backend '{name}': {hint}")
