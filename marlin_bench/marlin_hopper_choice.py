"""Which configuration of marlin_hopper.cu computes a product: a measured table first, a rule for everything else.

The table (marlin_hopper_table.json) is data: for each measured layer the fastest plan up to each M, written by
`marlin-bench tune`. A layer that was not measured takes the rule below, which needs no measurement.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from marlin_bench.layouts.marlin_hopper import K_MULTIPLE, STRIP_COLUMNS, TILE_K
from marlin_bench.marlin_hopper_config import (
    MOST_PIECES,
    SQUARE_ROWS,
    Schedule,
    Stripes,
    Tiling,
    WeightKind,
    schedule,
)
from marlin_bench.marlin_hopper_kinds import is_miscompiled, planned_batch, suited
from marlin_bench.marlin_hopper_rounds import Cut, better_cut

TABLE = Path(__file__).with_name("marlin_hopper_table.json")
DEFAULT_RASTER = 8
_NARROWEST_REPEATED = 64  # narrower tiles would read the weights too often
BATCH_TILES = (8, 16, 24, 32, 48, 64, 72, 80, 96, 112, 128, 136, 152)
_WIDEST_REPEATED = 128  # wider ones cost registers and stages: they are for batches that one or two of them hold
_ROWS_PER_TILE = 8  # batch rows that a tile of its own costs, for the weights that are read and dequantised again
_PLAN = re.compile(
    r"(?P<tiling>[^:]+)(?::raster=(?P<raster>\d+))?(?::ctas=(?P<ctas>\d+))?(?::(?P<stripes>rest|none))?"
    r"(?::tail=(?P<tail>\d+(?:\.\d+)*))?"
)


@dataclass(frozen=True)
class Plan:
    """A tiling with how its tiles are spread: at most `ctas` CTAs (None: one an SM), which of them striped.

    `tail`: the units of the pieces at each tile's end that go to CTAs which come free, for a tiling with a tail.
    """

    tiling: Tiling
    raster: int = DEFAULT_RASTER
    ctas: int | None = None
    stripes: Stripes = Stripes.MANY
    tail: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What records and the table store; `parse` reads it back."""
        name = self.tiling.name
        if self.raster != DEFAULT_RASTER:
            name += f":raster={self.raster}"
        if self.ctas is not None:
            name += f":ctas={self.ctas}"
        if self.stripes is not Stripes.MANY:
            name += f":{self.stripes}"
        return name + (":tail=" + ".".join(map(str, self.tail)) if self.tail else "")

    @classmethod
    def parse(cls, name: str) -> Plan:
        """The plan called `name`; ValueError when it is not one."""
        match = _PLAN.fullmatch(name)
        if match is None:
            raise ValueError(f"'{name}' is not the name of a plan")
        return cls(
            tiling=Tiling.parse(match["tiling"]),
            raster=int(match["raster"] or DEFAULT_RASTER),
            ctas=int(match["ctas"]) if match["ctas"] else None,
            stripes=Stripes(match["stripes"] or Stripes.MANY),
            tail=tuple(int(size) for size in match["tail"].split(".")) if match["tail"] else (),
        )

    def schedule(self, M: int, N: int, K: int, sm_count: int) -> Schedule:
        """Tiles and grid of a product on a device of `sm_count` SMs."""
        ctas = sm_count if self.ctas is None else min(self.ctas, sm_count)
        return schedule(self.tiling, M, N, K, ctas, self.raster, self.stripes, self.tail)


