"""Which backend to call for each layer of a model and each M, and what it costs to use a single one everywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from marlin_bench.model_times import LayerTimes, NoAnswerError, summed_time
from marlin_bench.models import Model


@dataclass(frozen=True, slots=True)
class Choice:
    """The fastest backend of a layer at M; `regret` is how much longer the single backend takes here, 0.1 for 10 %."""

    layer: str
    K: int
    N: int
    M: int
    backend: str
    time_s: float
    speedup: float | None
    regret: float | None


@dataclass(frozen=True, slots=True)
class Single:
    """One backend used everywhere: by how much the model is slower than with the best of each, over the M asked for."""

    backend: str
    regret: float
    worst_regret: float
    worst_M: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The dispatch table of a model; `single` is the best backend to use everywhere, None where none covers it all."""

    model: str
    group_size: int | None
    batches: tuple[int, ...]
    choices: tuple[Choice, ...]
    singles: tuple[Single, ...]

    @property
    def single(self) -> Single | None:
        """The backend that costs least when used everywhere."""
        return self.singles[0] if self.singles else None


def recommend(
    model: Model, times: LayerTimes, batches: Sequence[int], backends: Sequence[str] | None = None
) -> Recommendation:
    """The fastest of `backends` (all, when None) for each layer and M; NoAnswerError where none has a time."""
    candidates = list(times.backends if backends is None else backends)
    singles = _singles(model, times, batches, candidates)
    chosen = singles[0].backend if singles else None
    choices = tuple(_choice(place, times, M, candidates, chosen) for place in _places(model) for M in batches)
    return Recommendation(model.name, times.group_size, tuple(batches), choices, tuple(singles))


def _places(model: Model) -> list[tuple[str, int, int]]:
    return [(layer.name, layer.K, layer.N) for layer in model.layers]


def _best(times: LayerTimes, shape: tuple[int, int], M: int, candidates: Sequence[str]) -> tuple[str, float]:
    found = [(time.value, name) for name in candidates if (time := times.time(shape, name, M)) is not None]
    if not found:
        raise NoAnswerError(f"no chosen backend was timed on {shape[0]}x{shape[1]} at M={M}: choose another M")
    value, name = min(found)
    return name, value


def _choice(
    place: tuple[str, int, int],
    times: LayerTimes,
    M: int,
    candidates: Sequence[str],
    single: str | None,
) -> Choice:
    name, K, N = place
    backend, best = _best(times, (K, N), M, candidates)
    baseline = times.baseline_time((K, N), M)
    alone = None if single is None else times.time((K, N), single, M)
    return Choice(
        layer=name,
        K=K,
        N=N,
        M=M,
        backend=backend,
        time_s=best,
        speedup=None if baseline is None else baseline.value / best,
        regret=None if alone is None else alone.value / best - 1,
    )


def _singles(model: Model, times: LayerTimes, batches: Sequence[int], candidates: Sequence[str]) -> list[Single]:
    """Backends that cover every layer and M, the cheapest to use everywhere first."""
    best = {M: _best_sum(model, times, M, candidates) for M in batches}
    found = []
    for name in candidates:
        own = {M: summed_time(model, times, name, M) for M in batches}
        known = {M: time for M, time in own.items() if time is not None}
        if len(known) < len(own):
            continue
        regrets = {M: time / best[M] - 1 for M, time in known.items()}
        worst = max(regrets, key=lambda M: regrets[M])
        # every M weighs the same: an average of ratios, so that the largest M does not drown the others
        found.append(Single(name, sum(regrets.values()) / len(regrets), regrets[worst], worst))
    return sorted(found, key=lambda single: single.regret)


def _best_sum(model: Model, times: LayerTimes, M: int, candidates: Sequence[str]) -> float:
    return sum(
        layer.per_block * model.blocks * _best(times, (layer.K, layer.N), M, candidates)[1] for layer in model.layers
    )


def dispatch_json(found: Recommendation, device: str, run: str) -> str:
    """The dispatch table for other programs: per layer the ranges of M with their backend, both ends included.

    A range ends at a measured M; between two of them the choice of the lower one holds.
    """
    layers = []
    for name, K, N in dict.fromkeys((choice.layer, choice.K, choice.N) for choice in found.choices):
        own = [choice for choice in found.choices if (choice.layer, choice.K, choice.N) == (name, K, N)]
        layers.append({"layer": name, "K": K, "N": N, "ranges": _ranges(own), "measured": [asdict(c) for c in own]})
    table = {
        "schema_version": 1,
        "device": device,
        "run": run,
        "model": found.model,
        "group_size": found.group_size,
        "layers": layers,
        "single_backends": [asdict(single) for single in found.singles],
    }
    return json.dumps(table, indent=1, allow_nan=False) + "\n"


def _ranges(choices: Sequence[Choice]) -> list[dict[str, int | str]]:
    ranges: list[dict[str, int | str]] = []
    following = [*(choice.M - 1 for choice in choices[1:]), choices[-1].M]
    for choice, last in zip(choices, following, strict=True):
        if ranges and ranges[-1]["backend"] == choice.backend:
            ranges[-1]["M_to"] = last
        else:
            ranges.append({"M_from": choice.M, "M_to": last, "backend": choice.backend})
    return ranges
