"""The program called in-process, in an empty folder without published runs."""

import importlib
import sys

import pytest

from marlin_bench import cli


def caller(monkeypatch, capsys, tmp_path):
    """Call the program in an empty folder without published runs: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARLIN_BENCH_RESULTS", raising=False)
    for module in ("marlin_bench.store", "marlin_bench.cli.locate"):
        importlib.import_module(module)
        monkeypatch.setattr(f"{module}.published_folder", lambda: tmp_path / "published")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["marlin-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call
