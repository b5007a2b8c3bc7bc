"""How a sweep goes: pace, plain lines, the live bar."""

import sys

import pytest
from synthetic_run import make_record
from terminal import Terminal

from marlin_bench.cli.progress import LiveProgress, Pace, PlainProgress, open_progress, result_line
from marlin_bench.record import Status


def test_the_pace_counts_only_what_this_session_measured():
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.start(10, 4)
    assert pace.remaining_s is None
    now[0] = 6.0
    pace.cell_done()
    pace.cell_done()
    assert pace.remaining_s == pytest.approx(12.0)  # four more at 3 s
    assert str(pace) == "6 of 10 cells, 12 s left"


def test_plain_progress_writes_a_line_a_record():
    class Cell:
        id = "square_8k/g128/M1"

    stream = Terminal()
    now = [0.0]
    progress = PlainProgress(stream, lambda: now[0])
    progress.started(2, 0)
    progress.cell_started(Cell)
    progress.record_done(make_record("marlin", 1, 17.6e-6, noise=0))
    progress.record_done(make_record("naive", 1, 0, status=Status.CRASHED, reason="signal 11"))
    now[0] = 3.0
    progress.cell_done(Cell, 3.0)
    progress.note("the clocks moved")
    assert stream.text.splitlines() == [
        "2 cells",
        "square_8k/g128/M1 marlin: 17.6 µs",
        "square_8k/g128/M1 naive: crashed, signal 11",
        "[1 of 2 cells, 3 s left] square_8k/g128/M1 in 3 s",
        "the clocks moved",
    ]


def test_a_terminal_gets_a_bar_and_keeps_the_lines_of_what_failed(monkeypatch):
    class Cell:
        id = "square_8k/g128/M1"

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    terminal = Terminal()
    with open_progress(terminal) as progress:
        assert isinstance(progress, LiveProgress)
        progress.started(2, 1)
        progress.cell_started(Cell)
        progress.backend_progress(Cell, "marlin", "timing")
        progress.record_done(make_record("naive", 1, 0, status=Status.CRASHED, reason="[signal 11]"))
        progress.cell_done(Cell, 1.0)
        progress.note("a note")
    assert "naive: crashed, [signal 11]" in terminal.text
    assert "2 of 2 cells" in terminal.text
    assert "a note" in terminal.text


def test_a_pipe_gets_plain_lines(capsys):
    with open_progress(sys.stderr) as progress:
        assert isinstance(progress, PlainProgress)


def test_a_result_line_names_other_timers():
    assert result_line(make_record("marlin", 1, 2e-6, noise=0, timer="cold")).endswith("2.00 µs (cold)")
