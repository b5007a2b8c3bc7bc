"""The devices a suite is run on, each behind a worker: all of one model, and the one the suite was written for."""

from __future__ import annotations

from marlin_bench.cell_runner import DeviceRunner
from marlin_bench.device import DeviceError, device_names, refuse_other_device
from marlin_bench.executor import Executor, WorkerLostError
from marlin_bench.suite import Suite


def open_devices(suite: Suite, option: str | None, executor: Executor) -> list[DeviceRunner]:
    """A runner for every device asked for, all of one model and the one the suite wants."""
    runners: list[DeviceRunner] = []
    try:
        for name in device_names(option, suite.device.kind):
            runners.append(_open_device(suite, name, executor))
            first, latest = runners[0].session.ready.environment, runners[-1].session.ready.environment
            if latest.device_name != first.device_name:
                raise DeviceError(
                    f"--device {option} mixes {first.device_name} and {latest.device_name}: run each model by itself"
                )
    except DeviceError:
        for runner in runners:
            runner.close()
        raise
    return runners


def _open_device(suite: Suite, name: str, executor: Executor) -> DeviceRunner:
    try:
        runner = DeviceRunner(executor, name)
    except WorkerLostError as lost:
        if name == "cpu":
            raise DeviceError(f"the CPU worker did not start: {lost.reason}") from lost
        wanted = f"a CUDA device named {suite.device.name}" if suite.device.name else "a CUDA device"
        raise DeviceError(
            f"suite {suite.name} wants {wanted}, but {lost.reason}: run suites/cpu.yaml here, or see the plan with"
            f" `marlin-bench run {suite.name} --dry-run`"
        ) from lost
    try:
        refuse_other_device(suite, runner.session.ready.environment)
    except DeviceError:
        runner.close()
        raise
    return runner
