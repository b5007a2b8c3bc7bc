"""Profiling through a stand-in ncu, and the ledger of what it counted."""

import json
import sys
from pathlib import Path

import pytest
from test_cli import run_cli  # noqa: F401  (a fixture)

from marlin_bench.ledger import LedgerError, ledger, measured_intensity, read_profiles, write_profiles
from marlin_bench.problem import Problem, int4
from marlin_bench.profile import METRICS, ProfileError, Subject, find_ncu, ncu_command, profile_of, read_csv, run_ncu

SUBJECT = Subject("h200", "72k_x_18k/g128/M16", "marlin")
TRAFFIC = Problem(16, 18432, 73728).traffic(int4(128))
DESCRIPTION = {
    "record_id": "0123456789ab", "device": "h200", "cell": SUBJECT.cell, "backend": "marlin", "M": 16, "N": 18432,
    "K": 73728, "group_size": 128, "format": "int4_g128", "activation_dtype": "fp16",
}  # fmt: skip


def page(*kernels, metrics=METRICS):
    """What `ncu --csv --page raw` prints after the program's own lines."""
    titles = ["ID", "Kernel Name", *metrics.values()]
    units = ["", "", *("unit" for _ in metrics)]
    lines = [titles, units, *([str(index), name, *values] for index, (name, values) in enumerate(kernels))]
    quoted = [",".join(f'"{cell}"' for cell in line) for line in lines]
    return "\n".join(["==PROF== Connected to process 1", "hello from the program", *quoted]) + "\n"


def values(**changes):
    known = {"seconds": 250_000, "dram_read": 703_000_000, "dram_write": 600_000, "l2_read": 30_000_000,
             "l2_write": 40_000, "tensor_pipe": 25.0, "issue": 50.0}  # fmt: skip
    return [f"{value:,}" if not isinstance(value, str) else value for value in (known | changes).values()]


def test_counters_come_in_base_units_and_sum_over_kernels():
    found = read_csv(page(("marlin", values()), ("reduce", values(seconds=750_000, tensor_pipe=5.0))))
    assert found.kernels == ("marlin", "reduce")
    assert found.values["seconds"] == pytest.approx(1e-3)
    assert found.values["dram_read"] == 2 * 703_000_000
    assert found.values["l2_read"] == 2 * 30_000_000 * 32
    assert found.values["tensor_pipe"] == pytest.approx(0.25 * 0.25 + 0.75 * 0.05)


def test_a_share_that_a_gpu_does_not_count_is_absent_and_bytes_are_not():
    assert "tensor_pipe" not in read_csv(page(("k", values(tensor_pipe="n/a")))).values
    with pytest.raises(ProfileError, match="dram__bytes_read"):
        read_csv(page(("k", values(dram_read="n/a"))))


@pytest.mark.parametrize("text", ["", "==ERROR== nothing was profiled\n", page()])
def test_no_kernel_is_a_sentence(text):
    with pytest.raises(ProfileError, match="no kernel"):
        read_csv(text)


def profile(**changes):
    counters = read_csv(page(("marlin", values(**changes))))
    return profile_of(counters, DESCRIPTION, "stand-in")


def test_the_ledger_charges_what_exceeds_the_weights_to_the_activations():
    stored = TRAFFIC.stored_weights
    lines = {(entry.level, entry.operand): entry for entry in ledger(profile(l2_read=round(stored / 32) + 10_000))}
    reads = lines["DRAM", "all reads"]
    assert reads.counted == stored + TRAFFIC.activations
    assert reads.excess == pytest.approx(703_000_000 / reads.counted)
    activations = lines["L2", "activations (reads beyond the weights)"]
    assert activations.measured == pytest.approx(320_000, abs=32)
    assert activations.excess == pytest.approx(320_000 / (16 * 73728 * 2), rel=1e-3)
    assert lines["DRAM", "weights"].measured is None  # a level is counted, an operand is not
    assert ("DRAM", "metadata") not in lines
    assert lines["L2", "reduction (writes beyond the output)"].measured == 40_000 * 32 - TRAFFIC.outputs


def test_weights_read_twice_show_as_excess():
    twice = ledger(profile(dram_read=round(2 * TRAFFIC.stored_weights)))[0]
    assert twice.excess == pytest.approx(2, rel=0.01)


