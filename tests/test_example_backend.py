"""The example package installs, is found, passes its own tests and the conformance test; a liar does not."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "backend"
PLUGIN = "marlin_bench.pytest_plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example package, built and installed into a folder of its own, without a network."""
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index",
         "--no-build-isolation", "--target", str(target), str(EXAMPLE)],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def run(arguments, installed, place, **environment):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=place, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (installed, ROOT, ROOT / "tests"))),
             "MARLIN_BENCH_RESULTS": str(place), "CUDA_VISIBLE_DEVICES": "", "MARLIN_BENCH_REQUIRE_GPU": "0",
             **environment},
    )  # fmt: skip


def run_pytest(arguments, installed, place):
    known = {point.value for point in importlib.metadata.entry_points(group="pytest11")}
    plugin = () if PLUGIN in known else ("-p", PLUGIN)
    return run(["pytest", *plugin, "-p", "no:cacheprovider", "-q", *arguments], installed, place)


def test_it_is_found_by_its_entry_point(installed, tmp_path):
    done = run(["marlin_bench", "list", "backends", "--json"], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    line = next(line for line in json.loads(done.stdout) if line["backend"] == "unpack_cpu")
    assert (line["here"], line["device"], line["license"]) == ("yes", "cpu", "Apache-2.0")


def test_its_own_tests_and_the_conformance_test_pass(installed, tmp_path):
    done = run_pytest([str(EXAMPLE / "tests"), "--marlin-backend=example_backend:UnpackCpu"], installed, tmp_path)
    assert done.returncode == 0, done.stdout
    assert " failed" not in done.stdout
    passed = int(done.stdout.rpartition(" passed")[0].split()[-1])
    assert passed >= 15


def test_a_suite_measures_it_beside_a_baseline(installed, tmp_path):
    suite = tmp_path / "tiny.yaml"
    suite.write_text(
        "device: {kind: cpu}\nlayers: [{K: 256, N: 256}]\nM: [2]\nbackends: [dense_fp32, unpack_cpu]\n"
        "sampling: {min_blocks: 6, max_blocks: 6, block_seconds: 0.0001, cell_seconds: 0.1}\n"
    )
    done = run(["marlin_bench", "run", str(suite)], installed, tmp_path)
    assert done.returncode == 0, done.stderr
    (records,) = tmp_path.rglob("records.jsonl")
    found = {(record := json.loads(line))["backend"]: record for line in records.read_text().splitlines()}
    assert found["unpack_cpu"]["backend_version"].startswith("example 1.0, torch ")
    assert found["unpack_cpu"]["stored_bytes"] == 256 * 256 // 2 + 2 * 256 * 2


@pytest.mark.parametrize(
    ("impostor", "failed"),
    [
        ("WritesNothing", "outputs were not written"),
        ("GivesZeros", "mean error"),
        ("CachedAnswer", "with other activations"),
        ("StopsAfterTheCheck", "not written (after timing)"),
        ("OnlyMultiplesOf64", "mean error"),
    ],
)
def test_a_liar_fails_the_conformance_test_with_a_sentence(impostor, failed, installed, tmp_path):
    checks = "alone or follows or M17"
    done = run_pytest([f"--marlin-backend=simulated:{impostor}", "-k", checks], installed, tmp_path)
    assert done.returncode == 1, done.stdout
    assert failed in done.stdout
    assert "Traceback" not in done.stdout


def test_an_honest_stand_in_passes_it(installed, tmp_path):
    done = run_pytest(["--marlin-backend=simulated:SimInt4", "-k", "not M300"], installed, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["no_such_module_3f:Class", "simulated:TimedLaunch", "no_such_backend"])
def test_a_name_that_is_no_backend_is_one_sentence(name, installed, tmp_path):
    done = run_pytest([f"--marlin-backend={name}"], installed, tmp_path)
    assert done.returncode == 2
    assert f"--marlin-backend {name}: " in done.stdout
    assert "Traceback" not in done.stdout


def test_a_gpu_backend_is_skipped_without_a_gpu_unless_one_was_promised(installed, tmp_path):
    done = run_pytest(["--marlin-backend=marlin"], installed, tmp_path)
    assert done.returncode == 0
    assert "skipped" in done.stdout
    assert "torch sees no CUDA device" in done.stdout  # and why, without being asked
    assert "failed" not in done.stdout
