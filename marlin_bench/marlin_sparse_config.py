"""One build and one launch of kernels/marlin_sparse.cu: tile, stages, macros, shared memory, grid. No GPU needed.

What a launch needs beside its tile (stripes, counters) is the dense kernel's: see marlin_config.py. Which tile and grid
suit a problem: marlin_sparse_choice.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from marlin_bench.layouts.marlin import BLOCK
from marlin_bench.layouts.marlin_sparse import WORDS_PER_BLOCK
from marlin_bench.marlin_config import LARGEST_M, ConfigError, Operands, Stripes

GROUP_SIZES = (64, 128, None)
BLOCK_BYTES = 4 * WORDS_PER_BLOCK
_WARPS = 8
_WARP_ROWS = 32
_WARPGROUP_ROWS = 64
_SCALED_SUMS_ROWS = 16
_EXCHANGE_BYTES = 48 * 1024  # of warps that split K (kernels/sparse_tile.cuh)
_STATIC_BYTES = 1024  # two barriers a stage and a flag, up to where the first stage may begin
_STAGE_LINE_BYTES = 1024  # where a stage may begin (kernels/sparse_tile.cuh)
FEWEST_STAGES = 2
_DEEPEST_PIPELINE = 16


@dataclass(frozen=True, slots=True)
class SparseTile:
    """What a CTA computes at a time: `rows` x `columns` of C, `depth` of dense K.

    A warp takes up to 32 rows, and all of up to 64 rows with `warpgroups`: products at twice the rate, which only
    sm_90a has. With a `cluster` of 2 a tile's slices are CTAs of clusters, which add up through distributed shared
    memory (only sm_90a has it); where several clusters share a tile, their sums then go the usual way.
    """

    rows: int
    columns: int
    depth: int
    warpgroups: bool = False
    cluster: int = 1

    ctas_per_sm: ClassVar[int] = 1

    def __str__(self) -> str:
        cluster = "" if self.cluster == 1 else f"c{self.cluster}"
        return f"{self.rows}x{self.columns}x{self.depth}{'g' if self.warpgroups else ''}{cluster}"

    @property
    def needs_sm90a(self) -> bool:
        """Whether only sm_90a has what it takes: products of warpgroups, or clusters."""
        return self.warpgroups or self.cluster > 1

    @property
    def warp_rows(self) -> int:
        """Most batch rows of a warp."""
        return _WARPGROUP_ROWS if self.warpgroups else _WARP_ROWS

    @property
    def warps_k(self) -> int:
        """Warps that split the depth (kernels/sparse_tile.cuh)."""
        return _WARPS // (self.columns // BLOCK * -(-self.rows // self.warp_rows))

    @property
    def reduction_bytes(self) -> int:
        """Shared memory in which warps that split K exchange their sums, a part at a time; it lies behind the ring."""
        a_vector = self.columns // BLOCK * -(-self.rows // self.warp_rows) * (self.warps_k - 1) * 1024
        vectors = self.rows // 4 // -(-self.rows // self.warp_rows)
        return a_vector * min(vectors, _EXCHANGE_BYTES // max(1, a_vector))

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
        fetching = (4 if self.rows > _WARP_ROWS else 2) if self.warpgroups else 2 if self.rows == 8 else 3
        return 32 * (_WARPS + fetching)

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
        return -(-(self.rows * self.depth * 2 + weights + scales) // _STAGE_LINE_BYTES) * _STAGE_LINE_BYTES


@dataclass(frozen=True, slots=True)
class SparseBuild:
    """One compiled form of kernels/marlin_sparse.cu."""

    tile: SparseTile
    operands: Operands
    stages: int
    several_clusters: bool = False
    """Whether several clusters may share a tile; without the code for it an H200 takes up to 5 % less time."""

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
            "WARPGROUPS": int(self.tile.warpgroups),
            "STAGES": self.stages,
            "SCALE_ROWS": self.operands.scale_rows(self.tile.depth),
            "BF16": int(self.operands.bf16),
            "CLUSTER": self.tile.cluster,
            "SEVERAL_CLUSTERS": int(self.several_clusters),
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
    room = shared_per_block - _STATIC_BYTES - tile.reduction_bytes - tile.exchange_bytes
    stages = min(_DEEPEST_PIPELINE, room // tile.stage_bytes(operands))
    if stages < FEWEST_STAGES:
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
        several = replace(build, several_clusters=True)
        return SparsePlan(several, stripes.ctas, stripes.places * tile.sum_bytes, tile.cluster * tiles)
    stripes = Stripes(k_tiles, tiles, min(ctas, tiles * k_tiles))
    return SparsePlan(build, stripes.ctas, stripes.places * tile.sum_bytes, stripes.striped_tiles)


TILES = (
    *(SparseTile(8, *shape) for shape in ((512, 128), (256, 256), (256, 128), (512, 64), (128, 256))),
    *(SparseTile(16, *shape) for shape in ((512, 128), (256, 256), (256, 128), (512, 64), (128, 256))),
    *(SparseTile(24, *shape) for shape in ((512, 128), (256, 256), (256, 128), (512, 64), (128, 256))),
    *(SparseTile(32, *shape) for shape in ((512, 128), (256, 128), (512, 64), (128, 256))),
    SparseTile(64, 256, 64),
    SparseTile(64, 256, 128),
    SparseTile(64, 128, 128),
    *(SparseTile(rows, 128, 256, cluster=2) for rows in (8, 16, 24, 32)),
    *(SparseTile(rows, 64, 512, cluster=2) for rows in (16, 24, 32)),
    *(SparseTile(rows, 256, 256, cluster=2) for rows in (8, 16)),
    SparseTile(16, 512, 128, cluster=2),
    *(
        SparseTile(rows, *shape, warpgroups=True)
        for rows in (24, 32, 40, 48, 56, 64)
        for shape in ((512, 128), (256, 256))
    ),
    *(SparseTile(rows, 512, 128, warpgroups=True, cluster=2) for rows in (24, 32, 40, 48, 56)),
    *(SparseTile(rows, 256, 256, warpgroups=True, cluster=2) for rows in (24, 32, 40)),
    *(SparseTile(rows, 256, 128, warpgroups=True, cluster=2) for rows in (48, 56, 64)),
)
"""Every tile that a launch may be given."""


_BY_NAME = {str(tile): tile for tile in TILES}


def tile_named(name: str) -> SparseTile:
    """The tile whose name is `name`, as in a record's choice."""
    if name not in _BY_NAME:
        raise ConfigError(f"there is no tile '{name}': use {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


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
