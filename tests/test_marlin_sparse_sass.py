"""No build of marlin_sparse touches registers of warpgroup products in flight: read from its machine code."""

import pytest
from products_in_flight import NVDISASM, disassemble, violations

from marlin_bench.cuda_source import compile_to_cache
from marlin_bench.kernel_catalog import kernel_builds

BUILDS = [build for build in kernel_builds() if build.source == "marlin_sparse" and build.defines["WARPGROUPS"] == 1]

LOOP = """
.L_x_1:
/*0000*/ WARPGROUP.ARRIVE ;
/*0010*/ HGMMA.SP.64x8x32.F32 R24, R8, gdesc[UR4], R24, R30, 0x0, gsb0 ;
/*0020*/ {between} ;
/*0030*/ WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
/*0040*/ @P0 BRA `(.L_x_1) ;
"""


@pytest.mark.parametrize(
    ("between", "is_safe"),
    [("LDS.64 R32, [R40]", True), ("LDS.64 R30, [R40]", False), ("LDS.128 R8, [R40]", False)],
)
def test_positions_in_flight_are_operands_too(between, is_safe):
    assert (violations(LOOP.format(between=between), 8) == []) == is_safe


@pytest.mark.skipif(NVDISASM is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_no_instruction_touches_products_in_flight(build, tmp_path):
    image = compile_to_cache("marlin_sparse", build.defines, "sm_90a").read_bytes()
    assert violations(disassemble(image, tmp_path), int(build.defines["TILE_M"])) == []
