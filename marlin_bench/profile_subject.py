"""The program that ncu watches: one product, prepared and warmed up outside the profiled range, launched once inside.

`python -m marlin_bench.profile_subject SUITE CELL BACKEND`
"""

from __future__ import annotations

import sys

import torch

from marlin_bench.backends import load_backend
from marlin_bench.entrant import DTYPES, rotation_sets
from marlin_bench.operands import LayerKey, make_activations, make_weights
from marlin_bench.plan import plan
from marlin_bench.suite import load_suite


def main(suite_name: str, cell_id: str, backend_name: str) -> None:
    """Launch `backend_name` once on the cell's operands between cudaProfilerStart and cudaProfilerStop."""
    suite = load_suite(suite_name)
    cell = next(cell for cell in plan(suite) if cell.id == cell_id)
    backend = load_backend(backend_name)
    device = "cuda"
    packed = backend.pack(make_weights(LayerKey(cell.K, cell.N, cell.group_size, cell.seed), 0, device))
    # tuning sees weights that come from memory, as it does when the cell is measured
    properties = torch.cuda.get_device_properties(0)
    count = rotation_sets(packed.nbytes, properties.L2_cache_size, properties.total_memory)
    sets = [packed, *(packed.copy() for _ in range(count - 1))]
    activations = make_activations(cell.seed, cell.M, cell.K, 0, DTYPES[backend.activation_dtype], device)
    output = torch.empty((cell.M, cell.N), dtype=DTYPES[backend.output_dtype], device=device)
    choice = backend.tune(sets, [activations] * count, [output] * count, suite.tune)
    launch = backend.launch(packed, activations, output, choice)
    launch()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]
    launch()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(*sys.argv[1:4])
