"""One build and one launch of kernels/marlin_sparse.cu: tile, stages, macros, shared memory, grid, workspace. No GPU needed.

What a launch needs beside its tile (stripes, counters) is the dense kernel's: see marlin_config.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from marlin_bench.layouts.marlin import BLOCK
from marlin_bench.layouts.marlin_sparse import WORDS_PER_BLOCK
from marlin_bench.marlin_config import LARGEST_M, ConfigError, Machine, Operands, Stripes

GROUP_SIZES = (64, 128, None)
BLOCK_BYTES = 4 * WORDS_PER_BLOCK
_PRODUCER_THREADS = 64
_WARP_ROWS = 32
_BARRIER_BYTES = 512  # static: two barriers a stage and a flag
_RESERVED_SHARED_BYTES = 1024  # CUDA's own share of an SM's shared memory for each resident CTA
_FEWEST_STAGES = 2
_DEEPEST_PIPELINE = 16


@dataclass(frozen=True, slots=True)
class SparseTile:
    """What a CTA computes at a time: `rows` x `columns` of C, `depth` of dense K, by `warps` that compute."""

    rows: int
    columns: int
    depth: int
    warps: int = 8
    ctas_per_sm: int = 1

    def __str__(self) -> str:
        warps = "" if self.warps == 8 else f"w{self.warps}"
        return f"{self.rows}x{self.columns}x{self.depth}{warps}" + (
            "" if self.ctas_per_sm == 1 else f"x{self.ctas_per_sm}"
        )

    @property
    def warps_k(self) -> int:
        """Warps that split the depth (kernels/sparse_tile.cuh)."""
        return self.warps // (self.columns // BLOCK * -(-self.rows // _WARP_ROWS))

    @property
    def reduction_bytes(self) -> int:
        """Shared memory in which warps that split K exchange their sums; it lies behind the ring."""
        return self.rows * self.columns * 4 * (self.warps_k - 1)

    @property
    def sum_bytes(self) -> int:
        """FP32 partial sums of one slice of a tile."""
        return self.rows * self.columns * 4

    @property
    def threads(self) -> int:
        """Threads of a CTA: those that compute and two warps that fetch."""
        return 32 * self.warps + _PRODUCER_THREADS

    def stage_bytes(self, operands: Operands) -> int:
        """Shared memory of one pipeline stage: activations, packed weights and scales of a tile."""
        weights = self.depth // BLOCK * self.columns // BLOCK * BLOCK_BYTES
        return self.rows * self.depth * 2 + weights + operands.scale_rows(self.depth) * self.columns * 2


@dataclass(frozen=True, slots=True)
class SparseBuild:
    """One compiled form of kernels/marlin_sparse.cu."""

    tile: SparseTile
    operands: Operands
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a CTA."""
        return self.stages * self.tile.stage_bytes(self.operands) + self.tile.reduction_bytes

    @property
    def defines(self) -> dict[str, int | str]:
        """The macros of kernels/sparse_tile.cuh."""
        return {
            "TILE_M": self.tile.rows,
            "TILE_N": self.tile.columns,
            "TILE_K": self.tile.depth,
            "WARPS": self.tile.warps,
            "WARP_ROWS": _WARP_ROWS,
            "STAGES": self.stages,
            "SCALE_ROWS": self.operands.scale_rows(self.tile.depth),
            "BF16": int(self.operands.bf16),
            "CTAS_PER_SM": self.tile.ctas_per_sm,
        }


@dataclass(frozen=True, slots=True)
class SparsePlan:
    """One launch: a build, a grid, and the workspace it needs."""

    build: SparseBuild
    ctas: int
    sum_bytes: int
    counters: int


def build_for(tile: SparseTile, operands: Operands, shared_per_block: int) -> SparseBuild:
    """The deepest pipeline whose CTAs share an SM as the tile wants.

    `shared_per_block` is the most shared memory a block may opt in to: 99 KiB on sm_86 and sm_89, 163 on sm_80, 227 on
    sm_90. ConfigError when fewer than two stages fit.
    """
    share = (shared_per_block + _RESERVED_SHARED_BYTES) // tile.ctas_per_sm - _RESERVED_SHARED_BYTES
    room = share - _BARRIER_BYTES - tile.reduction_bytes
    stages = min(_DEEPEST_PIPELINE, room // tile.stage_bytes(operands))
    if stages < _FEWEST_STAGES:
        raise ConfigError(f"tile {tile} needs more than the {shared_per_block} bytes of shared memory of a block here")
    return SparseBuild(tile, operands, stages)


def plan_for(build: SparseBuild, M: int, N: int, K: int, ctas: int) -> SparsePlan:
    """The launch of `build` on at most `ctas` CTAs: never more than there are steps."""
    tile = build.tile
    if K % tile.depth or N % BLOCK:
        raise ConfigError(f"tile {tile} does not divide K {K} by {tile.depth} and N {N} by {BLOCK}")
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    k_tiles = K // tile.depth
    stripes = Stripes(k_tiles, tiles, min(ctas, tiles * k_tiles))
    return SparsePlan(build, stripes.ctas, stripes.places * tile.sum_bytes, stripes.striped_tiles)


TILES = tuple(
    tile
    for rows in (8, 16, 32)
    for tile in (
        SparseTile(rows, 512, 128),
        SparseTile(rows, 512, 64),
        SparseTile(rows, 256, 128),
        SparseTile(rows, 128, 256),
    )
) + (
    SparseTile(8, 512, 128, warps=16),
    SparseTile(16, 512, 128, warps=16),
    SparseTile(16, 256, 256, warps=16),
    SparseTile(64, 256, 64),
    SparseTile(64, 256, 128),
    SparseTile(64, 128, 128),
    SparseTile(128, 128, 64),
    SparseTile(128, 128, 128),
)
"""Every tile that a launch may be given."""


def tile_named(name: str) -> SparseTile:
    """The tile whose name is `name`, as in a record's choice."""
    for tile in TILES:
        if str(tile) == name:
            return tile
    raise ConfigError(f"there is no tile '{name}': use {', '.join(map(str, TILES))}")


def _preferred(M: int, N: int, K: int, sm_count: int) -> tuple[str, ...]:
    """Names of tiles, the best first; whether they fit K and the device is checked after."""
    if M > 64:
        return ("128x128x64",)
    if M > 32:
        return ("64x256x64", "64x128x128")
    rows = 8 if M <= 8 else 16 if M <= 16 else 32
    blocks_an_sm = N / BLOCK * (K / BLOCK) / sm_count
    narrow = (f"{rows}x128x256", f"{rows}x256x128")
    wide = (f"{rows}x512x128", f"{rows}x512x64")
    return (*wide, *narrow) if blocks_an_sm >= 400 else (*narrow, *wide)


def choose_build(operands: Operands, M: int, N: int, K: int, machine: Machine) -> SparseBuild:
    """The build for a problem: the preferred tile that divides K and fits this machine."""
    for name in _preferred(M, N, K, machine.sm_count):
        tile = tile_named(name)
        if K % tile.depth:
            continue
        try:
            return build_for(tile, operands, machine.shared_per_block)
        except ConfigError:
            continue
    raise ConfigError(f"no tile for M {M}, N {N}, K {K} fits {machine.shared_per_block} bytes of shared memory")


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
