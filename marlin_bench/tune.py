"""The search behind `marlin-bench tune`: every sensible plan of marlin_hopper for a layer and batch, checked and timed.

Builds run in parallel; each plan's output is checked against a float64 product before it is timed; all plans of a cell
are timed in one interleaved run over weights rotated past the L2 cache, first a short one that drops the slow ones. The
winners are the table that the chooser reads (marlin_hopper_table.json).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from marlin_bench.marlin_hopper_choice import Plan, fits, smallest_batch_tile
from marlin_bench.marlin_hopper_config import Stripes, Tiling, WeightKind
from marlin_bench.marlin_hopper_rounds import ROUND_TILINGS

if TYPE_CHECKING:
    from torch import Tensor

    from marlin_bench.layouts.marlin_hopper import HopperWeights

ROTATED_BYTES = 330_000_000
LARGEST_ERROR = 0.001
_CHECKED_ROWS = 256
_REFERENCE_COLUMNS = 512
_QUICK_ROUNDS = 3
_ROUNDS = 15
_FINALISTS = 6
_FEWEST_LAUNCHES = 3


@dataclass(frozen=True)
class Timed:
    """A plan that was right, with its median seconds a launch."""

    plan: Plan
    seconds: float


@dataclass(frozen=True)
class Rejected:
    """A plan that cannot be used, and why: it does not build, or its output is wrong."""

    plan: Plan
    reason: str


def _warp_tilings(batch_tile: int) -> Iterator[Tiling]:
    """The same shapes with products of single warps, for up to 8 rows."""
    base = Tiling(batch_tile, stage_tiles=2, scale_accumulators=True, early_trigger=True, warp_products=True)
    for stages in (4, 5, None):
        yield replace(base, blocks=2, stages=stages, reallocate=True)
    split = replace(base, cluster=2)
    for shape in (split, replace(split, split=2, blocks=2), replace(split, split=2, stages=6), replace(split, split=2)):
        yield shape
        yield replace(shape, ctas_per_sm=2)
    yield replace(split, warpgroups=3)
    yield replace(split, warpgroups=3, stage_tiles=1, ctas_per_sm=2)
    yield replace(split, blocks=2, reallocate=True)


def _small_batch_tilings(batch_tile: int) -> Iterator[Tiling]:
    """Up to 32 rows: striped tiles of 256 and more columns, or a cluster of two splitting K."""
    if batch_tile == 8:
        yield from _warp_tilings(batch_tile)
    for scaled, products in product((True, False), (2, 4)):
        base = Tiling(batch_tile, step_products=products, scale_accumulators=scaled)
        for early in (False, True):
            yield replace(base, blocks=2, stage_tiles=2, reallocate=True, early_trigger=early)
            yield replace(base, blocks=1, stage_tiles=2, early_trigger=early)
            yield replace(base, blocks=1, stage_tiles=4, early_trigger=early)
        yield replace(base, blocks=2, stage_tiles=2)
        yield replace(base, blocks=2, stage_tiles=1, ctas_per_sm=2, early_trigger=True)
        yield replace(base, warpgroups=3, blocks=2, stage_tiles=2)
        pairs = replace(base, cluster=2, multicast=True, early_trigger=True, reallocate=True)
        yield replace(pairs, warpgroups=3, blocks=2, stage_tiles=2)
        yield replace(base, warpgroups=4, stage_tiles=2)
        split = replace(base, cluster=2)
        for warpgroups, ways, blocks, tiles in (
            (2, 1, 1, 1),
            (2, 1, 1, 2),
            (2, 2, 1, 2),
            (2, 2, 2, 2),
            (4, 2, 1, 2),
            (4, 4, 1, 4),
        ):
            shape = replace(split, warpgroups=warpgroups, split=ways, blocks=blocks, stage_tiles=tiles)
            yield replace(shape, ctas_per_sm=2, early_trigger=True)
            yield replace(shape, early_trigger=True)
        split = replace(split, early_trigger=True)
        yield replace(split, warpgroups=3, ctas_per_sm=2)
        for warpgroups, tiles in ((3, 2), (4, 2), (7, 1), (7, 2)):
            yield replace(split, warpgroups=warpgroups, stage_tiles=tiles)
        yield replace(split, warpgroups=3, blocks=2, reallocate=True)
        yield replace(split, blocks=2, stage_tiles=2, reallocate=True)
        yield replace(split, split=2, stage_tiles=2, stages=6, ctas_per_sm=2)
        for stages in (4, 5):
            yield replace(base, blocks=2, stage_tiles=2, stages=stages, reallocate=True, early_trigger=True)


def _middle_batch_tilings(batch_tile: int) -> Iterator[Tiling]:
    """Up to 128 rows: the same shapes with scales on the weights and the producers' registers."""
    for products, early in product((2, 4), (False, True)):
        base = Tiling(batch_tile, step_products=products, early_trigger=early, reallocate=True)
        yield replace(base, blocks=2)
        yield replace(base, blocks=2, cluster=2, multicast=True)
        yield replace(base, blocks=2, stage_tiles=2)
        yield replace(base, warpgroups=3, blocks=2)
        yield replace(base, blocks=1)
        split = replace(base, cluster=2)
        yield replace(split, blocks=1)
        yield replace(split, blocks=1, stage_tiles=2)
        yield replace(split, blocks=2)
        yield replace(split, split=2, blocks=1, stage_tiles=2)
        yield replace(split, split=2, blocks=2, stage_tiles=2)
        if early:
            yield replace(split, blocks=1, ctas_per_sm=2, reallocate=False)
            yield replace(split, warpgroups=1, blocks=1, ctas_per_sm=2, reallocate=False)
            yield replace(split, split=2, blocks=1, stage_tiles=2, ctas_per_sm=2, reallocate=False)
            yield replace(base, blocks=1, ctas_per_sm=2, reallocate=False)


