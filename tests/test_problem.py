import pytest
from hypothesis import given
from hypothesis import strategies as st

from marlin_bench.problem import BF16, FP16, FP32, FormatError, Problem, int4, parse_format

G128 = int4(128)
SPARSE = int4(128, sparse=True)
A10_BANDWIDTH = 600e9
A10_PEAK = 125e12
A10_BASE_PEAK = A10_PEAK * 885 / 1695
PAPER_LAYER = (18432, 73728)  # N, K


def ideal_from_bytes(problem, fmt):
    return problem.traffic(FP16).total / problem.traffic(fmt).total


def ideal(problem, fmt, peak):
    """The roofline's ratio, written out here as the paper's plot script has it."""

    def attainable(weights):
        return max(problem.traffic(weights).total / A10_BANDWIDTH, problem.executed_flop(weights) / peak)

    return attainable(FP16) / attainable(fmt)


@pytest.mark.parametrize(
    ("M", "N", "K", "fmt", "expected"),
    [
        (1, 18432, 73728, G128, 3.878),
        (16, 18432, 73728, G128, 3.867),
        (16, 4096, 4096, G128, 3.794),
        (64, 4096, 4096, G128, 3.568),
    ],
)
def test_the_ideal_speedup_from_bytes_alone(M, N, K, fmt, expected):
    assert ideal_from_bytes(Problem(M, N, K), fmt) == pytest.approx(expected, abs=5e-4)


def test_the_ideal_speedup_of_sparse_weights_is_5_12():
    assert ideal_from_bytes(Problem(1, *PAPER_LAYER), SPARSE) == pytest.approx(5.12, abs=5e-3)


BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def paired(dots):
    return list(zip(BATCHES, dots, strict=True))


@pytest.mark.parametrize(
    ("M", "dot"), tuple(zip(BATCHES, (3.88, 3.88, 3.88, 3.87, 3.87, 3.85, 3.27, 1.64), strict=True))
)
def test_the_ideal_line_of_the_papers_figure_1(M, dot):
    assert ideal(Problem(M, *PAPER_LAYER), G128, A10_PEAK) == pytest.approx(dot, abs=0.0051)


@pytest.mark.parametrize(
    ("M", "dot"), tuple(zip(BATCHES, (3.88, 3.88, 3.88, 3.87, 3.87, 3.41, 1.71, 1.00), strict=True))
)
def test_the_ideal_line_of_the_papers_figure_10_at_the_base_clock(M, dot):
    assert pytest.approx(65.27e12, rel=1e-4) == A10_BASE_PEAK
    assert ideal(Problem(M, *PAPER_LAYER), G128, A10_BASE_PEAK) == pytest.approx(dot, abs=0.0051)


@pytest.mark.parametrize(
    ("M", "dot"), tuple(zip(BATCHES, (5.12, 5.12, 5.11, 5.11, 5.10, 5.07, 5.03, 3.28), strict=True))
)
def test_the_ideal_line_of_figure_12_with_all_scales_counted(M, dot):
    assert ideal(Problem(M, *PAPER_LAYER), SPARSE, A10_PEAK) == pytest.approx(dot, abs=0.0051)


def test_flop_are_a_multiply_and_an_add_for_each_weight_and_row():
    problem = Problem(3, 5, 7, group_size=None)
    assert problem.flop == 210
    assert problem.executed_flop(G128) == 210
    assert problem.executed_flop(SPARSE) == 105


OPERANDS = ("activations", "weights", "scales", "zeros", "metadata", "outputs")
HAND_CHECKED = {
    # M=2 N=64 K=256: A has 2x256, W 256x64 = 16384, C 2x64 elements
    FP16: (1024, 32768, 0, 0, 0, 256),
    int4(128): (1024, 8192, 256, 0, 0, 256),
    int4(32): (1024, 8192, 1024, 0, 0, 256),
    int4(None): (1024, 8192, 128, 0, 0, 256),
    int4(64, zero_points=True): (1024, 8192, 512, 128, 0, 256),
    int4(128, sparse=True): (1024, 4096, 256, 0, 2048, 256),
}


