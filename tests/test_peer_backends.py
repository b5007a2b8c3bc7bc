"""Backends of other libraries: what goes into their layouts, what they say when absent, and how they are called.

The libraries need a GPU. Layouts are decoded here by their documented definition, in NumPy; calls go to stand-ins that
compute what the library documents, from the packed tensors alone.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from marlin_bench.backends import backend_names, load_backend
from marlin_bench.backends.peers import gemlite, packing, quack, vllm, w4a8
from marlin_bench.backends.protocol import DeviceTraits
from marlin_bench.check import check_output, fault, poison
from marlin_bench.operands import LayerKey, WeightSource, expected_product, make_activations, make_weights
from marlin_bench.problem import Problem
from marlin_bench.quantize import QuantizedWeights

M, N, K = 5, 256, 512
H200 = DeviceTraits("cuda", "H200", (9, 0), sm_count=132)
A100 = DeviceTraits("cuda", "A100", (8, 0), sm_count=108)
B200 = DeviceTraits("cuda", "B200", (10, 0), sm_count=148)
PEERS = [
    "humming",
    "quack",
    "vllm_marlin",
    "vllm_machete",
    "mslk",
    "turbomind",
    "gemlite",
    "conch",
    "torchao",
    "bitsandbytes_nf4",
    "bitsandbytes_fp4",
    "gptq_exllama",
    "awq",
    "exllamav2",
    "w4a8_fp8",
    "w4a8_fp8_mslk",
    "w4a8_int8",
]
MODULES = ("humming", "quack", "vllm", "mslk", "turbomind", "gemlite", "conch", "torchao", "bitsandbytes", "triton")


@pytest.fixture(scope="module")
def weights():
    return make_weights(LayerKey(K, N, 128, 0), 0, "cpu")


@pytest.fixture(autouse=True)
def no_carried_libraries(monkeypatch):
    monkeypatch.delenv("MARLIN_BENCH_PEERS", raising=False)


def dequantized(codes, scales, zero=8):
    """Weights [K, N] in NumPy, as float16((code - zero) · scale)."""
    grouped = codes.reshape(scales.shape[0], -1, codes.shape[1]).astype(np.float32) - zero
    return (grouped * scales.astype(np.float32)[:, None]).astype(np.float16).reshape(codes.shape)


def nibbles(words, count=8):
    """The `count` nibbles of integers, lowest first, along a new last axis."""
    return np.stack([(words.astype(np.int64) >> (4 * index)) & 0xF for index in range(count)], axis=-1)


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_words_along_k_are_gptqs(weights):
    words = packing.words_along_k(weights.codes).numpy()
    codes = nibbles(words).transpose(0, 2, 1).reshape(K, N)
    assert words.dtype == np.int32
    assert np.array_equal(dequantized(codes, weights.scales.numpy()), weights.dequantized().numpy())


def test_words_along_n_are_awqs(weights):
    words = packing.words_along_n(weights.codes, packing.AWQ_ORDER).numpy()
    found = nibbles(words)  # nibble i holds column (0, 2, 4, 6, 1, 3, 5, 7)[i] of its eight
    codes = np.empty((K, N // 8, 8), dtype=np.int64)
    codes[:, :, [0, 2, 4, 6, 1, 3, 5, 7]] = found
    assert np.array_equal(dequantized(codes.reshape(K, N), weights.scales.numpy()), weights.dequantized().numpy())


def test_signed_bytes_hold_code_minus_eight(weights):
    packed = packing.signed_bytes_along_k(weights.codes).numpy()
    low, high = (packed.astype(np.int8) << 4) >> 4, packed >> 4  # arithmetic: two's complement nibbles
    codes = np.stack((low, high), axis=-1).reshape(N, K).T
    assert np.array_equal(dequantized(codes, weights.scales.numpy(), zero=0), weights.dequantized().numpy())


def test_marlins_scales_are_where_its_threads_read_them(weights):
    """Lane group t of eight reads columns t, t + 8, … of 64; with a scale a column pairs of 2t, 8 apart, of 32."""
    scales = weights.scales
    ordered = packing.scales_as_marlin(scales, grouped=True)
    for lane in range(8):
        assert torch.equal(ordered[:, 8 * lane : 8 * lane + 8], scales[:, lane:64:8])
    column = packing.scales_as_marlin(scales[:1], grouped=False)
    for lane in range(4):
        wanted = [2 * lane + offset for offset in (0, 1, 8, 9, 16, 17, 24, 25)]
        assert torch.equal(column[:, 8 * lane : 8 * lane + 8], scales[:1, wanted])


def test_quacks_blob_is_a_wgmma_fragment_a_thread(weights):
    """Pair j of word b: bits 4j, 16 + 4j; row 16·warp + lane/4 (+ 8 for odd j), inputs 16b + 2·(lane%4) + 8·(j/2)."""
    blob = packing.quack_blob(weights.codes).numpy()
    codes = np.full((N, K), -1)
    words = np.ascontiguousarray(blob).view("<u4")
    for strip, tile, thread, word in np.ndindex(words.shape):
        warp, lane = divmod(thread, 32)
        for pair in range(4):
            row = 64 * strip + 16 * warp + lane // 4 + 8 * (pair & 1)
            column = 64 * tile + 16 * word + 2 * (lane % 4) + 8 * (pair >> 1)
            value = int(words[strip, tile, thread, word]) >> (4 * pair)
            codes[row, column], codes[row, column + 1] = value & 0xF, (value >> 16) & 0xF
    assert np.array_equal(codes.T, weights.codes.numpy())


def test_quacks_scales_are_pairs_of_rows_for_each_64_inputs(weights):
    strip = packing.quack_scales(weights.scales, K)
    assert strip.shape == (N // 64, K // 64, 32, 2)
    for block, tile, slot, half in [(0, 0, 0, 0), (3, 7, 31, 1), (1, 2, 9, 1), (2, 5, 16, 0)]:
        row = 64 * block + 16 * (slot // 8) + slot % 8 + 8 * half
        assert strip[block, tile, slot, half] == weights.scales[tile // 2, row].bfloat16()


def test_zero_points_are_refused(weights):
    with_zeros = QuantizedWeights(weights.codes, weights.scales, zeros=torch.full_like(weights.codes[:4], 8))
    with pytest.raises(ValueError, match="zero points"):
        packing.symmetric(with_zeros)


def test_fp8_scales_hold_every_multiple_and_are_close(weights):
    groups, columns = w4a8.fp8_group_scales(weights.scales, 448 / 8)
    assert float(groups.float().max()) == 56
    assert torch.allclose(groups.float() * columns, weights.scales.float(), rtol=2**-4)
    held = w4a8.held_under_fp8_scales(weights.codes, groups, columns)
    part = slice(7, 99)
    difference = held(part) - weights.dequantized(part).float()
    assert not torch.isnan(held(part)).any()
    assert 0 < float(difference.abs().mean() / weights.dequantized(part).float().abs().mean()) < 0.06


# -- absent or unfit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PEERS)
def test_an_absent_library_is_one_sentence_and_one_command(name, monkeypatch):
    monkeypatch.setattr("marlin_bench.backends.peer.find_spec", lambda module: None)
    missing = load_backend(name).missing()
    assert missing is not None
    assert missing.reason.endswith("is not installed")
    assert missing.remedy.startswith("pip install ")


def test_naming_and_asking_backends_imports_no_library():
    code = (
        "import sys\nfrom marlin_bench.backends import backend_names, load_backend\n"
        "for name in backend_names(): load_backend(name).missing()\n"
        f"print([name for name in {MODULES} if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("name", PEERS)
def test_what_is_unfit_is_said_in_a_sentence(name, monkeypatch):
    monkeypatch.setattr(quack, "_prebuilt_file", lambda *shape: "kernel.so")
    backend = load_backend(name)
    assert backend.unsupported(Problem(1, 8192, 8192, 128), H200) is None
    assert "group size 64" in backend.unsupported(Problem(1, 8192, 8192, 64), H200)
    assert "group size column" in backend.unsupported(Problem(1, 8192, 8192, None), H200)
    assert "N 8190" in backend.unsupported(Problem(1, 8190, 8192, 128), H200)


@pytest.mark.parametrize("name", ["quack", "vllm_machete", "mslk", "w4a8_fp8", "w4a8_fp8_mslk"])
@pytest.mark.parametrize("device", [A100, B200], ids=["A100", "B200"])
def test_hopper_kernels_refuse_what_is_none(name, device):
    sentence = load_backend(name).unsupported(Problem(1, 8192, 8192, 128), device)
    assert sentence == f"{device.name} is not a Hopper GPU (sm_90)"


@pytest.mark.parametrize("name", PEERS)
def test_each_says_where_it_comes_from(name):
    backend = load_backend(name)
    assert name in backend_names()
    assert backend.project.startswith("https://")
    assert backend.license
    assert backend.meant_for
    assert "bits" in type(backend).__doc__ or "bits" in type(backend).__base__.__doc__


# -- calls, by stand-ins ----------------------------------------------------------------------------------------------


class Operators:
    """vLLM's operators as their documentation has them, on the CPU."""

    def gptq_shuffle(self, words, order, bits):
        assert order.numel() == 0
        assert bits == 4

    def gptq_gemm(self, activations, words, zeros, scales, order, exllama, v2, bits):
        codes = nibbles(words.numpy()).transpose(0, 2, 1).reshape(K, N)
        stored_zeros = nibbles(zeros.numpy()).reshape(scales.shape) + 1  # GPTQ stores them less one
        return self.product(activations, codes, scales, stored_zeros)

    def awq_gemm(self, activations, words, scales, zeros, splits):
        return activations.double().mm(self.awq_dequantize(words, scales, zeros, 0, 0, 0).double()).half()

    def awq_dequantize(self, words, scales, zeros, *_):
        order = [0, 4, 1, 5, 2, 6, 3, 7]  # where column 0, 1, … of eight is found
        codes = nibbles(words.numpy())[:, :, order].reshape(K, N)
        points = nibbles(zeros.numpy())[:, :, order].reshape(scales.shape)
        return torch.from_numpy(self.weights(codes, scales, points))

    @staticmethod
    def weights(codes, scales, zeros):
        rows = K // scales.shape[0]
        shifted = codes - np.repeat(zeros, rows, axis=0)
        return (shifted * np.repeat(scales.float().numpy(), rows, axis=0)).astype(np.float16)

    def product(self, activations, codes, scales, zeros):
        return activations.double().mm(torch.from_numpy(self.weights(codes, scales, zeros)).double()).half()

    def gptq_marlin_repack(self, words, order, size_k, size_n, bits, eight_bit_activations):
        assert (size_k, size_n, bits) == (K, N, 4)
        return words

    def dynamic_scaled_int8_quant(self, codes, activations, scales, zero):
        scales.copy_(activations.float().abs().amax(dim=1, keepdim=True) / 127)
        codes.copy_((activations.float() / scales).round())

    def marlin_gemm(self, *operands):
        """The INT8 form: integer scales of each column in the order of a kernel with a scale a column."""
        rows, output, words, _, ordered, row_scales = operands[:6]
        codes = torch.from_numpy(nibbles(words.numpy()).transpose(0, 2, 1).reshape(K, N))
        integers = ordered.view(torch.int16).view(-1, 32)
        order = [2 * row + column for row in range(4) for column in (0, 1, 8, 9, 16, 17, 24, 25)]
        unordered = torch.empty_like(integers)
        unordered[:, order] = integers
        scales = unordered.view(-1, N).double().repeat_interleave(128, dim=0)
        output.copy_(rows.double().mm((codes - 8).double() * scales) * row_scales.double())
        return output


