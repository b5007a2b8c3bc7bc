"""Two runs compared: what is worse, what only looks so, and how sure one is."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from simulated_gate import NOISES, TIMES, record, simulated_records
from synthetic_run import RunSpec, environment, make_record, published_record

from marlin_bench.bootstrap import RESAMPLES, Level, drift_of_median, resampled_medians
from marlin_bench.compare import CellChange, compare, moved_packages, unlike
from marlin_bench.gate_rules import RelativeRule
from marlin_bench.judgement import Change, Evidence, Judgement, change, holm, judge
from marlin_bench.noise import NoiseError, noise_map, read_noise_map
from marlin_bench.record import Status

POLICY = RelativeRule(rule="relative")


def steady(value, error=1e-4):
    """A change that is known well."""
    return Change(value, value - 2 * error, value + 2 * error, error)


def evidence(**changes):
    """Nothing changed; free clocks, the same cuBLAS, 1 % tolerated."""
    fields = {
        "time": steady(0.0),
        "cycles": steady(0.0),
        "steady": steady(0.0),
        "paired": steady(0.0),
        "baseline": "cublas_fp16",
        "baseline_part": steady(0.0),
        "baseline_is_same": True,
        "clocks_locked": False,
        "tolerance": 0.01,
        "noise": 0.001,
    }
    return Evidence(**(fields | changes))


def all_axes(value):
    return {"time": steady(value), "cycles": steady(value), "steady": steady(value), "paired": steady(value)}


def judged(seen):
    is_slower, is_faster = (chance() < 0.01 for chance in (seen.chance_not_slower, seen.chance_not_faster))
    return judge(seen, is_slower=is_slower, is_faster=is_faster)[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.02, Judgement.WORSE), (-0.02, Judgement.BETTER), (0.0, Judgement.SAME), (0.005, Judgement.SAME)],
)
def test_what_every_measure_agrees_on_is_the_verdict(value, expected):
    assert judged(evidence(**all_axes(value))) is expected


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("denier", ["steady", "paired"])
def test_a_change_that_one_measure_denies_is_not_called_a_change(denier, sign):
    seen = evidence(**(all_axes(0.03 * sign) | {denier: steady(-0.03 * sign)}))
    assert judged(seen) is Judgement.AMBIGUOUS


@pytest.mark.parametrize("weak", ["steady", "paired"])
def test_both_measures_must_lie_beyond_the_tolerance(weak):
    limit = math.log1p(0.01)
    above, below = (all_axes(0.03) | {weak: steady(limit + shift, 1e-5)} for shift in (1e-4, -1e-4))
    assert judged(evidence(**above)) is Judgement.WORSE
    assert judged(evidence(**below)) is not Judgement.WORSE
    mirrored = all_axes(-0.03) | {weak: steady(-limit - 1e-4, 1e-5)}
    assert judged(evidence(**mirrored)) is Judgement.BETTER


def test_a_time_that_did_not_change_is_the_same_whatever_the_baseline_did():
    assert judged(evidence(paired=steady(0.03), baseline_part=steady(-0.03))) is Judgement.SAME


@pytest.mark.parametrize("measure", ["time", "cycles"])
def test_what_the_clock_did_is_no_verdict(measure):
    # of a kernel that computes the time moves with the clock, of one that waits for memory the cycles do
    assert judged(evidence(**{measure: steady(0.05)})) is Judgement.SAME
    assert judged(evidence(**(all_axes(0.02) | {measure: steady(-0.05)}))) is Judgement.WORSE


def test_with_locked_clocks_a_machine_that_slowed_down_is_ambiguous_without_a_clock_it_is_the_machine():
    unknown = {"time": steady(0.05), "cycles": None, "steady": None}
    assert judged(evidence(**unknown, clocks_locked=True)) is Judgement.AMBIGUOUS
    assert judged(evidence(**unknown)) is Judgement.SAME


@pytest.mark.parametrize("side", [1, -1])
def test_an_interval_that_reaches_beyond_the_tolerance_is_ambiguous(side):
    wide = Change(0.004 * side, -0.012 if side < 0 else -0.004, 0.012 if side > 0 else 0.004, 0.004)
    assert judged(evidence(steady=wide, paired=wide)) is Judgement.AMBIGUOUS


def test_without_a_common_baseline_the_time_is_judged():
    seen = evidence(**(all_axes(0.03) | {"paired": None}))
    assert seen.deciding is seen.steady
    assert judged(seen) is Judgement.WORSE
    assert evidence(paired=None, steady=None).deciding == steady(0.0)


def test_a_new_version_of_the_baseline_is_no_witness_and_its_part_is_told_apart():
    rng = np.random.default_rng(1)
    fast = {"cublas_fp16": 2.7e-4, "marlin": 1e-4}
    old = [record(name, "c", time * np.exp(rng.normal(0, 0.002, 30))) for name, time in TIMES.items()]
    new = [
        record(name, "c", time * np.exp(rng.normal(0, 0.002, 30)), backend_version="2.0") for name, time in fast.items()
    ]
    (found,) = compare(old, new, POLICY, chosen=lambda one: one.backend == "marlin")
    assert found.judgement is Judgement.SAME
    assert found.evidence.paired is None
    assert found.evidence.baseline_part.ratio.value == pytest.approx(0.9, rel=0.01)
    assert not found.evidence.baseline_is_same


def test_cycles_are_compared_only_where_clocks_were_free_and_every_block_knows_its_own():
    times, other = (np.full(30, 1e-4), np.full(30, 1.2e-4))
    slow = np.full(30, 1.5e9)
    old = [record("marlin", "c", times)]

    def cycles(new, before=old):
        (found,) = compare(before, [new], POLICY)
        return found.evidence.cycles

    seen = cycles(record("marlin", "c", other, slow))
    assert seen.ratio.value == pytest.approx(1.2 * 1.5 / 1.7)
    half = record("marlin", "c", other)
    half = half.model_copy(update={"blocks": [replace(half.blocks[0], sm_clock_hz=None), *half.blocks[1:]]})
    assert cycles(half) is None
    assert cycles(old[0], [half]) is None
    locked = [one.model_copy(update={"clocks_locked": True}) for one in (old[0], record("marlin", "c", other, slow))]
    assert cycles(locked[1], [locked[0]]) is None
    assert cycles(locked[1]) is not None  # locked on one side alone is not locked


def test_the_fastest_common_baseline_is_the_witness_where_there_is_no_cublas_fp16():
    def cell(scale):
        return [
            make_record("dense_fp32", 1, 3e-4 * scale, noise=0.0),
            make_record("dense_bf16", 1, 2e-4 * scale, noise=0.0),
            make_record("tinygemm_cpu", 1, 1e-4 * scale, noise=0.0),
        ]

    found = {one.backend: one.evidence.baseline for one in compare(cell(1.0), cell(1.1), POLICY)}
    assert found == {"tinygemm_cpu": "dense_bf16", "dense_bf16": "dense_fp32", "dense_fp32": "dense_bf16"}
    with_cublas = [*cell(1.0), make_record("cublas_fp16", 1, 9e-4, noise=0.0)]
    found = {one.backend: one.evidence.baseline for one in compare(with_cublas, with_cublas, POLICY)}
    assert found["tinygemm_cpu"] == "cublas_fp16"


def test_a_cell_without_any_record_is_no_subject():
    with pytest.raises(AssertionError):
        _ = CellChange("c", "marlin", "kernel", None, None, Judgement.INVALID, "").named
    assert CellChange("c", "m", "kernel", make_record("marlin", 1, 1e-5), None, Judgement.INVALID, "").named.M == 1


def test_an_ambiguous_cell_says_whether_its_measures_disagree_or_are_noisy():
    wide = Change(0.004, -0.012, 0.02, 0.008)
    apart = evidence(time=wide, steady=wide, paired=steady(0.03))
    assert judge(apart, is_slower=False, is_faster=False) == (
        Judgement.AMBIGUOUS,
        "+3.0% against cublas_fp16, but -1.2% to +2.0% in time at one clock",
    )
    for paired in (wide, None):
        _, words = judge(evidence(time=wide, steady=wide, paired=paired), is_slower=False, is_faster=False)
        assert words.endswith("too noisy for a tolerance of 1.0%")
        assert ("against cublas_fp16" in words) == (paired is not None)


def test_the_words_say_against_what_only_where_there_is_a_witness():
    assert judge(evidence(**all_axes(0.03)), is_slower=True, is_faster=False)[1] == (
        "3.0% slower against cublas_fp16, +3.0% in time at one clock"
    )
    alone = evidence(**(all_axes(0.03) | {"paired": None}))
    assert judge(alone, is_slower=True, is_faster=False)[1] == "3.0% slower at one clock"
    unknown = evidence(**(all_axes(0.03) | {"paired": None, "steady": None}))
    assert judge(unknown, is_slower=True, is_faster=False)[1] == "3.0% slower"
    moved = evidence(time=steady(0.05))
    assert judge(moved, is_slower=False, is_faster=False)[1] == (
        "+0.0% in time at one clock (+5.1% as it was: the clock moved)"
    )


def test_the_parts_of_a_changed_speed_up_multiply_to_it():
    rng = np.random.default_rng(2)
    old = simulated_records(rng, "plain", cells=1)
    new = simulated_records(rng, "plain", cells=1, slower=0.03)
    (found,) = compare(old, new, POLICY, chosen=lambda one: one.backend == "marlin")
    seen = found.evidence
    assert seen.paired.log == pytest.approx(seen.time.log - seen.baseline_part.log, abs=0.002)


def test_holm_rejects_as_published():
    # Holm 1979: sorted p-values against 0.05/4, 0.05/3, 0.05/2, 0.05; the first that is not below ends it
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.0125]) == [True]
    assert holm([0.05, 0.05]) == [False, False]
    assert holm([]) == []
    assert holm([math.nan]) == [False]


def test_more_cells_ask_for_stronger_evidence():
    assert holm([0.02]) == [True]
    assert holm([0.02, 0.9, 0.9]) == [False, False, False]


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        found = change(Level(rng.normal(0, 1, 40), 1), Level(rng.normal(0.5, 1, 40), 2))
        covered += found.low <= 0.5 <= found.high
    assert 930 <= covered <= 970


def test_the_standard_error_of_a_median_is_the_known_one():
    rng = np.random.default_rng(4)
    errors = [np.std(resampled_medians(rng.normal(0, 1, 100))) for _ in range(200)]
    assert np.median(errors) == pytest.approx(1.2533 / 10, rel=0.12)
    assert resampled_medians(rng.normal(0, 1, 7)).shape == (RESAMPLES,)


def test_drift_within_a_run_is_noise_and_noise_between_blocks_is_no_drift():
    rng = np.random.default_rng(5)
    drifting = np.linspace(0, 0.03, 60) + rng.normal(0, 0.001, 60)
    middles = [0.0025, 0.0075, 0.0125, 0.0175, 0.0225, 0.0275]
    assert drift_of_median(drifting) == pytest.approx(np.std(middles, ddof=1), rel=0.1)
    assert np.median([drift_of_median(rng.normal(0, 0.01, 60)) for _ in range(100)]) < 0.003
    assert drift_of_median(np.arange(10.0)) == 0.0  # too few blocks to tell
    level = Level(drifting, 1)
    assert level.noise > 0.009 > np.std(rng.normal(0, 0.001, 60))


def test_a_narrower_chance_needs_a_larger_effect_over_its_error():
    assert steady(0.02).chance_not_above(0.01) < 1e-6
    assert steady(0.01).chance_not_above(0.01) == pytest.approx(0.5)
    assert steady(0.0).chance_not_above(0.01) > 0.999
    still = Change(0.0, 0.0, 0.0, 0.0)
    assert still.chance_not_above(0.01) == 1.0
    assert Change(0.02, 0.02, 0.02, 0.0).chance_not_above(0.01) == 0.0


@pytest.mark.parametrize("noise", NOISES)
def test_a_kernel_that_lost_five_percent_is_worse_in_every_cell(noise):
    rng = np.random.default_rng(6)
    old = simulated_records(rng, noise, cells=40)
    new = simulated_records(rng, noise, cells=40, slower=0.05)
    found = compare(old, new, POLICY, chosen=lambda one: one.backend == "marlin")
    assert {one.judgement for one in found} == {Judgement.WORSE}


@pytest.mark.parametrize(("noise", "least"), [("plain", 0.95), ("drifting", 0.95), ("skewed", 0.9), ("bimodal", 0.85)])
def test_a_kernel_that_lost_two_percent_is_worse_in_almost_every_cell(noise, least):
    rng = np.random.default_rng(7)
    verdicts = [
        one.judgement
        for _ in range(10)
        for one in compare(
            simulated_records(rng, noise, cells=20),
            simulated_records(rng, noise, cells=20, slower=0.02),
            POLICY,
            chosen=lambda one: one.backend == "marlin",
        )
    ]
    assert verdicts.count(Judgement.WORSE) >= least * len(verdicts)


def test_a_faster_kernel_is_better_in_every_cell():
    rng = np.random.default_rng(8)
    old = simulated_records(rng, "plain", cells=10, slower=0.03)
    new = simulated_records(rng, "plain", cells=10)
    found = compare(old, new, POLICY, chosen=lambda one: one.backend == "marlin")
    assert {one.judgement for one in found} == {Judgement.BETTER}


def test_exchanging_the_runs_exchanges_better_and_worse():
    rng = np.random.default_rng(9)
    old, new = (simulated_records(rng, "plain", cells=6, slower=share) for share in (0.0, 0.03))
    there, back = compare(old, new, POLICY), compare(new, old, POLICY)
    exchanged = {Judgement.WORSE: Judgement.BETTER, Judgement.BETTER: Judgement.WORSE}
    assert [exchanged.get(one.judgement, one.judgement) for one in there] == [one.judgement for one in back]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({}, {"status": Status.WRONG, "reason": "off by 3", "blocks": []}, "is wrong now (off by 3)"),
        ({"status": Status.CRASHED, "blocks": []}, {}, "was crashed before"),
        ({}, {"format": "int4_gK"}, "format"),
        ({}, {"K": 4096}, "shape"),
        ({}, {"activation_dtype": "bf16"}, "activations"),
        (None, {}, "was not measured before"),
        ({}, None, "is not now"),
    ],
)
def test_what_cannot_be_compared_is_invalid_and_says_why(old, new, words):
    sides = [[] if side is None else [make_record("marlin", 16, 1e-5).model_copy(update=side)] for side in (old, new)]
    (found,) = compare(*sides, POLICY)
    assert found.judgement is Judgement.INVALID
    assert words in found.reason


@pytest.mark.parametrize("change_", [{"format": "int4_gK"}, {"activation_dtype": "bf16"}])
def test_unlike_formats_are_compared_where_that_is_asked_for(change_):
    old = make_record("marlin", 16, 1e-4)
    new = make_record("marlin", 16, 2e-4).model_copy(update=change_)
    assert compare([old], [new], POLICY)[0].judgement is Judgement.INVALID
    assert compare([old], [new], POLICY, across=True)[0].judgement is Judgement.WORSE


def test_published_values_and_too_few_blocks_are_invalid():
    quoted = published_record(speedup=3.9)
    measured = make_record("marlin", 16, 1e-3, layer="72k_x_18k", N=18432, K=73728)
    assert "published" in compare([measured], [quoted], POLICY)[0].reason
    short = make_record("marlin", 16, 1e-5, blocks=5)
    assert "fewer than 6 blocks" in compare([short], [short], POLICY)[0].reason


def test_what_was_right_on_neither_side_is_left_out():
    refused = make_record("naive_w4a16", 128, 1.0, status=Status.UNSUPPORTED)
    assert compare([refused], [refused], POLICY) == []


def test_machines_policies_and_clocks_that_differ_are_named(tmp_path):
    here = RunSpec([make_record("marlin", 16, 1e-5)]).write(tmp_path).meta
    assert unlike(here, here) == []
    for change_, word in (
        ({"device_name": "NVIDIA A10"}, "device"),
        ({"sm_count": 114}, "SM count"),
    ):
        there = here.model_copy(update={"environment": environment(**change_)})
        assert [sentence.startswith(word) for sentence in unlike(here, there)] == [True]
    locked = here.model_copy(update={"clock_policy": "lock"})
    assert unlike(here, locked) == ["clock policy was observe and is lock"]
    rested = here.model_copy(update={"duty_cycle": 0.5})
    assert unlike(here, rested) == ["duty cycle was 1.0 and is 0.5"]
    newer = here.model_copy(update={"environment": environment(driver="580", packages={"torch": "2.11"})})
    assert moved_packages(here, newer) == ["driver none → 580", "torch none → 2.11"]
    cards = [here.model_copy(update={"environment": environment(device_uuid_hash=card)}) for card in ("a", "b")]
    assert moved_packages(*cards) == ["the card is another one of the same model"]
    assert unlike(*cards) == []


def test_the_noise_map_is_the_spread_of_runs_and_widens_the_tolerance(tmp_path):
    runs = []
    for number, share in enumerate((0.0, 0.01, 0.02)):
        made = [make_record(name, 16, time * (1 + share), noise=0.0) for name, time in TIMES.items()]
        runs.append(RunSpec(made, name=f"20261121T08000{number}Z_h200_abc").write(tmp_path))
    found = noise_map(runs)
    assert found.typical == pytest.approx(math.log(1.02) / 1.693, rel=1e-3)
    path = tmp_path / "noise.json"
    path.write_text(found.model_dump_json())
    rule = RelativeRule(rule="relative", noise=3.0)
    old, new = (
        [record(name, "square_8k/g128/M16", np.full(30, time * s)) for name, time in TIMES.items()] for s in (1, 1.0)
    )
    (seen,) = (one.evidence for one in compare(old, new, rule, noise=read_noise_map(path)) if one.backend == "marlin")
    assert seen.tolerance == pytest.approx(3 * found.typical, rel=1e-3)


def test_noise_of_one_run_of_two_codes_or_of_nothing_shared_is_refused(tmp_path):
    first = RunSpec([make_record("marlin", 16, 1e-5)]).write(tmp_path)
    with pytest.raises(NoiseError, match="two or more"):
        noise_map([first])
    other = RunSpec([make_record("marlin", 16, 1e-5)], name="b", environment=environment(code_digest="1" * 16))
    with pytest.raises(NoiseError, match="versions of the code"):
        noise_map([first, other.write(tmp_path)])
    elsewhere = RunSpec([make_record("marlin", 32, 1e-5)], name="c").write(tmp_path)
    with pytest.raises(NoiseError, match="no measured cell"):
        noise_map([first, elsewhere])
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(NoiseError, match="no noise map"):
        read_noise_map(tmp_path / "no.json")


def test_the_tolerance_is_the_largest_of_its_three_parts():
    rng = np.random.default_rng(10)
    old, new = simulated_records(rng, "plain", cells=1), simulated_records(rng, "plain", cells=1)
    for relative, absolute, noise in product((0.01, 0.05), (0.0, 1e-5), (0.0, 100.0)):
        rule = RelativeRule(rule="relative", relative=relative, absolute=absolute, noise=noise)
        seen = compare(old, new, rule, chosen=lambda one: one.backend == "marlin")[0].evidence
        typical = np.median([block.times[0] for block in old[1].blocks])
        assert seen.tolerance == pytest.approx(max(relative, absolute / typical, noise * seen.noise), rel=1e-6)
