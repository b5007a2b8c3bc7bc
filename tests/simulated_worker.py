"""The worker process of the simulated device: `python simulated_worker.py [device name]`."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from simulated import SimulatedMachine  # noqa: E402

from marlin_bench.worker import serve  # noqa: E402

if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else None
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os._exit(serve(lambda _device: SimulatedMachine(**({"name": name} if name else {})), sys.stdin, replies))