def run(backend, weights, rows=M):
    activations = make_activations(0, rows, K, 0, torch.float16, "cpu")
    packed = backend.pack(weights)
    output = torch.empty(rows, N, dtype=torch.float16)
    poison(output)
    choice = next(iter(backend.candidates(Problem(rows, N, K, 128), H200, "quick")), {})
    made = backend.launch(packed, activations, output, choice)()
    expected = expected_product(activations, WeightSource(weights, packed.reference))
    return check_output(output if made is None else made, expected, 0.001, "before"), packed, choice


@pytest.mark.parametrize(("rows", "path"), [(50, "fused"), (51, "dequantise")])
def test_gptq_is_called_with_its_own_zero_points(rows, path, weights, monkeypatch):
    monkeypatch.setattr(vllm, "operators", Operators)
    check, packed, choice = run(load_backend("gptq_exllama"), weights, rows)
    assert choice == {"path": path}
    assert fault(check) is None
    assert packed.nbytes * 8 / (K * N) == 4 + 16 / 128 + 4 / 128


@pytest.mark.parametrize(("rows", "path"), [(5, "fused"), (300, "dequantise")])
def test_awq_takes_vllms_path_and_says_so(rows, path, weights, monkeypatch):
    monkeypatch.setattr(vllm, "operators", Operators)
    check, _, choice = run(load_backend("awq"), weights, rows)
    assert choice == {"path": path}
    assert fault(check) is None


