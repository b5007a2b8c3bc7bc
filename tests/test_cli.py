"""The command line on stored runs: what goes to stdout, what to stderr, and how it ends."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_call import caller
from synthetic_run import RunSpec, environment, h200_records, h200_run, make_record, published_record

from marlin_bench import cli
from marlin_bench.cli.complaints import EXIT_CODES, complaint_of
from marlin_bench.exit_codes import ExitCode, deciding
from marlin_bench.record import Origin, Status

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run_cli(monkeypatch, capsys, tmp_path):
    """Call the program: (exit code, stdout, stderr)."""
    return caller(monkeypatch, capsys, tmp_path)


@pytest.fixture
def results(tmp_path):
    h200_run(tmp_path / "results", layers=("square_8k", "mlp_up"))
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([], 0),
        ([0, 4], 4),
        ([4, 7], 7),
        ([7, 5], 5),
        ([5, 1], 1),
        ([1, 3], 3),
        ([3, 6], 6),
        ([6, 2], 2),
        ([2, 130], 130),
        ([0, 1, 2, 3, 4, 5, 6, 7, 130], 130),
    ],
)
def test_the_exit_code_that_decides(codes, expected):
    assert deciding([ExitCode(code) for code in codes]) == expected


def test_every_complaint_is_the_name_of_an_exception_that_exists():
    for name in EXIT_CODES:
        module, _, attribute = name.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), attribute), Exception), name


def test_the_most_derived_complaint_decides_and_others_are_no_complaint():
    from marlin_bench.run_writer import DiskFullError
    from marlin_bench.store import StoreError

    assert complaint_of(DiskFullError("full")) is ExitCode.PARTLY_FAILED
    assert complaint_of(StoreError("held")) is ExitCode.USAGE
    assert complaint_of(ValueError("a bug")) is None


def test_a_bug_is_not_dressed_up_as_a_complaint(monkeypatch, run_cli, results):
    monkeypatch.setattr("marlin_bench.record_table.record_table", lambda rows: {}["bug"])
    with pytest.raises(KeyError):
        run_cli("show")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nowhere"], 5, "nowhere"),
        (["show", "--layer", "square_9k"], 2, "square_9k"),
        (["show", "--backend", "marlim"], 2, "marlim"),
        (["show", "-M", "3"], 2, "no M 3"),
        (["show", "-M", "many"], 2, "'many'"),
        (["show", "-M", "0"], 2, "'0'"),
        (["show", "--only", "x/*"], 2, "x/*"),
        (["show", "--timer", "sundial"], 2, "sundial"),
        (["show", "--backend", ","], 2, "empty"),
        (["plot", "roofline", "-o", "a.gif"], 2, "a.gif"),
        (["plot", "roofline", "-o", "no/folder.svg"], 2, "cannot write"),
        (["export", "parquet"], 2, "-o"),
        (["export", "xml"], 2, "xml"),
        (["run", "smok"], 2, "smok"),
        (["run", "smoke", "--budget", "soon"], 2, "soon"),
        (["time", "-K", "100", "-N", "128", "-M", "1", "-b", "dense_fp32"], 2, "128"),
        (["frobnicate"], 2, "frobnicate"),
        (["show", "--frobnicate"], 2, "frobnicate"),
    ],
)
def test_bad_input_is_one_sentence_and_its_exit_code(run_cli, results, arguments, code, said):
    ended, out, err = run_cli(*arguments)
    assert ended == code
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_without_any_run_the_sentence_says_how_to_get_one(run_cli):
    code, out, err = run_cli("show")
    assert (code, out) == (ExitCode.NOTHING_MEASURED, "")
    assert "marlin-bench run smoke" in err


def test_a_broken_run_folder_is_a_sentence(run_cli, tmp_path):
    folder = tmp_path / "results" / "h200" / "20261121T080000Z_x_y"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    code, _, err = run_cli("show", folder)
    assert code == ExitCode.USAGE
    assert err.startswith(f"marlin-bench: {folder}")


def _commands(app=cli.app, path=()):
    for command in app.registered_commands:
        yield (*path, command.name)
    for group in app.registered_groups:
        yield from _commands(group.typer_instance, (*path, group.name))


@pytest.mark.parametrize("command", list(_commands()), ids=" ".join)
def test_every_command_has_help_with_an_example_of_itself(run_cli, command):
    code, out, _ = run_cli(*command, "--help")
    assert code == 0
    said = " ".join(out.split()).replace("Example: sudo ", "Example: ")
    assert f"Example: marlin-bench {' '.join(command)}" in said


def test_the_version_is_the_package_s(run_cli):
    from marlin_bench import __version__

    assert run_cli("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["show"],
        ["show", "--json"],
        ["export", "csv"],
        ["plot", "roofline", "-o", "a.svg"],
        ["plot", "speedup", "-o", "b.svg"],
        ["list", "runs"],
        ["list", "suites"],
        ["list", "layers"],
    ],
    ids=" ".join,
)
def test_reading_never_imports_torch_cupy_or_pandas(tmp_path, arguments):
    h200_run(tmp_path / "results", layers=("square_8k",))
    code = (
        "import sys\nfrom marlin_bench.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n"
        "    heavy = {'torch', 'cupy', 'pandas', 'scipy'} & set(sys.modules)\n"
        "    sys.exit(f'{end.code} {heavy}' if end.code or heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_help_imports_neither_pydantic_nor_numpy_nor_matplotlib():
    code = (
        "import sys, marlin_bench.cli\n"
        "sys.exit(str({'pydantic', 'numpy', 'matplotlib', 'torch', 'rich'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_show_prints_the_table_on_stdout_and_the_run_on_stderr(run_cli, results):
    code, out, err = run_cli("show")
    lines = out.splitlines()
    assert code == 0
    titles = "layer M K N g backend time µs ± speed-up of ideal GB/s of memory roof TFLOP/s MHz kcycles notes"
    assert lines[0].split() == titles.split()
    assert len(lines) == 1 + 24 + 16
    first = lines[2].split()
    assert first[:6] == ["square_8k", "1", "8192", "8192", "128", "marlin"]
    assert float(first[6]) == pytest.approx(17.6, rel=0.01)
    assert first[8] == "2.19x"
    assert "20261121T080000Z_h200_abc" in err
    assert "\x1b" not in out


def test_show_selects_like_run_does(run_cli, results):
    _, out, _ = run_cli("show", "--layer", "square_8k", "--backend", "marlin,marlin_sparse", "-M", "1,16")
    assert [line.split()[1:6:4] for line in out.splitlines()[1:]] == [
        ["1", "marlin"],
        ["1", "marlin_sparse"],
        ["16", "marlin"],
        ["16", "marlin_sparse"],
    ]
    assert "2.19x" in out  # over the baseline that is not shown
    assert run_cli("show", "--layer", "8192x28672")[1].count("mlp_up") == 16
    assert run_cli("show", "--only", "*/M16")[1].count("\n") == 1 + 3 + 2


def test_show_says_why_something_was_not_measured(run_cli, tmp_path):
    refused = make_record("naive_w4a16", 128, 0, status=Status.UNSUPPORTED, reason="M 128 is above 64")
    RunSpec([*h200_records(layers=("square_8k",)), refused]).write(tmp_path / "results")
    line = run_cli("show", "-b", "naive_w4a16")[1].splitlines()[1]
    assert "unsupported" in line
    assert line.endswith("M 128 is above 64")


def test_show_json_is_clean_and_holds_every_timer(run_cli, tmp_path):
    records = [make_record("marlin", 1, 1e-5), make_record("marlin", 1, 2e-5, timer="cold")]
    RunSpec(records).write(tmp_path / "results")
    _, out, _ = run_cli("show", "--json")
    assert [line["timer"] for line in json.loads(out)] == ["kernel", "cold"]
    assert len(run_cli("show")[1].splitlines()) == 2
    assert len(run_cli("show", "--timer", "all")[1].splitlines()) == 3
    assert json.loads(run_cli("show", "--json", "--timer", "cold")[1])[0]["timer"] == "cold"


def test_show_by_the_datasheet_judges_lower(run_cli, results):
    def roof(*more):
        return json.loads(run_cli("show", "--json", "-M", "1024", "-b", "marlin", *more)[1])[0]["ideal_speedup"]

    assert roof() == pytest.approx(1.0)
    shares = [
        run_cli("show", "-M", "1", "-b", "cublas_fp16", "--layer", "square_8k", *more)[1]
        for more in ([], ["--datasheet"])
    ]
    assert "81%" in shares[0]
    assert "73%" in shares[1]  # 3484 of 4800 GB/s


def test_a_published_run_says_so_in_every_line(run_cli, tmp_path):
    RunSpec(
        [published_record(speedup=3.87, M=16)],
        origin=Origin.PUBLISHED,
        environment=environment(device_name="NVIDIA A10"),
        ceilings=[],
    ).write(tmp_path / "results")
    code, out, err = run_cli("show", "20261121T080000Z_h200_abc")
    assert code == 0
    assert "published: Fig. 1" in out
    assert "3.87x" in out
    assert "published" in err


@pytest.mark.parametrize("target", ["csv", "json"])
def test_export_writes_the_same_to_stdout_and_to_a_file(run_cli, results, tmp_path, target):
    code, out, _ = run_cli("export", target)
    assert code == 0
    assert run_cli("export", target, "-o", tmp_path / "x")[1] == ""
    assert (tmp_path / "x").read_text() == out


def test_the_newest_run_is_taken_and_published_ones_are_the_fallback(run_cli, tmp_path):
    RunSpec([make_record("marlin", 1, 1e-5)], name="20260101T000000Z_pub_a").write(tmp_path / "published")
    assert "20260101T000000Z_pub_a" in run_cli("show")[2]
    RunSpec([make_record("marlin", 1, 1e-5)], name="20250101T000000Z_old_a").write(tmp_path / "results")
    RunSpec([make_record("marlin", 1, 1e-5)], name="20250202T000000Z_new_a").write(tmp_path / "results")
    assert "20250202T000000Z_new_a" in run_cli("show")[2]


def test_a_run_is_named_by_folder_file_name_or_a_part_of_it(run_cli, tmp_path):
    run = RunSpec([make_record("marlin", 1, 1e-5)], name="20250101T000000Z_old_a").write(tmp_path / "results")
    RunSpec([make_record("marlin", 1, 1e-5)], name="20250202T000000Z_new_a").write(tmp_path / "results")
    for name in (run.folder, run.folder / "records.jsonl", run.folder / "run.json", run.folder.name, "_old_"):
        assert "_old_a" in run_cli("show", name)[2]
    assert "_new_a" in run_cli("show", run.folder.parent)[2]  # the newest inside a folder of runs
    code, _, err = run_cli("show", "2025")
    assert code == ExitCode.USAGE
    assert "a part of 2 run names" in err


def test_results_come_from_the_option_then_the_variable(run_cli, tmp_path, monkeypatch):
    RunSpec([make_record("marlin", 1, 1e-5)], name="20250101T000000Z_env_a").write(tmp_path / "env")
    RunSpec([make_record("marlin", 1, 1e-5)], name="20250101T000000Z_opt_a").write(tmp_path / "opt")
    monkeypatch.setenv("MARLIN_BENCH_RESULTS", str(tmp_path / "env"))
    assert "_env_a" in run_cli("show")[2]
    assert "_opt_a" in run_cli("show", "--results", tmp_path / "opt")[2]


def test_list_runs_lists_measured_and_published_once_each(run_cli, tmp_path):
    RunSpec([make_record("marlin", 1, 1e-5)], name="20250101T000000Z_x_a").write(tmp_path / "results")
    RunSpec([make_record("marlin", 1, 1e-5)], name="20250101T000000Z_p_a").write(tmp_path / "published")
    listed = json.loads(run_cli("list", "runs", "--json")[1])
    assert [line["run"] for line in listed] == ["20250101T000000Z_x_a", "20250101T000000Z_p_a"]


def test_list_suites_names_those_that_run_takes(run_cli):
    listed = {line["suite"] for line in json.loads(run_cli("list", "suites", "--json")[1])}
    assert {"smoke"} <= listed
    assert "2048x2048" in run_cli("list", "layers", "smoke")[1]


@pytest.mark.parametrize("kind", ["roofline", "speedup"])
def test_a_plot_goes_beside_its_run_as_svg_and_png(run_cli, results, kind):
    code, out, err = run_cli("plot", kind)
    paths = [Path(line) for line in out.splitlines()]
    assert code == 0
    assert [path.name for path in paths] == [f"{kind}.svg", f"{kind}.png"]
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert paths[0].parent.name == "20261121T080000Z_h200_abc"
    assert "20261121T080000Z_h200_abc" in err


def test_a_plot_of_a_published_run_goes_where_the_user_is(run_cli, tmp_path):
    h200_run(tmp_path / "published", layers=("square_8k",))
    _, out, err = run_cli("plot", "speedup")
    assert out.split() == ["speedup.svg", "speedup.png"]
    assert (tmp_path / "speedup.svg").exists()
    assert "published" in err


@pytest.mark.parametrize(("output", "files"), [("a.svg", ["a.svg"]), ("b.png", ["b.png"]), ("c", ["c.svg", "c.png"])])
def test_the_name_of_a_plot_chooses_its_kind(run_cli, results, tmp_path, output, files):
    run_cli("plot", "speedup", "--layer", "square_8k", "-o", output)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(files)


def test_a_plotted_backend_brings_its_baseline_as_twin(run_cli, results, monkeypatch):
    seen = []
    monkeypatch.setattr("marlin_bench.panels.roofline_panels", lambda rows, *_: seen.extend(rows) or [])
    run_cli("plot", "roofline", "--backend", "marlin", "--layer", "square_8k")
    assert {row.record.backend for row in seen} == {"marlin", "cublas_fp16"}
    assert {row.record.layer for row in seen} == {"square_8k"}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["compare", "h200", "2"], 2, "'2' is a part of 2 run names"),
        (["baseline", "show", "h200", "nosuch"], 5, "device 'h200' has no baseline of suite 'nosuch'"),
        (["predict", "--gpu", "a10", "--backend", "marlin_hopper"], 5, "a kernel that runs on a10"),
        (["run", "smoke", "--device", "cuda:0"], 2, "--device 'cuda:0' names no device"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_sentence(arguments, code, sentence, run_cli, results):
    RunSpec([make_record("marlin_hopper", 1, 1e-5)], name="20261121T090000Z_h200_def").write(results)
    ended, out, err = run_cli(*arguments)
    assert (ended, out) == (code, "")
    assert sentence in err.splitlines()[-1]


def test_a_count_of_one_is_singular(run_cli, tmp_path):
    RunSpec([make_record("marlin", 1, 1e-5)]).write(tmp_path / "results")
    assert "1 record\n" in run_cli("export", "csv", "-o", "run.csv")[2]
    assert run_cli("run", "smoke", "--dry-run", "-M", "1")[2].startswith("1 cell with")
