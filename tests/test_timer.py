"""Calibration and rounds, without looking at a clock."""

from marlin_bench.timer import CallTimer, rounds_for


def test_a_block_holds_whole_rounds_and_at_least_one():
    assert rounds_for(2e-3, 1e-4, 10, 4096) == 20
    assert rounds_for(2e-3, 1.0, 2, 4096) == 1
    assert rounds_for(2e-3, 1e-7, 36, 4096) == 113


def test_a_sample_counts_every_launch_once():
    calls = []
    stopwatch = CallTimer(most_launches=8).stopwatch([lambda: calls.append(0), lambda: calls.append(1)], 10.0)
    calls.clear()
    sample = stopwatch.sample()
    assert len(calls) == stopwatch.launches == 8
    assert calls == [0, 1] * 4
    assert len(sample.times) == 1
    assert sample.times[0] > 0
    assert sample.ended >= sample.started


def test_a_host_timer_waits_for_the_device():
    waits = []
    CallTimer("host", lambda: waits.append(1), most_launches=1).stopwatch([lambda: None], 1e-9).sample()
    assert len(waits) >= 2
