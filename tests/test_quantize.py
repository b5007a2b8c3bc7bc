import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from marlin_bench.quantize import QuantizedWeights, quantize

SHAPES = st.tuples(st.sampled_from([32, 64, 128]), st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**31))


def column(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_known_values_of_symmetric_quantisation():
    # the largest weight is 7.5 scales: its code is round(7.5) + 8 = 16, clamped to 15
    made = quantize(column(-7.5, -3.0, -0.4, 0.0, 0.4, 1.0, 3.0, 7.5), None)
    assert made.scales.item() == 1.0
    assert made.codes[:, 0].tolist() == [0, 5, 8, 8, 8, 9, 11, 15]
    assert made.dequantized()[:, 0].tolist() == [-8.0, -3.0, 0.0, 0.0, 0.0, 1.0, 3.0, 7.0]
    assert made.zeros is None


def test_known_values_with_zero_points():
    made = quantize(column(-3.0, 0.0, 4.0, 12.0), None, zero_points=True)
    assert (made.scales.item(), made.zeros.item()) == (1.0, 3)
    assert made.codes[:, 0].tolist() == [0, 3, 7, 15]
    assert made.dequantized()[:, 0].tolist() == [-3.0, 0.0, 4.0, 12.0]


def test_each_group_has_a_scale_of_its_own():
    weights = torch.cat([torch.full((32, 2), 7.5), torch.full((32, 2), 0.75)])
    made = quantize(weights, 32)
    assert made.scales.shape == (2, 2)
    assert made.scales[:, 0].tolist() == pytest.approx([1.0, 0.1], rel=1e-3)
    assert made.codes.unique().tolist() == [15]


def test_one_scale_a_column_spans_all_rows():
    weights = torch.cat([torch.full((32, 1), 7.5), torch.full((32, 1), 0.75)])
    made = quantize(weights, None)
    assert made.scales.shape == (1, 1)
    assert made.group_rows == 64
    assert made.codes[:, 0].unique().tolist() == [9, 15]


def test_shapes_and_types():
    made = quantize(torch.randn(256, 24), 64, zero_points=True)
    assert (made.K, made.N, made.group_rows) == (256, 24, 64)
    assert (made.codes.dtype, made.codes.shape) == (torch.uint8, (256, 24))
    assert (made.scales.dtype, made.scales.shape) == (torch.float16, (4, 24))
    assert (made.zeros.dtype, made.zeros.shape) == (torch.uint8, (4, 24))


@pytest.mark.parametrize("zero_points", [False, True])
def test_weights_of_nought_stay_nought_and_finite(zero_points):
    made = quantize(torch.zeros(64, 3), 32, zero_points=zero_points)
    assert made.dequantized().eq(0).all()
    assert made.scales.isfinite().all()
    assert made.scales.gt(0).all()


@pytest.mark.parametrize("group_size", [48, 0, 256])
def test_a_group_that_does_not_divide_K_is_refused(group_size):
    with pytest.raises(ValueError, match=f"K 128 is not divisible by the group size {group_size}"):
        quantize(torch.randn(128, 4), group_size)


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_a_symmetric_weight_is_off_by_half_a_scale_at_most_except_at_the_clamped_top(shape):
    group, groups, N, seed = shape
    weights = torch.randn(group * groups, N, generator=torch.Generator().manual_seed(seed))
    made = quantize(weights, group)
    error = (made.dequantized(dtype=torch.float32) - weights).abs()
    scales = made.scales.float().repeat_interleave(group, dim=0)
    # a weight of +7.5 scales has the code 15, which stands for 7: half a scale, and the scale's own rounding
    assert (error <= 0.505 * scales).all()
    assert made.codes.max() <= 15


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_with_zero_points_a_weight_is_off_by_one_scale_at_most(shape):
    group, groups, N, seed = shape
    weights = torch.randn(group * groups, N, generator=torch.Generator().manual_seed(seed)) + 0.5
    made = quantize(weights, group, zero_points=True)
    error = (made.dequantized(dtype=torch.float32) - weights).abs()
    assert (error <= 1.01 * made.scales.float().repeat_interleave(group, dim=0)).all()
    assert made.zeros.max() <= 15


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.booleans())
def test_quantising_groups_apart_gives_the_same_as_quantising_them_together(shape, zero_points):
    group, groups, N, seed = shape
    weights = torch.randn(group * groups, N, generator=torch.Generator().manual_seed(seed))
    together = quantize(weights, group, zero_points=zero_points)
    apart = [quantize(part, None, zero_points=zero_points) for part in weights.split(group)]
    assert torch.equal(together.codes, torch.cat([part.codes for part in apart]))
    assert torch.equal(together.scales, torch.cat([part.scales for part in apart]))


def test_columns_are_dequantised_alone_as_in_the_whole():
    made = quantize(torch.randn(128, 40), 32, zero_points=True)
    whole = made.dequantized()
    assert torch.equal(made.dequantized(slice(8, 24)), whole[:, 8:24])


def test_pruned_weights_are_nought_whatever_their_code():
    codes = torch.randint(0, 16, (32, 4), dtype=torch.uint8)
    mask = torch.rand(32, 4) < 0.5
    made = QuantizedWeights(codes, torch.ones(1, 4, dtype=torch.float16), mask=mask, group_size=None)
    dense = QuantizedWeights(codes, torch.ones(1, 4, dtype=torch.float16), group_size=None)
    assert made.dequantized()[~mask].eq(0).all()
    assert torch.equal(made.dequantized()[mask], dense.dequantized()[mask])


def test_the_dequantised_weight_rounds_once():
    # (code - 8)·scale in float64, rounded once to FP16, is what the two-step path in float32 must give
    made = quantize(torch.randn(256, 64) * 3, 64)
    exact = (made.codes.double() - 8) * made.scales.double().repeat_interleave(64, dim=0)
    assert torch.equal(made.dequantized(), exact.half())
    assert torch.equal(made.dequantized(dtype=torch.bfloat16), exact.bfloat16())
