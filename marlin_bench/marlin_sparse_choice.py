"""Which tile, stages and grid of kernels/marlin_sparse.cu suit a problem, without a GPU. Measured on an H200."""

from __future__ import annotations

from dataclasses import dataclass, replace

from marlin_bench.layouts.marlin import BLOCK
from marlin_bench.marlin_choice import suitable_ctas
from marlin_bench.marlin_config import ConfigError, Operands
from marlin_bench.marlin_sparse_config import FEWEST_STAGES, TILES, SparseBuild, SparseTile, build_for

_TILES = {str(tile): tile for tile in TILES}
_LARGEST_SHORT_M = 32
_SHORT_ROWS = (8, 16, 24, 32)
_TALL_ROWS = (40, 48, 56, 64)
_FEW_BLOCKS, _MANY_BLOCKS, _MOST_BLOCKS = 60, 200, 1000
"""64×64 blocks of weights an SM from which tiles that fewer CTAs read beat tiles that fewer CTAs share (H200)."""

_NARROW = 128  # columns
_MOST_CLUSTERS = 4  # that share a tile: half of the sums of each go through L2

_EVEN_SHARE = 0.9
"""Share of the SMs that clusters must fill: they are equally many a tile and cannot be spread over more (H200)."""

_SHARE_WITHOUT_SLICES = 0.65
"""Share of the SMs that suffices where each CTA then has one whole tile and no sums to share.

On an H200 8192 x 28672 at M = 1 takes 23.0 us on 112 CTAs and 26.4 on 132, 4096 x 22016 11.4 us on 86 and 13.8 on 132.
"""

_FEWEST_PAIRS_SHARE = 0.6
"""The same for small layers of up to 64 rows: 5120 x 5120 at M = 64 takes 10.9 us on 80 CTAs and 13.1 on 120."""

_SHORT_RING_BYTES = 140 * 1024
"""Ring of a CTA: of 64 to 210 KiB the fastest, by 1 % to 5 %, in all layers measured on an H200.

All CTAs ask for their first stages at once; the deeper the ring, the later the first stage is complete. But a ring of
less than half an SM lets CTAs of the next launch in beside those of this one.
"""
_WARPGROUP_RING_BYTES = 174 * 1024
"""Where products run behind and a stage is given back later: of 120 to 210 KiB the fastest, by up to 5 %."""
_FEWEST_ROWS_RING_BYTES = 150 * 1024
"""Up to 8 rows without clusters, but for the largest layers: one stage more, which saves up to 3 %."""
_WASTED_WAVE = 0.4
"""Of a wave of whole tiles: stripes cost more (8192 x 28672 at M = 256: 147.6 us, and 132.1 whole)."""


@dataclass(frozen=True, slots=True)
class SparseMachine:
    """What the choice of a tile and a grid depends on."""

    sm_count: int
    shared_per_block: int
    is_sm90a: bool


def _blocks_an_sm(N: int, K: int, sm_count: int) -> float:
    """64×64 blocks of weights for each SM."""
    return (N / BLOCK) * (K / BLOCK) / sm_count


def _one_cta_a_tile(tiles: int, sm_count: int) -> bool:
    """Whether so many tiles of few rows are best left whole."""
    return _SHARE_WITHOUT_SLICES * sm_count <= tiles <= sm_count


