"""One build of kernels/marlin_hopper.cu: its macros, its shared memory, its grid and schedule for a problem.

The fields mirror kernels/hopper_config.cuh, which explains them; the kernel refuses to build where the two disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from marlin_bench.layouts.marlin_hopper import BLOCK_COLUMNS, K_MULTIPLE, STRIP_COLUMNS, TILE_K, block_bytes

SHARED_BYTES_PER_SM = 233472
SHARED_BYTES_PER_CTA = 232448
_SHARED_BYTES_RESERVED = 1024
_BARRIER_BYTES = 16
_SQUARE_BYTES = 512
SQUARE_ROWS = 16  # batch rows of the squares in which sums leave
_WIDEST_NARROW_TILE = 32
_BROADCAST_BYTES = 16
_POST_BOX_BYTES = 48
_MOST_STAGES = 32
_FEWEST_SHARERS = 4  # parts of a striped tile from which on all who left one add them
MOST_PIECES = 15
REALLOCATING_PRODUCER_WARPS = 4
PRODUCER_WARPS = 2
_NAME = re.compile(
    r"b(?P<batch_tile>\d+)_w(?P<warpgroups>\d+)(?:k(?P<split>\d+))?_m(?P<blocks>\d+)_t(?P<stage_tiles>\d+)"
    r"(?:_s(?P<stages>\d+))?(?:_p(?P<step_products>\d+))?(?:_f(?P<in_flight>\d+))?(?:_(?P<cluster_kind>[cx])(?P<cluster>\d+))?(?P<flags>(?:_(?:acc|order|pair|early|regs|tail|bulk|mma))*)"
)


@dataclass(frozen=True)
class WeightKind:
    """What the packed weights and activations hold: fixed by the layer, not chosen."""

    group_size: int | None = 128
    zero_points: bool = False
    bf16: bool = False

    @property
    def block_bytes(self) -> int:
        """Bytes of one packed block of 64 columns x 128 rows."""
        return block_bytes(self.group_size, self.zero_points)


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: what the chooser chooses.

    `multicast`: the CTAs of a cluster share activations; without it they split K. `stages` None: as many as fit.
    """

    batch_tile: int
    warpgroups: int = 2
    split: int = 1
    blocks: int = 1
    stage_tiles: int = 1
    stages: int | None = None
    step_products: int = 2
    in_flight: int = 1
    block_order: bool = False
    cluster: int = 1
    multicast: bool = False
    scale_accumulators: bool = False
    ctas_per_sm: int = 1
    early_trigger: bool = False
    reallocate: bool = False
    tail: bool = False
    bulk_store: bool = False
    warp_products: bool = False

    @property
    def name(self) -> str:
        """Short name, read back by `parse`: b32_w2k2_m1_t2_s6_c2_acc_pair_early_regs."""
        parts = [f"b{self.batch_tile}", f"w{self.warpgroups}" + (f"k{self.split}" if self.split > 1 else "")]
        parts += [f"m{self.blocks}", f"t{self.stage_tiles}"]
        if self.stages is not None:
            parts.append(f"s{self.stages}")
        if self.step_products != 2:
            parts.append(f"p{self.step_products}")
        if self.in_flight > 1:
            parts.append(f"f{self.in_flight}")
        if self.cluster > 1:
            parts.append(("x" if self.multicast else "c") + str(self.cluster))
        flags = {
            "acc": self.scale_accumulators,
            "order": self.block_order,
            "pair": self.ctas_per_sm == 2,
            "early": self.early_trigger,
            "regs": self.reallocate,
            "tail": self.tail,
            "bulk": self.bulk_store,
            "mma": self.warp_products,
        }
        return "_".join(parts + [flag for flag, is_set in flags.items() if is_set])

    @classmethod
    def parse(cls, name: str) -> Tiling:
        """The tiling called `name`; ValueError when it is not one."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"'{name}' is not the name of a tiling")
        flags = match["flags"].split("_")
        return cls(
            batch_tile=int(match["batch_tile"]),
            warpgroups=int(match["warpgroups"]),
            split=int(match["split"] or 1),
            blocks=int(match["blocks"]),
            stage_tiles=int(match["stage_tiles"]),
            stages=int(match["stages"]) if match["stages"] else None,
            step_products=int(match["step_products"] or 2),
            in_flight=int(match["in_flight"] or 1),
            block_order="order" in flags,
            cluster=int(match["cluster"] or 1),
            multicast=match["cluster_kind"] == "x",
            scale_accumulators="acc" in flags,
            ctas_per_sm=2 if "pair" in flags else 1,
            early_trigger="early" in flags,
            reallocate="regs" in flags,
            tail="tail" in flags,
            bulk_store="bulk" in flags,
            warp_products="mma" in flags,
        )

    @property
    def tile_columns(self) -> int:
        """Output features a CTA computes at once."""
        return BLOCK_COLUMNS * self.blocks * (self.warpgroups // self.split)

    @property
    def threads(self) -> int:
        """Threads a CTA."""
        if self.reallocate:
            return 128 * self.warpgroups + 32 * REALLOCATING_PRODUCER_WARPS
        return 128 * self.warpgroups + 32 * (PRODUCER_WARPS + self.tail)

    @property
    def splits_k_in_cluster(self) -> bool:
        """Whether the CTAs of a cluster compute parts of the same tile."""
        return self.cluster > 1 and not self.multicast

    @property
    def team(self) -> int:
        """CTAs that walk the tiles together."""
        return self.cluster if self.multicast else 1

    def _fixed_shared_bytes(self) -> int:
        columns = -(-self.batch_tile // 16)  # of squares of 16 x 16 sums
        squares = min(2 if self.splits_k_in_cluster else 4, columns)
        staging = self.warpgroups * 4 * squares * _SQUARE_BYTES
        tail = 4 * _MOST_STAGES + _POST_BOX_BYTES if self.tail else 0
        return self._exchange_bytes(columns) + staging + _BROADCAST_BYTES + tail

    def _exchange_bytes(self, columns: int) -> int:
        """What the CTAs of a cluster send each other: whole tiles, or of wide ones what others finish."""
        if not self.splits_k_in_cluster:
            return 0
        tiles = self.split * self.tile_columns * self.batch_tile * 4
        sources = self.cluster * self.split
        part = self.blocks * -(-columns // sources) * 2 * _SQUARE_BYTES
        parts = self.warpgroups * 4 * (sources - 1) * part
        return min(tiles, parts) if self.batch_tile > _WIDEST_NARROW_TILE else tiles

    def _stage_bytes(self, kind: WeightKind) -> int:
        activations = 2 * self.batch_tile * 128
        weights = self.tile_columns // BLOCK_COLUMNS * kind.block_bytes
        return self.stage_tiles * (activations + weights) + _BARRIER_BYTES

    def depth(self, kind: WeightKind) -> int:
        """Pipeline stages."""
        if self.stages is not None:
            return self.stages
        return min(_MOST_STAGES, (self.most_shared_bytes - self._fixed_shared_bytes()) // self._stage_bytes(kind))

    @property
    def most_shared_bytes(self) -> int:
        """Shared memory that a CTA may take."""
        if self.ctas_per_sm > 1:
            return SHARED_BYTES_PER_SM // self.ctas_per_sm - _SHARED_BYTES_RESERVED
        return SHARED_BYTES_PER_CTA

    def shared_bytes(self, kind: WeightKind) -> int:
        """Dynamic shared memory a CTA."""
        return self.depth(kind) * self._stage_bytes(kind) + self._fixed_shared_bytes()

    def defines(self, kind: WeightKind) -> dict[str, int | str]:
        """The macros of this build."""
        return {
            "GROUP_SIZE": kind.group_size or 0,
            "ZERO_POINTS": int(kind.zero_points),
            "BF16": int(kind.bf16),
            "BATCH_TILE": self.batch_tile,
            "WARPGROUPS": self.warpgroups,
            "SPLIT": self.split,
            "BLOCKS": self.blocks,
            "STAGE_TILES": self.stage_tiles,
            "STAGES": self.depth(kind),
            "CLUSTER": self.cluster,
            "MULTICAST": int(self.multicast),
            "SCALE_ACCUMULATORS": int(self.scale_accumulators),
            "STEP_PRODUCTS": self.step_products,
            "IN_FLIGHT": self.in_flight,
            "BLOCK_ORDER": int(self.block_order),
            "CTAS_PER_SM": self.ctas_per_sm,
            "EARLY_TRIGGER": int(self.early_trigger),
            "REALLOCATE": int(self.reallocate),
            "TAIL": int(self.tail),
            "BULK_STORE": int(self.bulk_store),
            "WARP_PRODUCTS": int(self.warp_products),
            "SHARED_BYTES": self.shared_bytes(kind),
        }


@dataclass(frozen=True)
class Schedule:
    """struct Schedule of kernels/hopper_schedule.cuh with the grid it is for; `tail`: units of each piece of a tile."""

    units_per_tile: int
    row_tiles: int
    batch_tiles: int
    raster: int
    stream_tiles: int
    grid: int
    tail: tuple[int, ...] = ()
    shared_ends: bool = False

    @property
    def tiles(self) -> int:
        """Output tiles (of a whole team)."""
        return self.row_tiles * self.batch_tiles

    @property
    def most_parts(self) -> int:
        """At most so many stripes and pieces share a tile that has a tail."""
        return -(-self.grid // self.tiles) + 1 + len(self.tail)

    @property
    def piece_begins(self) -> list[int]:
        """First unit of each piece of a tile's tail, then where the last one ends, MOST_PIECES + 1 times in all."""
        begins = [sum(self.tail[:piece]) for piece in range(len(self.tail) + 1)]
        return begins + [begins[-1]] * (MOST_PIECES + 1 - len(begins))


