"""Which build and grid of kernels/marlin.cu and marlin_ring.cu suit a problem, from measurements on an H200."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from marlin_bench.marlin_config import TILES, Build, ConfigError, Operands, Tile, build_for, tile_named

_FEWEST_STAGES = 3
_MOST_FEW_ROWS = 32  # for which tall tiles are too tall


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice of a tile and a grid depends on."""

    sm_count: int
    shared_per_block: int
    capability: tuple[int, int] = (8, 0)


class TileShape(Protocol):
    """What a grid depends on of a tile, of this kernel or another that is partitioned the same way."""

    @property
    def rows(self) -> int:
        """Rows of C."""

    @property
    def columns(self) -> int:
        """Columns of C."""

    @property
    def ctas_per_sm(self) -> int:
        """CTAs that are meant to share an SM."""


def suitable_ctas(tile: TileShape, M: int, N: int, sm_count: int) -> int:
    """CTAs for a problem: all that fit, or up to a tenth fewer when each tile is then cut into equal slices.

    A CTA whose stripe crosses from one tile to the next fills its pipeline and adds up twice: on an H200 a layer of
    4096 x 4096 takes 11.1 us on 132 CTAs and 9.0 on 128.
    """
    most = sm_count * tile.ctas_per_sm
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    even = tiles * max(1, most // tiles)
    return even if _EVEN_SHARE * most <= even <= most else most


_EVEN_SHARE = 0.9
_SMALL = 12
"""16 KiB tiles of weights an SM below which a layer is small: sums across CTAs then cost more than reading twice."""
_FEW_ROWS: tuple[tuple[int, float, tuple[str, ...]], ...] = (
    # up to this M, from this many 16 KiB tiles of weights an SM on: the best first (measured on an H200)
    (8, 40, ("8x256x128rs", "8x512x128rw16", "16x256x128x2", "16x256x64x2")),
    (8, _SMALL, ("8x256x128rs", "8x128x256r", "16x256x128", "16x256x64x2")),
    (8, 0, ("8x128x256r", "16x128x128", "16x256x64x2")),
    (16, 40, ("16x256x256rs", "16x256x256r", "16x256x128x2", "16x256x64x2")),
    (16, _SMALL, ("16x128x256r", "16x256x128", "16x256x64x2")),
    (16, 0, ("16x128x256r", "16x128x128", "16x256x64x2")),
)
_ROWS = (24, 32, 40, 48, 56, 64, 80, 96, 112, 128)
"""Rows of the tiles for more, without a ring."""
_HUGE = 100

_PRODUCT_CYCLES = 7.5
"""Of a scheduler for one m16n8k16 with its share of everything else, in a tall tile on an H200 …"""
_COST_OF_ROWS = {40: 1.13, 48: 1.07, 56: 1.05, 64: 1.0, 72: 1.07}
"""… by the rows of a warp …"""
_COST_OF_COLUMNS = {128: 1.04, 256: 1.0, 512: 0.96}
_COST_OF_TWO_ROW_WARPS = 0.96
"""… and less where weights serve two warps."""
_LAUNCH_CYCLES, _CLUSTER_CYCLES = 10_500, 1_500  # the second where a cluster adds up
_EVEN_CUT_CYCLES, _EVEN_CUT_BYTES_A_CYCLE = 2_000, 24  # where all tiles are cut into equal slices
_CUT_CYCLES, _TILE_CYCLES, _CUT_BYTES_A_CYCLE = 10_000, 3_000, 8  # where stripes cross from tile to tile


def estimated_cycles(tile: Tile, M: int, N: int, K: int, sm_count: int) -> float:
    """How long a tall tile takes on an H200, to rank tiles: within 5 % in 75 of 85 measurements.

    Tiles that are whole in one CTA cost nothing but the launch; slices are added up, most slowly where a CTA's stripe
    crosses from one tile to the next. Infinite where clusters would not all run at once.
    """
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    products = tiles * tile.rows * tile.columns * K / (16 * 8 * 16) / 4  # of all SMs, a scheduler's
    cost = _COST_OF_ROWS[tile.rows // tile.warps_m] * _COST_OF_COLUMNS[tile.columns]
    cost *= _COST_OF_TWO_ROW_WARPS if tile.warps_m == 2 else 1
    overhead: float = _LAUNCH_CYCLES
    ctas = tile.cluster * tiles if tile.cluster > 1 else suitable_ctas(tile, M, N, sm_count)
    if tile.cluster > 1:
        if ctas > sm_count:
            return math.inf
        overhead += _CLUSTER_CYCLES
    elif ctas > tiles and ctas % tiles == 0:
        overhead += _EVEN_CUT_CYCLES + ctas // tiles * tile.sum_bytes / _EVEN_CUT_BYTES_A_CYCLE
    elif tiles % ctas:
        overhead += _CUT_CYCLES + _TILE_CYCLES * min(tiles / ctas, 2) + tile.sum_bytes / _CUT_BYTES_A_CYCLE
    return products / ctas * cost * _PRODUCT_CYCLES + overhead


def _tall(M: int, N: int, K: int, sm_count: int) -> list[str]:
    """Names of Hopper's tall tiles, the fastest first."""
    cycles = {str(tile): estimated_cycles(tile, M, N, K, sm_count) for tile in TILES if tile.is_tall}
    return sorted((name for name in cycles if cycles[name] < math.inf), key=cycles.__getitem__)


def _weight_tiles(N: int, K: int, sm_count: int) -> float:
    """16 KiB tiles of weights an SM."""
    return -(-N // 256) * (K / 128) / sm_count


def _is_cut_evenly(columns: int, N: int, sm_count: int) -> bool:
    """Whether tiles of few rows and so many columns are cut into equal slices on nearly all SMs."""
    tiles = -(-N // columns)
    return tiles * (sm_count // tiles) >= _EVEN_SHARE * sm_count


def _clusters(M: int, N: int, K: int, sm_count: int) -> list[str]:
    """Tiles of clusters for up to 32 rows where these fill the SMs, the best first (measured on an H200).

    Wide tiles are read by fewer CTAs; of others a tile may have several clusters. The smaller the layer, the fewer SMs
    suffice.
    """
    rows = min(rows for rows in (8, 16, 24, 32) if rows >= M)
    weight_tiles = _weight_tiles(N, K, sm_count)
    small = weight_tiles < _SMALL

    def fill(columns: int, most: int = sm_count) -> float:
        """The share of the SMs that clusters take, as many a tile as fit; 0 for more than were measured."""
        pairs = 2 * -(-N // columns)
        clusters = min(most, sm_count // pairs)
        return pairs * clusters / sm_count if clusters <= _MOST_CLUSTERS else 0

    if rows <= _SCALED_SUMS_ROWS:
        if fill(512, most=1) >= 0.6:
            return [f"{rows}x512x128rsc2"]
        if weight_tiles < _SMALLEST:
            fills = fill(128, most=1) >= 0.4 if rows == _SMALLEST_ROWS else fill(128) >= 0.6
            return [f"{rows}x128x256rsc2"] if fills else []
        if fill(256) >= (0.6 if small else 0.7):
            return [f"{rows}x256x256rsc2"] if min(N, K) < _SPARSE_SIDE else []
        return [f"{rows}x512x128rsc2"] if rows == _SMALLEST_ROWS and fill(512) >= _EVEN_SHARE else []
    names = []
    if fill(512, most=1) >= 0.7:
        names.append(f"{rows}x512x128rc2")
    if weight_tiles < _NARROW[rows] and fill(128) >= (0.6 if small else 0.7):
        names.append(f"{rows}x128x256rc2")
    if weight_tiles < _HUGE and fill(256) >= (0.6 if small else 0.75):
        names.append(f"{rows}x256x128rc2")
    return names


_SMALLEST_ROWS, _SCALED_SUMS_ROWS, _MOST_CLUSTERS = 8, 16, 4
_SMALLEST, _NARROW = 6, {24: 15, 32: 20}
"""16 KiB tiles of weights an SM up to which narrow tiles are the best ones, of up to 16 rows and of more."""
_SPARSE_SIDE = 8192
"""From here on the sparse kernel is to be 1.25 times as fast; up to 16 rows clusters gain this one more than it."""


def _wide(rows: int, N: int, weight_tiles: float, sm_count: int) -> tuple[str, ...]:
    """Tiles for larger layers, the best first, and what serves every GPU and format."""
    even = _is_cut_evenly(512, N, sm_count) and not _is_cut_evenly(256, N, sm_count)
    widest = (f"{rows}x512x128r",) if rows <= _MOST_FEW_ROWS and (even or weight_tiles >= _HUGE) else ()
    ring = (f"{rows}x256x128r",) if rows <= _MOST_FEW_ROWS else ()
    return *widest, *ring, f"{rows}x256x64", "64x256x64"


def _preferred(M: int, N: int, K: int, machine: Machine) -> tuple[str, ...]:
    """Names of tiles without clusters, the best first; whether they fit K and the device is checked after."""
    columns = -(-N // 256)
    weight_tiles = _weight_tiles(N, K, machine.sm_count)
    for largest_M, fewest, names in _FEW_ROWS:
        if largest_M >= M and weight_tiles >= fewest:
            uneven = names[0] == "16x128x256r" and fewest > 0 and not _is_cut_evenly(128, N, machine.sm_count)
            return ("16x256x256rs", *names) if uneven and min(N, K) < _SPARSE_SIDE else names
    small = weight_tiles < _SMALL
    narrow = "64x128x128", "64x256x64"
    if small and M <= 64:
        return ("32x128x128r", "32x128x128", "32x256x64") if M <= 32 else narrow
    for rows, width in ((128, 256), (64, 256), (64, 128)):
        # a tile an SM, uncut; narrow ones read activations too often for layers that are not small
        fills = _EVEN_SHARE * machine.sm_count <= -(-M // rows) * -(-N // width) <= machine.sm_count
        if fills and rows < 2 * M and (width == 256 or small):
            return (f"{rows}x256x64",) if width == 256 else narrow
    rows = min(_ROWS, key=lambda rows: (-(-M // rows) * (rows + 8), -rows))
    if -(-M // rows) * columns * 4 <= machine.sm_count and (small or rows > 80):
        return narrow if small and M <= 128 else ("64x256x64",)  # more tiles, so that fewer CTAs share one
    return _wide(rows, N, weight_tiles, machine.sm_count)


WITHOUT_SHORT_GROUPS = ("8x512x128rw16",)
"""Tiles whose builds for groups of 32 would spill."""


def suits(tile: Tile, operands: Operands) -> bool:
    """Whether a tile has builds for such operands.

    Scaled sums stand for weights that are not rounded to 16 bits. In FP16 that is a difference of 1e-4, in BF16 ten
    times as much, and the reference is rounded.
    """
    if operands.group_size == 32 and str(tile) in WITHOUT_SHORT_GROUPS:
        return False
    return not (operands.bf16 and tile.scale_sums)


@lru_cache(maxsize=4096)
def choose_build(operands: Operands, M: int, N: int, K: int, machine: Machine) -> Build:
    """The build for a problem: the preferred tile that divides K and has at least three stages on this machine."""
    rings = _tall if M > _MOST_FEW_ROWS else _clusters
    for name in (*rings(M, N, K, machine.sm_count), *_preferred(M, N, K, machine)):
        tile = tile_named(name)
        halves = 1 if _SMALLEST_ROWS < tile.rows <= _MOST_FEW_ROWS else tile.cluster  # others want equal ones
        if K % (tile.depth * halves) or tile.depth * tile.cluster > K or not tile.runs_on(machine.capability):
            continue
        if not suits(tile, operands):
            continue
        try:
            build = build_for(tile, operands, machine.shared_per_block)
        except ConfigError:
            continue
        if build.stages >= _FEWEST_STAGES:
            return build
    raise ConfigError(f"no tile for M {M}, N {N}, K {K} fits {machine.shared_per_block} bytes of shared memory")
