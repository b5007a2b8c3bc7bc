"""Which tiles a large batch is cut into, by arithmetic: the fewest clocks until the last SM is done.

Tiles that one CTA each computes whole take as many rounds as the busiest SM has tiles; the last one may leave SMs
idle. Striped tiles keep all SMs busy, but their sums have to be joined, and CTAs at different K find less in L2. So of
the tile shapes below the one is taken whose tiles come out nearly even, or stripes where none does. Paces and costs are
what layers of 4096 to 22016 columns took at M = 256 … 2048 on an H200.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from marlin_bench.layouts.marlin_hopper import TILE_K
from marlin_bench.marlin_hopper_config import Stripes, Tiling

# Clocks of a tile over those of its products alone, by tiling: narrow tiles dequantise more often or copy more.
_PACES = {
    "b128_w2_m2_t2_early_regs": 1.0,
    "b128_w3_m1_t1_early_regs": 1.01,
    "b128_w2_m1_t1_early_regs": 1.045,
    "b176_w2_m1_t1_early_regs": 1.0,
    "b88_w2_m2_t2_early_regs": 1.08,
    "b80_w2_m2_t2_early_regs": 1.08,
    "b88_w2_m1_t2_early_regs": 1.08,
}
ROUND_TILINGS = tuple(_PACES)
_SPLIT = "b128_w3_m1_t1_c2_early_regs"
_LEAST_RATIO = 0.975  # of the clocks, to leave the plan of the layers nearest in shape
_SPLIT_JOIN = 8000  # clocks in which a cluster of two joins its sums
_STRIPES_JOIN = 15000  # in which striped tiles of 256x128 are joined
_UNEVEN_SHARE = 0.2  # of a tile's clocks that stripes lose by walking K out of step
_STORED_A_CLOCK = 8  # outputs
_SHARED_FROM_K = 8192  # from where on narrow tiles gain from sharing activations in pairs
_LONG_K = 32768  # from where on pairs that stripe only the last round are fastest


@dataclass(frozen=True)
class Cut:
    """A tiling and which of its tiles are striped."""

    tiling: Tiling
    stripes: Stripes


def _product_clocks(tiling: Tiling, K: int, pace: float) -> float:
    """Of a tile: a 64x16xN product takes N/2 clocks."""
    return pace * K / 16 * tiling.batch_tile / 2 * tiling.tile_columns / 64


def _store_clocks(tiling: Tiling, tiles: float) -> float:
    """Of a CTA's tiles one after the other; bulk stores leave beside the next tile's products."""
    is_hidden = tiling.batch_tile >= 128 and tiling.tile_columns <= TILE_K * tiling.stage_tiles
    return tiling.tile_columns * tiling.batch_tile / _STORED_A_CLOCK * (1 if is_hidden else tiles)


def _tiles(tiling: Tiling, M: int, N: int) -> int:
    return -(-N // tiling.tile_columns) * -(-M // tiling.batch_tile)


def whole_clocks(tiling: Tiling, M: int, N: int, K: int, sm_count: int) -> float:
    """Until the busiest SM has computed its whole tiles."""
    rounds = -(-_tiles(tiling, M, N) // sm_count)
    products = _product_clocks(tiling, K, _PACES.get(tiling.name, _pace(tiling)))
    return rounds * products + _store_clocks(tiling, rounds)


def striped_clocks(tiling: Tiling, M: int, N: int, K: int, sm_count: int) -> float:
    """Until all SMs have computed equal pieces and joined them."""
    rounds = _tiles(tiling, M, N) / sm_count
    products = _product_clocks(tiling, K, _pace(tiling))
    join = _STRIPES_JOIN * tiling.tile_columns * tiling.batch_tile / (256 * 128)
    return (rounds + _UNEVEN_SHARE) * products + _store_clocks(tiling, rounds) + join


def _pace(tiling: Tiling) -> float:
    return _PACES["b128_w2_m1_t1_early_regs"] if tiling.blocks == 1 else 1.0


def better_cut(cut: Cut, M: int, N: int, K: int, sm_count: int) -> Cut:
    """`cut`, or one that takes clearly fewer clocks."""
    if cut.tiling.splits_k_in_cluster:
        return cut
    clocks = whole_clocks if cut.stripes is Stripes.NONE else striped_clocks
    found = {cut: clocks(cut.tiling, M, N, K, sm_count) * _LEAST_RATIO}
    for name in _PACES:
        tiling = Tiling.parse(name)
        found[Cut(tiling, Stripes.NONE)] = whole_clocks(tiling, M, N, K, sm_count)
    split = Tiling.parse(_SPLIT)
    if 2 * _tiles(split, M, N) <= sm_count:
        found[Cut(split, Stripes.MANY)] = _product_clocks(split, K, 1.0) / 2 + _SPLIT_JOIN
    return _in_pairs(min(found, key=lambda cut: found[cut]), M, N, K, sm_count)


def _in_pairs(cut: Cut, M: int, N: int, K: int, sm_count: int) -> Cut:
    """The same with activations shared by pairs of CTAs, where K is long enough to gain from it."""
    tiling = cut.tiling
    pairs = replace(tiling, cluster=2, multicast=True)
    if tiling.cluster > 1 or tiling.batch_tile != 128:
        return cut
    if cut.stripes is Stripes.NONE:
        is_even = -(-N // tiling.tile_columns) % 2 == 0
        is_many = tiling.warpgroups == 2 and tiling.blocks == 1 and _tiles(tiling, M, N) > 2 * sm_count
        return Cut(pairs, Stripes.NONE) if is_many and is_even and K >= _SHARED_FROM_K else cut
    is_wide = tiling.blocks == 2 and _tiles(tiling, M, N) > sm_count
    return Cut(pairs, Stripes.REST) if is_wide and K >= _LONG_K else cut
