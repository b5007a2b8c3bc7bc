"""What a whole model gains: the times of its linear layers summed at one M, the way the MARLIN paper's figure 9 sums.

The speed-up of a model is the summed time of the baseline over that of the backend (arXiv 2408.11743, section 5.1),
so that big layers count for more. Between two measured M a time is read off a straight line on logarithmic axes; beyond
them nothing is said. A layer that was not measured leaves the model without an answer, which names it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from marlin_bench.models import Model
from marlin_bench.record import Origin
from marlin_bench.speedup import HEADLINE_BASELINE, Row
from marlin_bench.statistics import Interval


class NoAnswerError(ValueError):
    """The run does not hold what the question needs; one sentence."""


Shape = tuple[int, int]
"""(K, N) of a layer."""


@dataclass(frozen=True)
class LayerTimes:
    """Medians of every backend on every layer of one group size: seconds by (K, N), backend and M. Measured only."""

    group_size: int | None
    baselines: tuple[str, ...]
    _times: Mapping[tuple[Shape, str], Mapping[int, Interval]] = field(repr=False)

    @property
    def backends(self) -> list[str]:
        """Backends in order of first appearance."""
        return list(dict.fromkeys(backend for _, backend in self._times))

    @property
    def baseline(self) -> str | None:
        """What speed-ups are over: cublas_fp16, else the fastest baseline of each cell; None without baselines."""
        if HEADLINE_BASELINE in self.baselines:
            return HEADLINE_BASELINE
        return " / ".join(self.baselines) or None

    def baseline_time(self, shape: Shape, M: int) -> Interval | None:
        """Seconds of one product on that baseline."""
        names = (HEADLINE_BASELINE,) if HEADLINE_BASELINE in self.baselines else self.baselines
        known = [time for name in names if (time := self.time(shape, name, M)) is not None]
        return min(known, key=lambda time: time.value, default=None)

    def batches(self, shape: Shape) -> list[int]:
        """Every M at which some backend was timed on the layer."""
        return sorted({M for (place, _), times in self._times.items() if place == shape for M in times})

    def time(self, shape: Shape, backend: str, M: int) -> Interval | None:
        """Seconds of one product, None where neither measured nor between two measured M."""
        times = self._times.get((shape, backend), {})
        if M in times:
            return times[M]
        known = sorted(times)
        place = bisect_left(known, M)
        if place in {0, len(known)}:
            return None
        left, right = known[place - 1], known[place]
        share = math.log(M / left) / math.log(right / left)
        return Interval(
            *(
                _between(getattr(times[left], bound), getattr(times[right], bound), share)
                for bound in ("value", "low", "high")
            )
        )


def _between(left: float, right: float, share: float) -> float:
    if not (0 < left < math.inf and 0 < right < math.inf):
        return math.inf if right > 0 else -math.inf  # a bound that nothing bounds stays so
    return float(left * (right / left) ** share)


def layer_times(rows: Iterable[Row], group_size: int | None) -> LayerTimes:
    """The headline times of measured rows; published ones have no place in an answer."""
    found: dict[tuple[Shape, str], dict[int, Interval]] = {}
    baselines: dict[str, None] = {}
    for row in rows:
        record = row.record
        companion = record.isolated and record.baseline
        if record.origin is not Origin.MEASURED or row.time is None or record.timer != "kernel" or companion:
            continue
        if record.group_size == group_size:
            found.setdefault(((record.K, record.N), record.backend), {})[record.M] = row.time
            if record.baseline:
                baselines[record.backend] = None
    return LayerTimes(group_size, tuple(baselines), found)


@dataclass(frozen=True, slots=True)
class ModelTime:
    """One backend on all linear layers of a model at one M: seconds of a forward pass, and the baseline's."""

    model: str
    M: int
    backend: str
    baseline: str | None
    time_s: float
    baseline_s: float | None

    @property
    def speedup(self) -> float | None:
        """Summed time of the baseline over summed time."""
        return None if self.baseline_s is None else self.baseline_s / self.time_s


def summed_time(model: Model, times: LayerTimes, backend: str, M: int) -> float | None:
    """Seconds that all linear layers of `model` take on `backend`; None when one of them is not known."""
    return _sum(model, [times.time((layer.K, layer.N), backend, M) for layer in model.layers])


def baseline_time(model: Model, times: LayerTimes, M: int) -> float | None:
    """Seconds that all linear layers of `model` take on the baseline; None when one of them is not known."""
    return _sum(model, [times.baseline_time((layer.K, layer.N), M) for layer in model.layers])


def _sum(model: Model, products: Sequence[Interval | None]) -> float | None:
    known = [time for time in products if time is not None]
    if len(known) < len(products):
        return None
    calls = (layer.per_block * model.blocks for layer in model.layers)
    return sum(count * time.value for count, time in zip(calls, known, strict=True))


def model_time(model: Model, times: LayerTimes, backend: str, M: int) -> ModelTime | None:
    """The model on one backend at M; None when a layer is not known."""
    own = summed_time(model, times, backend, M)
    return (
        None if own is None else ModelTime(model.name, M, backend, times.baseline, own, baseline_time(model, times, M))
    )


def missing_layers(model: Model, times: LayerTimes) -> list[str]:
    """Layers of the model that no backend was timed on."""
    return [f"{layer.name} {layer.K}x{layer.N}" for layer in model.layers if not times.batches((layer.K, layer.N))]


def model_batches(model: Model, times: LayerTimes) -> list[int]:
    """Every M at which all layers were timed; NoAnswerError names the layers that never were."""
    missing = missing_layers(model, times)
    if missing:
        raise NoAnswerError(
            f"this run has not timed {', '.join(missing)} of {model.name}: measure it with a suite that has this model"
        )
    common = set.intersection(*(set(times.batches((layer.K, layer.N))) for layer in model.layers))
    if not common:
        raise NoAnswerError(f"the layers of {model.name} have no M in common in this run")
    return sorted(common)


@dataclass(frozen=True, slots=True)
class TrafficGain:
    """What a mix of batch sizes makes of the speed-ups: expected seconds of a step on each side."""

    backend: str
    time_s: float
    baseline_s: float

    @property
    def speedup(self) -> float:
        """Expected time of the baseline over expected time."""
        return self.baseline_s / self.time_s


def traffic_gain(model: Model, times: LayerTimes, backend: str, traffic: Mapping[int, float]) -> TrafficGain:
    """The expected time of a step under `traffic`: M → how often it occurs, in any unit.

    NoAnswerError when an M lies beyond what was measured.
    """
    if not traffic or not all(share > 0 for share in traffic.values()):
        raise NoAnswerError("a traffic histogram needs at least one M, each with a share above zero")
    whole = sum(traffic.values())
    own = theirs = 0.0
    for M, share in traffic.items():
        found = model_time(model, times, backend, M)
        if found is None or found.baseline_s is None:
            raise NoAnswerError(f"{backend} or its baseline has no time for {model.name} at M={M} in this run")
        own += share / whole * found.time_s
        theirs += share / whole * found.baseline_s
    return TrafficGain(backend, own, theirs)


def common_group_size(rows: Sequence[Row]) -> int | None:
    """The group size that most records have: what a question means that names none."""
    sizes = [row.record.group_size for row in rows if row.time is not None]
    if not sizes:
        raise NoAnswerError("this run has no times: measure it first")
    return max(dict.fromkeys(sizes), key=sizes.count)
