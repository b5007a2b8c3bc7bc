"""CuPy launches on torch's current stream, so that both are ordered, timed and captured together."""

from __future__ import annotations

from contextlib import AbstractContextManager


def on_torch_stream() -> AbstractContextManager[object]:
    """A context in which CuPy launches on torch's current stream."""
    import cupy
    import torch

    stream = torch.cuda.current_stream()
    wrap = getattr(cupy.cuda.Stream, "from_external", None)  # CuPy 14; the class it replaces is older
    wrapped: AbstractContextManager[object] = (
        cupy.cuda.ExternalStream(stream.cuda_stream) if wrap is None else wrap(stream)
    )
    return wrapped
