"""Tails of marlin_hopper: stripes and pieces cover every tile once, each with a place of its own in the tile's sum."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin_bench.marlin_hopper_choice import Plan, fits
from marlin_bench.marlin_hopper_config import MOST_PIECES, Schedule, Tiling, WeightKind

TILING = "b16_w2_m2_t2_p4_acc_early_regs_tail"


def team_at(schedule: Schedule, unit: int) -> int:
    """The CTA whose stripe holds a unit of the line of all striped units: the kernel's formula."""
    units = schedule.tiles * (schedule.units_per_tile - sum(schedule.tail))
    return ((unit + 1) * schedule.grid - 1) // units


def stripes(schedule: Schedule) -> list[tuple[int, range, int]]:
    """(tile, its units, place in the tile's sum) of every segment that a CTA is given (hopper_schedule.cuh)."""
    tail = sum(schedule.tail)
    units = schedule.units_per_tile - tail
    begins = [schedule.tiles * units * cta // schedule.grid for cta in range(schedule.grid + 1)]
    found = []
    for cta, (begin, last) in enumerate(pairwise(begins)):
        end = last
        while end > begin:
            tile = (end - 1) // units
            first = max(begin - tile * units, 0)
            owner = team_at(schedule, (tile + 1) * units - 1)
            found.append((tile, range(tail + first, tail + end - tile * units), owner - cta))
            end = tile * units + first
    return found


def pieces(schedule: Schedule) -> list[tuple[int, range, int]]:
    """The same of every ticket (hopper_tail.cuh), places counted behind the stripes'."""
    tickets = range(schedule.tiles * len(schedule.tail))
    begins = schedule.piece_begins
    drawn = [(ticket % schedule.tiles, ticket // schedule.tiles) for ticket in tickets]
    return [(tile, range(begins[piece], begins[piece + 1]), piece) for tile, piece in drawn]


@settings(max_examples=60, deadline=None)
@given(
    M=st.integers(1, 70),
    N=st.integers(1, 100).map(lambda n: n * 64),
    K=st.integers(1, 100).map(lambda k: k * 256),
    tail=st.lists(st.integers(1, 20), max_size=MOST_PIECES),
    sm_count=st.sampled_from([1, 3, 114, 132]),
)
def test_every_unit_is_computed_once_and_every_part_has_its_own_place(M, N, K, tail, sm_count):
    schedule = Plan(Tiling.parse(TILING), tail=tuple(tail)).schedule(M, N, K, sm_count)
    shared, drawn = stripes(schedule), pieces(schedule)
    units = schedule.units_per_tile - sum(schedule.tail)
    for tile in range(schedule.tiles):
        own = sorted((place, units) for at, units, place in shared if at == tile)
        rest = sorted((place, units) for at, units, place in drawn if at == tile)
        assert [place for place, _ in own] == list(range(len(own)))
        assert [place for place, _ in rest] == list(range(len(schedule.tail)))
        assert len(own) == team_at(schedule, (tile + 1) * units - 1) - team_at(schedule, tile * units) + 1
        assert len(own) + len(rest) <= schedule.most_parts
        covered = [unit for _, units in (*own, *rest) for unit in units]
        assert sorted(covered) == list(range(schedule.units_per_tile))


@pytest.mark.parametrize(("K", "kept"), [(73728, (12, 4, 2)), (8192, (12, 4)), (7936, (12,)), (4096, ())])
def test_stripes_keep_at_least_half_of_a_tile(K, kept):
    assert Plan.parse(f"{TILING}:tail=12.4.2").schedule(8, 18432, K, 132).tail == kept


def test_a_name_holds_the_tail():
    plan = Plan.parse(f"{TILING}:tail=12.8.4.2")
    assert plan.tail == (12, 8, 4, 2)
    assert plan.tiling.tail
    assert Plan.parse(plan.name) == plan
    assert fits(plan, 73728, WeightKind())


@pytest.mark.parametrize(
    "name",
    [
        "b16_w2_m2_t2_p4_acc_early_regs:tail=4.2",  # a tail without a build that can draw it
        f"{TILING}:none:tail=4.2",
        f"{TILING}:tail=" + ".".join(["1"] * (MOST_PIECES + 1)),
        f"{TILING}:tail=4.0",
        "b16_w2k2_m1_t2_c2_tail:tail=4",  # clusters split K themselves
        "b64_w2_m2_t2_x2_tail:tail=4",
    ],
)
def test_tails_that_cannot_run_do_not_fit(name):
    assert not fits(Plan.parse(name), 73728, WeightKind())
