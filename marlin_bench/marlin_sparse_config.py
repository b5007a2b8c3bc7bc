"""One build and one launch of kernels/marlin_sparse.cu: tile, stages, macros, shared memory, grid. No GPU needed.

What a launch needs beside its tile (stripes, counters) is the dense kernel's: see marlin_config.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from marlin_bench.layouts.marlin import BLOCK
from marlin_bench.layouts.marlin_sparse import WORDS_PER_BLOCK
from marlin_bench.marlin_choice import suitable_ctas
from marlin_bench.marlin_config import LARGEST_M, ConfigError, Operands, Stripes

GROUP_SIZES = (64, 128, None)
BLOCK_BYTES = 4 * WORDS_PER_BLOCK
_WARPS = 8
_WARP_ROWS = 32
_TALL_WARP_ROWS = 64
_SCALED_SUMS_ROWS = 16
_BARRIER_BYTES = 512  # static: two barriers a stage and a flag
_ROW_PADDING_BYTES = 16  # between rows of activations (kernels/sparse_tile.cuh)
_FEWEST_STAGES = 2
_DEEPEST_PIPELINE = 16


@dataclass(frozen=True, slots=True)
class SparseTile:
    """What a CTA computes at a time: `rows` x `columns` of C, `depth` of dense K.

    A warp takes up to 32 rows, `tall` ones 64: each weight is dequantised half as often, but the registers for it must
    be taken from other warps, which only sm_90a can do; so must those for 16 `warps` that compute, of which more work
    while one waits. With a `cluster` of 2 a tile's slices are CTAs of clusters, which add up through distributed shared
    memory (only sm_90a has it); where several clusters share a tile, their sums then go the usual way.
    """

    rows: int
    columns: int
    depth: int
    tall: bool = False
    cluster: int = 1
    warps: int = _WARPS

    ctas_per_sm: ClassVar[int] = 1

    def __str__(self) -> str:
        cluster = "" if self.cluster == 1 else f"c{self.cluster}"
        warps = "" if self.warps == _WARPS else f"w{self.warps}"
        return f"{self.rows}x{self.columns}x{self.depth}{'t' if self.tall else ''}{warps}{cluster}"

    @property
    def needs_sm90a(self) -> bool:
        """Whether only sm_90a has what it takes: registers that move between warps, or clusters."""
        return self.tall or self.cluster > 1 or self.warps > _WARPS

    @property
    def warp_rows(self) -> int:
        """Most batch rows of a warp."""
        return _TALL_WARP_ROWS if self.tall else _WARP_ROWS

    @property
    def warps_k(self) -> int:
        """Warps that split the depth (kernels/sparse_tile.cuh)."""
        return self.warps // (self.columns // BLOCK * -(-self.rows // self.warp_rows))

    @property
    def reduction_bytes(self) -> int:
        """Shared memory in which warps that split K exchange their sums; it lies behind the ring."""
        return self.rows * self.columns * 4 * (self.warps_k - 1)

    @property
    def exchange_bytes(self) -> int:
        """Shared memory in which the CTAs of a cluster exchange their sums; it lies behind that of the warps."""
        return self.sum_bytes // 2 if self.cluster > 1 else 0

    @property
    def sum_bytes(self) -> int:
        """FP32 partial sums of one slice of a tile."""
        return self.rows * self.columns * 4

    @property
    def threads(self) -> int:
        """Threads of a CTA: those that compute, a warp for weights, one or two for activations, maybe an idle one."""
        fetching = 4 if self.tall or self.warps > _WARPS else 2 if self.rows == 8 else 3
        return 32 * (self.warps + fetching)

    @property
    def scale_sums(self) -> bool:
        """Whether a group's sums are scaled, not its weights: for few rows that is less work, and needs registers.

        FP16 only: the reference rounds scaled weights, which makes a difference of 1e-4 in FP16 and ten times that in
        BF16.
        """
        return self.rows <= _SCALED_SUMS_ROWS

    def stage_bytes(self, operands: Operands) -> int:
        """Shared memory of one pipeline stage: activations, packed weights and scales of a tile."""
        weights = self.depth // BLOCK * self.columns // BLOCK * BLOCK_BYTES
        scales = operands.scale_rows(self.depth) * self.columns * 2
        return self.rows * (self.depth * 2 + _ROW_PADDING_BYTES) + weights + scales


@dataclass(frozen=True, slots=True)
class SparseBuild:
    """One compiled form of kernels/marlin_sparse.cu."""

    tile: SparseTile
    operands: Operands
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a CTA."""
        tile = self.tile
        return self.stages * tile.stage_bytes(self.operands) + tile.reduction_bytes + tile.exchange_bytes

    @property
    def defines(self) -> dict[str, int | str]:
        """The macros of kernels/sparse_tile.cuh."""
        return {
            "TILE_M": self.tile.rows,
            "TILE_N": self.tile.columns,
            "TILE_K": self.tile.depth,
            "WARPS": self.tile.warps,
            "WARP_ROWS": self.tile.warp_rows,
            "STAGES": self.stages,
            "SCALE_ROWS": self.operands.scale_rows(self.tile.depth),
            "BF16": int(self.operands.bf16),
            "CLUSTER": self.tile.cluster,
            "SCALE_SUMS": int(self.tile.scale_sums and not self.operands.bf16),
        }


