"""What the pages say about the peers is what the published records say: tables, sentences with figures, bits."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "docs"))  # it imports its neighbour, as it does when it is run
    try:
        spec = importlib.util.spec_from_file_location("peers_page", ROOT / "docs" / "peers_page.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))
    return module


@pytest.fixture(scope="module")
def blocks(script):
    return script.blocks()


@pytest.fixture(scope="module")
def newest(script):
    return script.Found(script.runs()[0])


def test_the_pages_hold_what_the_published_records_say(script, blocks):
    assert len(blocks) >= 8
    for (page, pair), block in blocks.items():
        text = page.read_text(encoding="utf-8")
        assert script.between(text, pair) == block, f"{page.name}, {pair[0]}: python docs/peers_page.py --write"


def test_a_figure_that_was_changed_by_hand_is_noticed(script, blocks, tmp_path):
    (page, pair), block = next(iter(blocks.items()))
    copy = tmp_path / page.name
    copy.write_text(page.read_text(encoding="utf-8").replace("1.06x", "1.60x"), encoding="utf-8")
    assert script.between(copy.read_text(encoding="utf-8"), pair) != block
    script.put(copy, pair, block)
    assert script.between(copy.read_text(encoding="utf-8"), pair) == block
    assert copy.read_text(encoding="utf-8").startswith(page.read_text(encoding="utf-8")[:200])


def test_the_published_run_is_whole(newest):
    meta = newest.run.meta
    assert len({row.record.cell.partition("+")[0] for row in newest.shown}) == meta.cells


def test_peers_that_are_faster_come_first_with_every_cell(script, newest):
    told = script.says(newest, newest).partition("The newer one says:\n\n")[2]
    first = told.splitlines()[0]
    lost = [(one, M, winner) for one, M, winner in script.contested(newest) if winner.is_beaten]
    assert first.startswith("- A peer is faster than ours" if lost else "- In none")
    for standing, M, winner in lost:
        assert f"{standing.layer} at M = {M} ({script.ratio(winner.best)}" in first
        assert winner.best.record.backend in first


def test_the_bits_of_the_docstrings_are_those_of_the_records(script, newest):
    """`4 + 16/128 bits` of a docstring, worked out, is what the tensors of the record hold."""
    import re

    from marlin_bench.backends import load_backend

    checked = 0
    for name in {row.record.backend for row in newest.shown}:
        written = re.search(r"(\d(?: \+ [\d·]+/128)+) bits", type(load_backend(name)).__doc__ or "")
        if written is None or not newest.records(name):
            continue
        total = sum(
            (int(part.split("/")[0].replace("8·8", "64")) / 128 if "/" in part else int(part))
            for part in written[1].split(" + ")
        )
        assert float(script.bits(newest, name)) == pytest.approx(total, abs=1e-3), name
        checked += 1
    assert checked >= 14


def test_the_counts_of_the_conformance_test_are_of_backends_that_there_are():
    from marlin_bench.backends import backend_names, load_backend
    from marlin_bench.backends.peer import Peer
    from marlin_bench.conformance import CHECKS, SHAPES

    counted = json.loads((ROOT / "docs" / "conformance.json").read_text(encoding="utf-8"))["backends"]
    assert set(counted) <= set(backend_names())
    loaded = map(load_backend, backend_names())
    shipped = [one for one in loaded if isinstance(one, Peer) and type(one).__module__.startswith("marlin_bench.")]
    assert {one.name for one in shipped} <= set(counted)
    assert all(0 < one["passed"] <= len(CHECKS) + len(SHAPES) for one in counted.values())