def _fill(pairs: int, most_clusters: int, sm_count: int) -> bool:
    """Whether `pairs` of CTAs, as often as they fit, are on enough SMs: fewer suffice where a tile is one pair's."""
    clusters = min(most_clusters, sm_count // (2 * pairs))
    return 2 * pairs * clusters >= (_SHARE_WITHOUT_SLICES if clusters == 1 else _EVEN_SHARE) * sm_count


def _clusters(rows: int, N: int, blocks: float, sm_count: int) -> tuple[str, ...]:
    """A tile of clusters for up to 32 rows, where such tiles fill the SMs, or nothing (measured on an H200).

    Up to 8 rows of the smallest layers half the SMs do: the next launch fetches its weights on the other half.
    """
    wide = -(-N // 256)
    if blocks < _MANY_BLOCKS and _EVEN_SHARE * sm_count <= 2 * -(-N // 128) <= sm_count:
        return (f"{rows}x256x256gc2" if rows > 16 else f"{rows}x128x256c2",)
    if blocks < _FEW_BLOCKS:
        narrowest = "8x128x256c2" if rows == 8 else f"{rows}x64x512c2"
        return (narrowest,) if _EVEN_SHARE * sm_count <= 2 * -(-N // 64) <= sm_count else ()
    if _fill(wide, _MOST_CLUSTERS, sm_count):
        return (f"{rows}x256x256{'g' if rows > 16 else ''}c2",)
    if rows > 8 and _one_cta_a_tile(wide, sm_count) and (rows == 16 or blocks >= _MANY_BLOCKS):
        return (f"{rows}x512x128{'g' if rows > 16 else ''}c2",)  # as many CTAs, but half as many read a row
    return ()


def _preferred_short(rows: int, N: int, blocks: float, sm_count: int, even_when_narrow: bool) -> tuple[str, ...]:
    """Names of tiles for up to 32 rows, the best first, none of clusters."""
    if blocks < _FEW_BLOCKS:
        wide: tuple[str, ...] = (f"{rows}x128x256",)
    elif _one_cta_a_tile(-(-N // 512), sm_count) or (rows > 8 and blocks >= _MOST_BLOCKS):
        wide = (f"{rows}x512x128g", "32x512x64" if rows == 32 else f"{rows}x512x128")
    else:
        wide = (f"{rows}x256x256g",)
    narrow = (f"{rows}x128x256",) if rows > 16 and even_when_narrow and blocks < _MANY_BLOCKS else ()
    return (*wide, *narrow, f"{rows}x512x128g", f"{rows}x256x256", f"{rows}x256x128", f"{rows}x512x64")


def _preferred_tall(M: int, N: int, blocks: float, sm_count: int) -> tuple[str, ...]:
    """Names of tiles of warpgroups for more than 32 rows, the best first (measured on an H200)."""
    even = _EVEN_SHARE * sm_count
    if M <= 64 and blocks < _FEW_BLOCKS and even <= 4 * -(-N // 128) <= sm_count:
        return ("24x128x256c2" if M <= 48 else "32x128x256c2",)  # two of few rows, a pair of CTAs each
    fewest = _FEWEST_PAIRS_SHARE * sm_count if blocks < _FEW_BLOCKS else even
    if 56 < M <= 64 and blocks < _MANY_BLOCKS and fewest <= 4 * -(-N // 256) <= sm_count:
        return ("32x256x256gc2",)
    rows = min(_TALL_ROWS, key=lambda rows: (-(-M // rows) * (rows + 8), -rows))
    row_tiles = -(-M // rows)
    wide, widest = row_tiles * -(-N // 256), row_tiles * -(-N // 512)
    whole = f"{rows}x512x128g"
    if _one_cta_a_tile(widest, sm_count):
        best = whole
    elif _one_cta_a_tile(wide, sm_count):
        best = f"{rows}x512x128gc2" if rows <= 56 and blocks >= _MANY_BLOCKS else f"{rows}x256x256g"
    elif blocks < _FEW_BLOCKS and rows == 64 and 8 * wide <= sm_count:
        return ()  # too many CTAs would share a tile
    elif _fill(wide, _MOST_CLUSTERS, sm_count):
        best = f"{rows}x256x256gc2" if rows == 40 else f"{rows}x256x128gc2"
    else:
        best = whole if widest > sm_count or blocks >= _MOST_BLOCKS else f"{rows}x256x256g"
    return (best, whole)


def _preferred(M: int, N: int, blocks: float, sm_count: int, even_when_narrow: bool) -> tuple[str, ...]:
    """Names of tiles, the best first; whether they exist and fit K and the device is checked after (H200).

    `even_when_narrow`: tiles of 128 columns can be cut into equal slices on nearly all SMs.
    """
    if M <= _LARGEST_SHORT_M:
        rows = min(rows for rows in _SHORT_ROWS if rows >= M)
        short = _preferred_short(rows, N, blocks, sm_count, even_when_narrow)
        return (*_clusters(rows, N, blocks, sm_count), *short)
    tall = _preferred_tall(M, N, blocks, sm_count)
    if blocks * -(-M // 64) >= _MANY_BLOCKS:
        return (*tall, "64x256x128", "64x256x64", "64x128x128")
    return (*tall, *(("64x128x128", "64x256x64") if even_when_narrow else ("64x256x64", "64x128x128")))


def choose_build(operands: Operands, M: int, N: int, K: int, machine: SparseMachine) -> SparseBuild:
    """The build for a problem: the preferred tile that divides K and fits this machine."""
    blocks = _blocks_an_sm(N, K, machine.sm_count)
    narrow_tiles = -(-N // 128)
    even = narrow_tiles * max(1, machine.sm_count // narrow_tiles)
    even_when_narrow = _EVEN_SHARE * machine.sm_count <= even <= machine.sm_count
    for name in _preferred(M, N, blocks, machine.sm_count, even_when_narrow):
        tile = _TILES.get(name)
        if tile is None or K % tile.depth or (tile.needs_sm90a and not machine.is_sm90a):
            continue
        if tile.cluster > 1 and K // tile.depth < 2 * tile.cluster:
            continue
        try:
            build = build_for(tile, operands, machine.shared_per_block)
        except ConfigError:
            continue
        if tile.warpgroups:
            ring = _WARPGROUP_RING_BYTES
        elif tile.rows == 8 and tile.cluster == 1 and blocks < _MOST_BLOCKS:
            ring = _FEWEST_ROWS_RING_BYTES
        else:
            ring = _SHORT_RING_BYTES
        short = max(FEWEST_STAGES, ring // tile.stage_bytes(operands))
        return replace(build, stages=min(build.stages, short))
    raise ConfigError(f"no tile for M {M}, N {N}, K {K} fits {machine.shared_per_block} bytes of shared memory")


def suitable_grid(tile: SparseTile, M: int, N: int, sm_count: int) -> int:
    """CTAs for a problem: as for the dense kernel, but mostly also one CTA a tile on two thirds of the SMs."""
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    if tile.cluster > 1 and tile.columns <= _NARROW:
        return tile.cluster * tiles  # of small layers: more clusters a tile cost more than they save
    if (M <= _LARGEST_SHORT_M or tile.warpgroups) and _one_cta_a_tile(tiles, sm_count):
        return tiles
    waves = -(-tiles // sm_count)
    whole_waves = tile.warpgroups and tile.cluster == 1 and waves > 1 and tiles % waves == 0
    if whole_waves and waves - tiles / sm_count <= _WASTED_WAVE:
        return tiles // waves
    return suitable_ctas(tile, M, N, sm_count)
