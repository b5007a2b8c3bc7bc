"""The report: one page that needs nothing else, says what the records say, and works in a browser."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
from synthetic_run import RunSpec, h200_records, make_record, published_record

from marlin_bench.model_times import layer_times, model_time
from marlin_bench.models import builtin_model
from marlin_bench.record import Status
from marlin_bench.report import markdown
from marlin_bench.report.contents import ROW_FIELDS, model_headlines, page_data
from marlin_bench.report.page import render, script_json
from marlin_bench.roofline import roofs_from_ceilings
from marlin_bench.speedup import rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> & \"quoted\""
SUITE = """device: {kind: cuda}
layers:
  - model: llama-2-7b
M: [1, 16]
backends: [cublas_fp16, marlin]
"""


def model_records():
    return [
        make_record(
            backend, M, layer.K * layer.N * bytes_a_weight / 3e12, layer=f"{layer.K}x{layer.N}", K=layer.K, N=layer.N
        )
        for layer in builtin_model("llama-2-7b").layers
        for backend, bytes_a_weight in (("cublas_fp16", 2.0), ("marlin", 0.6))
        for M in (1, 16)
    ]


def made_run(tmp_path, records, suite_text="suite: h200\n"):
    run = RunSpec(records).write(tmp_path / "results")
    object.__setattr__(run, "meta", run.meta.model_copy(update={"suite_text": suite_text}))
    roofs = roofs_from_ceilings(run.meta.ceilings)
    return run, roofs, rows(run.records, roofs)


@pytest.fixture
def run(tmp_path):
    refused = make_record("naive_w4a16", 128, 0, status=Status.UNSUPPORTED, reason=HOSTILE)
    return made_run(tmp_path, [*h200_records(layers=("square_8k",)), *model_records(), refused], SUITE)


class Collector(HTMLParser):
    """Tags and attributes of a page, and the text of its data element."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.data, self._inside = [], [], "", False

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in {"src", "href", "srcset", "action"}]
        self._inside = tag == "script" and ("id", "data") in attributes

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, text):
        if self._inside:
            self.data += text


def parsed(page):
    collector = Collector()
    collector.feed(page)
    return collector


def test_the_page_fetches_nothing_and_forbids_itself_to(run):
    page = parsed(render(*run))
    assert page.addresses == []
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in unescape(render(*run))


def test_what_comes_from_records_cannot_become_markup(run):
    page = parsed(render(*run))
    assert page.tags.count("script") == 2
    shown = json.loads(page.data)
    notes = [row[ROW_FIELDS.index("notes")] for row in shown["rows"]]
    assert HOSTILE in notes  # nothing lost, nothing run


def test_hostile_suites_and_devices_are_escaped_too(tmp_path):
    hostile, roofs, found = made_run(tmp_path, [make_record("marlin", 1, 1e-5)], suite_text=HOSTILE)
    assert parsed(render(hostile, roofs, found)).tags.count("script") == 2
    assert script_json({"a": HOSTILE}).count("<") == 0
    assert json.loads(script_json({"a": HOSTILE + "\u2028"}))["a"] == HOSTILE + "\u2028"


def test_every_row_says_what_show_says_and_how_to_repeat_it(run):
    written, roofs, found = run
    shown = page_data(written, roofs, found)["rows"]
    assert len(shown) == len(found)
    row = next(r for r in shown if r[1:3] == ["square_8k", 16] and r[ROW_FIELDS.index("backend")] == "marlin")
    mine = next(r for r in found if (r.record.layer, r.record.M, r.record.backend) == ("square_8k", 16, "marlin"))
    assert row[ROW_FIELDS.index("time_s")] == pytest.approx(mine.time.value, rel=1e-5)
    assert row[ROW_FIELDS.index("speedup")] == pytest.approx(mine.speedup.value, rel=1e-5)
    assert row[ROW_FIELDS.index("grade")] == "D"  # a synthetic record proves nothing
    command = row[ROW_FIELDS.index("command")]
    assert command == "marlin-bench run h200 --only square_8k/g128/M16 --backend cublas_fp16,marlin"


def test_models_of_the_suite_head_the_page(run):
    written, _, found = run
    (headline,) = model_headlines(written.meta, found)
    assert headline.batches == (1, 16)
    mine = model_time(builtin_model("llama-2-7b"), layer_times(found, 128), "marlin", 16)
    assert f"{mine.speedup:.2f}x" in render(*run)
    assert headline.best(0) == "marlin"


def test_a_published_run_is_said_to_be_one_and_has_no_commands(tmp_path):
    written, _, found = made_run(tmp_path, [published_record(speedup=3.87)])
    shown = page_data(written, None, found)["rows"][0]
    assert shown[ROW_FIELDS.index("command")] == ""
    assert shown[ROW_FIELDS.index("grade")] is None
    assert shown[ROW_FIELDS.index("notes")].startswith("published: Fig. 1")


