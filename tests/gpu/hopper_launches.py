"""Small launches of marlin_hopper, for compute-sanitizer:

compute-sanitizer --tool memcheck python tests/gpu/hopper_launches.py
compute-sanitizer --tool racecheck --kernel-name kns=marlin_hopper python tests/gpu/hopper_launches.py \
    EVERY_LANE_RELEASES=1

Without the macro racecheck reports bulk copies (UBLKCP) into a stage against the reads (LDS) of that stage the round
before: lane 0 gives a stage back for its warp, after products that needed all lanes, which racecheck does not follow.

Every way a tile can end: whole, by plain and by bulk stores, striped over several CTAs and joined by one or by all of
them, with a tail that is handed out, split over a cluster and its warpgroups, activations shared by a cluster; batches
and columns that no tile divides, more stages of work than the ring holds.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from marlin_bench.backends.marlin_hopper import HopperProduct, Workspace
from marlin_bench.layouts.marlin_hopper import pack
from marlin_bench.marlin_hopper_choice import Plan
from marlin_bench.marlin_hopper_config import Tiling, WeightKind
from marlin_bench.quantize import quantize

GROUPS_OF_128 = WeightKind()
CASES = (
    # M, N, K, plan, bias[, kind of weights]
    (5, 320, 2048, "b8_w2k2_m1_t2_c2_pair_early", False),
    (8, 320, 2048, "b8_w2_m2_t2_s2_p4_acc_early_regs:ctas=3", True),
    (7, 576, 4096, "b8_w2_m2_t2_s3_p4_acc_early_regs_tail:ctas=5:tail=3.2.1.1", True),
    (40, 576, 4096, "b32_w2_m2_t2_p4_regs_tail:ctas=7:tail=2.2.1", False),
    (16, 192, 2048, "b16_w2_m1_t2_p4_c2_acc_pair_early", True),
    (31, 832, 2048, "b32_w3_m2_t2_x2_acc_early_regs:ctas=6", False),
    (7, 320, 2048, "b8_w2k2_m2_t2_c2_acc_pair_early_mma", False),
    (5, 576, 2048, "b8_w2_m2_t2_s5_p4_acc_early_regs_mma:ctas=4:none", False),
    (19, 320, 2048, "b24_w2_m2_t2_regs_mma:ctas=3", False),
    (7, 576, 4096, "b8_w2_m2_t2_s3_acc_early_regs_tail_mma:ctas=5:tail=3.2.1.1", True),
    (7, 704, 2048, "b8_w7_m1_t2_c2_acc_early", False),
    (40, 448, 1024, "b48_w3_m1_t1_p4_c2_early", True),
    (20, 832, 1024, "b24_w3_m2_t1_p4_c2_early_regs", False),
    (31, 320, 2048, "b32_w2k2_m2_t2_p4_c2_early", False),
    (61, 320, 1024, "b64_w2k2_m1_t2_c2_early_regs", False),
    (70, 320, 1024, "b72_w2k2_m1_t2_c2_early_regs", True),
    (128, 320, 1024, "b128_w2_m1_t1_c2_early_regs", True),
    (130, 192, 1024, "b136_w2_m1_t1_c2_early_regs", False),
    (72, 576, 1024, "b72_w2_m2_t2_x2_early_regs:ctas=6", True),
    (133, 576, 1024, "b128_w2_m2_t2_early_regs:ctas=4", False),
    (300, 320, 512, "b152_w2_m2_t1_early_regs:raster=2:ctas=2:none", True),
    (130, 320, 1024, "b136_w2_m1_t1_early_regs:ctas=2:rest", False),
    (300, 1088, 2048, "b128_w2_m1_t1_early_regs:ctas=13:rest", True),
    (200, 576, 2048, "b80_w2_m2_t2_x2_early_regs_bulk:ctas=10:rest", True),
    (300, 576, 1024, "b64_w2_m1_t1_early_regs_bulk:ctas=3:none", False),
    (12, 320, 2048, "b16_w2_m2_t1_acc_regs:ctas=3", True, WeightKind(64, zero_points=True)),
    (8, 320, 2048, "b8_w2_m2_t1_acc_regs_mma:ctas=3", True, WeightKind(64, zero_points=True)),
    (7, 192, 1024, "b8_w2k2_m1_t2_c2_acc_mma", False, WeightKind(128, bf16=True)),
    (40, 192, 1024, "b40_w2_m1_t1_c2", False, WeightKind(None, zero_points=True)),
    (90, 320, 1024, "b96_w2_m1_t1_acc_regs:ctas=2", True, WeightKind(128, bf16=True)),
    (7, 576, 4096, "b8_w2_m2_t2_s3_p4_acc_early_regs_tail:ctas=5:tail=3.2.1.1", True, WeightKind(128, bf16=True)),
    (16, 192, 2048, "b16_w2_m1_t2_p4_c2_acc_pair_early", True, WeightKind(128, True, bf16=True)),
    (61, 320, 1024, "b64_w2k2_m1_t2_c2_early_regs", True, WeightKind(64, bf16=True)),
    (72, 576, 1024, "b72_w2_m2_t2_x2_early_regs:ctas=6", False, WeightKind(128, True, bf16=True)),
    (130, 192, 1024, "b136_w2_m1_t1_c2_early_regs", False, WeightKind(128, True)),
    (133, 576, 1024, "b128_w2_m2_t2_early_regs:ctas=4", True, WeightKind(128, bf16=True)),
    (20, 832, 1024, "b24_w3_m2_t1_p4_c2_early_regs", True, WeightKind(64, True)),
)


def launch(M, N, K, name, has_bias, kind=GROUPS_OF_128):
    """Two dependent launches of one plan, both right."""
    generator = torch.Generator(device="cuda").manual_seed(1)
    dense = torch.randn((K, N), device="cuda", generator=generator) * 0.02
    weights = quantize(dense, kind.group_size, zero_points=kind.zero_points)
    dtype = torch.bfloat16 if kind.bf16 else torch.float16
    activations = torch.randn((M, K), device="cuda", generator=generator).to(dtype)
    bias = torch.randn(N, device="cuda", generator=generator).to(dtype) if has_bias else None
    output = torch.empty((M, N), dtype=dtype, device="cuda")
    product = HopperProduct(pack(weights), activations, output, Plan.parse(name), Workspace(output.device), bias=bias)
    expected = activations.double() @ weights.dequantized().double() + (0 if bias is None else bias.double())
    for _ in range(2):
        output.fill_(float("nan"))
        torch.cuda.synchronize()
        product()
        product()
        torch.cuda.synchronize()
        error = (output.double() - expected).abs().mean() / expected.abs().mean()
        assert error < (0.003 if kind.bf16 else 0.001), (name, float(error))


def define(macros):
    plain = Tiling.defines

    def defines(tiling, kind):
        return plain(tiling, kind) | macros

    Tiling.defines = defines


if __name__ == "__main__":
    define(dict(argument.split("=") for argument in sys.argv[1:]))
    for case in CASES:
        launch(*case)
    print(f"launched {len(CASES)} plans of marlin_hopper")
