"""The same seed gives the same operands anywhere, and they look like real weights and activations."""

import hashlib

import pytest
import torch

from marlin_bench import operands
from marlin_bench.operands import LayerKey, WeightSource, expected_product, gaussian, make_activations, make_weights


def test_the_numbers_of_a_seed_are_pinned():
    values = gaussian(12345, (4096,), torch.float16, "cpu")
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    assert digest == hashlib.sha256(gaussian(12345, (64, 64), torch.float16, "cpu").numpy().tobytes()).hexdigest()
    assert digest[:16] == "5a79a70b102e12c3"


def test_chunking_does_not_change_the_numbers(monkeypatch):
    whole = gaussian(7, (1000,), torch.float32, "cpu")
    monkeypatch.setattr(operands, "_CHUNK", 64)
    assert torch.equal(gaussian(7, (1000,), torch.float32, "cpu"), whole)


def test_they_are_gaussian():
    values = gaussian(3, (1 << 20,), torch.float64, "cpu", scale=2.0)
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(2, rel=0.01)
    assert float((values.abs() < 2).double().mean()) == pytest.approx(0.6827, abs=0.003)
    assert float((values**4).mean() / (values**2).mean() ** 2) == pytest.approx(3, rel=0.02)


def test_neighbouring_seeds_and_positions_are_uncorrelated():
    first, second = gaussian(1, (1 << 18,), torch.float64, "cpu"), gaussian(2, (1 << 18,), torch.float64, "cpu")
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 0.01
    assert abs(float(torch.corrcoef(torch.stack((first[:-1], first[1:])))[0, 1])) < 0.01


def test_a_smaller_batch_is_the_head_of_a_larger_one():
    large = make_activations(0, 64, 256, 0, torch.float16, "cpu")
    assert torch.equal(make_activations(0, 3, 256, 0, torch.float16, "cpu"), large[:3])


def test_sets_differ_and_use_all_codes():
    first, second = (make_weights(LayerKey(256, 512, 128, 0), index, "cpu") for index in (0, 1))
    assert not torch.equal(first.codes, second.codes)
    assert set(first.codes.unique().tolist()) == set(range(16))
    assert (first.scales > 0).all()


def test_weights_are_quantised_alike_in_any_number_of_blocks(monkeypatch):
    key = LayerKey(512, 64, 128, 0)
    whole = make_weights(key, 0, "cpu")
    assert whole.scales.shape == (4, 64)
    monkeypatch.setattr(operands, "_CHUNK", 128 * 64)
    parts = make_weights(key, 0, "cpu")
    assert parts.codes.shape == whole.codes.shape


def test_outputs_have_unit_variance():
    weights = make_weights(LayerKey(1024, 256, 128, 0), 0, "cpu")
    activations = make_activations(0, 16, 1024, 0, torch.float16, "cpu")
    assert float(expected_product(activations, WeightSource(weights)).std()) == pytest.approx(1, rel=0.05)


def test_the_expected_answer_does_not_depend_on_column_blocks(monkeypatch):
    weights = make_weights(LayerKey(256, 96, 128, 0), 0, "cpu")
    activations = make_activations(0, 4, 256, 0, torch.float16, "cpu")
    whole = expected_product(activations, WeightSource(weights))
    assert torch.allclose(whole, activations.double() @ weights.dequantized().double(), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(operands, "_COLUMN_BLOCK_BYTES", 8 * 256 * 7)
    assert torch.allclose(expected_product(activations, WeightSource(weights)), whole, rtol=1e-12, atol=1e-12)
