"""A record's grade follows from what it can prove."""

import math

import pytest
from synthetic_run import environment, make_record, published_record

from marlin_bench.grade import Grade, validities, validity
from marlin_bench.record import Check, Flag, Rotation, Status

HERE = environment(l2_bytes=60_000_000)


def check(when, **changes):
    values = {"mean_error": 2e-4, "largest_error": 1e-3, "limit": 1e-3, "outputs": 8192, "nan": 0, "untouched": 0}
    return Check(when=when, **(values | changes))


def proven(record=None, **changes):
    record = record or make_record("marlin", 16, 2e-5)
    proofs = {"checks": [check("before"), check("after")], "rotation": Rotation(sets=9, bytes=310_000_000, launches=9)}
    return record.model_copy(update=proofs | changes)


def test_a_record_that_proves_everything_is_an_a_without_reasons():
    assert validity(proven(), HERE) == validity(proven(), HERE, proven())
    assert validity(proven(), HERE).grade is Grade.A
    assert validity(proven(), HERE).reasons == ()


@pytest.mark.parametrize(
    ("changes", "grade", "reason"),
    [
        ({"checks": [check("before")]}, Grade.D, "after timing"),
        ({"checks": [check("before"), check("after", mean_error=2e-3)]}, Grade.D, "after timing"),
        ({"checks": [check("before", nan=1), check("after")]}, Grade.D, "before timing"),
        ({"rotation": None}, Grade.D, "rotated"),
        ({"rotation": Rotation(sets=2, bytes=299_000_000, launches=2)}, Grade.D, "5x L2"),
        ({"flags": [Flag.FEW_OPERAND_SETS]}, Grade.D, "rotated"),
        ({"converged": False}, Grade.C, "not converged"),
        ({"converged": None}, Grade.C, "not converged"),
        ({"flags": [Flag.THROTTLED]}, Grade.B, "throttled"),
    ],
)
def test_what_fails_gives_the_grade_and_its_reason(changes, grade, reason):
    found = validity(proven(**changes), HERE)
    assert found.grade is grade
    assert any(reason in said for said in found.reasons)


def test_a_clock_that_moved_a_percent_or_is_not_known_is_a_b():
    steady = make_record("marlin", 16, 2e-5, blocks=3, block_clocks=[1400e6, 1405e6, 1410e6])
    moved = make_record("marlin", 16, 2e-5, blocks=3, block_clocks=[1400e6, 1400e6, 1415e6])
    silent = make_record("marlin", 16, 2e-5, blocks=3, block_clocks=[1400e6, None, 1400e6])
    assert [validity(proven(one), HERE).grade for one in (steady, moved, silent)] == [Grade.A, Grade.B, Grade.B]


@pytest.mark.parametrize(("factor", "grade"), [(1.02, Grade.A), (1.04, Grade.C), (0.96, Grade.C)])
def test_a_cold_timer_that_disagrees_by_three_percent_is_a_c(factor, grade):
    kernel = proven(make_record("marlin", 16, 2e-5, noise=0))
    cold = make_record("marlin", 16, 2e-5 * factor, timer="cold", noise=0)
    assert validities([kernel, cold], HERE)[kernel.id].grade is grade


@pytest.mark.parametrize("changes", [{"commit": "unknown", "dirty": None}, {"dirty": True}, {"dirty": None}])
def test_uncommitted_code_is_a_d(changes):
    assert validity(proven(), environment(l2_bytes=60_000_000, **changes)).grade is Grade.D


def test_the_worst_rule_decides_and_every_reason_is_told_worst_first():
    found = validity(proven(converged=False, flags=[Flag.THROTTLED], rotation=None), HERE)
    assert found.grade is Grade.D
    assert [reason.split()[0] for reason in found.reasons] == ["operands", "not", "throttled"]


def test_a_nan_error_is_not_right():
    broken = check("after").model_copy(update={"mean_error": math.nan})
    assert validity(proven(checks=[check("before"), broken]), HERE).grade is Grade.D


def test_published_and_failed_records_have_no_grade():
    assert validity(published_record(speedup=3.87), HERE) is None
    assert validity(make_record("marlin", 1, 0, status=Status.CRASHED, reason="died"), HERE) is None
