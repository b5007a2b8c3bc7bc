"""One build and one launch of kernels/marlin.cu or marlin_ring.cu, without a GPU: tile, macros, shared memory, grid.

A build is a tile shape with what the operands are (dtype, groups, zero points) and as many pipeline stages as the
device's shared memory holds; a launch adds the grid. Which ones suit a problem: marlin_choice.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from marlin_bench.layouts.marlin import BLOCK

WARPS = 8
GROUP_SIZES = (32, 64, 128, None)
LARGEST_M = 65536
_HOPPER = (9, 0)
_MOST_ROWS_OF_A_WARP = 72
_ONE_GROUP_SHIFT = 31  # shifts any k to group 0: one scale a column
_STATIC_SHARED_BYTES = 512  # two barriers a stage and a flag, up to where a ring may begin
_RESERVED_SHARED_BYTES = 1024  # CUDA's own share of an SM's shared memory for each resident CTA
_MOST_STAGES = 4  # without one; deeper was never faster on an H200 and costs small layers 10 % (filling takes longer) …
_USEFUL_BYTES = 48 * 1024  # … but a narrow tile's stages are half as large: weights on their way a CTA
_EXCHANGE_BYTES = 24 * 1024  # of shared memory, for warps that split K (kernels/ring_tile.cuh) …
_TALL_EXCHANGE_BYTES = 96 * 1024  # … and for tall tiles
_FEW_ROWS = 32  # of a ring; tiles of more are tall
_FEWEST_ROWS = 8  # of a ring, without a tensor map
_FEW_COLUMNS = 128


class ConfigError(ValueError):
    """A build or launch that cannot exist."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What a CTA computes at a time: `rows` x `columns` of C, `depth` of K; `ctas_per_sm` are meant to share an SM.

    `ring`: marlin_ring.cu, where warps that only fetch keep a ring of stages filled by bulk copies (sm_90 and later).
    `scale_sums`: a group's sums are scaled, not its weights. `ring_stages`: of a ring, the most that are of use.
    `cluster`: with 2, which only a ring has, a tile's slices are CTAs of clusters, which add up through distributed
    shared memory (sm_90a); where several clusters share a tile of few rows, their sums then go the usual way.
    """

    rows: int
    columns: int
    depth: int
    ctas_per_sm: int = 1
    warps: int = WARPS
    ring: bool = False
    scale_sums: bool = False
    ring_stages: int = 3
    cluster: int = 1

    def __str__(self) -> str:
        kind = "r" if self.ring else ""
        warps = "" if self.warps == WARPS else f"w{self.warps}"
        pair = "" if self.ctas_per_sm == 1 else f"x{self.ctas_per_sm}"
        cluster = "" if self.cluster == 1 else f"c{self.cluster}"
        return f"{self.rows}x{self.columns}x{self.depth}{kind}{'s' if self.scale_sums else ''}{warps}{pair}{cluster}"

    @property
    def hands_over_registers(self) -> bool:
        """Whether warps that fetch give registers to those that compute, as only sm_90a can (ring_tile.cuh)."""
        return self.ring and self.rows > _FEWEST_ROWS

    @property
    def needs_sm90a(self) -> bool:
        """Whether only sm_90a has what it takes: registers that move between warps, or clusters."""
        return self.hands_over_registers or self.cluster > 1

    @property
    def is_tall(self) -> bool:
        """Whether it has what pays for many rows of a ring (ring_tile.cuh)."""
        return self.ring and self.rows > _FEW_ROWS

    @property
    def by_map(self) -> bool:
        """Whether activations come by tensor map (ring_tile.cuh)."""
        return self.ring and self.rows > _FEWEST_ROWS

    @property
    def has_several_clusters(self) -> bool:
        """Whether several clusters may share a tile; of 8 rows and few columns half the SMs do (H200)."""
        return self.cluster > 1 and not self.is_tall and (self.rows > _FEWEST_ROWS or self.columns > _FEW_COLUMNS)

    @property
    def line_bytes(self) -> int:
        """Where a stage begins: bulk copies to places off 128 bytes are slow, a tensor map's swizzle begins on 1024."""
        return 1024 if self.by_map else 128

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether GPUs of this compute capability have the instructions that it takes."""
        if self.needs_sm90a:
            return capability == _HOPPER
        return capability >= _HOPPER or not self.ring

    @property
    def threads(self) -> int:
        """Threads of a CTA: those that compute, and four warps that fetch where it has a ring."""
        return 32 * (self.warps + (4 if self.ring else 0))

    @property
    def warps_k(self) -> int:
        """Warps that split the depth (tile.cuh)."""
        return self.warps // (self.columns // BLOCK * self.warps_m)

    @property
    def warps_m(self) -> int:
        """Warps that split the rows (tile.cuh)."""
        return -(-self.rows // _MOST_ROWS_OF_A_WARP)

    @property
    def exchange_bytes(self) -> int:
        """Shared memory in which warps that split K exchange their sums: behind a ring, else the pipeline's."""
        warps = self.warps // self.warps_k
        a_vector = warps * (self.warps_k - 1) * 1024
        vectors = self.rows // 4 // self.warps_m
        space = _TALL_EXCHANGE_BYTES if self.is_tall else _EXCHANGE_BYTES
        at_a_time = vectors if not self.ring else max(1, min(vectors, space // max(1, a_vector)))
        return a_vector * at_a_time

    @property
    def cluster_exchange_bytes(self) -> int:
        """Shared memory in which the CTAs of a cluster exchange half of their sums, behind that of the warps."""
        return self.sum_bytes // 2 if self.cluster > 1 else 0

    @property
    def sum_bytes(self) -> int:
        """FP32 partial sums of one slice of a tile."""
        return self.rows * self.columns * 4


@dataclass(frozen=True, slots=True)
class Operands:
    """What one build is specialised for beside its tile."""

    group_size: int | None = 128
    zero_points: bool = False
    bf16: bool = False

    @property
    def group_shift(self) -> int:
        """log2 of the group size, as the kernel takes it."""
        return _ONE_GROUP_SHIFT if self.group_size is None else self.group_size.bit_length() - 1

    def scale_rows(self, depth: int) -> int:
        """Groups that a tile of this depth touches."""
        return 1 if self.group_size is None else max(1, depth // self.group_size)


@dataclass(frozen=True, slots=True)
class Build:
    """One compiled form of kernels/marlin.cu."""

    tile: Tile
    operands: Operands
    stages: int

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a CTA."""
        ring, exchange = self.stages * stage_bytes(self.tile, self.operands), self.tile.exchange_bytes
        return ring + exchange + self.tile.cluster_exchange_bytes if self.tile.ring else max(ring, exchange)

    @property
    def source(self) -> str:
        """The kernel's source in kernels/."""
        return "marlin_ring" if self.tile.ring else "marlin"

    @property
    def defines(self) -> dict[str, int | str]:
        """The macros of kernels/tile.cuh or ring_tile.cuh."""
        defines: dict[str, int | str] = {
            "TILE_M": self.tile.rows,
            "TILE_N": self.tile.columns,
            "TILE_K": self.tile.depth,
            "STAGES": self.stages,
            "SCALE_ROWS": self.operands.scale_rows(self.tile.depth),
            "BF16": int(self.operands.bf16),
            "ZEROS": int(self.operands.zero_points),
            "CTAS_PER_SM": self.tile.ctas_per_sm,
        }
        if self.tile.ring:
            defines |= {
                "WARPS": self.tile.warps,
                "SCALE_SUMS": int(self.tile.scale_sums),
                "CLUSTER": self.tile.cluster,
            }
        return defines


def stage_bytes(tile: Tile, operands: Operands) -> int:
    """Shared memory of one pipeline stage: activations, codes, scales and zero points of a tile, in whole lines."""
    scales = operands.scale_rows(tile.depth) * tile.columns
    zeros = scales // 2 if operands.zero_points else 0
    taken = tile.rows * tile.depth * 2 + tile.depth * tile.columns // 2 + scales * 2 + zeros
    return -(-taken // tile.line_bytes) * tile.line_bytes


def build_for(tile: Tile, operands: Operands, shared_per_block: int) -> Build:
    """The deepest pipeline whose CTAs share an SM as the tile wants.

    `shared_per_block` is the most shared memory a block may opt in to: 99 KiB on sm_86 and sm_89, 163 on sm_80, 227 on
    sm_90. ConfigError when fewer than two stages fit.
    """
    share = (shared_per_block + _RESERVED_SHARED_BYTES) // tile.ctas_per_sm - _RESERVED_SHARED_BYTES
    room = share - max(_STATIC_SHARED_BYTES, tile.line_bytes)
    ring = room - tile.exchange_bytes - tile.cluster_exchange_bytes if tile.ring else room
    useful = tile.ring_stages if tile.ring else max(_MOST_STAGES, _USEFUL_BYTES // (tile.depth * tile.columns // 2))
    stages = min(useful, ring // stage_bytes(tile, operands))
    if stages < 2 or tile.exchange_bytes > room:
        raise ConfigError(f"tile {tile} needs more than the {shared_per_block} bytes of shared memory of a block here")
    return Build(tile, operands, stages)


@dataclass(frozen=True)
class Stripes:
    """The partition of kernels/stripes.cuh: `tiles` output tiles of `k_tiles` steps over `ctas` CTAs."""

    k_tiles: int
    tiles: int
    ctas: int

    @cached_property
    def whole_tiles(self) -> int:
        """Tiles computed by one CTA each, round-robin."""
        if self.tiles % self.ctas == 0:
            return self.tiles
        return max(0, self.tiles // self.ctas - 1) * self.ctas

    @property
    def striped_tiles(self) -> int:
        """Tiles on the line that is cut into equal stripes: each has a counter."""
        return self.tiles - self.whole_tiles

    @property
    def places(self) -> int:
        """Tiles of partial sums in the workspace."""
        return self.striped_tiles + self.ctas if self.striped_tiles else 0

    @property
    def steps(self) -> int:
        """Steps of the striped line."""
        return self.striped_tiles * self.k_tiles

    def first_step(self, cta: int) -> int:
        """Where the stripe of a CTA begins."""
        return cta * self.steps // self.ctas

    def owner(self, step: int) -> int:
        """The CTA whose stripe holds a step."""
        return ((step + 1) * self.ctas - 1) // self.steps

    def place(self, tile: int, cta: int) -> int:
        """Of a slice's partial sums in the workspace; `tile` counts striped tiles."""
        return tile + cta


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch: a build, a grid, and the workspace it needs."""

    build: Build
    ctas: int
    sum_bytes: int
    counters: int


def plan_for(build: Build, M: int, N: int, K: int, ctas: int) -> Plan:
    """The launch of `build` on at most `ctas` CTAs, never more than there are steps; clusters: equally many a tile."""
    tile = build.tile
    if K % tile.depth or N % BLOCK:
        raise ConfigError(f"tile {tile} does not divide K {K} by {tile.depth} and N {N} by {BLOCK}")
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    k_tiles = K // tile.depth
    if tile.cluster > 1:
        if k_tiles < tile.cluster:
            raise ConfigError(f"tile {tile} needs a K of at least {tile.cluster * tile.depth}, not {K}")
        most = min(ctas // (tile.cluster * tiles), k_tiles // tile.cluster) if tile.has_several_clusters else 1
        stripes = Stripes(k_tiles, tiles, tile.cluster * tiles * max(1, most))
        if most <= 1:
            return Plan(build, stripes.ctas, sum_bytes=0, counters=0)
        return Plan(build, stripes.ctas, stripes.places * tile.sum_bytes, tile.cluster * tiles)
    stripes = Stripes(k_tiles, tiles, min(ctas, tiles * k_tiles))
    return Plan(build, stripes.ctas, stripes.places * tile.sum_bytes, stripes.striped_tiles)


TILES = (
    Tile(8, 512, 128, warps=16, ring=True, ring_stages=6),
    Tile(8, 256, 128, ring=True, scale_sums=True, ring_stages=7),
    Tile(8, 128, 256, ring=True),
    Tile(16, 256, 256, ring=True, scale_sums=True),
    Tile(16, 256, 256, ring=True),
    Tile(16, 128, 256, ring=True),
    *(Tile(rows, 512, 128, ring=True) for rows in (24, 32)),
    *(Tile(rows, 128, 128, ring=True) for rows in (32, 40, 48, 56, 64, 72, 128)),
    *(Tile(rows, 256, 128, ring=True) for rows in (24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128)),
    Tile(64, 512, 128, ring=True),
    Tile(8, 128, 256, ring=True, scale_sums=True, ring_stages=6, cluster=2),
    Tile(16, 128, 256, ring=True, scale_sums=True, ring_stages=4, cluster=2),
    *(Tile(rows, 128, 256, ring=True, cluster=2) for rows in (24, 32)),
    *(Tile(rows, 256, 256, ring=True, scale_sums=True, cluster=2) for rows in (8, 16)),
    *(Tile(rows, 256, 128, ring=True, cluster=2) for rows in (24, 32)),
    *(Tile(rows, 512, 128, ring=True, scale_sums=rows <= 16, cluster=2) for rows in (8, 16, 24, 32)),
    *(Tile(rows, 128, 128, ring=True, cluster=2) for rows in (40, 48, 56, 64, 72, 128)),
    *(Tile(rows, 256, 128, ring=True, cluster=2) for rows in (64, 72, 128)),
    Tile(64, 512, 128, ring=True, cluster=2),
    Tile(16, 128, 128),
    Tile(16, 256, 64, ctas_per_sm=2),
    Tile(16, 256, 128),
    Tile(16, 256, 128, ctas_per_sm=2),
    *(Tile(rows, 128, 128) for rows in (32, 64)),
    *(Tile(rows, 256, 64) for rows in (24, 32, 40, 48, 56, 64, 80, 96, 112, 128)),
)
"""Every tile that a launch may be given; `name` is as a record's choice has it, an `x2` at its end two CTAs an SM."""


def tile_named(name: str) -> Tile:
    """The tile whose name is `name`, as in a record's choice."""
    for tile in TILES:
        if str(tile) == name:
            return tile
    raise ConfigError(f"there is no tile '{name}': use {', '.join(map(str, TILES))}")


def unsupported_shape(M: int, N: int, K: int, group_size: int | None) -> str | None:
    """One sentence why the kernel has no instance for this shape, or None."""
    if group_size not in GROUP_SIZES:
        return f"group size {group_size} is not one of 32, 64, 128 or one group a column"
    for name, size in (("N", N), ("K", K)):
        if size % BLOCK:
            return f"{name} {size} is not a multiple of {BLOCK}"
    if group_size is not None and K % group_size:
        return f"K {K} is not a multiple of the group size {group_size}"
    if not 1 <= M <= LARGEST_M:
        return f"M {M} is not between 1 and {LARGEST_M}"
    return None
