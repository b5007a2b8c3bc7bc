"""Writes what docs/peers.md, docs/measurement.md and the README say about the runs of `suites/peers.yaml`.

    marlin-bench publish results/<device>/<run> && python docs/peers_page.py --write

Every table and every figure there comes from the newest published run of the suite, and stands between two markers;
`tests/test_peers_page.py` fails where a page and the records differ. `--write` also draws docs/images/peers_h200.svg.
The counts of the conformance test are those of docs/conformance.json, as the H200 gave them; licences, projects and
what a kernel is meant for are those that the backends declare.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import hand_figures

from marlin_bench.backends import backend_names, load_backend
from marlin_bench.problem import DTYPE_BITS
from marlin_bench.record import Record, Status
from marlin_bench.report.best import Contest, Standing, Winner, standings
from marlin_bench.report.markdown import BEST, best_block
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import Row, rows, without_companions
from marlin_bench.store import published_folder, read_run

DOCS = Path(__file__).parent
README, PAGE, MEASUREMENT = DOCS.parent / "README.md", DOCS / "peers.md", DOCS / "measurement.md"
PICTURE = DOCS / "images" / "peers_h200.svg"
PICTURED = ("marlin", "marlin_hopper", "marlin_hopper_bf16", "humming", "quack", "vllm_marlin", "vllm_machete", "mslk")
CONFORMANCE = json.loads((DOCS / "conformance.json").read_text(encoding="utf-8"))
OWN_PAGES = ("marlin_hopper", "marlin_sparse", "marlin_bf16", "marlin")
BASELINE, BASELINE_BF16 = "cublas_fp16", "cublas_bf16"
SAME_DTYPE = ("marlin_hopper_bf16", ("quack", "mslk"))
"""Ours and the peers that take BF16 only: a second comparison, without the dagger."""
RESTED_CELL, RESTED = "8192x8192/g128/M4096", "vllm_marlin"


def markers(name: str) -> tuple[str, str]:
    """The pair of lines that a block stands between."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def runs() -> tuple[Path, Path]:
    """The newest published run of the suite, and the newest of those in which kernels took turns without a rest."""
    found = sorted(folder for folder in published_folder().glob("*/*_peers_*") if folder.is_dir())
    restless = [folder for folder in found if read_run(folder).meta.duty_cycle == 1]
    return found[-1], restless[-1]


class Found:
    """A run with what its rows say."""

    def __init__(self, folder: Path) -> None:
        self.run = read_run(folder)
        self.rows = rows(self.run.records, roofs_from_ceilings(self.run.meta.ceilings))
        self.shown = [row for row in without_companions(self.rows) if row.record.timer == "kernel"]

    def speedups(self, backend: str) -> dict[tuple[str, int], Row]:
        """The rows of a backend that have a speed-up, by layer and M."""
        return {
            (row.record.layer, row.record.M): row
            for row in self.shown
            if row.record.backend == backend and row.speedup is not None
        }

    def records(self, backend: str) -> list[Record]:
        """The records of a backend that were measured."""
        return [row.record for row in self.shown if row.record.backend == backend and row.record.status is Status.OK]


# -- the backends ------------------------------------------------------------------------------------------------------


def bits(found: Found, backend: str) -> str:
    """Bits a weight as really stored, from the bytes of the packed tensors on the largest layer."""
    record = max(found.records(backend), key=lambda record: record.K * record.N)
    return f"{(record.stored_bytes or 0) * 8 / (record.K * record.N):.3f}".rstrip("0").rstrip(".")


def project(found: Found, name: str) -> str:
    """Whose it is, with its version: that of the record, or that which a carried file was taken from."""
    backend = load_backend(name)
    packages = getattr(backend, "packages", ())
    if not packages:
        return f"[torch]({backend.project})" if backend.project else "ours"
    version = found.records(name)[0].backend_version
    number = packages[0].at_least if " carried " in version else version.split()[1].partition("+")[0]
    return f"[{packages[0].distribution}]({backend.project}) {number}"


