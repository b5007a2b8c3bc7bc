"""`knees`, `recommend`, `predict`: what a stored run says about layers, models and other GPUs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from marlin_bench.cli import options

if TYPE_CHECKING:
    from marlin_bench.datasheet import Datasheet
    from marlin_bench.model_times import LayerTimes
    from marlin_bench.models import Model
    from marlin_bench.record import RunMeta
    from marlin_bench.speedup import Row

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FILE",
        show_default="the first of the run's suite",
        help="A built-in model, or the config.json of a Hugging Face one.",
    ),
]
TensorParallel = Annotated[int, typer.Option("--tensor-parallel", "-tp", min=1, help="GPUs that share each layer.")]


def knees(
    run: options.RunArgument = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    results: options.Results = None,
) -> None:
    """Print the M at which each kernel leaves 90 % of its ideal, and the M from which the 16-bit baseline wins.

    Example: marlin-bench knees --backend marlin
    """
    from marlin_bench.cli.locate import headline_timer, open_run
    from marlin_bench.knee import knees as find
    from marlin_bench.knee_table import knee_table
    from marlin_bench.speedup import curves, without_companions
    from marlin_bench.store import results_folder
    from marlin_bench.table import print_table

    found = open_run(run, results_folder(results), options.selection(None, layer, backend, None))
    timer = headline_timer(found.rows)
    rows = without_companions(row for row in found.rows if row.record.timer == timer)
    print_table(knee_table(find(curves(rows))), sys.stdout)


def read_model(name: str, tensor_parallel: int) -> Model:
    """A built-in model by name, any other from a config.json."""
    from marlin_bench.models import builtin_model, model_names, read_config

    path = Path(name)
    if name in model_names() or not path.suffix:
        return builtin_model(name, tensor_parallel)
    return read_config(path, path.parent.name or path.stem).model(tensor_parallel)


def _timed_model(meta: RunMeta, times: LayerTimes) -> Model | None:
    """The first model of the run's suite all of whose layers were timed."""
    from marlin_bench.model_times import missing_layers
    from marlin_bench.selection import suite_models

    return next((model for model in suite_models(meta) if not missing_layers(model, times)), None)


def traffic_of(text: str | None) -> dict[int, float]:
    """M → share from `1:0.5,16:0.3`, or from a JSON file {"1": 0.5}; OptionError for anything else."""
    if text is None:
        return {}
    try:
        if text.endswith(".json"):
            pairs = list(json.loads(Path(text).read_text(encoding="utf-8")).items())
        else:
            pairs = [part.split(":", 1) for part in text.split(",")]
        return {int(M): float(share) for M, share in pairs}
    except (OSError, ValueError, AttributeError) as error:
        raise options.OptionError(
            f"--traffic is written 1:0.5,16:0.3 or a JSON file of M and share: '{text}'"
        ) from error


def recommend(
    run: options.RunArgument = None,
    model: ModelOption = None,
    tensor_parallel: TensorParallel = 1,
    backend: options.Backends = None,
    batch: options.Batches = None,
    traffic: Annotated[
        str | None,
        typer.Option("--traffic", metavar="M:SHARE,…", help="How often each M occurs, or a JSON file of it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The dispatch table as JSON.")] = False,
    results: options.Results = None,
) -> None:
    """Print the best backend for each layer of a model and each M, and what a single one would cost.

    Example: marlin-bench recommend --model llama-3-8b --traffic 1:0.7,16:0.3
    """
    from marlin_bench.cli.locate import open_run
    from marlin_bench.model_times import common_group_size, layer_times, model_batches, traffic_gain
    from marlin_bench.plan import Selection
    from marlin_bench.recommend import dispatch_json
    from marlin_bench.recommend import recommend as choose
    from marlin_bench.recommend_table import choice_table, single_table
    from marlin_bench.store import results_folder
    from marlin_bench.table import print_table

    found = open_run(run, results_folder(results), Selection())
    times = layer_times(found.rows, common_group_size(found.rows))
    asked = _timed_model(found.run.meta, times) if model is None and tensor_parallel == 1 else None
    asked = asked or read_model(model or "llama-3-8b", tensor_parallel)
    typer.echo(f"model {asked.name}", err=True)
    names = options.names(backend)
    for name in names or ():
        if name not in times.backends:
            raise options.OptionError(f"this run has no times of '{name}': it has {', '.join(times.backends)}")
    shares = traffic_of(traffic)
    answer = choose(asked, times, options.batch_sizes(batch) or model_batches(asked, times), names)
    if as_json:
        sys.stdout.write(dispatch_json(answer, found.run.meta.environment.device_name, found.run.meta.run))
        return
    print_table(choice_table(answer), sys.stdout)
    gains = {} if not shares else {
        single.backend: traffic_gain(asked, times, single.backend, shares) for single in answer.singles
    }  # fmt: skip
    sys.stdout.write("\n")
    print_table(single_table(answer, asked, times, gains), sys.stdout)