def _large_batch_plans(batch_tile: int) -> Iterator[Plan]:
    """More rows than a tile: whole or striped tiles, with and without shared activations, in several sweeps."""
    for blocks, products, multicast, raster in product((1, 2), (2, 4), (False, True), (2, 4, 8)):
        tiling = Tiling(batch_tile, blocks=blocks, step_products=products, reallocate=True, early_trigger=True)
        if multicast:
            tiling = replace(tiling, cluster=2, multicast=True)
        yield Plan(tiling, raster=raster)
        yield Plan(tiling, raster=raster, stripes=Stripes.REST)
        yield Plan(tiling, raster=raster, ctas=128, stripes=Stripes.NONE)
    for blocks, multicast in product((1, 2), (False, True)):
        tiling = Tiling(
            batch_tile, blocks=blocks, stage_tiles=blocks, reallocate=True, early_trigger=True, bulk_store=True
        )
        if multicast:
            tiling = replace(tiling, cluster=2, multicast=True)
        yield from (Plan(tiling), Plan(tiling, stripes=Stripes.REST), Plan(tiling, ctas=128, stripes=Stripes.NONE))
    for name in ROUND_TILINGS:
        yield Plan(Tiling.parse(name), stripes=Stripes.NONE)


def candidates(M: int, N: int, K: int, sm_count: int, kind: WeightKind) -> list[Plan]:
    """The plans worth timing for a product, each once."""
    smallest = smallest_batch_tile(M)
    plans: list[Plan] = []
    if smallest <= 32:
        for tiling in _small_batch_tilings(smallest):
            plans += [Plan(tiling, stripes=stripes) for stripes in Stripes]
    else:
        tiles = {smallest} | ({64} if M > 64 else set())
        for tiling in (tiling for tile in sorted(tiles) for tiling in _middle_batch_tilings(tile)):
            plans += [Plan(tiling, stripes=stripes) for stripes in Stripes]
    if M > 64:
        plans += list(_large_batch_plans(smallest))
    unique = {plan.name: plan for plan in plans if fits(plan, K, kind)}
    return [plan for plan in unique.values() if _is_sensible(plan, M, N, K, sm_count)]


