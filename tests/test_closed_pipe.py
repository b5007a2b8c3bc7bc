"""A reader that leaves early, as `head` does: every command still ends with its own exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_run import RunSpec, h200_records, make_record

from marlin_bench.record import Status

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show"], 0),
        (["gate", "policy.yaml"], 3),
        (["show", "--backend", "nosuch"], 2),
        (["nonsense"], 2),
    ],
    ids=["table", "verdict", "complaint", "usage"],
)
@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_a_reader_that_leaves_early_changes_no_exit_code(arguments, code, closed, tmp_path):
    wrong = make_record("marlin", 1, 1e-5, layer="mlp_up", status=Status.WRONG, reason="why")
    RunSpec([*h200_records(layers=("square_8k",)), wrong]).write(tmp_path / "results")
    (tmp_path / "policy.yaml").write_text("gate:\n- {rule: right}\n")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "marlin_bench", *arguments], cwd=tmp_path, check=False, stdout=writing,
        stderr=writing if closed == "both" else subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == code
    assert b"Traceback" not in (done.stderr or b"")