@pytest.mark.parametrize(("fmt", "expected"), HAND_CHECKED.items(), ids=[fmt.name for fmt in HAND_CHECKED])
def test_bytes_by_operand(fmt, expected):
    traffic = Problem(2, 64, 256).traffic(fmt)
    assert tuple(getattr(traffic, name) for name in OPERANDS) == expected
    assert traffic.total == sum(expected)
    assert traffic.stored_weights == sum(expected[1:5])


def test_activations_of_32_bits_count_twice():
    wide, narrow = Problem(2, 64, 256).traffic(FP32, 32), Problem(2, 64, 256).traffic(FP32, 16)
    assert (wide.activations, wide.outputs) == (2 * narrow.activations, 2 * narrow.outputs)
    assert wide.weights == narrow.weights == 64 * 256 * 4


def test_arithmetic_intensity_is_flop_over_compulsory_bytes():
    # 2·16·4096·4096 flop over 2·16·4096 + 4096·4096/2 + 2·32·4096 + 2·16·4096 bytes
    expected = 536870912 / (131072 + 8388608 + 262144 + 131072)
    assert Problem(16, 4096, 4096).arithmetic_intensity(G128) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (FP16, 16.0),
        (BF16, 16.0),
        (int4(32), 4.5),
        (int4(64), 4.25),
        (int4(128), 4.125),
        (int4(None), 4 + 16 / 4096),
        (int4(128, zero_points=True), 4 + 20 / 128),
        (int4(128, sparse=True), 3.125),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_bits_of_a_weight(fmt, bits):
    assert fmt.bits_per_weight(4096) == pytest.approx(bits)


@given(group=st.one_of(st.none(), st.integers(1, 4096)), zero_points=st.booleans(), sparse=st.booleans())
def test_a_format_is_read_back_from_its_name(group, zero_points, sparse):
    fmt = int4(group, zero_points=zero_points, sparse=sparse)
    assert parse_format(fmt.name) == fmt


def test_format_names_are_the_documented_ones():
    assert int4(128).name == "int4_g128"
    assert int4(None).name == "int4_gK"
    assert int4(64, zero_points=True).name == "int4_g64_zp"
    assert int4(128, sparse=True).name == "int4_2of4_g128"


@pytest.mark.parametrize("name", ["int4", "int4_g", "int4_g128_", "INT4_g128", "fp17", "", "int4_g0", "int3_g128"])
def test_an_unknown_format_is_refused(name):
    with pytest.raises(FormatError):
        parse_format(name)


def test_a_problem_needs_positive_sizes_and_a_group_that_divides_K():
    for sizes in ((0, 1, 128), (1, 0, 128), (1, 1, 0)):
        with pytest.raises(ValueError, match="must be at least 1"):
            Problem(*sizes)
    with pytest.raises(ValueError, match="K 100 is not divisible by the group size 128"):
        Problem(1, 1, 100)
    assert Problem(1, 1, 100, group_size=None).K == 100


@given(
    M=st.integers(1, 8192),
    N=st.integers(1, 512).map(lambda n: 64 * n),
    K=st.integers(1, 512).map(lambda k: 128 * k),
    group=st.sampled_from([32, 64, 128]),
)
def test_fewer_bits_never_mean_more_bytes_and_never_beat_the_ratio_of_bits(M, N, K, group):
    problem = Problem(M, N, K, group)
    speedup = ideal_from_bytes(problem, int4(group))
    assert 1 <= speedup <= 16 / int4(group).bits_per_weight(K) + 1e-9
    assert problem.traffic(int4(group, sparse=True)).total < problem.traffic(int4(group)).total
    assert problem.traffic(int4(group, zero_points=True)).total > problem.traffic(int4(group)).total
