"""Which devices a run is about: names given on the command line, and whether a suite was written for what was found."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marlin_bench.record import Environment
    from marlin_bench.suite import Suite

_INDEX = re.compile(r"\d+")
_UUID = re.compile(r"(GPU|MIG)-[0-9a-fA-F-]+")


class DeviceError(RuntimeError):
    """No device, or not the one the suite wants: one sentence, exit code 6."""


class DeviceNameError(ValueError):
    """A `--device` that cannot name one: one sentence, exit code 2."""


def device_names(option: str | None, kind: str) -> list[str]:
    """Names the executor understands (`cpu`, `cuda:0`, `cuda:GPU-…`) for `--device`; the suite's kind when None.

    `0`, `0,1`, a UUID, `cpu` and `all` are understood; DeviceNameError says so for anything else.
    """
    if option is None:
        return ["cpu"] if kind == "cpu" else ["cuda:0"]
    if option == "cpu":
        return ["cpu"]
    if option == "all":
        return [f"cuda:{index}" for index in range(_cuda_device_count())] or ["cuda:0"]
    parts = [part.strip() for part in option.split(",")]
    for part in parts:
        if not (_INDEX.fullmatch(part) or _UUID.fullmatch(part)):
            raise DeviceNameError(f"--device '{option}' names no device: give 0, 0,1, a GPU UUID, cpu or all")
    if len(set(parts)) != len(parts):
        raise DeviceNameError(f"--device '{option}' names a device twice")
    return [f"cuda:{part}" for part in parts]


def _cuda_device_count() -> int:
    import torch

    return torch.cuda.device_count()


def slug(device_name: str) -> str:
    """A device's name as it stands in folders and records: `NVIDIA H200` → `h200`, an Intel Xeon → `intel-xeon-…`."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*$", " ", device_name.lower())
    text = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    return text.removeprefix("nvidia-") or "device"


def refuse_other_device(suite: Suite, environment: Environment) -> None:
    """DeviceError when `suite` was not written for this device: what it wants, what was found, what to run instead."""
    if suite.device.matches(environment.device_kind, environment.device_name):
        return
    wanted = f"a {suite.device.kind.upper()} device" + (f" named {suite.device.name}" if suite.device.name else "")
    instead = "cpu" if environment.device_kind == "cpu" else _suite_for(environment)
    raise DeviceError(
        f"suite {suite.name} wants {wanted}, this is {environment.device_name}: run suites/{instead}.yaml here,"
        f" or see the plan with `marlin-bench run {suite.name} --dry-run`"
    )


def _suite_for(environment: Environment) -> str:
    """The shipped suite written for this GPU, else the smallest one that runs on any."""
    from marlin_bench.suite import load_suite, shipped_suite_names

    for name in shipped_suite_names():
        suite = load_suite(name)
        if suite.device.name and suite.device.matches(environment.device_kind, environment.device_name):
            return name
    return "smoke"
