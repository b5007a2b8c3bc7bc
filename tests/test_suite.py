import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from marlin_bench.plan import plan
from marlin_bench.suite import (
    Clocks,
    SuiteError,
    load_suite,
    parse_suite,
    schema_text,
    shipped_suite_names,
    shipped_suites_folder,
)
from marlin_bench.suite_text import SIZE_LIMIT_BYTES

HEAD = "device: {kind: cpu}\nbackends: [dense_fp32]\n"
LAYER = "layers: [{K: 128, N: 256}]\n"
LEAST = HEAD + LAYER + "M: [1]\n"


def suite(text=LEAST, **options):
    return parse_suite(text, source="x.yaml", name="x", **options)


def complaint(text):
    with pytest.raises(SuiteError) as caught:
        suite(text)
    return str(caught.value)


# -- what a suite means ---------------------------------------------------------------------------------------------


def test_a_suite_of_four_keys_takes_every_other_value_from_the_defaults():
    least = suite()
    assert [(layer.name, layer.K, layer.N) for layer in least.layers] == [("128x256", 128, 256)]
    assert (least.M, least.group_sizes, least.backends) == ((1,), (128,), ("dense_fp32",))
    assert least.clocks == Clocks(policy="observe", sm_mhz="base", memory_mhz=None)
    assert (least.sampling.timers, least.sampling.min_blocks, least.sampling.interval) == (("kernel",), 30, 0.005)
    assert (least.tune, least.energy, least.seed, least.gate) == ("quick", None, 0, ())
    assert least.text == LEAST


def test_batches_mix_numbers_and_ranges_and_come_out_once_and_ascending():
    assert suite(HEAD + LAYER + "M: [65, {pow2: [1, 64]}, 3, 16]\n").M == (1, 2, 3, 4, 8, 16, 32, 64, 65)


def test_a_range_of_one_power_is_that_power():
    assert suite(HEAD + LAYER + "M: [{pow2: [8, 8]}]\n").M == (8,)


def test_the_word_column_means_one_scale_a_column():
    assert suite(LEAST + "group_sizes: [64, column]\n").group_sizes == (64, None)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lock", Clocks(policy="lock", sm_mhz="base", memory_mhz=None)),
        ("{policy: require, sm_mhz: 885}", Clocks(policy="require", sm_mhz=885, memory_mhz=None)),
        (
            "{policy: lock, sm_mhz: max, memory_mhz: 6251}",
            Clocks(policy="lock", sm_mhz="max", memory_mhz=6251),
        ),
    ],
)
def test_clocks_have_a_short_and_a_long_form(written, meant):
    assert suite(LEAST + f"clocks: {written}\n").clocks == meant


def test_a_model_adds_its_layers_but_none_whose_shape_is_there_already():
    text = (
        HEAD + "M: [1]\nlayers:\n  - {name: square, K: 4096, N: 4096}\n  - model: llama-2-7b\n  - model: llama-3-8b\n"
    )
    made = suite(text)
    assert [layer.name for layer in made.layers] == [
        "square",
        "llama-2-7b.qkv",
        "llama-2-7b.gate_up",
        "llama-2-7b.down",
        "llama-3-8b.qkv",
        "llama-3-8b.gate_up",
        "llama-3-8b.down",
    ]
    assert [model.name for model in made.models] == ["llama-2-7b", "llama-3-8b"]
    assert made.layer_by_shape[4096, 4096].name == "square"


def test_every_layer_of_a_suites_models_is_measured_under_some_name():
    for name in shipped_suite_names():
        shipped = load_suite(name)
        for model in shipped.models:
            assert all((layer.K, layer.N) in shipped.layer_by_shape for layer in model.layers)


def test_a_config_is_found_beside_the_suite_and_named_after_its_folder(tmp_path):
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + "M: [1]\nlayers: [{config: tiny-model/config.json, tensor_parallel: 2}]\n")
    made = load_suite(path)
    assert made.name == "mine"
    assert [(layer.name, layer.K, layer.N) for layer in made.layers] == [
        ("tiny-model-tp2.qkv", 256, 256),
        ("tiny-model-tp2.o", 128, 256),
        ("tiny-model-tp2.gate_up", 256, 512),
    ]
    assert made.models[0].blocks == 3


