"""The commands that measure, with the measuring itself replaced: what they ask for, print and end with."""

import json

import pytest
from cli_call import caller
from synthetic_run import H200_CEILINGS, environment, h200_run, make_record

from marlin_bench.device import DeviceError
from marlin_bench.exit_codes import ExitCode
from marlin_bench.plan import Selection
from marlin_bench.record import Check, Status
from marlin_bench.run import RunOutcome
from marlin_bench.run_writer import DiskFullError
from marlin_bench.verify import Verification


@pytest.fixture
def run_cli(monkeypatch, capsys, tmp_path):
    """Call the program: (exit code, stdout, stderr)."""
    return caller(monkeypatch, capsys, tmp_path)


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Stands in for run_suite: keeps what it was asked, writes a synthetic run, ends as told."""
    asked = {}

    def run_suite(suite, **arguments):
        asked.update(arguments, suite=suite)
        if "raises" in asked:
            raise asked["raises"]
        run = h200_run(arguments["results"], layers=("square_8k",))
        return RunOutcome(run.folder, asked.get("ends", ExitCode.DONE), asked.get("done", 8), 8, 6.0, 10.0)

    monkeypatch.setattr("marlin_bench.run.run_suite", run_suite)
    return asked


def test_run_hands_on_what_was_asked(run_cli, sweep, tmp_path):
    code, out, err = run_cli(
        "run", "smoke", "--only", "*/M16", "--layer", "a,b", "-b", "dense_fp32", "-M", "1,16",
        "--budget", "8m", "--device", "0,1", "--results", tmp_path / "here",
    )  # fmt: skip
    assert code == 0
    assert sweep["suite"].name == "smoke"
    assert sweep["selection"] == Selection(("*/M16",), ("a", "b"), ("dense_fp32",), (1, 16))
    assert (sweep["budget_s"], sweep["devices"], sweep["results"]) == (480.0, "0,1", tmp_path / "here")
    assert out.strip() == str(tmp_path / "here" / "nvidia_h200" / "20261121T080000Z_h200_abc")
    assert "8 of 8 cells; 10 s, 60% of it inside timed work" in err
    assert "resume" not in err


def test_run_says_how_to_resume_and_ends_with_the_sweep_s_code(run_cli, sweep):
    sweep.update(done=3, ends=ExitCode.INTERRUPTED)
    code, _, err = run_cli("run", "smoke")
    assert code == 130
    assert "3 of 8 cells, run again to resume" in err


@pytest.mark.parametrize(
    ("error", "code"), [(DeviceError("no CUDA device"), 6), (DiskFullError("disk full"), 7), (KeyboardInterrupt(), 130)]
)
def test_what_stops_a_sweep_is_a_sentence_and_a_code(run_cli, sweep, error, code):
    sweep["raises"] = error
    ended, out, err = run_cli("run", "smoke")
    assert (ended, out) == (code, "")
    assert "Traceback" not in err
    assert str(error) in err


def test_a_dry_run_prints_the_plan_with_floor_times_and_measures_nothing(run_cli, sweep):
    code, out, err = run_cli("run", "a10", "--dry-run", "--layer", "72k_x_18k", "-M", "1,1024")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert [line[0] for line in lines[1:]] == ["72k_x_18k/g128/M1", "72k_x_18k/g128/M1024"]
    # 2.72 GB at 600 GB/s; 2.78 TFLOP at 125 TFLOP/s
    assert lines[1][5:7] == ["4.53", "ms"]
    assert lines[2][5:7] == ["22.3", "ms"]
    assert "2 cells" in err
    assert "nothing was measured" in err
    assert sweep == {}


def test_a_dry_run_without_a_datasheet_says_what_it_cannot_know(run_cli, sweep):
    code, out, err = run_cli("run", "smoke", "--dry-run")
    assert code == 0
    assert "–" in out
    assert "datasheet" in err


def test_a_suite_for_another_machine_says_what_to_run_instead(run_cli):
    code, out, err = run_cli("run", "a10", "--device", "cpu")
    assert (code, out) == (6, "")
    assert len(err.splitlines()) == 1
    assert "A10" in err
    assert "--dry-run" in err


def test_time_writes_its_suite_beside_the_records_and_shows_them(run_cli, sweep, tmp_path):
    code, out, err = run_cli("time", "-K", 4096, "-N", 8192, "-M", "1,16", "-b", "cublas_fp16,marlin", "--device", "0")
    assert code == 0
    suite = sweep["suite"]
    assert (suite.name, suite.M, suite.backends) == ("time_4096x8192", (1, 16), ("cublas_fp16", "marlin"))
    assert (suite.layers[0].K, suite.layers[0].N, suite.device.kind) == (4096, 8192, "cuda")
    written = tmp_path / "results" / "nvidia_h200" / "20261121T080000Z_h200_abc" / "suite.yaml"
    assert written.read_text() == suite.text
    assert out.splitlines()[0].startswith("layer")
    assert str(written.parent.relative_to(tmp_path)) in err


def test_time_on_the_cpu_takes_the_cpu_s_backends(run_cli, sweep):
    run_cli("time", "-K", 256, "-N", 256, "-M", "1", "--device", "cpu", "-g", "column")
    assert sweep["suite"].backends == ("dense_fp32", "dense_bf16", "tinygemm_cpu")
    assert sweep["suite"].group_sizes == (None,)


def test_time_refuses_a_group_size_that_is_none(run_cli, sweep):
    code, _, err = run_cli("time", "-K", 256, "-N", 256, "-M", "1", "-g", "some")
    assert code == 2
    assert "'some'" in err


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([Status.OK, Status.OK], 0),
        ([Status.OK, Status.UNSUPPORTED], 0),
        ([Status.OK, Status.WRONG], 3),
        ([Status.OK, Status.CRASHED], 7),
        ([Status.UNSUPPORTED], 5),
        ([], 5),
    ],
)
def test_verify_tells_right_from_wrong_by_its_exit_code(run_cli, monkeypatch, statuses, code):
    class Cell:
        id = "square_8k/g128/M1"

    check = Check(mean_error=1e-4, largest_error=1e-3, limit=1e-3, outputs=8, nan=0, untouched=0, when="before")

    def verify_suite(suite, **arguments):
        for status in statuses:
            refusal = None if status is Status.OK else make_record("marlin", 1, 0, status=status, reason="a reason")
            yield Verification(Cell, "marlin", None if refusal else check, refusal)

    monkeypatch.setattr("marlin_bench.verify.verify_suite", verify_suite)
    ended, out, err = run_cli("verify", "smoke")
    assert ended == code
    assert [line.split()[2] for line in out.splitlines()[1:]] == [status.value for status in statuses]
    assert f"{statuses.count(Status.OK)} of {len(statuses)} right" in err


def test_ceilings_stand_beside_the_datasheet(run_cli, monkeypatch):
    monkeypatch.setattr("marlin_bench.ceiling_table.measured_here", lambda device: (environment(), H200_CEILINGS))
    code, out, err = run_cli("ceilings")
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert code == 0
    assert "4.31 TB/s 1980 MHz 4.80 TB/s" in lines["hbm_read"]
    assert "90%" in lines["hbm_read"]
    assert "1.40 µs" in lines["launch"]
    assert "NVIDIA H200" in err
    assert json.loads(run_cli("ceilings", "--json")[1])[0]["name"] == "hbm_read"


def test_backends_say_whether_they_can_run_here(run_cli, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    listed = {line["backend"]: line["here"] for line in json.loads(run_cli("list", "backends", "--json")[1])}
    assert listed["dense_fp32"] == "yes"
    assert listed["cublas_fp16"] == "no CUDA device"


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 6)])
def test_doctor_ends_by_the_worst_it_found(run_cli, monkeypatch, state, code):
    from marlin_bench.findings import Finding

    found = [Finding("disk", "ok", "much"), Finding("GPU", state, "something", "do something")]
    monkeypatch.setattr("marlin_bench.doctor.examine", lambda results: found)
    ended, out, _ = run_cli("doctor")
    assert ended == code
    assert out.splitlines()[2].split() == [state, "GPU", "something", "do", "something"]
    assert json.loads(run_cli("doctor", "--json")[1])[1]["state"] == state
