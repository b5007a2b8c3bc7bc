"""No build of marlin_hopper touches registers of warpgroup products in flight: read from its machine code."""

import pytest
from products_in_flight import NVDISASM, disassemble, violations

from marlin_bench.cuda_source import compile_to_cache
from marlin_bench.marlin_hopper_choice import reachable_builds
from marlin_bench.marlin_hopper_config import Tiling, WeightKind


def machine_code(tiling: Tiling, kind: WeightKind, folder) -> str:
    return disassemble(compile_to_cache("marlin_hopper", tiling.defines(kind), "sm_90a").read_bytes(), folder)


LOOP = """
.L_x_1:
/*0000*/ WARPGROUP.ARRIVE ;
/*0010*/ HGMMA.64x8x16.F32 R24, R8, gdesc[UR4], R24, gsb0 ;
/*0020*/ {between} ;
/*0030*/ WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
/*0040*/ @P0 BRA `(.L_x_1) ;
"""


@pytest.mark.parametrize(
    ("between", "is_safe"),
    [
        ("LOP3.LUT R12, R16, 0x3c003c, RZ, 0xc0, !PT", True),
        ("LOP3.LUT R9, R16, 0x3c003c, RZ, 0xc0, !PT", False),
        ("LDS.128 R4, [R40]", True),
        ("LDS.128 R8, [R40]", False),
        ("IMAD.MOV.U32 R22, RZ, RZ, R27", False),
    ],
)
def test_the_walk_tells_safe_instructions_from_unsafe_ones(between, is_safe):
    assert (violations(LOOP.format(between=between), 8) == []) == is_safe


@pytest.mark.skipif(NVDISASM is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize(("tiling", "kind"), reachable_builds(), ids=lambda value: getattr(value, "name", None))
def test_no_instruction_touches_products_in_flight(tiling, kind, tmp_path):
    sass = machine_code(tiling, kind, tmp_path)
    if tiling.warp_products:
        assert "HMMA" in sass
        assert "HGMMA" not in sass  # warps wait for their products by themselves, none is in flight
    else:
        assert violations(sass, tiling.batch_tile) == []


@pytest.mark.skipif(NVDISASM is None, reason="nvdisasm is not installed")
def test_the_miscompiled_build_is_recognised(tmp_path):
    """When this fails, ptxas was repaired: the chooser's exception may go."""
    tiling = Tiling.parse("b8_w2_m1_t2_p4_c2_acc_pair_early")
    assert violations(machine_code(tiling, WeightKind(), tmp_path), tiling.batch_tile)