def test_int8_marlin_puts_the_unit_of_its_scales_on_the_activations(weights, monkeypatch):
    monkeypatch.setattr(vllm, "operators", Operators)
    monkeypatch.setattr(vllm, "marlin_locks", lambda device: torch.zeros(1, dtype=torch.int32))
    backend = load_backend("w4a8_int8")
    activations = make_activations(0, M, K, 0, torch.bfloat16, "cpu")
    packed = backend.pack(weights)
    given = backend.quantize(activations)
    output = torch.empty(M, N, dtype=torch.bfloat16)
    launch = backend.multiply(packed, given, output, {})
    poison(output)
    given.quantize()
    launch()
    expected = expected_product(given.dequantized(), WeightSource(weights, packed.reference))
    assert fault(check_output(output, expected, 0.001, "before")) is None
    canonical = expected_product(activations, WeightSource(weights))
    assert float((output.double() - canonical).abs().mean() / canonical.abs().mean()) < 0.02


def test_exllamav2_is_called_with_gptqs_words_and_frees_its_matrices(weights, monkeypatch):
    alive = {}

    def make_q_matrix(words, *rest):
        *_, zeros, scales, _order, _bias, dense, rows = rest
        assert len(rest) == 12  # as in its ext_qmatrix.cpp
        assert dense.numel() >= rows * N
        alive[7] = words, zeros, scales
        return 7

    def gemm_half_q_half(activations, handle, output, force):
        words, zeros, scales = alive[handle]
        output.copy_(Operators().gptq_gemm(activations, words, zeros, scales, torch.empty(0), True, False, 4))

    extension = ModuleType("exllamav2_ext")
    extension.make_q_matrix, extension.gemm_half_q_half = make_q_matrix, gemm_half_q_half
    extension.free_q_matrix = alive.pop
    monkeypatch.setitem(sys.modules, "exllamav2_ext", extension)
    check, packed, _ = run(load_backend("exllamav2"), weights)
    assert fault(check) is None
    assert alive
    del packed
    assert not alive