def backend_table(found: Found, *, eight_bit: bool) -> str:
    """A line a backend, without the kernels that have pages of their own."""
    measured = {row.record.backend: row.record for row in found.shown if row.record.status is Status.OK}
    lines = []
    for name in backend_names():
        record = measured.get(name)
        if record is None or record.baseline or record.weight_format.is_sparse or name.startswith(OWN_PAGES):
            continue
        if (DTYPE_BITS[record.activation_dtype] == 8) is not eight_bit:
            continue
        backend, outcome = load_backend(name), CONFORMANCE["backends"].get(name)
        types = backend.accepted.replace("fp", "FP").replace("bf", "BF").replace("int", "INT")
        if backend.output_dtype != backend.activation_dtype:
            types += f", {backend.output_dtype.upper()} out"
        remark = "not run" if outcome is None else "; ".join(filter(None, [str(outcome["passed"]), outcome["remark"]]))
        cells = (f"`{name}`", project(found, name), backend.license or "Apache-2.0", bits(found, name),
                 backend.meant_for or "all M", types, remark)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    head = "| backend | project | licence | bits a weight | meant for | activations | on the H200 |"
    return "\n".join([head, "|" + "---|" * 7, *lines])


# -- what the records say ----------------------------------------------------------------------------------------------


def minutes(seconds: float) -> str:
    """7 minutes 15 seconds."""
    whole = round(seconds)
    return f"{whole // 60} minutes {whole % 60} seconds"


def last_block_s(shown: Sequence[Row]) -> float:
    """From a run's start to its last block: the seconds of a go that was cut off are not in its `wall_s`."""
    return max((block.started_s for row in shown for block in row.record.blocks), default=0.0)


def account(found: Found) -> str:
    """One line on a run: what was measured, what not and why, how long it took."""
    meta, shown = found.run.meta, found.shown
    counts = {status: sum(row.record.status is status for row in shown) for status in Status}
    lost = [row.record for row in shown if row.record.status not in {Status.OK, Status.UNSUPPORTED, Status.MISSING}]
    cells = len({row.record.cell.partition("+")[0] for row in shown})
    backends = len({row.record.backend for row in shown})
    turns = "in turns without a rest" if meta.duty_cycle == 1 else "each at the clock it has by itself"
    text = (
        f"`{meta.run}`: {cells} of {meta.cells} cells, {backends} backends, {turns}; {counts[Status.OK]} records "
        f"measured, {counts[Status.UNSUPPORTED] + counts[Status.MISSING]} that say why not, "
        f"{len(lost) or 'none'} lost, {minutes(max(meta.wall_s, last_block_s(shown)))}"
    )
    told = "; ".join(
        f"`{record.backend}` at {record.layer}, M = {record.M}: {record.status.value.replace('_', ' ')}"
        for record in lost
    )
    return f"{text} ({told})" if lost else text


def contested(found: Found) -> Iterator[tuple[Standing, int, Winner]]:
    """Layer, M and winner of each cell of 4-bit weights in which somebody else took part."""
    for standing in standings(found.rows):
        if standing.contest is Contest.FOUR_BIT:
            for M, winner in standing.winners.items():
                if winner.is_contested and winner.own is not None:
                    yield standing, M, winner


def ratio(row: Row) -> str:
    """1.12x."""
    return "–" if row.speedup is None else f"{row.speedup.value:.2f}x"


def beaten(found: Found) -> str:
    """First of all: where a peer is faster than ours, and by how much."""
    cells = list(contested(found))
    lost = [(standing, M, winner) for standing, M, winner in cells if winner.is_beaten]
    if not lost:
        return f"In none of {len(cells)} cells a peer is faster than ours beyond the intervals."
    by_peer: dict[str, list[str]] = {}
    margins = []
    for standing, M, winner in lost:
        assert winner.own is not None
        where = f"{standing.layer} at M = {M} ({ratio(winner.best)} to {ratio(winner.own)})"
        by_peer.setdefault(winner.best.record.backend, []).append(where)
        margins.append(winner.best.speedup.value / winner.own.speedup.value - 1)
    ordered = sorted(by_peer.items(), key=lambda item: -len(item[1]))
    told = "; ".join(f"`{peer}` in {len(places)}: {', '.join(places)}" for peer, places in ordered)
    return (
        f"A peer is faster than ours beyond the intervals in {len(lost)} of {len(cells)} cells, by {min(margins):.0%} "
        f"to {max(margins):.0%}, speed-ups over FP16 in brackets: {told}."
    )