def test_the_digest_follows_the_text_and_the_config_it_points_to(tmp_path):
    config = tmp_path / "model.json"
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + "M: [1]\nlayers: [{config: model.json}]\n")
    digests = set()
    for width in (512, 1024):
        config.write_text(
            json.dumps(
                {
                    "model_type": "llama",
                    "hidden_size": 256,
                    "num_attention_heads": 2,
                    "num_hidden_layers": 1,
                    "intermediate_size": width,
                }
            )
        )
        digests.add(load_suite(path).digest)
    assert len(digests) == 2
    assert suite().digest == suite().digest
    assert suite().digest != suite(LEAST + "seed: 1\n").digest


def test_a_suite_cannot_be_changed_after_loading():
    made = suite()
    with pytest.raises(ValidationError):
        made.seed = 5
    with pytest.raises(ValidationError):
        made.sampling.min_blocks = 5


def test_windows_line_ends_a_byte_order_mark_and_comments_change_nothing(tmp_path):
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbf# comment\r\n" + LEAST.replace("\n", "\r\n").encode())
    assert load_suite(path).layers == suite().layers


@pytest.mark.parametrize(
    ("wanted", "kind", "name", "found"),
    [
        ("{kind: cuda, name: A10}", "cuda", "NVIDIA A10", True),
        ("{kind: cuda, name: A10}", "cuda", "NVIDIA A100-SXM4-80GB", False),
        ("{kind: cuda, name: A10}", "cuda", "NVIDIA A10G", False),
        ("{kind: cuda, name: a100}", "cuda", "NVIDIA A100-SXM4-80GB", True),
        ("{kind: cuda, name: RTX 3090}", "cuda", "NVIDIA GeForce RTX 3090", True),
        ("{kind: cuda, name: RTX 3090}", "cuda", "NVIDIA GeForce RTX 4090", False),
        ("{kind: cuda}", "cuda", "NVIDIA H200", True),
        ("{kind: cuda}", "cpu", "AMD EPYC", False),
        ("{kind: cpu}", "cpu", "AMD EPYC", True),
    ],
)
def test_a_device_is_matched_by_whole_words_of_its_name(wanted, kind, name, found):
    assert suite(LEAST.replace("{kind: cpu}", wanted)).device.matches(kind, name) is found


# -- gate rules -----------------------------------------------------------------------------------------------------


def gate(rule):
    return suite(LEAST + f"gate: [{rule}]\n").gate[0]


def test_every_rule_of_the_gate_is_parsed_with_its_defaults():
    absolute = gate("{rule: absolute, select: {backend: marlin}, at_least: 0.95}")
    assert (absolute.ideal, absolute.clocks, absolute.at_least, absolute.at_most) == ("computed", "any", 0.95, None)
    assert gate("{rule: absolute, at_least: 1, ideal: 3.87, clocks: locked}").ideal == 3.87
    assert gate("{rule: model, model: llama-2-7b, at_least: 2.5}").model == "llama-2-7b"
    assert gate("{rule: knee, at_least: 28}").at_least == 28
    assert gate("{rule: right}").select.backend is None
    relative = gate("{rule: relative, relative: 0.05}")
    assert (relative.relative, relative.absolute, relative.noise) == (0.05, 2e-7, 3.0)


def test_a_relative_rule_tolerates_the_largest_of_its_three_tolerances():
    rule = gate("{rule: relative, relative: 0.02, absolute: 0.000001, noise: 3}")
    assert rule.tolerance(1e-3, 1e-6) == pytest.approx(2e-5)
    assert rule.tolerance(1e-5, 1e-8) == pytest.approx(1e-6)
    assert rule.tolerance(1e-5, 1e-6) == pytest.approx(3e-6)


def test_nan_never_keeps_a_bound():
    assert gate("{rule: knee, at_least: 28}").admits(28.0)
    assert not gate("{rule: knee, at_least: 28}").admits(27.9)
    assert gate("{rule: knee, at_most: 28}").admits(28.0)
    assert not gate("{rule: knee, at_most: 28}").admits(28.1)
    assert not gate("{rule: knee, at_least: 28}").admits(float("nan"))
    assert not gate("{rule: knee, at_most: 28}").admits(float("nan"))


