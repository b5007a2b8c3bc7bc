"""Numbers at the edge: SI base units inside the program, three significant digits and a prefix outside it."""

from __future__ import annotations

import math
import re

NOTHING = "–"
_SMALL = (("", 1.0), ("m", 1e-3), ("µ", 1e-6), ("n", 1e-9))
_LARGE = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?")


class UnitError(ValueError):
    """Text that is not a quantity; one sentence."""


def _three_digits(value: float) -> str:
    """`value` below 1000 with three significant digits and no exponent."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def _scaled(value: float | None, unit: str, prefixes: tuple[tuple[str, float], ...]) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    rounded = float(f"{value:.3g}")  # before the prefix is chosen: 999.6 µs is 1.00 ms
    prefix, scale = next((pair for pair in prefixes if abs(rounded) >= pair[1]), prefixes[-1])
    return f"{_three_digits(rounded / scale)} {prefix}{unit}"


def format_time(seconds: float | None) -> str:
    """38.5 µs, 1.20 ms, 3.00 s."""
    return _scaled(seconds, "s", _SMALL)


def format_bandwidth(bytes_per_second: float | None) -> str:
    """4.30 TB/s, 600 GB/s."""
    return _scaled(bytes_per_second, "B/s", _LARGE)


def format_flops(flop_per_second: float | None) -> str:
    """788 TFLOP/s."""
    return _scaled(flop_per_second, "FLOP/s", _LARGE)


def format_bytes(count: float | None) -> str:
    """33.6 MB: decimal prefixes, so that bytes over seconds give the bandwidth printed beside them."""
    return _scaled(count, "B", _LARGE)


def format_clock(hertz: float | None) -> str:
    """1980 MHz: always in MHz, as every NVIDIA tool writes it."""
    return NOTHING if hertz is None or not math.isfinite(hertz) else f"{hertz / 1e6:.0f} MHz"


def format_ratio(ratio: float | None) -> str:
    """3.88x."""
    return NOTHING if ratio is None or not math.isfinite(ratio) else f"{ratio:.2f}x"


def format_percent(share: float | None, decimals: int = 0) -> str:
    """95% for 0.95."""
    return NOTHING if share is None or not math.isfinite(share) else f"{100 * share:.{decimals}f}%"


def counted(count: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_duration(seconds: float) -> str:
    """How long a person waits: 7 s, 4 min 10 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def parse_duration(text: str) -> float:
    """Seconds in `8m`, `90s`, `1h30m`, `45`; UnitError otherwise or for nothing at all."""
    match = _DURATION.fullmatch(text.strip().lower().replace(" ", ""))
    if match is None or not any(match.groups()):
        raise UnitError(f"'{text}' is not a duration: write it like 90s, 8m or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total <= 0:
        raise UnitError(f"a duration of '{text}' leaves no time: give more than zero seconds")
    return total