def won(found: Found) -> str:
    """Where ours are the fastest, and up to which M in every layer."""
    cells = list(contested(found))
    own = [(M, winner) for _, M, winner in cells if winner.is_own]
    level = sum(winner.is_level for _, _, winner in cells)
    least = min((M for _, M, winner in cells if not winner.is_own), default=None)
    everywhere = max((M for _, M, _ in cells if least is None or least > M), default=0)
    values = [winner.best.speedup.value for _, winner in own]
    return (
        f"Ours are the fastest in {len(own)}, in all layers up to M = {everywhere}, at {min(values):.2f} to "
        f"{max(values):.2f} times FP16; in {level} the intervals overlap."
    )


def same_dtype(found: Found) -> str:
    """Our BF16 kernel against the peers that take nothing else: the comparison without a difference of dtypes."""
    ours, peers = SAME_DTYPE
    own, parts = found.speedups(ours), []
    for peer in peers:
        theirs = found.speedups(peer)
        both = own.keys() & theirs.keys()
        ahead = sum(theirs[key].speedup.low > own[key].speedup.high for key in both)
        behind = sum(theirs[key].speedup.high < own[key].speedup.low for key in both)
        parts.append(f"`{peer}` is ahead of it in {ahead} of {len(both)} cells and behind in {behind}")
    bare = [row.speedup.value for (_, M), row in found.speedups(BASELINE_BF16).items() if M >= 1024]
    return (
        f"BF16 against BF16 (`{ours}`): {'; '.join(parts)}. Part of what they are ahead of FP16 by at large M is the "
        f"type itself: `{BASELINE_BF16}` runs at {min(bare):.2f} to {max(bare):.2f} times FP16 from M = 1024 up."
    )


def eight_bit(found: Found) -> str:
    """What 8-bit activations buy, and at what price."""
    winners = [
        (M, winner.best)
        for standing in standings(found.rows)
        if standing.contest is Contest.EIGHT_BIT
        for M, winner in standing.winners.items()
    ]
    large = [row.speedup.value for M, row in winners if M >= 256]
    timed = [row for row in found.shown if DTYPE_BITS[row.record.activation_dtype] == 8 and row.speedup is not None]
    error = median(row.record.canonical_error for row in timed if row.record.canonical_error)
    extra = [row.record.activation_quantization_s / row.time.value for row in timed if row.record.M >= 256]
    return (
        f"8-bit activations, the best of them, reach {min(large):.2f} to {max(large):.2f} times FP16 from M = 256 up, "
        f"with a mean error of {error:.2f} of the output, and with their quantisation on top: {median(extra):.0%} of "
        f"the product's time (median; `show` has it for each cell)."
    )


def spread(found: Found, backend: str) -> str:
    """0.21 to 0.79."""
    values = [row.speedup.value for row in found.speedups(backend).values()]
    return f"{min(values):.2f} to {max(values):.2f}"


def ladder(found: Found) -> str:
    """What one gets with how much work."""
    return (
        f"Unpacking to FP16 in memory before cuBLAS (`dequantize_cublas`) runs at {spread(found, 'dequantize_cublas')} "
        f"times FP16, the product as one would first write it (`naive_w4a16`, M up to 16) at "
        f"{spread(found, 'naive_w4a16')}, an afternoon's Triton (`triton_w4a16`) at {spread(found, 'triton_w4a16')}; "
        f"2:4 sparsity without quantisation (`cusparselt_fp16`) is worth {spread(found, 'cusparselt_fp16')}."
    )


def says(found: Found, restless: Found) -> str:
    """The paragraph of docs/peers.md, as a list; peers that are faster come first."""
    sentences = (beaten(found), won(found), same_dtype(found), eight_bit(found), ladder(found))
    facts = "\n".join(f"- {sentence}" for sentence in sentences)
    return (
        "Runs of `suites/peers.yaml` on an H200 in `results/published/h200/`:\n\n"
        f"- {account(found)};\n- {account(restless)}.\n\nThe newer one says:\n\n{facts}"
    )