@pytest.mark.parametrize(
    ("select", "selected"),
    [
        ("{}", True),
        ("{backend: marlin}", True),
        ("{backend: tinygemm}", False),
        ("{backend: [tinygemm, mar*]}", True),
        ("{layer: 72k_*}", True),
        ("{layer: 4096x4096}", False),
        ("{M: 16}", True),
        ("{M: 32}", False),
        ("{M: [1, {pow2: [8, 16]}]}", True),
        ("{M: [1, {pow2: [32, 64]}]}", False),
        ("{M: {at_most: 16}}", True),
        ("{M: {at_most: 15}}", False),
        ("{M: {at_least: 17}}", False),
        ("{M: {at_least: 16, at_most: 32}}", True),
        ("{group_size: 128}", True),
        ("{group_size: column}", False),
        ("{format: int4_*}", True),
        ("{format: fp16}", False),
        ("{backend: marlin, M: 17}", False),
    ],
)
def test_a_selector_selects_what_every_one_of_its_keys_selects(select, selected):
    rule = gate(f"{{rule: right, select: {select}}}")
    record = {"backend": "marlin", "layer": "72k_x_18k", "M": 16, "group_size": 128, "format": "int4_g128"}
    assert rule.select.matches(**record) is selected


def test_the_word_column_selects_records_with_one_scale_a_column_only():
    rule = gate("{rule: right, select: {group_size: column}}")
    assert rule.select.matches(backend="b", layer="l", M=1, group_size=None, format="int4_gK")
    assert not rule.select.matches(backend="b", layer="l", M=1, group_size=64, format="int4_g64")


# -- complaints: one sentence with file, line and key ---------------------------------------------------------------