def test_intensity_from_measured_bytes():
    assert measured_intensity(profile()) == pytest.approx(2 * 16 * 18432 * 73728 / 703_600_000)


def test_profiles_survive_a_file_and_a_bad_file_is_a_sentence(tmp_path):
    path = tmp_path / "deep" / "profiles.jsonl"
    write_profiles([profile(), profile(tensor_pipe="n/a")], path)
    assert read_profiles(path) == [profile(), profile(tensor_pipe="n/a")]
    path.write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(LedgerError):
        read_profiles(path)
    with pytest.raises(LedgerError):
        read_profiles(tmp_path / "none.jsonl")


@pytest.fixture
def stand_in(tmp_path):
    """An ncu that prints what a test gives it and ends as told."""

    def make(text, code=0):
        (tmp_path / "page.txt").write_text(text)
        script = tmp_path / "ncu"
        script.write_text(
            f"#!{sys.executable}\nimport pathlib, sys\n"
            f"pathlib.Path({str(tmp_path / 'asked.txt')!r}).write_text(' '.join(sys.argv[1:]))\n"
            f"print(pathlib.Path({str(tmp_path / 'page.txt')!r}).read_text())\nsys.exit({code})\n"
        )
        script.chmod(0o755)
        return str(script)

    return make


def test_ncu_leaves_clocks_alone_and_runs_the_subject_in_its_own_process(stand_in, tmp_path):
    found = run_ncu(stand_in(page(("marlin", values()))), SUBJECT)
    assert found.kernels == ("marlin",)
    asked = (tmp_path / "asked.txt").read_text()
    assert "--clock-control none" in asked
    assert "--profile-from-start off" in asked
    assert asked.endswith("-m marlin_bench.profile_subject h200 72k_x_18k/g128/M16 marlin")
    assert "time" not in ncu_command("ncu", SUBJECT)[0]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", 1, "NVreg_RestrictProfilingToAdminUsers"),
        ("==ERROR== ERR_NVGPUCTRPERM", 0, "NVreg_RestrictProfilingToAdminUsers"),
        ("RuntimeError: no kernel image", 1, "no kernel image"),
        ("", 9, "said nothing"),
    ],
)
def test_a_refusal_is_one_sentence(stand_in, text, code, said):
    with pytest.raises(ProfileError, match=said):
        run_ncu(stand_in(text, code), SUBJECT)


def test_without_ncu_or_rights_the_command_ends_with_6(run_cli, monkeypatch, stand_in):  # noqa: F811
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ProfileError):
        find_ncu()
    code, out, err = run_cli("profile", "h200", "--only", "72k_x_18k/*/M16", "--backend", "marlin")
    assert (code, out) == (6, "")
    assert "Nsight Compute" in err
    refusing = stand_in("==ERROR== ERR_NVGPUCTRPERM", 1)
    monkeypatch.setenv("PATH", str(Path(refusing).parent))
    monkeypatch.setattr("marlin_bench.cli.profile._device_name", lambda: "NVIDIA H200")
    code, out, err = run_cli("profile", "h200", "--only", "72k_x_18k/g128/M16", "--backend", "cublas_fp16")
    assert (code, out) == (6, "")
    assert "ERR_NVGPUCTRPERM" in err


def test_a_profile_goes_to_a_file_that_ledger_shows_without_a_gpu(run_cli, monkeypatch, stand_in, tmp_path):  # noqa: F811
    ready = stand_in(page(("gemm", values())))
    monkeypatch.setenv("PATH", str(Path(ready).parent))
    monkeypatch.setattr("marlin_bench.cli.profile._device_name", lambda: "NVIDIA H200")
    code, out, _ = run_cli(
        "profile", "h200", "--only", "72k_x_18k/g128/M16", "--backend", "cublas_fp16", "-o", "p.jsonl"
    )
    assert code == 0
    assert run_cli("ledger", "p.jsonl")[1] == out
    assert "72k_x_18k/g128/M16" in out
    assert run_cli("ledger", "none.jsonl")[0] == 2
    assert run_cli("ledger")[0] == 2  # nothing published in this empty folder
