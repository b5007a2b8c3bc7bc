"""Quantities as people read them."""

import math

import pytest

from marlin_bench import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (38.5e-6, "38.5 µs"),
        (1.2e-3, "1.20 ms"),
        (3.0, "3.00 s"),
        (999.6e-6, "1.00 ms"),  # not 1000 µs
        (0.0000001234, "123 ns"),
        (0.0, "0 ns"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_times_have_three_digits_and_a_prefix(seconds, text):
    assert units.format_time(seconds) == text


def test_rates_bytes_and_clocks_carry_their_units():
    assert units.format_bandwidth(4.3e12) == "4.30 TB/s"
    assert units.format_bandwidth(600e9) == "600 GB/s"
    assert units.format_flops(788e12) == "788 TFLOP/s"
    assert units.format_flops(999.9e12) == "1.00 PFLOP/s"
    assert units.format_bytes(33.554432e6) == "33.6 MB"
    assert units.format_bytes(512) == "512 B"
    assert units.format_clock(1.98e9) == "1980 MHz"
    assert units.format_clock(None) == "–"


def test_ratios_and_percentages():
    assert units.format_ratio(3.8778) == "3.88x"
    assert units.format_percent(0.954) == "95%"
    assert units.format_percent(0.0042, 1) == "0.4%"
    assert units.format_percent(math.inf) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.2, "7 s"), (59.7, "1 min 00 s"), (250, "4 min 10 s"), (7500, "2 h 05 min")]
)
def test_waiting_times_read_like_speech(seconds, text):
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("8m", 480), ("90s", 90), ("45", 45), ("1h30m", 5400), ("1.5m", 90), (" 2M 5s ", 125)]
)
def test_durations_are_read_as_people_write_them(text, seconds):
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3m", "3m2h", "0", "0m", "8 minutes"])
def test_anything_else_is_no_duration(text):
    with pytest.raises(units.UnitError, match="duration"):
        units.parse_duration(text)
