"""What the conformance test of marlin-bench cannot know: that the codes lie where the docstring says."""

import torch
from example_backend import UnpackCpu

from marlin_bench.quantize import QuantizedWeights


def test_rows_k_and_k_plus_1_share_a_byte():
    codes = torch.arange(16, dtype=torch.uint8).view(8, 2)
    weights = QuantizedWeights(codes, torch.ones(2, 2, dtype=torch.float16), group_size=4)
    packed = UnpackCpu().pack(weights)
    assert packed.tensors["codes"][0].tolist() == [0x20, 0x31]
    assert packed.nbytes == 8 * 2 // 2 + 4 * 2


def test_an_odd_group_is_refused_with_a_sentence():
    from marlin_bench.backends.protocol import DeviceTraits
    from marlin_bench.problem import Problem

    cpu = DeviceTraits("cpu", "a CPU")
    assert UnpackCpu().unsupported(Problem(1, 64, 63 * 5, 63), cpu) == "a group of 63 rows is odd"
    assert UnpackCpu().unsupported(Problem(1, 64, 256, 128), cpu) is None