def test_a_run_that_was_cut_says_how_many_cells_it_holds(run):
    written, roofs, found = run
    assert f", {written.meta.cells} cells" in render(*run)
    object.__setattr__(written, "meta", written.meta.model_copy(update={"cells": 285}))
    assert f", {len({record.cell for record in written.records})} of 285 cells" in render(written, roofs, found)


def test_five_thousand_records_stay_under_eight_megabytes(tmp_path):
    many = [
        make_record(backend, M, 1e-5, layer=f"layer_{layer}", K=1024 * (layer + 1), N=4096, blocks=8)
        for layer in range(50)
        for M in range(1, 26)
        for backend in ("cublas_fp16", "marlin", "marlin_sparse", "naive_w4a16")
    ]
    run = made_run(tmp_path, many)
    assert len(run[0].records) == 5000
    assert len(render(*run).encode()) < 8e6


def test_markdown_keeps_hostile_text_inside_its_cell(run):
    written = run[0]
    crashed = make_record("gemlite", 1, 0, status=Status.CRASHED, reason="died | <b>\nbadly")
    text = markdown.render(written, rows([*written.records, crashed], None))
    assert "died \\| \\<b\\> badly" in text
    assert "llama-2-7b" in text
    columns = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| square\\_8k |")}
    assert columns == {1 + 2 + len({1, 16, 32, 64, 128, 256, 512, 1024})}


def test_the_readme_changes_between_its_markers_only(run, tmp_path):
    written, _, found = run
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{markdown.BEGIN}\nold\n{markdown.END}\ntail\n")
    block = markdown.readme_block(written, found)
    assert markdown.put_between_markers(readme, block) is True
    text = readme.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith(f"{markdown.END}\ntail\n")
    assert "old" not in text
    assert "2.19x (5" in text
    assert markdown.put_between_markers(readme, block) is False  # again changes nothing


@pytest.mark.parametrize("text", ["no markers", f"{markdown.END} {markdown.BEGIN}", None])
def test_a_readme_without_markers_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    if text is not None:
        readme.write_text(text)
    with pytest.raises(markdown.MarkerError):
        markdown.put_between_markers(readme, "block")
    assert text is None or readme.read_text() == text


# What a reader does: filters, sorts, opens a row, points at a mark, hides a backend. Findings go into the title.
READER = """<script>
const fire = (node, kind) => node.dispatchEvent(new Event(kind, { bubbles: true }));
const seen = { ready: document.body.dataset.ready };
const lines = () => document.querySelectorAll("#cells tbody tr:not(.detail)").length;
seen.all = lines();
byId("f-backend").value = "marlin"; fire(byId("f-backend"), "change"); seen.marlin = lines();
byId("search").value = "square_8k"; fire(byId("search"), "input"); seen.searched = lines();
const head = [...document.querySelectorAll("#cells thead button")].find((b) => b.textContent === "time");
head.click(); head.click();
seen.sorted = head.parentElement.getAttribute("aria-sort");
seen.slowest = document.querySelector("#cells tbody tr td:nth-child(2)").textContent;
document.querySelector("#cells tbody tr").click();
seen.detail = document.querySelector(".detail code").textContent;
const mark = document.querySelector("#roofline .mark"); fire(mark, "pointerenter");
seen.tip = document.getElementById("tip").textContent; seen.shown = !document.getElementById("tip").hidden;
fire(mark, "pointerleave"); seen.hidden = document.getElementById("tip").hidden;
seen.marks = document.querySelectorAll("#roofline .mark").length;
document.querySelector("#legend button").click();
seen.fewer = document.querySelectorAll("#roofline .mark").length;
seen.focusable = mark.getAttribute("tabindex"); seen.label = mark.getAttribute("aria-label");
seen.title = document.title; seen.wide = document.documentElement.scrollWidth <= innerWidth;
document.body.dataset.seen = JSON.stringify(seen);
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
def test_a_reader_can_use_the_page_in_a_browser(run, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(render(*run).replace("</body>", READER), encoding="utf-8")
    switches = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=5000 "
        "--window-size=390,844 --dump-dom"
    )
    done = subprocess.run(
        [CHROMIUM, *switches.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert ":CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(unescape(re.search(r'data-seen="([^"]*)"', done.stdout)[1]))
    assert seen["ready"] == "true"
    assert seen["all"] == 24 + 16 + 1
    assert seen["marlin"] == 8 + 8
    assert seen["searched"] == 8
    assert (seen["sorted"], seen["slowest"]) == ("descending", "1024")
    assert seen["detail"].endswith("--only square_8k/g128/M1024 --backend cublas_fp16,marlin")
    assert seen["tip"].startswith("cublas_fp16, M=1\n")
    assert seen["shown"] is True
    assert seen["hidden"] is True
    assert seen["fewer"] == seen["marks"] - 8
    assert seen["focusable"] == "0"
    assert seen["label"] == seen["tip"]
    assert "owned" not in seen["title"]
    assert seen["wide"] is True  # a phone scrolls tables, not the page