def by_hand(found: Found, restless: Found) -> str:
    """The table of figures measured by hand, and one sentence on the run without rests."""
    known = hand_figures.kept_alone()
    older = hand_figures.table(list(hand_figures.compared(restless.run)), known).partition("\n")[0]
    return (
        f"{hand_figures.table(list(hand_figures.compared(found.run)), known, hand_figures.by_place(restless.run))}\n\n"
        f"In turns without a rest (`{restless.run.meta.run}`): {older}"
    )


def rested(found: Found, restless: Found) -> str:
    """What a rest after each turn is worth, in the cell where it shows best."""
    told = {}
    for one in (restless, found):
        records = {
            row.record.backend: row.record for row in one.shown if row.record.cell.partition("+")[0] == RESTED_CELL
        }
        us = hand_figures.typical_us(records[RESTED])
        clocks = [(records[name].sm_clock_hz or 0) * 1e-6 for name in (RESTED, BASELINE)]
        told[one.run.meta.run] = (us, hand_figures.typical_us(records[BASELINE]) / us, *clocks)
    (us0, x0, own0, base0), (us1, x1, own1, base1) = told.values()
    layer, M = "8192x8192", 4096
    place = list(hand_figures.FP16_US).index(layer), hand_figures.BATCHES.index(M)
    hand = hand_figures.FP16_US[layer][place[1]] / hand_figures.SPEEDUPS[RESTED][place[0]][place[1]]
    return (
        f"Two published runs of `suites/peers.yaml` show what that is worth, `{restless.run.meta.run}` in turns "
        f"without a rest, `{found.run.meta.run}` rested: at 8192², M=4096, vLLM's Marlin ran at {own0:.0f} MHz and "
        f"then at {own1:.0f}, took {us0:.0f} µs and then {us1:.0f}, and was {x0:.2f} and then {x1:.2f} times as fast "
        f"as FP16 beside it ({base0:.0f} and {base1:.0f} MHz). Measured by hand, by itself, it took {hand:.0f} µs."
    )


# -- pages -------------------------------------------------------------------------------------------------------------


def blocks() -> dict[tuple[Path, tuple[str, str]], str]:
    """By file and pair of markers, what belongs between them."""
    newest, without_rest = map(Found, runs())
    best = best_block(newest.run, newest.rows).rstrip("\n")
    return {
        (README, BEST): best,
        (PAGE, BEST): best,
        (PAGE, markers("backends of 16 bits")): backend_table(newest, eight_bit=False),
        (PAGE, markers("backends of 8 bits")): backend_table(newest, eight_bit=True),
        (PAGE, markers("conformance")): f"{CONFORMANCE['about']}",
        (PAGE, markers("records")): says(newest, without_rest),
        (PAGE, (hand_figures.BEGIN, hand_figures.END)): by_hand(newest, without_rest),
        (MEASUREMENT, markers("rested")): rested(newest, without_rest),
    }


def between(text: str, pair: tuple[str, str]) -> str:
    """What a page has between two markers; ValueError where it lacks them."""
    first, last = pair
    begin, end = text.index(first) + len(first), text.index(last)
    return text[begin:end].strip("\n")


def put(path: Path, pair: tuple[str, str], block: str) -> None:
    """Replace it."""
    text = path.read_text(encoding="utf-8")
    begin, end = text.index(pair[0]) + len(pair[0]), text.index(pair[1])
    path.write_text(f"{text[:begin]}\n{block}\n{text[end:]}", encoding="utf-8")


def draw() -> None:
    """The picture of the README: ours and the fastest peers."""
    from marlin_bench.panels import speedup_panels
    from marlin_bench.plots.canvas import save
    from marlin_bench.plots.speedup import draw as draw_speedup

    newest = Found(runs()[0])
    pictured = [row for row in newest.shown if row.record.backend in {*PICTURED, BASELINE}]
    day = newest.run.meta.started
    title = f"NVIDIA H200, suite peers, {day[:4]}-{day[4:6]}-{day[6:8]}, ideal by measured roofs"
    save(draw_speedup(speedup_panels(pictured), title), [PICTURE])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put them into the pages, and draw the picture")
    asked = parser.parse_args()
    for (file, pair), text in blocks().items():
        if asked.write:
            put(file, pair, text)
        else:
            print(f"{file.name} {pair[0]}\n{text}\n")
    if asked.write:
        draw()
