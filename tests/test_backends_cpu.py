"""The CPU's backends compute what they claim, on real products."""

import pytest
import torch

from marlin_bench.backends import UnknownBackendError, backend_names, load_backend
from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.check import check_output, fault, poison
from marlin_bench.operands import LayerKey, WeightSource, expected_product, make_activations, make_weights
from marlin_bench.problem import Problem

CPU = DeviceTraits("cpu", "test")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = ["dense_fp32", "dense_bf16", "tinygemm_cpu"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("M", [1, 5, 64])
@pytest.mark.parametrize("group_size", [32, 128])
def test_it_agrees_with_the_float64_product_of_the_weights_it_holds(name, M, group_size):
    backend = load_backend(name)
    weights = make_weights(LayerKey(512, 256, group_size, 0), 0, "cpu")
    activations = make_activations(0, M, 512, 0, DTYPES[backend.activation_dtype], "cpu")
    packed = backend.pack(weights)
    output = torch.empty(M, 256, dtype=DTYPES[backend.output_dtype])
    poison(output)
    own = backend.launch(packed, activations, output, backend.tune([packed], [activations], [output], "quick"))()
    expected = expected_product(activations, WeightSource(weights, packed.reference))
    assert fault(check_output(output if own is None else own, expected, backend.tolerance, "before")) is None


def test_tinygemm_says_what_it_cannot_do():
    backend = load_backend("tinygemm_cpu")
    assert backend.unsupported(Problem(1, 256, 512, 128), CPU) is None
    assert "group size column" in backend.unsupported(Problem(1, 256, 512, None), CPU)
    assert "N 250" in backend.unsupported(Problem(1, 250, 512, 128), CPU)


def test_stored_bytes_are_counted_from_the_tensors():
    weights = make_weights(LayerKey(512, 256, 128, 0), 0, "cpu")
    assert load_backend("dense_fp32").pack(weights).nbytes == 512 * 256 * 4
    assert load_backend("tinygemm_cpu").pack(weights).nbytes == 512 * 256 // 2 + 4 * 256 * 2 * 2


def test_every_registered_backend_has_a_name_and_a_summary():
    assert len(set(backend_names())) == len(backend_names())
    for name in NAMES:
        assert load_backend(name).name == name
        assert load_backend(name).summary


def test_an_unknown_backend_is_answered_with_near_names():
    with pytest.raises(UnknownBackendError, match="did you mean tinygemm"):
        load_backend("tinygem")