def _is_sensible(plan: Plan, M: int, N: int, K: int, sm_count: int) -> bool:
    """A cluster splits K only where there are too few tiles for the SMs, and most of the device is used."""
    schedule = plan.schedule(M, N, K, sm_count)
    tiles = schedule.row_tiles * schedule.batch_tiles
    if plan.stripes is Stripes.REST and tiles < schedule.grid // plan.tiling.team:
        return False  # the same schedule as striping many
    if plan.tiling.splits_k_in_cluster:
        if plan.stripes is not Stripes.MANY:
            return False
        return sm_count < tiles * plan.tiling.cluster * 3 and tiles * plan.tiling.cluster <= sm_count
    if plan.stripes is Stripes.NONE:
        return schedule.grid * 4 >= sm_count * 3
    return True


class Cell:
    """One layer and batch with its operands on the device."""

    def __init__(self, layer: Layer, M: int) -> None:
        import torch

        from marlin_bench.backends.marlin_hopper import Workspace

        self.layer, self.M = layer, M
        self.activations = layer.activations[:M].contiguous()
        self.output = torch.empty((M, layer.N), dtype=torch.float16, device="cuda")
        self.workspace = Workspace(self.output.device)
        self.sm_count = torch.cuda.get_device_properties(0).multi_processor_count
        self._alive: list[list[Callable[[], None]]] = []

    def check(self, plan: Plan) -> str | None:
        """Why the plan's output is wrong, or None."""
        import torch

        self.output.fill_(float("nan"))
        self._product(plan, self.layer.packed[0])()
        torch.cuda.synchronize()
        reference = self.layer.reference[: self.M]
        if not torch.isfinite(self.output).all():
            return "the output holds NaN or infinity"
        error = (self.output[: len(reference)].double() - reference).abs().mean() / reference.abs().mean()
        return None if error < LARGEST_ERROR else f"relative error {float(error):.2g}"

    def graph(self, plan: Plan) -> tuple[Callable[[], None], int]:
        """A captured round over the rotated weights and its number of launches."""
        import torch

        products = [self._product(plan, packed) for packed in self.layer.packed]
        launches = max(_FEWEST_LAUNCHES, len(products))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(launches):
                products[i % len(products)]()
        self._alive.append(products)  # a graph holds no reference to what its launches use
        return graph.replay, launches

    def _product(self, plan: Plan, packed: HopperWeights) -> Callable[[], None]:
        from marlin_bench.backends.marlin_hopper import HopperProduct

        return HopperProduct(packed, self.activations, self.output, plan, self.workspace)


