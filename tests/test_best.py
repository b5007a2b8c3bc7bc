"""Who is best where: the fastest of each kind, peers that beat ours named, dtypes that differ marked."""

import pytest
from cli_call import caller
from synthetic_run import RunSpec, make_record

from marlin_bench.record import Status
from marlin_bench.report import markdown
from marlin_bench.report.best import Contest, standings, tally
from marlin_bench.speedup import rows


def record(backend, M, microseconds, *, own=False, **changes):
    made = make_record(backend, M, microseconds * 1e-6, **changes.pop("made", {}))
    update = {"kernel_digest": "0123456789ab" if own else None, **changes}
    return made.model_copy(update=update)


def fp16(M, microseconds=40.0):
    return record("cublas_fp16", M, microseconds, format="fp16", baseline=True)


def found(*records):
    return standings(rows(records, None))


def test_the_fastest_wins_and_ours_is_told_where_a_peer_does():
    (standing,) = found(
        fp16(1), record("marlin_hopper", 1, 11.0, own=True), record("marlin", 1, 18.0, own=True),
        record("humming", 1, 15.0),
        fp16(64), record("marlin_hopper", 64, 20.0, own=True), record("quack", 64, 16.0),
    )  # fmt: skip
    assert (standing.layer, standing.contest) == ("square_8k", Contest.FOUR_BIT)
    first, second = standing.winners[1], standing.winners[64]
    assert first.is_own
    assert first.best.record.backend == "marlin_hopper"
    assert (second.best.record.backend, second.own.record.backend) == ("quack", "marlin_hopper")
    assert second.is_beaten


def test_overlapping_intervals_are_level():
    (standing,) = found(
        fp16(1), record("marlin_hopper", 1, 15.01, own=True, made={"noise": 0.02}),
        record("humming", 1, 15.0, made={"noise": 0.02}),
    )  # fmt: skip
    winner = standing.winners[1]
    if not winner.is_own:  # noise decides who is first
        assert winner.is_level
        assert not winner.is_beaten


def test_only_those_compete_that_compute_the_same():
    standing = found(
        fp16(256),
        record("cublas_bf16", 256, 30.0, format="bf16", activation_dtype="bf16", baseline=True),
        record("marlin_hopper", 256, 39.0, own=True),
        record("marlin_sparse", 256, 25.0, own=True, format="int4_2of4_g128"),
        record("w4a8_fp8", 256, 20.0, activation_dtype="fp8", output_dtype="bf16"),
        record("cublas_fp8", 256, 19.0, format="fp8", activation_dtype="fp8", output_dtype="bf16"),
        record("cusparselt_fp16", 256, 5.0, format="fp16_2of4"),
    )
    winners = {one.contest: one.winners[256].best.record.backend for one in standing}
    assert winners == {
        Contest.FOUR_BIT: "marlin_hopper",
        Contest.SPARSE: "marlin_sparse",
        Contest.EIGHT_BIT: "cublas_fp8",
    }


def test_wrong_crashed_and_companion_records_never_win():
    (standing,) = found(
        fp16(1),
        record("marlin", 1, 18.0, own=True),
        make_record("humming", 1, 1e-6, status=Status.CRASHED, reason="died"),
        make_record("quack", 1, 1e-6, status=Status.WRONG, reason="mean error 1"),
    )
    assert standing.winners[1].best.record.backend == "marlin"


def test_the_tally_counts_and_names_who_beats_ours():
    standing = found(
        fp16(1), record("marlin", 1, 10.0, own=True), record("quack", 1, 20.0),
        fp16(16), record("marlin", 16, 20.0, own=True), record("quack", 16, 10.0),
        fp16(64), record("marlin", 64, 20.0, own=True), record("humming", 64, 10.0),
        fp16(128), record("quack", 128, 10.0),
        fp16(256), record("marlin", 256, 10.0, own=True),
    )  # fmt: skip
    sentence = tally(standing)
    assert sentence == (
        "Of 4 cells of 4-bit weights and 16-bit activations a peer is faster than our kernels in 2 (quack 1, "
        "humming 1); ours are the fastest in 1."
    )


