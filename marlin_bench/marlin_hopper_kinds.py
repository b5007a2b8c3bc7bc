"""How a tiling that was measured with FP16 weights in groups of 128 serves the other kinds of weights.

All kinds share the plans of marlin_hopper_choice.py. What differs is where group scales go, and how many batch tiles a
kind has builds for.
"""

from __future__ import annotations

from dataclasses import replace

from marlin_bench.marlin_hopper_config import Tiling, WeightKind

_WIDEST_SCALED_SUMS = 32
_WIDEST_SCALED_BLOCK = 72  # with one block a warpgroup there is room for two sets of sums
_COARSE_BATCHES = (8, 16, 32, 64)
_COARSE_STEP = 128


def planned_batch(M: int, kind: WeightKind) -> int:
    """The batch whose plan M rows take: M itself in groups of 128, else one of few, so that there are few builds."""
    if kind.group_size == WeightKind().group_size:
        return M
    return next((batch for batch in _COARSE_BATCHES if batch >= M), -(-M // _COARSE_STEP) * _COARSE_STEP)


def suited(tiling: Tiling, kind: WeightKind) -> Tiling:
    """The tiling with scales where this kind is fastest, and no more stages and registers than it has room for.

    Bulk stores, worth 1 %, and products of single warps are left to the kind that was measured.
    """
    if kind == WeightKind():
        return tiling
    found = _with_other_columns(tiling) if kind.bf16 and kind.group_size == 128 else tiling
    if kind.group_size == 64 and kind != WeightKind(64) and found.batch_tile == _WIDEST_SCALED_SUMS and found.multicast:
        found = replace(found, warpgroups=2, stage_tiles=1, cluster=1, multicast=False, early_trigger=False)
    found = replace(found, scale_accumulators=_scales_sums(found, kind), bulk_store=False, warp_products=False)
    if found.scale_accumulators and kind.group_size == 64:
        found = _with_groups_of_64_on_sums(found)
    elif is_miscompiled(found) or _is_short_of_registers(found, kind):
        found = replace(found, step_products=2)
    if found.stages is not None and found.shared_bytes(kind) > found.most_shared_bytes:
        found = replace(found, stages=None)
    return found


def _with_other_columns(tiling: Tiling) -> Tiling:
    """BF16 tiles whose width is free: half as many columns where scales then go on the sums, twice where on weights."""
    if tiling.splits_k_in_cluster or tiling.batch_tile <= _WIDEST_SCALED_SUMS:
        return tiling
    if tiling.batch_tile <= _WIDEST_SCALED_BLOCK:
        return replace(tiling, blocks=1)
    if tiling.multicast and tiling.blocks == 1:
        return replace(tiling, blocks=2, stage_tiles=2)
    return tiling


def _scales_sums(tiling: Tiling, kind: WeightKind) -> bool:
    """Scales on the sums where 8 weights then take fewer instructions: not with plain FP16 in groups of 64."""
    if kind.group_size is None or kind == WeightKind(64):
        return False
    if tiling.batch_tile <= _WIDEST_SCALED_SUMS:
        return (
            kind.group_size != 64 or tiling.batch_tile < _WIDEST_SCALED_SUMS or tiling.warpgroups * tiling.blocks <= 4
        )
    if kind.group_size == 64 and not (kind.bf16 and tiling.splits_k_in_cluster and tiling.warpgroups == 2):
        return False
    return tiling.blocks == 1 and tiling.warpgroups < 4 and tiling.batch_tile <= _WIDEST_SCALED_BLOCK


def _with_groups_of_64_on_sums(tiling: Tiling) -> Tiling:
    """Sums are scaled once a half K tile: unrolled less where that would spill."""
    is_wide = tiling.batch_tile >= _WIDEST_SCALED_SUMS
    if tiling.warpgroups > 4 or (is_wide and tiling.split == 1 and tiling.blocks == 2):
        tiling = replace(tiling, stage_tiles=1)
    if is_miscompiled(tiling) or tiling.ctas_per_sm > 1 or tiling.warpgroups > 2 or (is_wide and tiling.split > 1):
        return replace(tiling, step_products=min(2, tiling.step_products))
    return tiling


def rounds_weights(tiling: Tiling, kind: WeightKind) -> bool:
    """Whether products are those of BF16 weights, the canonical ones rounded once: scales go on the weights then."""
    return kind.bf16 and kind.group_size is not None and not tiling.scale_accumulators


def _is_short_of_registers(tiling: Tiling, kind: WeightKind) -> bool:
    """Builds whose steps of four products would spill."""
    if tiling.step_products < 4:
        return False
    if tiling.scale_accumulators:
        return tiling.warpgroups == 3
    return kind.bf16 and kind.zero_points and tiling.blocks == 2 and tiling.batch_tile >= 128


def is_miscompiled(tiling: Tiling) -> bool:
    """Builds in which ptxas 13.0 copies sums while products into them are in flight, without a word in its log."""
    if tiling.warp_products or not tiling.scale_accumulators:
        return False
    return tiling.step_products == 4 and tiling.blocks == 1 and tiling.batch_tile == 8
