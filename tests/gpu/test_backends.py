"""The conformance checks on every GPU backend that is installed, and eight-bit quantisation against plain torch."""

import pytest
import torch

from marlin_bench.backends import backend_names, load_backend
from marlin_bench.backends.eight_bit import quantized_rows, row_quantization
from marlin_bench.conformance import CHECKS, SHAPES, NotApplicableError, Subject, computes

pytestmark = pytest.mark.gpu
NAMES = [name for name in backend_names() if load_backend(name).device == "cuda"]


@pytest.fixture(scope="module")
def machine():
    from marlin_bench.machine import open_machine

    return open_machine("cuda")


@pytest.fixture
def subject(request, machine):
    backend = load_backend(request.param)
    missing = backend.missing()
    if missing is not None:
        pytest.skip(f"{missing.reason}: {missing.remedy}")
    if backend.isolation == "own":
        pytest.skip("it needs a process of its own: pytest --marlin-backend")
    backend.load()
    yield Subject(backend, machine)
    machine.release_memory()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("subject", NAMES, indirect=True)
def test_a_backend_keeps_to_the_protocol(subject, check):
    try:
        check(subject)
    except NotApplicableError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("problem", SHAPES, ids=lambda p: f"M{p.M}-N{p.N}-K{p.K}-g{p.group_size}")
@pytest.mark.parametrize("subject", NAMES, indirect=True)
def test_a_backend_is_right_before_and_after_timing(subject, problem):
    try:
        computes(subject, problem)
    except NotApplicableError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("M", "K"), [(1, 256), (5, 4104), (64, 73728)])
def test_the_quantising_kernel_gives_what_torch_gives(dtype, M, K):
    values = torch.randn(M, K, device="cuda").bfloat16()
    given = row_quantization(values, dtype)
    given.quantize()
    codes, scales = quantized_rows(values, dtype)
    torch.testing.assert_close(given.tensors["scales"], scales)
    differing = (given.tensors["codes"].float() != codes.float()).float().mean()
    assert differing < 1e-3  # a quotient on the edge between two codes may fall either way
    assert (given.dequantized() - values.float()).abs().mean() < 0.05 * values.float().abs().mean()
