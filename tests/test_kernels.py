"""Every kernel build compiles without a GPU, spills nothing, and takes what kernels/resources.json says."""

import json
import re

import pytest

from marlin_bench import kernel_catalog
from marlin_bench.cuda_source import BuildError, compile_cubin, kernels_folder
from marlin_bench.kernel_catalog import SHARED_BYTES_PER_BLOCK, BuildResources, compile_build, kernel_builds
from marlin_bench.marlin_config import TILES, Build, Operands

BUILDS = kernel_builds()
RECORDED = kernel_catalog.recorded_resources()


@pytest.mark.every_build
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.key)
def test_a_build_takes_the_recorded_registers_and_shared_memory(build):
    taken = compile_build(build)
    assert taken == RECORDED[build.key], "run `python -m marlin_bench.kernel_catalog` and review the difference"


@pytest.mark.parametrize("build", {build.source: build for build in BUILDS}.values(), ids=lambda build: build.key)
def test_a_build_of_each_kernel_takes_what_is_recorded(build):
    assert compile_build(build) == RECORDED[build.key]


def test_ci_compiles_every_build():
    root = kernels_folder().parent
    assert re.search(r"^kernels:.*\n\t.*marlin-bench kernels --build$", (root / "Makefile").read_text(), re.MULTILINE)
    assert re.search(r"^make .*\bkernels$", (root / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_table_holds_the_builds_and_no_others():
    assert sorted(RECORDED) == sorted(build.key for build in BUILDS)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.key)
def test_a_build_fits_the_shared_memory_of_its_architecture(build):
    taken = RECORDED[build.key]
    assert taken.static_shared_bytes + taken.dynamic_shared_bytes <= SHARED_BYTES_PER_BLOCK[build.arch]


def test_another_number_of_registers_is_noticed(monkeypatch):
    build = BUILDS[0]
    recorded = dict(RECORDED)
    monkeypatch.setattr(kernel_catalog, "kernel_builds", lambda: [build])
    monkeypatch.setattr(kernel_catalog, "recorded_resources", lambda: recorded)
    assert list(kernel_catalog.check_builds()) == [build.key]
    recorded[build.key] = BuildResources(RECORDED[build.key].registers + 1, 0, 0)
    with pytest.raises(BuildError, match=build.key):
        list(kernel_catalog.check_builds())


@pytest.mark.parametrize("ablation", ["ABLATE_DEQUANTISE", "ABLATE_SCALES", "ABLATE_REDUCTION", "ABLATE_SWIZZLE"])
def test_ablation_builds_compile(ablation):
    for tile in (TILES[0], TILES[-1]):
        build = Build(tile, Operands(), 4)
        assert compile_cubin(build.source, "sm_90a", {**build.defines, ablation: 1}).resources[0].spill_bytes == 0


def test_inline_ptx_stands_in_ptx_cuh_only():
    for path in sorted(kernels_folder().glob("*.cu*")):
        if path.name != "ptx.cuh":
            assert not re.search(r"\basm\b", path.read_text(encoding="utf-8")), path.name


def test_the_table_is_one_line_a_build():
    text = (kernels_folder() / "resources.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(json.loads(text)) + 2