@dataclass(frozen=True, slots=True)
class SparsePlan:
    """One launch: a build, a grid, and the workspace it needs."""

    build: SparseBuild
    ctas: int
    sum_bytes: int
    counters: int


def build_for(tile: SparseTile, operands: Operands, shared_per_block: int) -> SparseBuild:
    """The deepest pipeline.

    `shared_per_block` is the most shared memory a block may opt in to: 99 KiB on sm_86 and sm_89, 163 on sm_80, 227 on
    sm_90. ConfigError when fewer than two stages fit.
    """
    room = shared_per_block - _BARRIER_BYTES - tile.reduction_bytes - tile.exchange_bytes
    stages = min(_DEEPEST_PIPELINE, room // tile.stage_bytes(operands))
    if stages < _FEWEST_STAGES:
        raise ConfigError(f"tile {tile} needs more than the {shared_per_block} bytes of shared memory of a block here")
    return SparseBuild(tile, operands, stages)


def plan_for(build: SparseBuild, M: int, N: int, K: int, ctas: int) -> SparsePlan:
    """The launch of `build` on at most `ctas` CTAs, never more than there are steps; clusters: equally many a tile."""
    tile = build.tile
    if K % tile.depth or N % BLOCK:
        raise ConfigError(f"tile {tile} does not divide K {K} by {tile.depth} and N {N} by {BLOCK}")
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    k_tiles = K // tile.depth
    if tile.cluster > 1:
        if k_tiles < tile.cluster:
            raise ConfigError(f"tile {tile} needs a K of at least {tile.cluster * tile.depth}, not {K}")
        clusters = max(1, min(ctas // (tile.cluster * tiles), k_tiles // tile.cluster))
        stripes = Stripes(k_tiles, tiles, tile.cluster * tiles * clusters)
        if clusters == 1:
            return SparsePlan(build, stripes.ctas, sum_bytes=0, counters=0)
        return SparsePlan(build, stripes.ctas, stripes.places * tile.sum_bytes, tile.cluster * tiles)
    stripes = Stripes(k_tiles, tiles, min(ctas, tiles * k_tiles))
    return SparsePlan(build, stripes.ctas, stripes.places * tile.sum_bytes, stripes.striped_tiles)


TILES = (
    *(SparseTile(8, *shape) for shape in ((512, 128), (256, 256), (256, 128), (512, 64), (128, 256))),
    *(SparseTile(16, *shape) for shape in ((512, 128), (256, 256), (256, 128), (512, 64), (128, 256))),
    *(SparseTile(24, *shape) for shape in ((512, 128), (256, 256), (256, 128), (512, 64), (128, 256))),
    *(SparseTile(24, *shape, warps=16) for shape in ((512, 128), (256, 256))),
    *(SparseTile(32, *shape) for shape in ((512, 128), (256, 128), (512, 64), (128, 256))),
    SparseTile(48, 512, 64, tall=True),
    SparseTile(64, 512, 64, tall=True),
    SparseTile(64, 256, 64),
    SparseTile(64, 256, 128),
    SparseTile(64, 128, 128),
    *(SparseTile(rows, 128, 256, cluster=2) for rows in (8, 16, 24, 32)),
    *(SparseTile(rows, 64, 512, cluster=2) for rows in (16, 24, 32)),
    *(SparseTile(rows, 256, 256, cluster=2) for rows in (8, 16)),
    SparseTile(24, 256, 256, cluster=2, warps=16),
    SparseTile(32, 256, 128, cluster=2),
    *(SparseTile(rows, 512, 128, cluster=2) for rows in (16, 32)),
    SparseTile(24, 512, 128, cluster=2, warps=16),
)
"""Every tile that a launch may be given."""


_BY_NAME = {str(tile): tile for tile in TILES}
_LARGEST_SHORT_M = 32
_SHORT_ROWS = (8, 16, 24, 32)
_FEW_BLOCKS, _MANY_BLOCKS, _MOST_BLOCKS = 60, 200, 1000
"""64×64 blocks of weights an SM from which tiles that fewer CTAs read beat tiles that fewer CTAs share (H200)."""

_NARROW = 128  # columns

_EVEN_SHARE = 0.9
"""Share of the SMs that clusters must fill: they are equally many a tile and cannot be spread over more (H200)."""

_SHARE_WITHOUT_SLICES = 0.65
"""Share of the SMs that suffices for up to 32 rows where each CTA then has one whole tile and no sums to share.

On an H200 8192 x 28672 at M = 1 takes 23.0 us on 112 CTAs and 26.4 on 132, 4096 x 22016 11.4 us on 86 and 13.8 on 132.
"""

_SHORT_RING_BYTES = 140 * 1024
"""Ring of a CTA: of 64 to 210 KiB the fastest, by 1 % to 5 %, in all layers measured on an H200.

All CTAs ask for their first stages at once; the deeper the ring, the later the first stage is complete. But a ring of
less than half an SM lets CTAs of the next launch in beside those of this one.
"""


def tile_named(name: str) -> SparseTile:
    """The tile whose name is `name`, as in a record's choice."""
    if name not in _BY_NAME:
        raise ConfigError(f"there is no tile '{name}': use {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


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


def _clusters(rows: int, N: int, blocks: float, sm_count: int) -> tuple[str, ...]:
    """A tile of clusters for up to 32 rows, where such tiles fill the SMs, or nothing (measured on an H200).

    Up to 8 rows of the smallest layers half the SMs do: the next launch fetches its weights on the other half.
    """

    def fill(columns: int, most_clusters: int) -> bool:
        pairs = 2 * -(-N // columns)
        ctas = pairs * min(most_clusters, sm_count // pairs)
        return ctas >= _EVEN_SHARE * sm_count

    if blocks < _MANY_BLOCKS and fill(128, 1):
        return (f"{rows}x128x256c2",)
    if blocks < _FEW_BLOCKS:
        narrowest = "8x128x256c2" if rows == 8 else f"{rows}x64x512c2"
        return (narrowest,) if fill(64, 1) else ()
    if blocks >= _MANY_BLOCKS and fill(256, 2):
        return (f"{rows}x256x128c2",) if rows == 32 else (f"{rows}x256x256{'w16' if rows == 24 else ''}c2",)
    if rows > 8 and _one_cta_a_tile(-(-N // 256), sm_count):
        return (f"{rows}x512x128{'w16' if rows == 24 else ''}c2",)  # as many CTAs, but half as many read a row
    return ()


def _preferred_short(rows: int, N: int, blocks: float, sm_count: int, even_when_narrow: bool) -> tuple[str, ...]:
    """Names of tiles for up to 32 rows, the best first, none of clusters."""
    if blocks < _FEW_BLOCKS or (rows > 16 and even_when_narrow and blocks < _MANY_BLOCKS):
        wide: tuple[str, ...] = (f"{rows}x128x256",)
    elif _one_cta_a_tile(-(-N // 512), sm_count):
        wide = ("32x512x64",) if rows == 32 else (f"{rows}x512x128w16", f"{rows}x512x128")
    elif rows > 8 and blocks >= _MOST_BLOCKS:
        wide = (f"{rows}x512x128w16", f"{rows}x512x128")
    else:
        wide = ()
    return (*wide, f"{rows}x256x256w16", f"{rows}x256x256", f"{rows}x256x128", f"{rows}x512x64")


def _preferred(M: int, N: int, blocks: float, sm_count: int, even_when_narrow: bool) -> tuple[str, ...]:
    """Names of tiles, the best first; whether they exist and fit K and the device is checked after (H200).

    `even_when_narrow`: tiles of 128 columns can be cut into equal slices on nearly all SMs.
    """
    if M <= _LARGEST_SHORT_M:
        rows = min(rows for rows in _SHORT_ROWS if rows >= M)
        short = _preferred_short(rows, N, blocks, sm_count, even_when_narrow)
        return (*_clusters(rows, N, blocks, sm_count), *short)
    rows = min((48, 64), key=lambda rows: (-(-M // rows) * (rows + 8), -rows))
    if blocks * -(-M // 64) >= _MANY_BLOCKS:
        return (f"{rows}x512x64t", "64x512x64t", "64x256x128", "64x256x64", "64x128x128")
    short = ("64x128x128", "64x256x64") if even_when_narrow else ("64x256x64", "64x128x128")
    return (*short, "64x512x64t")


def choose_build(operands: Operands, M: int, N: int, K: int, machine: SparseMachine) -> SparseBuild:
    """The build for a problem: the preferred tile that divides K and fits this machine."""
    blocks = _blocks_an_sm(N, K, machine.sm_count)
    narrow_tiles = -(-N // 128)
    even = narrow_tiles * max(1, machine.sm_count // narrow_tiles)
    even_when_narrow = _EVEN_SHARE * machine.sm_count <= even <= machine.sm_count
    for name in _preferred(M, N, blocks, machine.sm_count, even_when_narrow):
        tile = _BY_NAME.get(name)
        if tile is None or K % (tile.depth * tile.cluster) or (tile.needs_sm90a and not machine.is_sm90a):
            continue
        try:
            build = build_for(tile, operands, machine.shared_per_block)
        except ConfigError:
            continue
        short = max(_FEWEST_STAGES, _SHORT_RING_BYTES // tile.stage_bytes(operands))
        return replace(build, stages=min(build.stages, short))
    raise ConfigError(f"no tile for M {M}, N {N}, K {K} fits {machine.shared_per_block} bytes of shared memory")


def suitable_grid(tile: SparseTile, M: int, N: int, sm_count: int) -> int:
    """CTAs for a problem: as for the dense kernel, but for few rows also one CTA a tile on two thirds of the SMs."""
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    if tile.cluster > 1 and tile.columns <= _NARROW:
        return tile.cluster * tiles  # of small layers: more clusters a tile cost more than they save
    if M <= _LARGEST_SHORT_M and _one_cta_a_tile(tiles, sm_count):
        return tiles
    return suitable_ctas(tile, M, N, sm_count)


def unsupported_shape(M: int, N: int, K: int, group_size: int | None) -> str | None:
    """One sentence why the kernel has no instance for this shape, or None."""
    if group_size not in GROUP_SIZES:
        return f"group size {group_size} is not one of 64, 128 or one group a column"
    for name, size in (("N", N), ("K", K)):
        if size % BLOCK:
            return f"{name} {size} is not a multiple of {BLOCK}"
    if group_size is not None and K % group_size:
        return f"K {K} is not a multiple of the group size {group_size}"
    if not 1 <= M <= LARGEST_M:
        return f"M {M} is not between 1 and {LARGEST_M}"
    return None