def test_conch_is_called_with_gptqs_words_and_a_bias_of_eight(weights, monkeypatch):
    def mixed_precision_gemm(*, x, w_q_packed, w_s, w_zp, weight_size_bits, weight_bias, group_size):
        assert (w_zp, weight_size_bits, group_size) == (None, 4, 128)
        codes = nibbles(w_q_packed.numpy()).transpose(0, 2, 1).reshape(K, N)
        return x.double().mm(torch.from_numpy(dequantized(codes, w_s.numpy(), weight_bias)).double()).half()

    gemm = ModuleType("conch.ops.quantization.gemm")
    gemm.mixed_precision_gemm = mixed_precision_gemm
    for name in ("conch", "conch.ops", "conch.ops.quantization"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, gemm.__name__, gemm)
    check, packed, _ = run(load_backend("conch"), weights)
    assert fault(check) is None
    assert packed.nbytes * 8 / (K * N) == 4 + 16 / 128


def test_humming_takes_the_configuration_of_its_own_interval(monkeypatch):
    tune = ModuleType("humming.tune")
    tune.get_heuristics_config = lambda config: [(0, 8, {"tile": 8}), (8, 64, {"tile": 64})]
    monkeypatch.setitem(sys.modules, "humming", ModuleType("humming"))
    monkeypatch.setitem(sys.modules, "humming.tune", tune)
    backend, packed = load_backend("humming"), SimpleNamespace(extra={"config": None})

    def chosen(rows):
        return backend.tune([packed], [torch.empty(rows, K)], [torch.empty(rows, N)], "quick")

    assert chosen(8) == {"config": '{"tile": 8}'}
    assert chosen(9) == {"config": '{"tile": 64}'}
    with pytest.raises(ValueError, match="M 65"):
        chosen(65)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((1, 8192, 8192), (128, 16, 2)),  # those that its package names its kernels after, on an H100
        ((128, 8192, 8192), (128, 128, 2)),
        ((257, 8192, 8192), (128, 256, 1)),
        ((64, 28672, 8192), (128, 64, 1)),
        ((1, 4096, 2048), (64, 16, 2)),
        ((1, 1024, 1024), (64, 16, 1)),
    ],
)
def test_quacks_rule_for_prebuilt_kernels(shape, tile):
    assert quack.prebuilt_tile(*shape) == tile