def fits(plan: Plan, K: int, kind: WeightKind) -> bool:
    """Whether the plan can run: whole stages along K, every CTA of a cluster with work, exact dequantisation."""
    tiles = -(-K // K_MULTIPLE) * K_MULTIPLE // TILE_K
    tiling = plan.tiling
    if tiles % tiling.stage_tiles:
        return False
    if tiling.splits_k_in_cluster and tiles // tiling.stage_tiles < tiling.cluster:
        return False
    if tiling.bulk_store and not (_can_store_in_bulk(tiling) and tiles // tiling.stage_tiles >= tiling.depth(kind)):
        return False  # of fewer units a tile might end before the one before it has left
    if is_miscompiled(tiling) or not _has_a_fitting_tail(plan):
        return False
    return tiling.depth(kind) >= 2 and tiling.shared_bytes(kind) <= tiling.most_shared_bytes


def _can_store_in_bulk(tiling: Tiling) -> bool:
    """A tile that one CTA ends fits, in whole squares, where a stage's activations were; a warp is free to send it."""
    if tiling.splits_k_in_cluster or tiling.tail or not tiling.reallocate:
        return False
    return tiling.batch_tile % SQUARE_ROWS == 0 and tiling.tile_columns <= TILE_K * tiling.stage_tiles


def _has_a_fitting_tail(plan: Plan) -> bool:
    """A tail needs a build that hands its pieces to single CTAs, and that all tiles are striped but for their tails."""
    tiling = plan.tiling
    if not tiling.tail:
        return not plan.tail
    if tiling.cluster > 1 or tiling.split > 1 or plan.stripes is not Stripes.MANY:
        return False
    return len(plan.tail) <= MOST_PIECES and all(plan.tail)


@cache
def _table(path: Path) -> dict[tuple[int, int], tuple[list[int], list[str]]]:
    """(N, K) → ascending M and the plan up to each."""
    layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
    found = {}
    for layer in layers:
        rows = sorted((int(M), str(plan)) for M, plan in layer["plans"].items())
        found[layer["N"], layer["K"]] = ([M for M, _ in rows], [plan for _, plan in rows])
    return found


def _measured(M: int, N: int, K: int) -> Plan | None:
    """The table's plan for the smallest measured M not below this one, its batch tile cut down to this M."""
    found = _table(TABLE).get((N, K))
    if found is None:
        return None
    sizes, plans = found
    at = bisect_left(sizes, M)
    if at == len(sizes):
        at -= 1
    plan = Plan.parse(plans[at])
    tile = tightest_batch_tile(M, plan.tiling.batch_tile)
    bulk_store = plan.tiling.bulk_store and tile % SQUARE_ROWS == 0
    return replace(plan, tiling=replace(plan.tiling, batch_tile=tile, bulk_store=bulk_store))


def smallest_batch_tile(M: int) -> int:
    """The narrowest batch tile that holds M rows, else the widest that pays for many."""
    return next((tile for tile in BATCH_TILES if tile >= M), _WIDEST_REPEATED)


def tightest_batch_tile(M: int, widest: int) -> int:
    """The batch tile up to `widest` that pads M least; of two such the wider, and up to 64 only where one tile does."""

    def is_sensible(tile: int) -> bool:
        return tile >= M or (tile > _NARROWEST_REPEATED and (tile <= _WIDEST_REPEATED or 2 * tile >= M))

    fitting = [tile for tile in BATCH_TILES if tile <= widest and is_sensible(tile)]
    return min(fitting or [widest], key=lambda tile: (-(-M // tile) * (tile + _ROWS_PER_TILE), -tile))


# A cluster of two splits K of so many columns, all clusters at once: {columns: {batch tile: tiling}}.
_CLUSTERS = {
    64: {
        8: "b8_w2k2_m1_t2_s6_c2_pair_early",
        16: "b16_w2k2_m1_t2_p4_c2_acc_pair_early",
        24: "b24_w2k2_m1_t2_p1_c2_pair_early",
        32: "b32_w2k2_m1_t2_c2_early",
        48: "b48_w2k2_m1_t2_c2_early_regs",
        64: "b64_w2k2_m1_t2_c2_early_regs",
    },
    128: {
        8: "b8_w2_m1_t2_c2_acc_pair_early_mma",
        16: "b16_w2_m1_t2_p4_c2_acc_pair_early",
        24: "b24_w2k2_m2_t2_p4_c2_early",
        32: "b32_w2k2_m2_t2_p4_c2_early",
        48: "b48_w2_m1_t2_s4_p4_c2_early_regs",
        64: "b64_w2_m1_t2_s3_p4_c2_early_regs",
        72: "b72_w2_m1_t2_p4_c2_early_regs",
        80: "b80_w2_m1_t1_c2_early_regs",
        96: "b96_w2_m1_t1_c2_early_regs",
        112: "b112_w2_m1_t1_c2_early_regs",
        128: "b128_w2_m1_t1_c2_early_regs",
        136: "b136_w2_m1_t1_c2_early_regs",
    },
    192: {
        8: "b8_w3_m1_t1_c2_acc_pair_early_mma",
        16: "b16_w3_m1_t1_p4_c2_pair_early",
        24: "b24_w3_m1_t2_c2_early",
        32: "b32_w3_m1_t2_c2_early",
        48: "b48_w3_m1_t1_p4_c2_early",
        64: "b64_w3_m1_t1_p4_c2_early",
    },
    256: {
        8: "b8_w2_m2_t2_p4_c2_acc_early_regs_mma",
        16: "b16_w4_m1_t2_p4_c2_early",
        24: "b24_w2_m2_t2_p4_c2_early_regs",
        32: "b32_w2_m2_t2_p4_c2_early_regs",
        64: "b64_w4_m1_t2_c2_early",
    },
    384: {
        8: "b8_w3_m2_t1_p4_c2_early_regs",
        16: "b16_w3_m2_t1_p4_c2_early_regs",
        24: "b24_w3_m2_t1_p4_c2_early_regs",
        32: "b32_w3_m2_t1_p4_c2_early_regs",
    },
}
# The same with one CTA an SM: where clusters leave SMs idle, others would hold two CTAs of one launch; and for a long K
# a deeper ring is worth more than the early start of the next launch.
_LONELY_CLUSTERS = {
    64: {
        8: "b8_w2k2_m1_t2_c2_early",
        16: "b16_w2k2_m1_t2_c2_early",
        24: "b24_w2k2_m1_t2_c2_early",
    },
    128: {8: "b8_w2k2_m2_t2_c2_acc_early_mma", 16: "b16_w2k2_m2_t2_c2_early"},
    192: {8: "b8_w3_m1_t2_p4_c2_acc_early_mma", 16: "b16_w3_m1_t2_c2_early"},
}
_LEAST_CROWD = 0.9  # share of the SMs that clusters need, to run two CTAs an SM
_LONG_K = 16384  # from where on clusters of 128 columns run alone
_STRIPED = {  # 256 columns striped over all SMs
    8: "b8_w2_m2_t2_s5_p4_acc_early_regs_mma",
    16: "b16_w2_m2_t2_s4_p4_early_regs",
    24: "b24_w2_m2_t2_p4_regs",
    32: "b32_w2_m2_t2_p4_regs",
    48: "b48_w2_m2_t2_p4_regs",
    64: "b64_w2_m2_t2_p4_regs",
    72: "b72_w2_m2_t2_regs",
}
_WIDE_COLUMNS = 256
_MOST_ROWS_OF_WHOLE_TILES = 64
_WIDEST_OF_HALF_STRIPS = 72
_SHORTEST_SPLIT_TILES = 8  # K tiles below which a split of K does not pay
_LEAST_WIDE_ROUND = 0.75  # of the SMs that tiles of 256 columns take; with fewer, those of 128
_FEWEST_WIDE_ROUNDS = 1.65  # if it is more than one; between, joining costs tiles of 256 columns more than those of 128
_ROUNDS_BEFORE_REST = 2.5  # of tiles of 128 columns, from where on only their last round is striped
_NARROW_RASTER = 4


def _rule_batch_tile(M: int, N: int, sm_count: int) -> int:
    """The tightest batch tile; two narrow ones instead of a wide one where clusters of those fill the device."""
    tile = tightest_batch_tile(M, BATCH_TILES[-1])
    if _WIDEST_OF_HALF_STRIPS < M <= tile and sm_count >= 2 * 2 * -(-N // STRIP_COLUMNS):
        return smallest_batch_tile(-(-M // 2))
    return tile


def _cluster_plan(batch_tile: int, batch_tiles: int, N: int, K: int, sm_count: int) -> Plan | None:
    """Clusters of two that split K of as few columns as let all of them run at once."""
    for columns, tilings in _CLUSTERS.items():
        ctas = 2 * -(-N // columns) * batch_tiles
        if ctas > sm_count or batch_tile not in tilings:
            continue
        is_lonely = ctas < _LEAST_CROWD * sm_count or (columns == STRIP_COLUMNS and K >= _LONG_K)
        lonely = _LONELY_CLUSTERS.get(columns, {}) if is_lonely else {}
        return Plan(Tiling.parse(lonely.get(batch_tile, tilings[batch_tile])))
    return None


def _default_rule(M: int, N: int, K: int, sm_count: int) -> Plan:
    """The rule, as for FP16 in groups of 128: what the measured layers nearest in shape take.

    Up to 64 rows whole tiles of 256 columns where nearly all SMs get one, else (with few columns, up to 136 rows)
    clusters of two that split K where all of them run at once; other layers stripe tiles of 256 columns.
    """
    tile = _rule_batch_tile(M, N, sm_count)
    batch_tiles = -(-M // tile)
    if M <= _MOST_ROWS_OF_WHOLE_TILES and _LEAST_WIDE_ROUND * sm_count <= -(-N // _WIDE_COLUMNS) <= sm_count:
        return Plan(Tiling.parse(_STRIPED[tile]), stripes=Stripes.NONE)
    if K // TILE_K >= _SHORTEST_SPLIT_TILES and (plan := _cluster_plan(tile, batch_tiles, N, K, sm_count)) is not None:
        return plan
    if tile in _STRIPED and batch_tiles == 1:
        return Plan(Tiling.parse(_STRIPED[tile]))
    return _large_batch_plan(tile, batch_tiles, N, sm_count)


def _large_batch_plan(tile: int, batch_tiles: int, N: int, sm_count: int) -> Plan:
    """Tiles of 256 columns, or of 128 where joining the wide ones' last round costs more; whole where they divide."""
    wide = Tiling(tile, blocks=2, early_trigger=True, reallocate=True)
    narrow = replace(wide, blocks=1)
    if batch_tiles == 1 and sm_count < -(-N // narrow.tile_columns) < 2 * sm_count:
        return Plan(narrow, stripes=Stripes.REST)
    if tile == _WIDEST_REPEATED:
        wide = replace(wide, stage_tiles=2)
    tiles = -(-N // wide.tile_columns) * batch_tiles
    rounds = tiles / sm_count
    tiling = wide if rounds >= _FEWEST_WIDE_ROUNDS or _LEAST_WIDE_ROUND <= rounds <= 1 else narrow
    tiles = -(-N // tiling.tile_columns) * batch_tiles
    even = _even_ctas(tiles, sm_count)
    if even is not None:
        return Plan(tiling, ctas=even, stripes=Stripes.NONE)
    if tiling == narrow and tiles > _ROUNDS_BEFORE_REST * sm_count:
        return Plan(narrow, raster=_NARROW_RASTER, stripes=Stripes.REST)
    return Plan(tiling)


def _even_ctas(tiles: int, sm_count: int) -> int | None:
    """A number of CTAs, nearly all SMs, among which the tiles divide."""
    return next((ctas for ctas in range(sm_count, sm_count * 15 // 16, -1) if tiles % ctas == 0), None)


def _stored_in_bulk(plan: Plan, M: int, N: int, K: int, sm_count: int) -> Plan:
    """The same with bulk stores where CTAs have whole tiles to go on with; narrow batch tiles gain nothing."""
    found = plan.schedule(M, N, K, sm_count)
    goes_on = found.stream_tiles < found.tiles and found.tiles * plan.tiling.team > found.grid
    bulk = replace(plan, tiling=replace(plan.tiling, bulk_store=True))
    return bulk if goes_on and plan.tiling.batch_tile >= _WIDEST_REPEATED and fits(bulk, K, WeightKind()) else plan


def _for_kind(plan: Plan, kind: WeightKind) -> Plan:
    return replace(plan, tiling=suited(plan.tiling, kind))


def rule(M: int, N: int, K: int, sm_count: int, kind: WeightKind) -> Plan:
    """A plan without measurements of the layer."""
    plan = _default_rule(planned_batch(M, kind), N, K, sm_count)
    if kind == WeightKind() and BATCH_TILES[-1] < M:  # the other kinds do without, for fewer builds
        cut = Cut(plan.tiling, plan.stripes)
        better = better_cut(cut, M, N, K, sm_count)
        plan = plan if better == cut else Plan(better.tiling, stripes=better.stripes)
        plan = _stored_in_bulk(plan, M, N, K, sm_count)
    return _for_kind(plan, kind)


def choose(M: int, N: int, K: int, sm_count: int, kind: WeightKind) -> Plan:
    """The plan for a product: the table's where it holds the layer, else the rule's."""
    measured = _measured(planned_batch(M, kind), N, K)
    if measured is not None and fits(plan := _for_kind(measured, kind), K, kind):
        return plan
    return rule(M, N, K, sm_count, kind)


def reachable_builds(sm_count: int = 132) -> list[tuple[Tiling, WeightKind]]:
    """Builds that CI compiles: all that the table leads to and the rule for other layers, of every kind of weights."""
    builds: dict[tuple[Tiling, WeightKind], None] = {}
    sizes = (1, *range(8, 5120, 8))  # tiles are multiples of 8, so batches between two of these choose as the next
    for group_size, zero_points, bf16 in product((128, 64, None), (False, True), (False, True)):
        kind = WeightKind(group_size, zero_points, bf16)
        for M in dict.fromkeys(planned_batch(M, kind) for M in sizes):
            for N, K in _table(TABLE):
                builds[choose(M, N, K, sm_count, kind).tiling, kind] = None
            for N in (2048, 4096, 5120, 8192, 10240, 12288, 15360, 22016, 28672, 57344):
                builds[rule(M, N, 4096, sm_count, kind).tiling, kind] = None
    return list(builds)