MISTAKES = {
    "misspelt key": (LEAST + "bckends: [x]\n", "x.yaml:5:bckends: is no key here: did you mean backends?"),
    "misspelt key of a layer": (
        HEAD + "M: [1]\nlayers: [{modle: llama-2-7b}]\n",
        "x.yaml:4:layers[0].modle: is no key here: did you mean model?",
    ),
    "misspelt key below a range": (
        HEAD + LAYER + "M: [{pow: [1, 4]}]\n",
        "x.yaml:4:M[0].pow: is no key here: did you mean pow2?",
    ),
    "foreign key": (
        LEAST.replace("kind: cpu", "kind: cpu, zzz: 1"),
        "x.yaml:1:device.zzz: is no key here: use kind, name",
    ),
    "missing key": (HEAD + LAYER, "x.yaml:1:M: this key is missing"),
    "missing key of a layer": (
        HEAD + "M: [1]\nlayers:\n  - K: 128\n    N: 128\n  - K: 256\n",
        "x.yaml:7:layers[1].N: this key is missing",
    ),
    "list where a number belongs": (
        HEAD + "M: [1]\nlayers:\n  - K: [128]\n    N: 128\n",
        "x.yaml:5:layers[0].K: is a list where a whole number belongs",
    ),
    "text where a number belongs": (
        LEAST + "seed: one\n",
        "x.yaml:5:seed: is the text 'one' where a whole number belongs",
    ),
    "quoted number": (LEAST + "seed: '1'\n", "x.yaml:5:seed: is the text '1' where a whole number belongs"),
    "truth where a number belongs": (LEAST + "seed: true\n", "x.yaml:5:seed: is true where a whole number belongs"),
    "fraction where a whole number belongs": (
        HEAD + LAYER + "M: [1.5]\n",
        "x.yaml:4:M[0]: is 1.5 where a whole number belongs",
    ),
    "number where a list belongs": (HEAD + LAYER + "M: 16\n", "x.yaml:4:M: is 16 where a list belongs"),
    "mapping where a list belongs": (
        HEAD + "M: [1]\nlayers: {K: 128, N: 128}\n",
        "x.yaml:4:layers: is a mapping where a list belongs",
    ),
    "nothing where a list belongs": (HEAD + LAYER + "M:\n", "x.yaml:4:M: is nothing where a list belongs"),
    "empty M": (HEAD + LAYER + "M: []\n", "x.yaml:4:M: is an empty list: give at least 1"),
    "M of nought": (HEAD + LAYER + "M: [0]\n", "x.yaml:4:M[0]: is 0: it must be at least 1"),
    "huge M": (HEAD + LAYER + "M: [65537]\n", "x.yaml:4:M[0]: is 65537: it must be at most 65536"),
    "huge K": (
        HEAD + "M: [1]\nlayers: [{K: 1000000000, N: 1}]\n",
        "x.yaml:4:layers[0].K: is 1000000000: it must be at most 1048576",
    ),
    "range of no powers": (
        HEAD + LAYER + "M: [{pow2: [1, 100]}]\n",
        "x.yaml:4:M[0]: has the bound 100: it must be a power of two",
    ),
    "range backwards": (HEAD + LAYER + "M: [{pow2: [8, 1]}]\n", "x.yaml:4:M[0]: starts at 8 above its end 1"),
    "range with three ends": (
        HEAD + LAYER + "M: [{pow2: [1, 2, 4]}]\n",
        "x.yaml:4:M[0].pow2: is a list of 3: give at most 2",
    ),
    "unknown backend": (
        LEAST.replace("dense_fp32", "dense_fp23"),
        "x.yaml:2:backends[0]: names the unknown backend 'dense_fp23': did you mean dense_fp32?",
    ),
    "backend twice": (
        LEAST.replace("[dense_fp32]", "[dense_fp32, dense_fp32]"),
        "x.yaml:2:backends: names dense_fp32 twice: remove one",
    ),
    "unknown model": (
        HEAD + "M: [1]\nlayers: [{model: llama-2-8b}]\n",
        "x.yaml:4:layers[0].model: unknown model 'llama-2-8b': did you mean llama-3-8b or llama-2-7b?",
    ),
    "model twice": (
        HEAD + "M: [1]\nlayers:\n  - model: llama-2-7b\n  - model: llama-2-7b\n",
        "x.yaml:6:layers[1].model: names the model llama-2-7b twice: remove one",
    ),
    "heads that do not divide": (
        HEAD + "M: [1]\nlayers: [{model: llama-2-13b, tensor_parallel: 3}]\n",
        "x.yaml:4:layers[0].model: llama-2-13b has 40 attention heads, which tensor_parallel 3 does not divide",
    ),
    "K that the group does not divide": (
        HEAD + "M: [1]\nlayers:\n  - {K: 128, N: 128}\n  - {name: odd, K: 192, N: 128}\n",
        "x.yaml:6:layers[1].K: K 192 of odd is not divisible by the group size 128: change one",
    ),
    "layer name twice": (
        HEAD + "M: [1]\nlayers:\n  - {name: a, K: 128, N: 128}\n  - {name: a, K: 256, N: 128}\n",
        "x.yaml:6:layers[1]: there is a layer called a already: rename or remove one",
    ),
    "layer shape twice": (
        HEAD + "M: [1]\nlayers:\n  - {name: a, K: 128, N: 128}\n  - {name: b, K: 128, N: 128}\n",
        "x.yaml:6:layers[1]: b has the shape K=128 N=128 of a: list it once",
    ),
    "layer name with a slash": (
        HEAD + "M: [1]\nlayers: [{name: a/b, K: 128, N: 128}]\n",
        "x.yaml:4:layers[0].name: is the text 'a/b': use letters, digits, dots, dashes and underscores",
    ),
    "misspelt policy": (
        LEAST + "clocks: obsrve\n",
        "x.yaml:5:clocks: is the text 'obsrve': use 'observe', 'lock' or 'require'",
    ),
    "misspelt clock": (
        LEAST + "clocks: {policy: lock, sm_mhz: bass}\n",
        "x.yaml:5:clocks.sm_mhz: is the text 'bass': use 'base' or 'max'",
    ),
    "misspelt group": (LEAST + "group_sizes: [colum]\n", "x.yaml:5:group_sizes[0]: is the text 'colum': use 'column'"),
    "group twice": (LEAST + "group_sizes: [64, 64]\n", "x.yaml:5:group_sizes: names 64 twice: remove one"),
    "interval not a number": (
        LEAST + "sampling: {interval: .nan}\n",
        "x.yaml:5:sampling.interval: is nan where a finite number belongs",
    ),
    "interval of nought": (
        LEAST + "sampling: {interval: 0}\n",
        "x.yaml:5:sampling.interval: is 0: it must be above 0.0",
    ),
    "fewer blocks at most than at least": (
        LEAST + "sampling:\n  max_blocks: 5\n",
        "x.yaml:6:sampling.max_blocks: max_blocks 5 is below min_blocks 30: raise it",
    ),
    "unknown rule": (
        LEAST + "gate: [{rule: absolut, at_least: 1}]\n",
        "x.yaml:5:gate[0]: is 'absolut': use 'absolute', 'model', 'knee', 'relative', 'right'",
    ),
    "rule without its kind": (LEAST + "gate: [{at_least: 1}]\n", "x.yaml:5:gate[0]: needs the key 'rule'"),
    "rule without a bound": (
        LEAST + "gate: [{rule: knee}]\n",
        "x.yaml:5:gate[0]: needs exactly one of at_least and at_most",
    ),
    "rule with two bounds": (
        LEAST + "gate: [{rule: knee, at_least: 1, at_most: 2}]\n",
        "x.yaml:5:gate[0]: needs exactly one of at_least and at_most",
    ),
    "bound of another rule": (
        LEAST + "gate: [{rule: right, at_least: 1}]\n",
        "x.yaml:5:gate[0].at_least: is no key here: use select, clocks, rule",
    ),
    "selection without bounds": (
        LEAST + "gate: [{rule: right, select: {M: {}}}]\n",
        "x.yaml:5:gate[0].select.M: is a range without bounds: give at_least, at_most or both",
    ),
    "key twice": (LEAST + "M: [2]\n", "x.yaml:5:M: this key stands here twice: remove one"),
    "list as a key": ("? [1]\n: 2\n", "x.yaml:1: a list or mapping stands where a key belongs"),
    "number too long": (LEAST + f"seed: {'9' * 5000}\n", "x.yaml:5:seed: is a number too long to read"),
    "list instead of a suite": (
        "- a\n",
        "x.yaml:1: the file holds a list: a suite is a mapping of keys such as `layers:`",
    ),
    "empty file": ("", "x.yaml:1: the file is empty: a suite is a mapping of keys such as `layers:`"),
    "unclosed bracket": (
        LEAST + "seed: [\n",
        "x.yaml:6: not valid YAML: while parsing a flow node expected the node content, but found '<stream end>'",
    ),
    "tab": (
        "device:\n\tkind: cpu\n",
        "x.yaml:2: not valid YAML: while scanning for the next token found character '\\t' that cannot start any token",
    ),
    "two documents": (
        LEAST + "---\n" + LEAST,
        "x.yaml:5: not valid YAML: expected a single document in the stream but found another document",
    ),
    "anchor": (
        LEAST + "seed: &a 1\n",
        "x.yaml:5: the anchor or alias 'a' is not allowed in a suite: write the value out",
    ),
    "tag": (
        LEAST + "seed: !!python/name:os.system\n",
        "x.yaml:5: the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed in a suite: leave it out",
    ),
    "deep nesting": ("M: " + "[" * 1000, "x.yaml:1: nested deeper than 16 levels: no suite needs that"),
}


