"""The program called in-process, in an empty folder without published runs."""

import importlib
import sys

import pytest

from marlin_bench import cli


def caller(monkeypatch, capsys, tmp_path):
    """Call the program in an empty folder without published runs: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARLIN_BENCH_RESULTS", raising=False)
    # all that take the function by name are imported first: whoever did so later would keep the stand-in for good
    for module in [importlib.import_module(f"marlin_bench.{name}") for name in ("store", "published", "cli.locate")]:
        monkeypatch.setattr(module, "published_folder", lambda: tmp_path / "published")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["marlin-bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return call
