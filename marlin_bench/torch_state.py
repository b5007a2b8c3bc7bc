"""torch's process-wide settings, which every backend of a worker shares: read, compared, put back.

A library that turns TF32 on, changes the default dtype or leaves another stream current would change what its
neighbours measure. So they are read before a backend is called and put back after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_MATMUL: Any = torch.backends.cuda.matmul
_CUDNN: Any = torch.backends.cudnn


@dataclass(frozen=True)
class _Setting:
    name: str
    read: Callable[[], object]
    write: Callable[[Any], object]


def _attribute(owner: Any, attribute: str, name: str) -> _Setting:
    return _Setting(name, lambda: getattr(owner, attribute), lambda value: setattr(owner, attribute, value))


def _read_stream() -> object:
    """The current stream; the default one where CUDA is not in use, which reading must not start."""
    return torch.cuda.current_stream() if torch.cuda.is_initialized() else None


def _write_stream(stream: torch.cuda.Stream | None) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.set_stream(stream if stream is not None else torch.cuda.default_stream())


def _autocast(device: str) -> _Setting:
    return _Setting(
        f"autocast on {device}",
        lambda: torch.is_autocast_enabled(device),
        lambda value: torch.set_autocast_enabled(device, value),
    )


def _write_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device == torch.device("cpu") else device)


_SETTINGS = (
    _Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("default device", torch.get_default_device, _write_default_device),
    _Setting("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    _Setting("threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("deterministic", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    _Setting("float32 precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _attribute(_MATMUL, "allow_tf32", "TF32"),
    _attribute(_MATMUL, "allow_fp16_reduced_precision_reduction", "FP16 reduction"),
    _attribute(_MATMUL, "allow_bf16_reduced_precision_reduction", "BF16 reduction"),
    # since torch 2.7: FP16 sums inside cuBLAS, which would make the FP16 baseline faster and less exact
    *(
        (_attribute(_MATMUL, "allow_fp16_accumulation", "FP16 accumulation"),)
        if hasattr(_MATMUL, "allow_fp16_accumulation")
        else ()
    ),
    # through torch's private pair, of which one takes what the other gives
    _Setting("BLAS library", torch._C._get_blas_preferred_backend, torch._C._set_blas_preferred_backend),
    _attribute(_CUDNN, "enabled", "cuDNN"),
    _attribute(_CUDNN, "allow_tf32", "cuDNN TF32"),
    _attribute(_CUDNN, "benchmark", "cuDNN benchmark"),
    _autocast("cuda"),
    _autocast("cpu"),
    _Setting("stream", _read_stream, _write_stream),
    # torch 2.9 has a second interface to the same switches; written last, so that the first one can be read again
    *((_attribute(_MATMUL, "fp32_precision", "FP32 precision"),) if hasattr(_MATMUL, "fp32_precision") else ()),
)
_UNREADABLE = "unreadable"


def _read(setting: _Setting) -> object:
    try:
        return setting.read()
    except RuntimeError:  # torch refuses to tell when its old and its new interface were both written to
        return _UNREADABLE


def read_state() -> dict[str, object]:
    """The settings as they are, by name."""
    return {setting.name: _read(setting) for setting in _SETTINGS}


def restore_state(state: dict[str, object]) -> None:
    """Put every setting back that could be read."""
    for setting in _SETTINGS:
        if state[setting.name] != _UNREADABLE:
            setting.write(state[setting.name])


@contextmanager
def watched(changed: set[str]) -> Iterator[None]:
    """Whatever is changed inside is put back, and its name added to `changed`."""
    before = read_state()
    try:
        yield
    finally:
        after = read_state()
        if before["stream"] is None and after["stream"] is not None:  # CUDA was started inside: that is no change
            before["stream"] = torch.cuda.default_stream()
        found = {name for name, value in before.items() if after[name] != value}
        if found:
            changed |= found
            restore_state(before)


class SettingsWatch:
    """The context that a backend's code runs in: what it changes for the whole process is put back and remembered."""

    def __init__(self) -> None:
        self.changed: dict[str, set[str]] = {}  # by backend

    def __call__(self, backend: str) -> AbstractContextManager[None]:
        """Around a call into `backend`."""
        return watched(self.changed.setdefault(backend, set()))
