"""Measuring on a real GPU: right backends, timers that agree, the operands of the CPU, ceilings where they must be."""

from statistics import median

import pytest

pytestmark = pytest.mark.gpu

torch = pytest.importorskip("torch")

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = ["cublas_fp16", "cublas_bf16", "dequantize_cublas", "tinygemm", "naive_w4a16"]


@pytest.fixture(scope="module")
def machine():
    from marlin_bench.machine import CudaMachine

    return CudaMachine()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("M", [1, 17, 64])
@pytest.mark.parametrize("group_size", [32, 64, 128, None])
def test_a_backend_agrees_with_the_float64_product(machine, name, M, group_size):
    from marlin_bench.backends import load_backend
    from marlin_bench.check import check_output, fault, poison
    from marlin_bench.operands import LayerKey, WeightSource, expected_product, make_activations, make_weights
    from marlin_bench.problem import Problem

    backend = load_backend(name)
    problem = Problem(M, 768, 1024, group_size)
    if backend.unsupported(problem, machine.traits):
        pytest.skip(backend.unsupported(problem, machine.traits))
    weights = make_weights(LayerKey(1024, 768, group_size, 0), 0, "cuda")
    activations = make_activations(0, M, 1024, 0, DTYPES[backend.activation_dtype], "cuda")
    packed = backend.pack(weights)
    output = torch.empty(M, 768, dtype=DTYPES[backend.output_dtype], device="cuda")
    poison(output)
    own = backend.launch(packed, activations, output, backend.tune([packed], [activations], [output], "quick"))()
    torch.cuda.synchronize()
    expected = expected_product(activations, WeightSource(weights, packed.reference))
    assert fault(check_output(output if own is None else own, expected, backend.tolerance, "before")) is None


def test_the_gpu_draws_the_operands_of_the_cpu():
    from marlin_bench.operands import LayerKey, gaussian, make_weights

    assert torch.equal(
        gaussian(5, (100_003,), torch.float16, "cuda").cpu(), gaussian(5, (100_003,), torch.float16, "cpu")
    )
    here, there = (make_weights(LayerKey(512, 384, 128, 3), 1, device) for device in ("cuda", "cpu"))
    assert torch.equal(here.codes.cpu(), there.codes)
    assert torch.equal(here.scales.cpu(), there.scales)


@pytest.mark.parametrize("M, in_cycles", [(1, False), (1024, True)], ids=["memory-bound", "compute-bound"])
def test_kernel_and_cold_timers_agree_on_a_long_kernel(machine, M, in_cycles):
    """Seconds where memory is the limit; cycles where the clock is, which a power limit moves from turn to turn."""
    left = torch.randn(M, 8192, device="cuda", dtype=torch.float16)
    sets = [torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(4)]
    out = torch.empty(M, 8192, device="cuda", dtype=torch.float16)
    launches = [lambda right=right: torch.mm(left, right, out=out) for right in sets]
    stopwatches = {name: machine.timers[name].stopwatch(launches, 0.002) for name in ("kernel", "cold")}
    found = {name: [] for name in stopwatches}
    for _ in range(15):
        for name, stopwatch in stopwatches.items():
            sample = stopwatch.sample()
            found[name].append(median(sample.times) * (sample.sm_clock_hz if in_cycles else 1.0))
    assert median(found["cold"]) == pytest.approx(median(found["kernel"]), rel=0.04)


def test_a_block_carries_the_clock_it_ran_at(machine):
    left = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    out = torch.empty_like(left)
    sample = machine.timers["kernel"].stopwatch([lambda: torch.mm(left, left, out=out)], 0.002).sample()
    assert 300e6 < sample.sm_clock_hz < 3e9


def test_ceilings_of_this_machine_are_plausible(machine):
    found = {ceiling.name: ceiling for ceiling in machine.measure_ceilings()}
    assert machine.limits.memory_bandwidth is not None
    assert 0.7 * machine.limits.memory_bandwidth < found["hbm_read"].value < machine.limits.memory_bandwidth
    assert found["l2_read"].value > found["hbm_read"].value
    assert 1e-7 < found["launch"].value < 1e-5
    if "H200" in machine.traits.name:
        assert found["hbm_read"].value >= 4.3e12
        assert found["fp16_tensor"].value >= 740e12