def _runs_on(row: Row, gpu: Datasheet) -> bool:
    """Whether the kernel behind a row runs on another GPU; yes for backends that are not known here."""
    from marlin_bench.backends import UnknownBackendError, load_backend
    from marlin_bench.backends.protocol import DeviceTraits

    if gpu.capability is None:
        return True
    traits = DeviceTraits("cuda", gpu.key, gpu.capability, gpu.sm_count)
    try:
        backend = load_backend(row.record.backend)
    except UnknownBackendError:
        return True
    return backend.device == "cuda" and backend.unsupported(row.record.problem, traits) is None


def predict(
    gpu: Annotated[str, typer.Option("--gpu", metavar="GPU|FILE", help="a10 | l4 | l40s | a100 | h100 | … or a YAML.")],
    run: options.RunArgument = None,
    layer: options.Layers = None,
    backend: options.Backends = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Draw the curves too: .svg or .png.")
    ] = None,
    as_json: options.AsJson = False,
    results: options.Results = None,
) -> None:
    """Predict speed-ups on a GPU one does not have: its ideal, and that times the share of the ideal measured here.

    Example: marlin-bench predict --gpu a10 h200 --backend marlin
    """
    from marlin_bench.cli.locate import headline_timer, open_run
    from marlin_bench.model_times import NoAnswerError
    from marlin_bench.plots.canvas import save
    from marlin_bench.plots.predict import draw
    from marlin_bench.predict import find_gpu
    from marlin_bench.predict import predict as look_ahead
    from marlin_bench.predict_table import prediction_table
    from marlin_bench.speedup import without_companions
    from marlin_bench.store import results_folder
    from marlin_bench.table import print_table

    target = find_gpu(gpu)
    found = open_run(run, results_folder(results), options.selection(None, layer, backend, None))
    timer = headline_timer(found.rows)
    rows = without_companions(row for row in found.rows if row.record.timer == timer)
    predictions = look_ahead([row for row in rows if _runs_on(row, target)], target)
    left = sorted({row.record.backend for row in rows if row.fraction_of_ideal is not None}
                  - {one.backend for one in predictions})  # fmt: skip
    if left:
        typer.echo(f"left out, as {target.key} cannot run them: {', '.join(left)}", err=True)
    if not predictions:
        raise NoAnswerError(
            f"no record of this run has a share of the ideal and a kernel that runs on {target.key}:"
            " name a run of a GPU, such as h200"
        )
    if as_json:
        lines = [{"predicted": True, **asdict(prediction)} for prediction in predictions]
        sys.stdout.write(json.dumps(lines, indent=1, allow_nan=False) + "\n")
    else:
        print_table(prediction_table(predictions), sys.stdout)
    if output is not None:
        save(draw(predictions, f"PREDICTED for {target.key}, from {found.run.meta.environment.device_name}"), [output])
        typer.echo(output, err=True)