@pytest.fixture
def run(tmp_path):
    records = [
        fp16(1), record("marlin_hopper", 1, 10.0, own=True), record("humming", 1, 15.0),
        fp16(64), record("marlin_hopper", 64, 20.0, own=True),
        record("quack", 64, 16.0, activation_dtype="bf16", output_dtype="bf16"),
    ]  # fmt: skip
    return RunSpec(records).write(tmp_path / "results")


def test_ours_alone_is_no_victory(tmp_path):
    sparse = record("marlin_sparse", 1, 10.0, own=True, format="int4_2of4_g128")
    run = RunSpec([fp16(1), sparse]).write(tmp_path / "results")
    text = markdown.best_block(run, rows(run.records, None))
    assert "No kernel but ours was timed on 4-bit weights and 16-bit activations." in text
    assert "| marlin\\_sparse 4.0" in text
    assert "**marlin" not in text


def test_the_table_says_who_is_first_and_what_ours_reaches(run):
    text = markdown.best_block(run, rows(run.records, None))
    (line,) = [line for line in text.splitlines() if line.startswith("| square")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["square\\_8k", "4-bit weights"]
    assert cells[2].startswith("**marlin\\_hopper 4.0")
    assert cells[3].startswith("quack† 2.5")
    assert "> marlin\\_hopper 2.0" in cells[3]
    assert "a peer is faster than our kernels in 1 (quack 1); ours are the fastest in 1." in text


def test_the_command_fills_the_second_pair_of_markers_of_a_readme(run, tmp_path, monkeypatch, capsys):
    call = caller(monkeypatch, capsys, tmp_path)
    readme = tmp_path / "README.md"
    first, last = markdown.BEST
    readme.write_text(f"# Title\n{markdown.BEGIN}\nkept\n{markdown.END}\n{first}\nbefore\n{last}\ntail\n")
    code, _, err = call("report", run.folder, "--best", "--readme", readme)
    assert code == 0, err
    text = readme.read_text()
    assert "kept" in text
    assert "before" not in text
    assert "quack† 2.5" in text
    assert text.endswith(f"{last}\ntail\n")
    code, out, _ = call("report", run.folder, "--best", "--md")
    assert code == 0
    assert out in text
    code, _, err = call("report", run.folder, "--best")
    assert code == 2
    assert "--best is a table of Markdown" in err


def test_every_table_marks_a_speed_up_across_dtypes(run):
    from marlin_bench.panels import speedup_panels
    from marlin_bench.record_table import notes
    from marlin_bench.report.contents import ROW_FIELDS, row_data

    found = rows(run.records, None)
    table = markdown.speedup_table(found)
    (line,) = [line for line in table.splitlines() if "| quack |" in line]
    assert "2.5x†" in line.replace("0x†", "x†")
    assert "†: its activations are of another dtype than the baseline's." in table
    assert "†" not in markdown.speedup_table([row for row in found if row.record.backend != "quack"])
    (row,) = [row for row in found if row.record.backend == "quack"]
    assert "bf16 over fp16" in notes(row)
    assert "bf16 over fp16" in row_data(row, run.meta, None)[ROW_FIELDS.index("notes")]
    others = {series.backend: series.other_dtype for panel in speedup_panels(found) for series in panel.series}
    assert others == {"marlin_hopper": "", "humming": "", "quack": "bf16"}


def test_the_two_paths_of_a_library_are_told_apart():
    from marlin_bench.record_table import notes

    found = rows([fp16(1), record("bitsandbytes_nf4", 1, 20.0, choice={"path": "dequantise"})], None)
    assert "path: dequantise" in notes(found[1])
    assert "path" not in notes(found[0])