class Stripes(StrEnum):
    """Which tiles are cut into equal pieces along K over all CTAs; the others are computed whole.

    MANY: all tiles up to two rounds, else the last incomplete round and one more. REST: the last incomplete round only.
    Striped tiles come first, so with whole tiles after them no CTA ends with sums that others wait for.
    """

    MANY = "many"
    REST = "rest"
    NONE = "none"


def schedule(
    tiling: Tiling,
    M: int,
    N: int,
    K: int,
    ctas: int,
    raster: int = 8,
    stripes: Stripes = Stripes.MANY,
    tail: tuple[int, ...] = (),
) -> Schedule:
    """The tiles of a product over at most `ctas` CTAs.

    `tail`: units of the pieces that each tile's lowest part is cut into, for builds that hand them out
    (kernels/hopper_tail.cuh); of a short K only so many as leave half of a tile to the stripes.
    """
    units = -(-K // K_MULTIPLE) * K_MULTIPLE // (TILE_K * tiling.stage_tiles)
    row_tiles = -(-N // (tiling.tile_columns * tiling.team))
    batch_tiles = -(-M // tiling.batch_tile)
    tiles = row_tiles * batch_tiles
    if tiling.splits_k_in_cluster:
        # Idle clusters fill the device: with SMs to spare, some would take two CTAs of the next, dependent launch.
        grid = max(tiles * tiling.cluster, ctas // tiling.cluster * tiling.cluster)
        return Schedule(units, row_tiles, batch_tiles, raster, 0, grid)
    teams = max(1, ctas // tiling.team)
    if stripes is Stripes.NONE:
        return Schedule(units, row_tiles, batch_tiles, raster, 0, min(teams, tiles) * tiling.team)
    teams = min(teams, tiles * units)
    if tiling.tail:
        kept = tuple(size for piece, size in enumerate(tail) if 2 * sum(tail[: piece + 1]) <= units)
        teams = min(teams, tiles * (units - sum(kept)))
        return Schedule(units, row_tiles, batch_tiles, raster, tiles, teams, kept)
    rest = tiles % teams
    if rest == 0:
        striped = 0
    elif stripes is Stripes.REST and rest * units >= teams:
        striped = rest
    else:
        striped = tiles if tiles <= 2 * teams else rest + teams
    # Whoever left sums comes back to a tile when its whole tiles are done, so there must be some; with few parts a tile
    # one CTA adds them as fast.
    shared_ends = 0 < striped < tiles and teams >= _FEWEST_SHARERS * striped
    return Schedule(units, row_tiles, batch_tiles, raster, striped, teams * tiling.team, shared_ends=shared_ends)


def strips(N: int) -> int:
    """Packed strips of a layer."""
    return -(-N // STRIP_COLUMNS)


def k_tiles(K: int) -> int:
    """Packed K tiles of a layer."""
    return -(-K // K_MULTIPLE) * K_MULTIPLE // TILE_K
