"""No wrong answer passes a check: NaN, infinity, unwritten, off by a bit."""

import pytest
import torch

from marlin_bench.check import check_output, fault, poison


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float32], ids=str)
def dtype(request):
    return request.param


def answer(dtype):
    expected = torch.randn(8, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return expected, expected.to(dtype)


def test_a_right_answer_has_no_fault(dtype):
    expected, output = answer(dtype)
    assert fault(check_output(output, expected, 0.001, "before")) is None


def test_poison_is_nan_and_told_from_computed_nan(dtype):
    expected, output = answer(dtype)
    poison(output[2:3])
    assert output[2].isnan().all()
    output[0, 0] = float("nan")
    check = check_output(output, expected, 0.001, "after")
    assert (check.untouched, check.nan) == (16, 1)
    assert "16 of 128 outputs were not written" in fault(check)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1000.0])
def test_one_bad_element_is_a_fault(dtype, value):
    expected, output = answer(dtype)
    output[3, 3] = value
    assert fault(check_output(output, expected, 0.001, "before")) is not None


def test_the_limit_is_on_the_mean_error():
    expected = torch.ones(4, 4, dtype=torch.float64)
    assert fault(check_output((expected * 1.0009).float(), expected, 0.001, "before")) is None
    assert "not below 0.001" in fault(check_output((expected * 1.0011).float(), expected, 0.001, "before"))


def test_bf16_is_judged_after_rounding_the_reference():
    expected = torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    check = check_output(expected.bfloat16(), expected, 0.001, "before")
    assert check.mean_error == 0.0
    assert 0.0005 < check.unrounded_error < 0.003
