"""The pytest plugin, inside a pytest of its own: on the CPU, which has the same timers and checks as a GPU."""

import importlib.metadata
import json
from pathlib import Path

import pytest

# what the inner pytest would import, kept from one to the next: torch cannot be imported twice
import torch  # noqa: F401

import marlin_bench.backends.cpu
import marlin_bench.backends.marlin
import marlin_bench.machine
import marlin_bench.measure
import marlin_bench.run  # noqa: F401

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
PLUGIN = "marlin_bench.pytest_plugin"
SUITE = """\
device: {kind: cpu}
layers: [{name: small, K: 256, N: 256}]
M: [1, 2]
backends: [dense_fp32, tinygemm_cpu]
sampling: {min_blocks: 6, max_blocks: 6, block_seconds: 0.0001, cell_seconds: 0.05}
"""


@pytest.fixture
def run_pytest(pytester, monkeypatch):
    """Run pytest in an empty folder and this process, with the plugin loaded once however the package is installed."""
    monkeypatch.delenv("MARLIN_BENCH_REQUIRE_GPU", raising=False)
    installed = {point.value for point in importlib.metadata.entry_points(group="pytest11")}
    load = () if PLUGIN in installed else ("-p", PLUGIN)

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(f"{PLUGIN}._CELL_SECONDS", 0.05)
    monkeypatch.setattr("marlin_bench.run._ceilings", lambda runner: [])  # seconds of triads and products
    # pytest-benchmark asks for the CPU's flags in a process of its own, for seconds
    pytester.makeconftest("def pytest_benchmark_generate_machine_info(config): return {'node': 'here', 'cpu': {}}")

    def call(*arguments, test=None):
        if test is not None:
            pytester.makepyfile(test)
        return pytester.runpytest_inprocess(*load, "-p", "no:cacheprovider", *arguments)

    return call


def test_a_backend_is_measured_checked_and_its_times_are_in_the_json(run_pytest, pytester):
    result = run_pytest(
        "--marlin-device=cpu",
        "--benchmark-json=out.json",
        test="""
        def test_product(gpu_benchmark):
            record = gpu_benchmark.backend("dense_fp32", M=1, N=256, K=256)
            assert record.checks and record.status == "ok"
        """,
    )
    result.assert_outcomes(passed=1)
    (bench,) = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert bench["extra_info"]["backend"] == "dense_fp32"
    assert bench["stats"]["rounds"] >= 6
    assert 0 < bench["stats"]["min"] <= bench["stats"]["median"] < 1


def test_what_pytest_benchmark_reports_is_exactly_what_was_measured(run_pytest, pytester):
    run_pytest(
        "--marlin-device=cpu",
        "--benchmark-json=out.json",
        test="""
        import json

        def test_own_launch(gpu_benchmark):
            times = gpu_benchmark(lambda: sum(range(100)), rounds=7, block_seconds=0.0001)
            json.dump(times, open("times.json", "w"))
        """,
    ).assert_outcomes(passed=1)
    (bench,) = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert bench["stats"]["data"] == json.loads((pytester.path / "times.json").read_text())


def test_without_a_gpu_the_test_is_skipped_unless_one_was_promised(run_pytest, monkeypatch):
    test = "def test_product(gpu_benchmark): gpu_benchmark.backend('marlin', M=1, N=256, K=256)"
    run_pytest(test=test).assert_outcomes(skipped=1)
    monkeypatch.setenv("MARLIN_BENCH_REQUIRE_GPU", "1")
    result = run_pytest(test=test)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*torch sees no CUDA device*"])


def test_a_wrong_output_fails_before_and_after_timing(run_pytest):
    result = run_pytest(
        "--marlin-device=cpu",
        test="""
        def test_before(gpu_benchmark):
            gpu_benchmark(lambda: None, check=lambda: False, rounds=2)

        def test_after(gpu_benchmark):
            answers = iter([True, False])
            gpu_benchmark(lambda: None, check=lambda: next(answers), rounds=2)
        """,
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*wrong before timing*", "*wrong after timing*"])


def test_what_a_backend_does_not_support_is_skipped_with_its_reason(run_pytest):
    result = run_pytest(
        "--marlin-device=cpu",
        "-rs",
        test="def test_gpu_kernel_on_cpu(gpu_benchmark): gpu_benchmark.backend('marlin', M=1, N=256, K=256)",
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*marlin in 256x256/g128/M1: unsupported*"])


@pytest.mark.parametrize("times", ["[float('nan')] * 3", "[0.0]", "[]"])
def test_a_time_that_is_none_fails(run_pytest, times):
    run_pytest(
        test=f"""
        from marlin_bench.pytest_plugin import _hand_over

        def test_nan(benchmark):
            benchmark._mode = None
            _hand_over(benchmark, {times}, {{}})
        """,
    ).assert_outcomes(failed=1)


def test_a_slower_run_fails_the_comparison_that_pytest_benchmark_makes(run_pytest, pytester):
    test = """
    from marlin_bench.pytest_plugin import _hand_over

    def test_kernel(benchmark):
        _hand_over(benchmark, [{time}] * 5, {{}})
    """
    save = ("--benchmark-storage=store", "--benchmark-save=first")
    run_pytest(*save, test=test.format(time=1e-5)).assert_outcomes(passed=1)
    against = ("--benchmark-storage=store", "--benchmark-compare", "--benchmark-compare-fail=median:5%")
    assert run_pytest(*against, test=test.format(time=1.04e-5)).ret == pytest.ExitCode.OK
    slower = run_pytest(*against, test=test.format(time=1.06e-5))
    assert slower.ret != pytest.ExitCode.OK
    assert "Performance has regressed" in slower.stdout.str() + slower.stderr.str()


def test_a_suite_runs_as_tests_and_keeps_its_run(run_pytest, pytester):
    suite = pytester.path / "tiny.yaml"
    suite.write_text(SUITE)
    result = run_pytest(f"--marlin-suite={suite}", "--marlin-results=kept", "--benchmark-json=out.json", "-k", "M1")
    result.assert_outcomes(passed=2, deselected=2)
    benches = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert [bench["name"] for bench in benches] == ["small/g128/M1[dense_fp32]", "small/g128/M1[tinygemm_cpu]"]
    (records,) = (pytester.path / "kept").rglob("records.jsonl")
    assert {json.loads(line)["M"] for line in records.read_text().splitlines()} == {1}


def test_a_suite_of_a_device_that_is_not_here_is_skipped(run_pytest, pytester):
    suite = pytester.path / "gpu.yaml"
    suite.write_text("device: {kind: cuda}\nlayers: [{K: 256, N: 256}]\nM: [1]\nbackends: [cublas_fp16]\n")
    run_pytest(f"--marlin-suite={suite}").assert_outcomes(skipped=1)


def test_an_unknown_suite_is_a_usage_error(run_pytest):
    assert run_pytest("--marlin-suite=nothing_like_it").ret == pytest.ExitCode.USAGE_ERROR


def test_a_mistake_in_the_suite_is_told_in_its_sentence_alone(run_pytest, pytester):
    suite = pytester.path / "mine.yaml"
    suite.write_text("foo: 1\n")
    result = run_pytest(f"--marlin-suite={suite}")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["--marlin-suite: *mine.yaml:1:foo: is no key here*"])
    result.stdout.no_fnmatch_line("*in load_suite*")
