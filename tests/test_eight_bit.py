"""8-bit operands and the Triton product, as far as a CPU can tell: codes, scales, what is held, what is chosen."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from marlin_bench.backends import load_backend
from marlin_bench.backends.eight_bit import LARGEST, quantized_rows, row_quantization, tensor_quantization
from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.check import check_output, fault
from marlin_bench.problem import Problem
from marlin_bench.quantize import quantize

H200 = DeviceTraits("cuda", "NVIDIA H200", (9, 0), 132, 232448, 50 << 20)
A100 = DeviceTraits("cuda", "NVIDIA A100", (8, 0), 108, 166912, 40 << 20)
EIGHT_BIT = ("cublas_fp8", "cublas_fp8_tensor", "cublas_int8")


def weights(K=256, N=64):
    generator = torch.Generator().manual_seed(1)
    return quantize(torch.randn(K, N, generator=generator) * K**-0.5, 128)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_rows_reach_the_largest_code_and_lose_little(dtype):
    values = torch.randn(7, 512).bfloat16()
    codes, scales = quantized_rows(values, dtype)
    assert codes.dtype is dtype
    assert codes.float().abs().amax(1).tolist() == [LARGEST[dtype]] * 7
    error = (codes.float() * scales - values.float()).abs().mean() / values.float().abs().mean()
    assert error < 0.04


def test_a_row_of_noughts_stays_nought():
    codes, scales = quantized_rows(torch.zeros(2, 16), torch.int8)
    assert not codes.any()
    assert torch.isfinite(scales).all()


@pytest.mark.parametrize("quantization", [row_quantization, tensor_quantization])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantising_again_follows_the_activations_at_the_same_addresses(quantization, dtype):
    values = torch.randn(5, 256).bfloat16()
    given = quantization(values, dtype)
    given.quantize()
    addresses = [tensor.data_ptr() for tensor in given.tensors.values()]
    values.copy_(values.roll(1, 0).neg_())
    given.quantize()
    assert [tensor.data_ptr() for tensor in given.tensors.values()] == addresses
    assert (given.dequantized() - values.float()).abs().mean() < 0.05 * values.float().abs().mean()


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_packed_weights_are_8_bits_each_and_what_they_hold_is_told(name):
    backend, canonical = load_backend(name), weights()
    packed = backend.pack(canonical)
    held = packed.reference(slice(None))
    assert held.shape == (256, 64)
    error = (held - canonical.dequantized().float()).abs().mean() / canonical.dequantized().float().abs().mean()
    assert 0 < error < 0.04
    assert torch.equal(packed.reference(slice(8, 24)), held[:, 8:24])
    assert packed.nbytes * 8 == pytest.approx(
        backend.format(Problem(1, 64, 256)).bits_per_weight(256) * 256 * 64, rel=1e-2
    )


def test_the_int8_product_is_that_of_its_operands():
    backend, canonical = load_backend("cublas_int8"), weights()
    packed = backend.pack(canonical)
    activations = torch.randn(20, 256).half()
    output = torch.full((20, 64), float("nan")).half()
    given = backend.quantize(activations)
    given.quantize()
    backend.multiply(packed, given, output, {})()
    expected = given.dequantized().double() @ packed.reference(slice(None)).double()
    assert fault(check_output(output, expected, backend.tolerance, "before")) is None


@pytest.mark.parametrize(
    ("name", "problem", "device", "sentence"),
    [
        ("cublas_fp8", Problem(16, 4096, 4096), A100, "compute capability 8.0 is below 8.9"),
        ("cublas_int8", Problem(16, 4096, 4096), H200, "M 16 is below 17, the least that torch._int_mm takes"),
        ("cublas_int8", Problem(64, 4096, 4096), A100, None),
        ("cublas_fp8", Problem(64, 4100, 4096), H200, "N 4100 is not a multiple of 16"),
        ("triton_w4a16", Problem(64, 4096, 4096, 48 * 4096 // 48), H200, None),
        ("triton_w4a16", Problem(64, 4096, 4080, 24), H200, "a group of 24 rows is not a multiple of 32"),
    ],
)
def test_what_is_not_supported_is_one_sentence(name, problem, device, sentence):
    assert load_backend(name).unsupported(problem, device) == sentence


@pytest.mark.parametrize(("M", "rows"), [(1, "16"), (16, "16"), (17, "32"), (100, "128"), (4096, "128")])
def test_tiles_are_as_high_as_the_batch_and_full_tries_more(M, rows):
    backend, problem = load_backend("triton_w4a16"), Problem(M, 4096, 4096)
    quick, full = (backend.candidates(problem, H200, effort) for effort in ("quick", "full"))
    assert {choice["rows"] for choice in quick} == {rows}
    assert full[: len(quick)] == quick
    assert len(full) >= len(quick)


INTERPRETED = """
import torch
from marlin_bench.backends import load_backend
from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.check import check_output, fault
from marlin_bench.problem import Problem
from marlin_bench.quantize import quantize
for M, N, K, group in ((5, 96, 256, 128), (33, 64, 256, None), (17, 128, 128, 32)):
    weights = quantize(torch.randn(K, N) * K**-0.5, group)
    backend = load_backend("triton_w4a16")
    packed, activations = backend.pack(weights), torch.randn(M, K).half()
    for choice in backend.candidates(Problem(M, N, K, group), DeviceTraits("cuda", "x"), "quick"):
        output = torch.full((M, N), float("nan")).half()
        backend.launch(packed, activations, output, choice)()
        expected = activations.double() @ weights.dequantized().double()
        assert fault(check_output(output, expected, 1e-3, "before")) is None, (M, N, K, group, choice)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_triton_product_is_right_in_triton_s_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
