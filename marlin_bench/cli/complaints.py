"""Which exceptions are complaints to the user, and the exit code of each.

Found by name, because importing every class would load torch for `--help`; tests hold the names true.
"""

from __future__ import annotations

from marlin_bench.exit_codes import ExitCode

EXIT_CODES: dict[str, ExitCode] = {
    "marlin_bench.cli.locate.NoRunError": ExitCode.NOTHING_MEASURED,
    "marlin_bench.cli.locate.SeveralRunsError": ExitCode.USAGE,
    "marlin_bench.cli.options.OptionError": ExitCode.USAGE,
    "marlin_bench.suite_text.SuiteError": ExitCode.USAGE,
    "marlin_bench.plan.SelectionError": ExitCode.USAGE,
    "marlin_bench.backends.UnknownBackendError": ExitCode.USAGE,
    "marlin_bench.problem.FormatError": ExitCode.USAGE,
    "marlin_bench.units.UnitError": ExitCode.USAGE,
    "marlin_bench.export.ExportError": ExitCode.USAGE,
    "marlin_bench.report.markdown.MarkerError": ExitCode.USAGE,
    "marlin_bench.profile.ProfileError": ExitCode.ENVIRONMENT,
    "marlin_bench.ledger.LedgerError": ExitCode.USAGE,
    "marlin_bench.models.ModelError": ExitCode.USAGE,
    "marlin_bench.predict.UnknownGpuError": ExitCode.USAGE,
    "marlin_bench.model_times.NoAnswerError": ExitCode.NOTHING_MEASURED,
    "marlin_bench.plots.canvas.PlotError": ExitCode.USAGE,
    "marlin_bench.gate.OtherDeviceError": ExitCode.ENVIRONMENT,
    "marlin_bench.gate.EmptyRunError": ExitCode.NOTHING_MEASURED,
    "marlin_bench.gate.GateError": ExitCode.USAGE,
    "marlin_bench.baseline.BaselineError": ExitCode.USAGE,
    "marlin_bench.bisect_trees.BisectError": ExitCode.USAGE,
    "marlin_bench.bisect.EndError": ExitCode.NOTHING_MEASURED,
    "marlin_bench.noise.NoiseError": ExitCode.USAGE,
    "marlin_bench.store.MissingValueError": ExitCode.NOTHING_MEASURED,
    "marlin_bench.run_writer.DiskFullError": ExitCode.PARTLY_FAILED,
    "marlin_bench.store.StoreError": ExitCode.USAGE,
    "marlin_bench.device.DeviceError": ExitCode.ENVIRONMENT,
    "marlin_bench.device.DeviceNameError": ExitCode.USAGE,
    "marlin_bench.cuda_source.BuildError": ExitCode.PARTLY_FAILED,
    "marlin_bench.clocks.ClockError": ExitCode.ENVIRONMENT,
}


def complaint_of(error: Exception) -> ExitCode | None:
    """The exit code of a one-sentence complaint, the most derived class first; None for anything unforeseen."""
    for kind in type(error).__mro__:
        code = EXIT_CODES.get(f"{kind.__module__}.{kind.__qualname__}")
        if code is not None:
            return code
    return None
