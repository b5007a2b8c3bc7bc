"""Which build and grid of kernels/marlin.cu and marlin_ring.cu suit a problem, from measurements on an H200."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from marlin_bench.marlin_config import Build, ConfigError, Operands, Tile, build_for, tile_named

_FEWEST_STAGES = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """What the choice of a tile and a grid depends on."""

    sm_count: int
    shared_per_block: int
    capability: tuple[int, int] = (8, 0)


class TileShape(Protocol):
    """What a grid depends on of a tile, of this kernel or another that is partitioned the same way."""

    @property
    def rows(self) -> int:
        """Rows of C."""

    @property
    def columns(self) -> int:
        """Columns of C."""

    @property
    def ctas_per_sm(self) -> int:
        """CTAs that are meant to share an SM."""


def suitable_ctas(tile: TileShape, M: int, N: int, sm_count: int) -> int:
    """CTAs for a problem: all that fit, or up to a tenth fewer when each tile is then cut into equal slices.

    A CTA whose stripe crosses from one tile to the next fills its pipeline and adds up twice: on an H200 a layer of
    4096 x 4096 takes 11.1 us on 132 CTAs and 9.0 on 128.
    """
    most = sm_count * tile.ctas_per_sm
    tiles = -(-M // tile.rows) * -(-N // tile.columns)
    even = tiles * max(1, most // tiles)
    return even if _EVEN_SHARE * most <= even <= most else most


_EVEN_SHARE = 0.9
_SMALL = 12
"""16 KiB tiles of weights an SM below which a layer is small: sums across CTAs then cost more than reading twice."""
_FEW_ROWS: tuple[tuple[int, float, tuple[str, ...]], ...] = (
    # up to this M, from this many 16 KiB tiles of weights an SM on: the best first (measured on an H200)
    (8, 40, ("8x256x128rs", "8x512x128rw16", "16x256x128x2", "16x256x64x2")),
    (8, _SMALL, ("8x256x128rs", "8x128x256r", "16x256x128", "16x256x64x2")),
    (8, 0, ("8x128x256r", "16x128x128", "16x256x64x2")),
    (16, 40, ("16x256x256rs", "16x256x256r", "16x256x128x2", "16x256x64x2")),
    (16, _SMALL, ("16x128x256r", "16x256x128", "16x256x64x2")),
    (16, 0, ("16x128x256r", "16x128x128", "16x256x64x2")),
)
_ROWS = (24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128)
"""Rows of the tiles for more; 72 on Hopper alone."""


_RING_ROWS = (24, 32, 40, 48, 72, 80, 128)
"""Those that are faster with a ring, on Hopper."""
_HUGE = 100


def _wide(rows: int, weight_tiles: float) -> tuple[str, ...]:
    """Tiles for larger layers, the best first, and what serves every GPU and format."""
    huge = (f"{rows}x512x64r",) if rows in (32, 64) and weight_tiles >= _HUGE else ()
    ring = (f"{rows}x256x128r",) if rows in _RING_ROWS else ()
    if rows == 72:
        return *ring, "80x256x128r", "80x256x64", "64x256x64"
    return *huge, *ring, f"{rows}x256x64", "64x256x64"


def _preferred(M: int, N: int, K: int, machine: Machine) -> tuple[str, ...]:
    """Names of tiles, the best first; whether they fit K and the device is checked after."""
    columns = -(-N // 256)
    weight_tiles = columns * (K / 128) / machine.sm_count
    for largest_M, fewest, names in _FEW_ROWS:
        if largest_M >= M and weight_tiles >= fewest:
            return names
    small = weight_tiles < _SMALL
    narrow = "64x128x128r", "64x128x128", "64x256x64"
    if small and M <= 64:
        return ("32x128x128r", "32x128x128", "32x256x64") if M <= 32 else narrow
    for rows, width in ((128, 256), (64, 256), (64, 128)):
        # a tile an SM, uncut; narrow ones read activations too often for layers that are not small
        fills = _EVEN_SHARE * machine.sm_count <= -(-M // rows) * -(-N // width) <= machine.sm_count
        if fills and (width == 256 or small):
            return (f"{rows}x256x128r", f"{rows}x256x64") if width == 256 else narrow
    rows = min(_ROWS, key=lambda rows: (-(-M // rows) * (rows + 8), -rows))
    if -(-M // rows) * columns * 4 <= machine.sm_count and (small or rows > 80):
        return narrow if small and M <= 128 else ("64x256x64",)  # more tiles, so that fewer CTAs share one
    return _wide(rows, weight_tiles)


WITHOUT_SHORT_GROUPS = ("8x512x128rw16", "32x512x64r", "72x256x128r")
"""Tiles whose builds for groups of 32 would spill."""


def suits(tile: Tile, operands: Operands) -> bool:
    """Whether a tile has builds for such operands.

    Scaled sums stand for weights that are not rounded to 16 bits. In FP16 that is a difference of 1e-4, in BF16 ten
    times as much, and the reference is rounded.
    """
    if operands.group_size == 32 and str(tile) in WITHOUT_SHORT_GROUPS:
        return False
    return not (operands.bf16 and tile.scale_sums)


def choose_build(operands: Operands, M: int, N: int, K: int, machine: Machine) -> Build:
    """The build for a problem: the preferred tile that divides K and has at least three stages on this machine."""
    for name in _preferred(M, N, K, machine):
        tile = tile_named(name)
        if K % tile.depth or not tile.runs_on(machine.capability):
            continue
        if not suits(tile, operands):
            continue
        try:
            build = build_for(tile, operands, machine.shared_per_block)
        except ConfigError:
            continue
        if build.stages >= _FEWEST_STAGES:
            return build
    raise ConfigError(f"no tile for M {M}, N {N}, K {K} fits {machine.shared_per_block} bytes of shared memory")
