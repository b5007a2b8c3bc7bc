"""What a block is worth when the GPU gave a reason for its clock (names: marlin_bench.nvml.REASONS)."""

from __future__ import annotations

from marlin_bench.record import Flag, Telemetry

_REPEATED = {"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake", "board_limit", "reliability"}
_POWER_CAP = "sw_power_cap"


def must_repeat(telemetry: Telemetry) -> bool:
    """Whether the hardware slowed itself down (heat, power brake, its own limits): cool down and measure again."""
    return bool(_REPEATED & (set(telemetry.event_reasons) | set(telemetry.throttle_s)))


def flags(telemetry: Telemetry) -> list[Flag]:
    """What a reader of the block should know; a power cap is normal near the limit and only noted."""
    seen = set(telemetry.event_reasons) | set(telemetry.throttle_s)
    found = [Flag.THROTTLED] if _REPEATED & seen else []
    return [*found, Flag.POWER_CAPPED] if _POWER_CAP in seen else found
