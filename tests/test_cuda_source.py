"""Kernel builds: the digest covers headers, and a build that spills or does not compile fails with its reason."""

import pytest

from marlin_bench import cuda_source
from marlin_bench.cuda_source import BuildError, compile_cubin, include_closure, source_digest

KERNEL = 'extern "C" __global__ void copy(float* to, const float* from) { to[threadIdx.x] = from[threadIdx.x]; }\n'
SPILLER = """
extern "C" __global__ void __launch_bounds__(1024, 2) spill(float* data) {
  float value[160];
#pragma unroll
  for (int i = 0; i < 160; ++i) value[i] = data[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 160; ++i) data[i * 1024 + threadIdx.x] = value[159 - i] * value[i];
}
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_source, "kernels_folder", lambda: tmp_path)
    source_digest.cache_clear()
    yield tmp_path
    source_digest.cache_clear()


def test_the_digest_follows_headers_of_headers(kernels):
    (kernels / "a.cu").write_text('#include "b.cuh"\n' + KERNEL)
    (kernels / "b.cuh").write_text('#include "c.cuh"\n')
    (kernels / "c.cuh").write_text("// one\n")
    assert [path.name for path in include_closure(kernels / "a.cu")] == ["a.cu", "b.cuh", "c.cuh"]
    before = source_digest("a")
    source_digest.cache_clear()
    (kernels / "c.cuh").write_text("// two\n")
    assert source_digest("a") != before


def test_a_missing_header_is_named(kernels):
    (kernels / "a.cu").write_text('#include "gone.cuh"\n')
    with pytest.raises(BuildError, match=r"a\.cu includes 'gone\.cuh'"):
        compile_cubin("a", "sm_80")


def test_resources_are_read_from_the_build(kernels):
    (kernels / "a.cu").write_text(KERNEL)
    cubin = compile_cubin("a", "sm_80")
    (found,) = cubin.resources
    assert found.entry == "copy"
    assert found.registers > 0
    assert found.spill_bytes == 0
    assert cubin.image.startswith(b"\x7fELF")


def test_a_compile_error_carries_the_log(kernels):
    (kernels / "a.cu").write_text("this is not CUDA\n")
    with pytest.raises(BuildError, match=r"a\.cu does not compile for sm_90a:\n.*error"):
        compile_cubin("a", "sm_90a")


def test_spills_fail_the_build(kernels):
    (kernels / "a.cu").write_text(SPILLER)
    with pytest.raises(BuildError, match="'spill' spills"):
        compile_cubin("a", "sm_80")
    assert compile_cubin("a", "sm_80", allow_spills=True).resources[0].spill_bytes > 0


def test_machine_code_that_was_built_is_not_compiled_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = cuda_source.build_to_cache("clock_probe", "sm_80")

    def refuse(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(cuda_source, "compile_cubin", refuse)
    assert cuda_source.compile_to_cache("clock_probe", arch="sm_80").read_bytes() == built.image
    with pytest.raises(AssertionError, match="compiled again"):
        cuda_source.compile_to_cache("clock_probe", arch="sm_86")