class Layer:
    """Random weights of one layer, packed several times over, and the expected answer for the first ones."""

    def __init__(self, N: int, K: int, largest_m: int) -> None:
        import torch

        from marlin_bench.layouts.marlin_hopper import pack
        from marlin_bench.quantize import QuantizedWeights

        self.N, self.K = N, K
        generator = torch.Generator(device="cuda").manual_seed(1)
        codes = torch.randint(0, 16, (K, N), dtype=torch.uint8, device="cuda", generator=generator)
        scales = ((torch.rand((K // 128, N), device="cuda", generator=generator) + 1) * 0.01).half()
        weights = QuantizedWeights(codes, scales)
        first = pack(weights)
        copies = -(-ROTATED_BYTES // first.packed.numel())
        self.packed = [first] + [replace(first, packed=first.packed.clone()) for _ in range(copies - 1)]
        self.activations: Tensor = torch.randn((largest_m, K), device="cuda", generator=generator).half()
        rows = self.activations[:_CHECKED_ROWS].double()
        self.reference: Tensor = torch.cat(
            [
                rows @ weights.dequantized(slice(n, n + _REFERENCE_COLUMNS)).double()
                for n in range(0, N, _REFERENCE_COLUMNS)
            ],
            dim=1,
        )


def _build(plans: Sequence[Plan], kind: WeightKind) -> dict[Plan, str]:
    """Build all plans' kernels in parallel; the ones that fail, with the reason."""
    from marlin_bench.cuda_source import BuildError, compile_to_cache

    def attempt(tiling: Tiling) -> str | None:
        try:
            compile_to_cache("marlin_hopper", tiling.defines(kind))
        except BuildError as error:
            return str(error).splitlines()[0]
        return None

    tilings = list({plan.tiling for plan in plans})
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = dict(zip(tilings, pool.map(attempt, tilings), strict=True))
    return {plan: reason for plan in plans if (reason := reasons[plan.tiling]) is not None}


def _time(replays: dict[Plan, tuple[Callable[[], None], int]], rounds: int) -> list[Timed]:
    """Median seconds a launch of every plan over interleaved rounds, fastest first."""
    import torch

    samples: dict[Plan, list[float]] = {plan: [] for plan in replays}
    for replay, _ in replays.values():
        replay()
    for turn in range(rounds):
        order = list(replays) if turn % 2 else list(reversed(replays))
        for plan in order:
            replay, launches = replays[plan]
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            replay()
            end.record()
            end.synchronize()
            samples[plan].append(begin.elapsed_time(end) * 1e-3 / launches)
    timed = [Timed(plan, median(times)) for plan, times in samples.items()]
    return sorted(timed, key=lambda one: one.seconds)


def tune_cell(cell: Cell, plans: Sequence[Plan] | None = None) -> tuple[list[Timed], list[Rejected]]:
    """The plans of a cell, fastest first, and those that cannot be used."""
    kind = WeightKind()
    if plans is None:
        plans = candidates(cell.M, cell.layer.N, cell.layer.K, cell.sm_count, kind)
    unbuilt = _build(plans, kind)
    rejected = [Rejected(plan, reason) for plan, reason in unbuilt.items()]
    right: list[Plan] = []
    for plan in plans:
        if plan in unbuilt:
            continue
        reason = cell.check(plan)
        if reason is None:
            right.append(plan)
        else:
            rejected.append(Rejected(plan, reason))
    replays = {plan: cell.graph(plan) for plan in right}
    quick = _time(replays, _QUICK_ROUNDS)
    finalists = [one.plan for one in quick[:_FINALISTS]]
    final = _time({plan: replays[plan] for plan in finalists}, _ROUNDS)
    return final + quick[_FINALISTS:], rejected


def tune_layer(N: int, K: int, sizes: Iterable[int]) -> Iterator[tuple[int, list[Timed], list[Rejected]]]:
    """Tune one layer for each M: yields (M, plans fastest first, plans that cannot be used)."""
    ordered = sorted(sizes)
    layer = Layer(N, K, ordered[-1])
    for M in ordered:
        yield M, *tune_cell(Cell(layer, M))


def write_table(path: Path, device: str, winners: dict[tuple[int, int], dict[int, Plan]]) -> None:
    """Merge winners, (N, K) → M → plan, into the table at `path`."""
    layers = json.loads(path.read_text(encoding="utf-8"))["layers"] if path.is_file() else []
    table = {(layer["N"], layer["K"]): dict(layer["plans"]) for layer in layers}
    for layer_key, plans in winners.items():
        table.setdefault(layer_key, {}).update({str(M): plan.name for M, plan in plans.items()})
    rows = [
        {"N": N, "K": K, "plans": dict(sorted(plans.items(), key=lambda item: int(item[0])))}
        for (N, K), plans in sorted(table.items())
    ]
    path.write_text(json.dumps({"device": device, "layers": rows}, indent=1) + "\n", encoding="utf-8")
