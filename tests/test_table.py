"""Tables on terminals, narrow ones, and pipes."""

import sys

from terminal import Terminal

from marlin_bench.table import Column, Line, Table, print_table

TABLE = Table(
    (Column("name"), Column("value", right=True), Column("less", rank=1), Column("least", rank=2)),
    [Line(("alpha", "1.00", "xxxxxxxxxx", "yyyyyyyyyyyyyyyy"), "red")],
)


def test_a_narrow_terminal_loses_the_least_important_columns_first(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal = Terminal()
    assert print_table(TABLE, terminal) == ["least"]
    assert "xxxxxxxxxx" in terminal.text
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    assert print_table(TABLE, terminal) == ["least", "less"]
    assert "1.00" in terminal.text


def test_a_terminal_has_colour_unless_no_color_is_set(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = Terminal()
    print_table(TABLE, coloured)
    assert "\x1b[31m" in coloured.text
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    print_table(TABLE, plain)
    assert "\x1b[31m" not in plain.text


def test_a_pipe_gets_every_column_however_wide(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    assert print_table(TABLE, sys.stdout) == []
    assert capsys.readouterr().out == ("name   value  less        least\nalpha   1.00  xxxxxxxxxx  yyyyyyyyyyyyyyyy\n")


def test_an_empty_table_is_its_heading(capsys):
    print_table(Table((Column("a"), Column("b")), []), sys.stdout)
    assert capsys.readouterr().out == "a  b\n"
