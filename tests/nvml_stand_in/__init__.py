"""A libnvidia-ml.so.1 of our own for the real pynvml: built once, loaded by processes through LD_LIBRARY_PATH."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 20.0
HOLDER = Path(__file__).with_name("holder.py")
PACKAGE_PARENT = Path(__file__).parent.parent.parent


def build(folder: Path) -> Path:
    """The folder with the library."""
    target = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", target, source], check=True)
    return folder


def wait_until(condition, what: str):
    """Poll until `condition` gives something; the value."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {PATIENCE_SECONDS:.0f} s")


@dataclass(frozen=True)
class StandIn:
    """One invented machine: its GPUs' state, the calls they saw, and processes that run on it."""

    library: Path
    folder: Path

    @property
    def _state(self) -> Path:
        return self.folder / "state"

    @property
    def journals(self) -> list[Path]:
        return sorted((self.folder / "xdg" / "marlin-bench" / "clocks").glob("*.json"))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.library),
            "NVML_STAND_IN": str(self._state),
            "XDG_STATE_HOME": str(self.folder / "xdg"),
            "PYTHONPATH": os.pathsep.join((str(PACKAGE_PARENT), str(PACKAGE_PARENT / "tests"))),
        }

    def set(self, **numbers: int) -> None:
        """`sm_lock=…` sets a number of GPU 0; `error_<function>`, `after_<function>` and `devices` belong to all."""
        now = self.numbers()
        for name, value in numbers.items():
            kind, _, function = name.partition("_")
            key = f"{kind}.{function}" if kind in {"error", "after"} else name if name == "devices" else f"0.{name}"
            now[key] = value
        self._state.write_text("".join(f"{key} {value}\n" for key, value in now.items()))

    def numbers(self) -> dict[str, int]:
        if not self._state.exists():
            return {}
        return {key: int(value) for key, value in map(str.split, self._state.read_text().splitlines())}

    def calls(self, *functions: str) -> list[list[str]]:
        """Calls so far of functions whose names contain one of `functions`: [pid, name, device, a, b, ->, result]."""
        path = self.folder / "state.calls"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if any(part in line[1] for part in functions)]

    def succeeded(self, function: str) -> int:
        return sum(call[-1] == "0" for call in self.calls(function))

    @property
    def is_free(self) -> bool:
        """No clock of any GPU is locked."""
        return not any(value for key, value in self.numbers().items() if key.endswith("_lock"))

    def python(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run Python on this machine to its end."""
        return subprocess.run(
            [sys.executable, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS * 2,
            check=False,
            **options,
        )

    def hold(self, policy="lock", body="wait", **request) -> "HoldingProcess":
        """A process of its own group that holds the clocks and does `body` meanwhile."""
        return HoldingProcess(self, policy, body, request)


def _restore_signals():
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class HoldingProcess:
    """tests/nvml_stand_in/holder.py, and the line it prints once it holds (or has given up)."""

    def __init__(self, machine: StandIn, policy: str, body: str, request: dict) -> None:
        import json

        self.machine = machine
        self.process = subprocess.Popen(
            [sys.executable, str(HOLDER), json.dumps({"policy": policy, **request}), body],
            env=machine.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # a test run started in the background ignores SIGINT, SIGQUIT and SIGHUP, and so would its children
            preexec_fn=_restore_signals,  # noqa: PLW1509  started from the main thread, which holds no lock then
        )
        self.said = self.process.stdout.readline()
        self.state = json.loads(self.said) if self.said.startswith("{") else None

    @property
    def guardian(self) -> int:
        import json

        return json.loads(self.machine.journals[0].read_text())["guardian_pid"]

    def end(self) -> str:
        """Let the body finish; stderr."""
        _, errors = self.process.communicate("\n", timeout=PATIENCE_SECONDS)
        return errors

    def signal_group(self, number: int) -> str:
        """A signal as the terminal sends it: to the whole process group."""
        os.killpg(self.process.pid, number)
        _, errors = self.process.communicate(timeout=PATIENCE_SECONDS)
        return errors