def test_gemlite_takes_the_nearest_layer_before_the_nearest_batch():
    tiles = {"BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 32}
    entries = {(16, 4096, 4096): tiles, (64, 8192, 8192): tiles, (32, 8192, 8192): tiles | {"num_warps": 4}}
    assert gemlite.nearest(entries, 16, 9216, 8192) == ((32, 8192, 8192), tiles | {"num_warps": 4})


def test_gemlite_takes_no_tiles_that_reach_beyond_the_layer():
    """128 x 16 splits are 2048 of K: on an H200 they gave NaN for K 1024."""
    large = {"BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 128, "SPLIT_K": 16}
    small = {"BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 32, "SPLIT_K": 8}
    entries = {(16, 1024, 4096): large, (16, 8192, 8192): small}
    assert gemlite.nearest(entries, 16, 1024, 1024) == ((16, 8192, 8192), small)
    assert gemlite.nearest({(16, 1024, 4096): large}, 16, 1024, 1024) is None
    assert gemlite.nearest(entries, 16, 1000, 1024) is None


@pytest.fixture
def gemlite_stand_in(monkeypatch, tmp_path):
    """gemlite's autotuner, cache and file of configurations, as its core.py documents them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    core = ModuleType("gemlite.core")
    core.GEMLITE_TRITON_CONFIG_CACHE, core.searches, core.found = {}, [], {}
    core.get_matmul_type = lambda M, bits: "GEMM_SPLITK"

    def forward_functional(activations, bias, tensors, meta):
        signature = str((activations.shape[0], N, K, 128, 8, 104))
        known = core.GEMLITE_TRITON_CONFIG_CACHE.get("GEMM_SPLITK", {})
        if signature not in known:
            core.searches.append(signature)
            core.found[signature] = {"BLOCK_SIZE_N": 64, "num_warps": 4}

    class GemLiteLinear:
        @staticmethod
        def cache_config(filename):
            Path(filename).write_text(json.dumps({"GEMM_SPLITK": core.found}))

        @staticmethod
        def load_config(filename, print_error=True):
            if Path(filename).exists():
                for kernel, entries in json.loads(Path(filename).read_text()).items():
                    core.GEMLITE_TRITON_CONFIG_CACHE.setdefault(kernel, {}).update(entries)

    core.forward_functional, core.GemLiteLinear = forward_functional, GemLiteLinear
    package, kernels, utils = ModuleType("gemlite"), ModuleType("gemlite.triton_kernels"), ModuleType("utils")
    package.core, utils.get_closest_m = core, lambda rows: rows
    for name, module in (("gemlite", package), ("gemlite.core", core), ("gemlite.triton_kernels", kernels),
                         ("gemlite.triton_kernels.utils", utils)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    return core


def test_what_gemlites_autotuner_finds_is_in_the_choice_and_on_the_disk(gemlite_stand_in, monkeypatch):
    backend = load_backend("gemlite")
    monkeypatch.setattr(type(backend), "version", lambda self: "gemlite 0.6.0")
    packed = SimpleNamespace(tensors=dict.fromkeys(("codes", "scales", "zeros")), extra={"meta": None})
    operands = [packed], [torch.empty(16, K)], [torch.empty(16, N)]
    choice = backend.tune(*operands, "full")
    assert choice["source"] == "autotuned"
    assert json.loads(choice["config"]) == {"BLOCK_SIZE_N": 64, "num_warps": 4}
    assert len(gemlite_stand_in.searches) == 1
    gemlite_stand_in.GEMLITE_TRITON_CONFIG_CACHE.clear()  # as in the next process
    assert backend.tune(*operands, "full") == choice
    assert len(gemlite_stand_in.searches) == 1


def test_gemlite_runs_with_the_configuration_of_its_choice(gemlite_stand_in, monkeypatch):
    backend = load_backend("gemlite")
    tiles = {"BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 32}
    monkeypatch.setattr(gemlite, "author_tables", lambda: {"GEMM_SPLITK": {(16, 4096, 4096): tiles}})
    packed = SimpleNamespace(tensors=dict.fromkeys(("codes", "scales", "zeros")), extra={"meta": None})
    choice = backend.tune([packed], [torch.empty(16, K)], [torch.empty(16, N)], "quick")
    assert choice["source"] == "H100 table, M 16 N 4096 K 4096"
    backend.launch(packed, torch.empty(16, K), torch.empty(16, N), choice)()
    assert gemlite_stand_in.searches == []
    assert gemlite_stand_in.GEMLITE_TRITON_CONFIG_CACHE["GEMM_SPLITK"] == {str((16, N, K, 128, 8, 104)): tiles}
