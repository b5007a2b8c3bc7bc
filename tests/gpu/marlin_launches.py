"""Small launches of marlin, for compute-sanitizer:

compute-sanitizer --tool memcheck python tests/gpu/marlin_launches.py
compute-sanitizer --tool racecheck python tests/gpu/marlin_launches.py EVERY_LANE_RELEASES=1

Arguments are macros for the builds. racecheck does not follow __syncwarp from the lanes that read a stage of the ring
to the one that gives it back: with this macro each lane gives it back, and nothing else changes.

All tiles that this GPU has a build for: warps that split K, slices of several CTAs, whole tiles, ragged rows and
columns, and more k tiles than stages.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from gpu_product import MarlinCase

from marlin_bench.backends.marlin import Marlin, MarlinBf16, tiles_of
from marlin_bench.marlin_config import Build
from marlin_bench.operands import LayerKey, make_weights


def launch(M, N, K, group_size, tile, ctas, backend):
    weights = make_weights(LayerKey(K, N, group_size, 0), 0, "cuda")
    case = MarlinCase(M, weights, backend=backend, choice={"tile": tile, "stages": "3", "ctas": str(ctas)})
    for _ in range(2):
        case.check()


def define(macros):
    plain = Build.defines.fget
    Build.defines = property(lambda build: plain(build) | macros)


if __name__ == "__main__":
    define(dict(argument.split("=") for argument in sys.argv[1:]))
    tiles = tiles_of(torch.device("cuda", 0))
    for number, tile in enumerate(tiles):
        bf16 = number % 2 and not tile.scale_sums
        backend, group_size = (MarlinBf16(), 64) if bf16 else (Marlin(), (None, 128)[number // 2 % 2])
        several = tile.has_several_clusters
        ctas = 8 if several else 3  # two clusters for each of two tiles
        launch(tile.rows - 3, tile.columns + 64, 8 * tile.depth, group_size, str(tile), ctas, backend)
    launch(150, 320, 512, 128, str(tiles[-1]), 1, Marlin())
    print(f"launched marlin {2 * len(tiles) + 2} times")