@pytest.mark.parametrize(("text", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence_with_file_line_and_key(text, sentence):
    assert complaint(text) == sentence


def test_the_error_carries_its_parts():
    with pytest.raises(SuiteError) as caught:
        suite(LEAST + "seed: one\n")
    assert (caught.value.source, caught.value.line, caught.value.key) == ("x.yaml", 5, "seed")


def test_of_several_mistakes_the_first_in_the_file_is_named():
    assert complaint("seed: one\nM: []\n" + HEAD + LAYER).startswith("x.yaml:1:seed:")


def test_a_yaml_bomb_is_refused_before_it_is_built():
    bomb = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True))
    assert complaint(bomb) == "x.yaml:1: the anchor or alias 'a' is not allowed in a suite: write the value out"


def test_a_flood_of_values_is_refused_before_it_is_built():
    assert complaint(f"M: [{'1,' * 5001}]\n") == "x.yaml:1: more than 5000 values: split the suite into several"


@pytest.mark.parametrize("document", [b"\x00", b"\x07: 1\n"])
def test_control_characters_are_not_yaml(document):
    assert complaint(document.decode()).startswith("x.yaml: not valid YAML: ")


def test_hostile_keys_and_values_are_shortened_and_escaped():
    sentence = complaint(LEAST + '"\\e[31mred\\n' + "k" * 1000 + '": 1\n')
    assert len(sentence) < 300
    assert sentence.startswith("x.yaml:5:\\x1b[31mred\\nkkk")
    sentence = complaint(LEAST.replace("dense_fp32", '"' + "b" * 5000 + '\\e[0m"'))
    assert len(sentence) < 500
    assert sentence.isprintable()


