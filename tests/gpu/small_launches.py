"""Small launches of the kernels that have no sanitizer script of their own, for compute-sanitizer:

compute-sanitizer --tool memcheck python tests/gpu/small_launches.py
"""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from marlin_bench.backends import load_backend
from marlin_bench.check import check_output, fault, poison
from marlin_bench.clock_probe import ClockProbe
from marlin_bench.cuda_source import load_module
from marlin_bench.cuda_stream import on_torch_stream
from marlin_bench.operands import LayerKey, WeightSource, expected_product, make_activations, make_weights


def naive():
    """The naive kernel on ragged rows."""
    backend = load_backend("naive_w4a16")
    weights = make_weights(LayerKey(256, 192, 64, 0), 0, "cuda")
    for M in (1, 9, 64):
        activations = make_activations(0, M, 256, 0, torch.float16, "cuda")
        output = torch.empty(M, 192, dtype=torch.float16, device="cuda")
        poison(output)
        backend.launch(backend.pack(weights), activations, output, {})()
        expected = expected_product(activations, WeightSource(weights))
        assert fault(check_output(output, expected, backend.tolerance, "before")) is None


def probe():
    """Marks, a spin and an empty launch."""
    clock = ClockProbe()
    clock.mark(0)
    clock.spin(10_000)
    clock.empty()
    clock.mark(1)
    torch.cuda.synchronize()


def ceilings():
    """The streaming read over a buffer that its stride does not divide."""
    data = torch.ones(100_003 * 2, dtype=torch.int64, device="cuda")
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")
    kernel = load_module("ceilings").get_function("read_stream")
    with on_torch_stream():
        arguments = (np.uint64(data.data_ptr()), np.uint64(100_003), np.int32(2), np.uint64(sink.data_ptr()))
        kernel((8,), (512,), arguments)
    torch.cuda.synchronize()


if __name__ == "__main__":
    naive()
    probe()
    ceilings()
    print("launched naive_w4a16, clock_probe and ceilings")
