"""How much the place of the weights in memory is worth: the same weights at several places, timed in turns.

python tests/gpu/placement.py

Each line is a product and a backend; a group is as many copies of the packed weights as a cell rotates through, at
addresses of their own. Printed are the spread of the groups' medians (relative standard deviation and range), and how
far a second graph over the first group's launches lies from the first: what is left when the place is the same.
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from marlin_bench.backends import load_backend
from marlin_bench.entrant import rotation_sets
from marlin_bench.machine import open_machine
from marlin_bench.operands import LayerKey, make_activations, make_weights

GROUPS = 6
TURNS = 16
BLOCK_SECONDS = 0.0015
LAYERS = ((8192, 28672), (28672, 8192), (8192, 8192))
BACKENDS = ("cublas_fp16", "marlin", "marlin_hopper")


def medians(stopwatches):
    """Seconds a launch of each stopwatch, the turns shuffled so that clock and heat are shared."""
    seen = {name: [] for name in stopwatches}
    order, shuffle = list(stopwatches), random.Random(1)
    for _ in range(TURNS):
        shuffle.shuffle(order)
        for name in order:
            seen[name] += stopwatches[name].sample().times
    return {name: float(np.median(times)) for name, times in seen.items()}


def spread(machine, backend, packed, size, M, K, N):
    """(medians of the groups, median of the first group timed once more)."""
    activations = make_activations(0, M, K, 0, torch.float16, "cuda")
    output = torch.empty(M, N, dtype=torch.float16, device="cuda")
    choice = backend.tune(packed[:size], [activations] * size, [output] * size, "quick")
    launches = [backend.launch(one, activations, output, choice) for one in packed]
    for launch in launches:
        launch()
    timer = machine.timers["kernel"]
    groups = {at: timer.stopwatch(launches[at : at + size], BLOCK_SECONDS) for at in range(0, len(launches), size)}
    again = {"again": timer.stopwatch(launches[:size], BLOCK_SECONDS)}
    found = medians(groups | again)
    return np.array([found[at] for at in groups]), found["again"]


def main():
    """Print the table."""
    machine = open_machine("cuda")
    for K, N in LAYERS:
        weights = make_weights(LayerKey(K, N, 128, 0), 0, "cuda")
        for name in BACKENDS:
            backend = load_backend(name)
            first = backend.pack(weights)
            size = rotation_sets(first.nbytes, machine.traits.l2_bytes, machine.memory_bytes)
            packed = [first, *(first.copy() for _ in range(GROUPS * size - 1))]
            for M in (1, 16, 256):
                times, again = spread(machine, backend, packed, size, M, K, N)
                relative = times.std(ddof=1) / times.mean()
                reach = times.max() / times.min() - 1
                print(
                    f"{K}x{N} M={M} {name}: {1e6 * times.mean():.2f} us in {size} sets, places {100 * relative:.2f} %,"
                    f" at most {100 * reach:.2f} %; the same place again {100 * (again / times[0] - 1):+.2f} %",
                    flush=True,
                )
            del packed, first
            machine.release_memory()


if __name__ == "__main__":
    main()
