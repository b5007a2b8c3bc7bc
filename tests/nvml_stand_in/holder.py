"""Holds the clocks of GPU-0 as asked, says so, and then ends in one of many ways."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

from marlin_bench.clocks import ClockError, ClockRequest, hold_clocks


def nvml_clock():
    """Stands in for the probe kernel: the clock that the stand-in GPU runs at."""
    from marlin_bench.nvml import open_device

    with open_device("GPU-0") as device:
        return device.instant().sm_clock_hz


def body(name):
    if name == "raise":
        raise ValueError("the body failed")
    if name == "worker_crash":
        code = subprocess.run([sys.executable, "-c", "import os; os.abort()"], check=False).returncode
        assert code == -6
    if name == "fork":
        if os.fork() == 0:
            time.sleep(60)  # an heir that keeps the guardian's pipe open
            os._exit(0)
        print("forked", flush=True)
        time.sleep(60)
    if name == "exit":
        os._exit(3)
    if name in {"wait", "worker_crash"}:
        sys.stdin.readline()


def main():
    request = json.loads(sys.argv[1])
    measure = nvml_clock if request.pop("measure", False) else None
    uuid = request.pop("uuid", "GPU-0")
    run = request.pop("run", "run under test")
    try:
        with hold_clocks(ClockRequest(**request), uuid, run=run, measure=measure) as state:
            print(json.dumps(asdict(state)), flush=True)
            body(sys.argv[2])
    except ClockError as error:
        print(f"ClockError: {error}", flush=True)
        sys.exit(6)


main()
