r"""Small launches of marlin_sparse and of its ceiling, for compute-sanitizer:

compute-sanitizer --tool memcheck python tests/gpu/sparse_launches.py
compute-sanitizer --tool racecheck --kernel-name kns=marlin_sparse \
    python tests/gpu/sparse_launches.py EVERY_LANE_RELEASES=1

Arguments are macros for the builds; BULK_COPIES=0 leaves out the tiles whose products read what a tensor map wrote.
racecheck does not follow __syncwarp from the lanes that read a stage to the one
that gives it back, and calls that a race; here every lane gives it back, and nothing else differs.

Every path of the ring and the reductions: warps that split K, slices of several CTAs, whole tiles, ragged rows and
channels, products of warpgroups, registers that move between warps, and more k tiles than stages.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from gpu_product import SparseCase

from marlin_bench.backends.marlin_sparse import MarlinSparse, MarlinSparseBf16
from marlin_bench.marlin_sparse_config import SparseBuild, tile_named
from marlin_bench.operands import LayerKey, make_weights
from marlin_bench.sparse_ceiling import measure_sparse_tensor

CASES = (
    # M, N, K, group size, tile, CTAs
    (5, 320, 2048, 64, "8x256x256", 3),
    (16, 192, 2048, 128, "16x128x256", 2),
    (20, 576, 1024, 128, "32x512x128", 4),
    (70, 320, 1024, None, "64x512x128g", 3),
    (130, 192, 512, 64, "64x128x128", 2),
    (100, 320, 512, 128, "64x256x64", 1),
    (12, 192, 1536, 64, "16x64x512c2", 6),
    (9, 320, 2048, 128, "16x256x256", 5),
    (3, 640, 1024, None, "8x512x64", 3),
    (16, 320, 1024, 128, "16x128x256c2", 6),
    (23, 320, 2048, 64, "24x256x256g", 3),
    (24, 192, 1024, 128, "24x128x256c2", 4),
    (31, 320, 1536, None, "32x128x256c2", 6),
    (20, 640, 1280, 128, "24x512x128gc2", 12),
    (9, 320, 1024, 64, "16x512x128c2", 8),
    (49, 320, 1024, 128, "56x256x128gc2", 8),
    (32, 576, 2048, None, "32x256x256gc2", 12),
)


def launch(M, N, K, group_size, tile, ctas, backend):
    weights = make_weights(LayerKey(K, N, group_size, 0), 0, "cuda")
    case = SparseCase(M, weights, backend=backend, choice={"tile": tile, "stages": "3", "ctas": str(ctas)})
    for _ in range(2):
        case.check()


def launch_loops():
    """Every loop of the ceiling on two SMs."""
    launched = 0

    def once(action, runs):
        nonlocal launched
        action()
        torch.cuda.synchronize()
        launched += 1
        return 1.0, None

    assert measure_sparse_tensor(once, 2) is not None
    return launched


def define(macros):
    plain = SparseBuild.defines.fget
    SparseBuild.defines = property(lambda build: plain(build) | macros)


if __name__ == "__main__":
    macros = dict(argument.split("=") for argument in sys.argv[1:])
    define(macros)
    cases = [case for case in CASES if macros.get("BULK_COPIES") != "0" or not tile_named(case[4]).warpgroups]
    for number, case in enumerate(cases):
        launch(*case, MarlinSparseBf16() if number % 2 else MarlinSparse())
    print(f"launched marlin_sparse {2 * len(cases)} times, and {launch_loops()} loops of its ceiling")