def test_a_missing_config_is_named_with_its_path():
    expected = "x.yaml:4:layers[0].config: 'none.json' cannot be read: No such file or directory"
    assert complaint(HEAD + "M: [1]\nlayers: [{config: none.json}]\n") == expected


# -- files ----------------------------------------------------------------------------------------------------------


def file_complaint(path):
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    return str(caught.value)


def test_a_file_of_ten_megabytes_is_refused_unread(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"# filler\n" * (10 * 1024 * 1024 // 9))
    assert file_complaint(path) == (
        f"{path}: the file has {path.stat().st_size} bytes, but a suite has at most {SIZE_LIMIT_BYTES}: "
        "split it into several suites"
    )


def test_text_of_ten_megabytes_is_refused_as_well():
    assert complaint("#" * (10 * 1024 * 1024)).startswith("x.yaml: the file has 10485760 bytes")


def test_a_missing_file_names_a_near_shipped_suite():
    expected = "smok: there is no such suite file, and no shipped suite of that name: did you mean smoke?"
    assert file_complaint("smok") == expected


def test_a_missing_file_without_a_near_name_lists_the_shipped_suites():
    sentence = file_complaint("/nowhere/zzzzzz.yaml")
    assert sentence.endswith("shipped are " + ", ".join(shipped_suite_names()))


def test_a_folder_and_a_pipe_are_no_suite_files(tmp_path):
    assert file_complaint(tmp_path) == f"{tmp_path}: this is a folder: give a suite file (YAML)"
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    assert file_complaint(pipe) == f"{pipe}: this is not a regular file: give a suite file (YAML)"


def test_a_binary_file_is_not_utf8(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"M: \xff\xfe")
    assert file_complaint(path) == f"{path}: byte 3 is not UTF-8: save the suite as UTF-8 text"


@pytest.mark.parametrize("asked", ["smoke", "smoke.yaml", "suites/smoke.yaml", "suites/smoke"])
def test_a_shipped_suite_is_found_from_any_folder(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_suite(asked).text == (shipped_suites_folder() / "smoke.yaml").read_text()


def test_a_path_goes_before_a_shipped_suite_and_a_bare_word_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.yaml").write_text(LEAST)
    (tmp_path / "own.yaml").write_text(LEAST)
    assert load_suite("smoke.yaml").text == LEAST
    assert load_suite("./smoke.yaml").text == LEAST
    assert load_suite("smoke").text != LEAST
    assert load_suite("own").text == LEAST


def test_a_suite_elsewhere_is_never_mistaken_for_a_shipped_one():
    assert "no such suite file" in file_complaint("/nowhere/smoke.yaml")


# -- shipped --------------------------------------------------------------------------------------------------------

SHIPPED = ["a10", "a100", "cpu", "crosscheck", "h100", "h200", "l40s", "rtx3090", "smoke", "sparse", "twins"]


def test_the_suites_to_ship_are_there():
    assert set(SHIPPED) <= set(shipped_suite_names())


@pytest.mark.parametrize("name", shipped_suite_names())
def test_a_shipped_suite_is_valid_says_what_it_is_for_and_points_to_the_schema(name):
    shipped = load_suite(name)
    assert shipped.name == name
    assert shipped.description
    assert shipped.text.startswith("# yaml-language-server: $schema=suite.schema.json\n")


def test_the_h200_suite_holds_the_layers_and_batches_it_is_judged_on():
    h200 = load_suite("h200")
    explicit = {(73728, 18432), (4096, 4096), (8192, 8192), (8192, 28672), (28672, 8192)}
    assert explicit <= set(h200.layer_by_shape)
    assert len(h200.layers) == 19
    assert h200.M == (1, 2, 4, 8, 16, 32, 64, 65, 128, 129, 256, 512, 1024, 2048, 4096)
    assert h200.device.matches("cuda", "NVIDIA H200")
    assert h200.clocks.policy == "observe"


def test_the_a10_suite_is_the_papers_experiment():
    a10 = load_suite("a10")
    assert (a10.clocks.policy, a10.clocks.sm_mhz) == ("lock", 885)
    assert a10.M == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    assert {(4096, 21504), (13568, 5120), (6656, 35328), (8192, 43520), (14848, 75264)} <= set(a10.layer_by_shape)
    rule = a10.gate[0]
    assert (rule.rule, rule.at_least, rule.ideal) == ("absolute", 0.95, "computed")
    cell = {"layer": "72k_x_18k", "group_size": 128, "format": "int4_g128"}
    assert rule.select.matches(backend="marlin", M=32, **cell)
    assert not rule.select.matches(backend="marlin", M=64, **cell)
    assert not rule.select.matches(backend="tinygemm", M=1, **cell)


def test_the_shipped_schema_is_current():
    shipped = shipped_suites_folder() / "suite.schema.json"
    renew = "python -c 'from marlin_bench.suite import *; print(schema_text(), end=str())' > suites/suite.schema.json"
    assert shipped.read_text() == schema_text(), f"renew it: {renew}"


def test_the_schema_describes_every_key_of_a_suite():
    schema = json.loads(schema_text())
    mappings = [schema, *schema["$defs"].values()]
    described = {"BatchRange": {"at_least", "at_most"}, "Pow2": {"pow2"}}
    for mapping in mappings:
        assert mapping["additionalProperties"] is False
        for name, entry in mapping["properties"].items():
            plain = name == "rule" or name in described.get(mapping["title"], set())
            assert plain or entry.get("description"), f"{mapping['title']}.{name} has no description"


def test_importing_suites_loads_no_torch():
    program = "import sys, marlin_bench.suite, marlin_bench.plan; print(sorted({'torch', 'cupy'} & set(sys.modules)))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "[]\n"


# -- docs/suites.md -------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "suites.md"
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
NEEDED = {
    "device": "device: {kind: cpu}\n",
    "layers": LAYER,
    "M": "M: [1]\n",
    "backends": "backends: [dense_fp32]\n",
}


@pytest.mark.parametrize("example", EXAMPLES, ids=[text.splitlines()[0][:30] for text in EXAMPLES])
def test_every_example_of_the_page_is_valid_with_the_needed_keys_added(example, tmp_path):
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    config = {"model_type": "gpt2", "n_embd": 256, "n_head": 2, "n_layer": 1}
    (folder / "config.json").write_text(json.dumps(config))
    added = "".join(text for key, text in NEEDED.items() if not re.search(rf"^{key}:", example, re.MULTILINE))
    assert suite(example + added, folder=tmp_path).layers


def test_the_page_explains_every_key_of_a_suite_and_gives_the_defaults_there_are():
    schema = json.loads(schema_text())
    headings = set(re.findall(r"^### (\w+)$", PAGE.read_text(), re.MULTILINE))
    assert headings == set(schema["properties"])
    sampling = schema["$defs"]["Sampling"]["properties"]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \| ", PAGE.read_text(), re.MULTILINE))
    for name, entry in sampling.items():
        default = entry["default"]
        assert rows[name] == (f"[{', '.join(default)}]" if isinstance(default, list) else f"{default:g}"), name


def test_the_cells_and_layers_that_the_page_selects_from_a_shipped_suite_are_there():
    smoke = load_suite("smoke")
    only = re.findall(r"run smoke .*--only '([^']+)'", PAGE.read_text())
    layers = re.findall(r"run smoke .*--layer (\S+)", PAGE.read_text())
    assert only
    assert layers
    assert plan(smoke, only=only)
    assert plan(smoke, layers=layers)
