"""kernels/*.cu → cubin → CuPy RawModule, the same way with and without a GPU.

Everything is compiled by NVRTC (through CuPy's low-level binding) for a named architecture, so that CI builds exactly
what a GPU machine runs. The digest of a source covers every header it includes: CuPy's own cache ignores headers.
A build fails on register spills and on any ptxas C75xx line (a serialised wgmma pipeline).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from marlin_bench.cache import cache_folder

if TYPE_CHECKING:
    import cupy

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_SERIALISED = re.compile(r"^.*\bC75\d\d\b.*$", re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<arch>[^']+)'")
_SPILL = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(?P<bytes>\d+) bytes smem")
_COMPILE_OPTIONS = ("-std=c++17", "--ptxas-options=-v", "-default-device")


class BuildError(RuntimeError):
    """A kernel that does not compile, spills, or serialises its tensor-core pipeline."""


@dataclass(frozen=True)
class Resources:
    """What ptxas reports for one kernel entry."""

    entry: str
    registers: int
    static_shared_bytes: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one architecture with its build log and the resources of each entry."""

    image: bytes
    arch: str
    log: str
    resources: tuple[Resources, ...]


def kernels_folder() -> Path:
    """Where the CUDA sources are: inside an installed wheel, else beside the package in a checkout."""
    installed = Path(__file__).parent / "kernels"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "kernels"


def include_closure(source: Path) -> list[Path]:
    """`source` and every header it includes with quotes, directly or not, each once, in order of first inclusion."""
    seen: list[Path] = []

    def visit(path: Path) -> None:
        if path in seen:
            return
        seen.append(path)
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            included = (path.parent / name).resolve()
            if not included.is_file():
                raise BuildError(f"{path.name} includes '{name}', which is not in {path.parent}")
            visit(included)

    visit(source.resolve())
    return seen


@cache
def source_digest(name: str) -> str:
    """Digest (16 hex digits) of kernels/<name>.cu and of every header it includes."""
    hasher = hashlib.sha256()
    for path in include_closure(kernels_folder() / f"{name}.cu"):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()[:16]


def _toolkit_include_folders() -> list[str]:
    """Folders that hold cuda_fp16.h: CUDA_PATH, the nvidia wheels, or the toolkit that nvcc belongs to."""
    candidates: list[Path] = []
    if "CUDA_PATH" in os.environ:
        candidates.append(Path(os.environ["CUDA_PATH"]) / "include")
    spec = find_spec("nvidia")
    for root in spec.submodule_search_locations or [] if spec else []:
        candidates += [Path(root) / "cu13" / "include", Path(root) / "cuda_runtime" / "include"]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(Path(nvcc).resolve().parent.parent / "include")
    candidates.append(Path("/usr/local/cuda/include"))
    return [str(folder) for folder in candidates if (folder / "cuda_fp16.h").is_file()][:1]


def _define_options(defines: Mapping[str, int | str]) -> tuple[str, ...]:
    return tuple(f"-D{name}={value}" for name, value in sorted(defines.items()))


def _parse_resources(log: str) -> tuple[Resources, ...]:
    found: list[Resources] = []
    entry, stack, spill = None, 0, 0
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry, stack, spill = match["name"], 0, 0
        elif match := _SPILL.search(line):
            stack, spill = int(match["stack"]), int(match["stores"]) + int(match["loads"])
        elif (match := _USED.search(line)) and entry is not None:
            shared = _SHARED.search(line)
            found.append(Resources(entry, int(match["registers"]), int(shared["bytes"]) if shared else 0, stack, spill))
            entry = None
    return tuple(found)


def compile_cubin(
    name: str, arch: str, defines: Mapping[str, int | str] | None = None, *, allow_spills: bool = False
) -> Cubin:
    """Compile kernels/<name>.cu for `arch` ("sm_80", "sm_90a" …) with NVRTC; needs no GPU.

    Raises BuildError with the compiler's log, or naming the entry that spills or the C75xx line.
    """
    from cupy.cuda import nvrtc

    path = kernels_folder() / f"{name}.cu"
    include_closure(path)
    options = [f"-arch={arch}", f"-I{path.parent}", *_COMPILE_OPTIONS, *_define_options(defines or {})]
    options += [f"-I{folder}" for folder in _toolkit_include_folders()]
    program = nvrtc.createProgram(path.read_text(encoding="utf-8"), path.name, (), ())
    try:
        try:
            nvrtc.compileProgram(program, tuple(options))
        except nvrtc.NVRTCError as error:
            raise BuildError(f"{path.name} does not compile for {arch}:\n{nvrtc.getProgramLog(program)}") from error
        log = nvrtc.getProgramLog(program)
        # CuPy takes the ELF image for a C string and drops its last byte: without it the file is cut short.
        image = nvrtc.getCUBIN(program) + b"\0"
    finally:
        nvrtc.destroyProgram(program)
    if serialised := _SERIALISED.search(log):
        raise BuildError(f"{path.name} ({arch}, {dict(defines or {})}): {serialised[0].strip()}")
    resources = _parse_resources(log)
    for entry in resources:
        if entry.spill_bytes and not allow_spills:
            raise BuildError(f"{path.name} ({arch}): '{entry.entry}' spills {entry.spill_bytes} bytes of registers")
    return Cubin(image, arch, log, resources)


def device_arch() -> str:
    """NVRTC's name for the current CUDA device; Hopper and later take the `a` form, which holds wgmma."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}" + ("a" if major >= 9 else "")


def _cache_path(name: str, arch: str, defines: tuple[tuple[str, int | str], ...]) -> Path:
    from cupy.cuda import nvrtc

    key = "|".join((source_digest(name), arch, repr(defines), repr(nvrtc.getVersion()), repr(_COMPILE_OPTIONS)))
    return cache_folder("cubin") / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.cubin"


def _write_to_cache(path: Path, image: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as handle:
        handle.write(image)
    os.replace(handle.name, path)


def _cached_cubin(name: str, arch: str, defines: tuple[tuple[str, int | str], ...]) -> Path:
    path = _cache_path(name, arch, defines)
    if not path.is_file():
        _write_to_cache(path, compile_cubin(name, arch, dict(defines)).image)
    return path


@cache
def _load(name: str, arch: str, defines: tuple[tuple[str, int | str], ...]) -> cupy.RawModule:
    import cupy

    return cupy.RawModule(path=str(_cached_cubin(name, arch, defines)))


def compile_to_cache(name: str, defines: Mapping[str, int | str] | None = None, arch: str | None = None) -> Path:
    """Build kernels/<name>.cu for `arch` (the current device's by default) into the disk cache, where it is not yet.

    Safe to call from several threads: NVRTC compiles outside the interpreter lock.
    """
    return _cached_cubin(name, arch or device_arch(), tuple(sorted((defines or {}).items())))


def build_to_cache(name: str, arch: str, defines: Mapping[str, int | str] | None = None) -> Cubin:
    """`compile_cubin`, whatever the disk cache holds, and keeps the machine code there; raises what it raises."""
    cubin = compile_cubin(name, arch, defines)
    _write_to_cache(_cache_path(name, arch, tuple(sorted((defines or {}).items()))), cubin.image)
    return cubin


def load_module(name: str, defines: Mapping[str, int | str] | None = None) -> cupy.RawModule:
    """kernels/<name>.cu as a RawModule for the current device, built once and cached on disk by content."""
    return _load(name, device_arch(), tuple(sorted((defines or {}).items())))
