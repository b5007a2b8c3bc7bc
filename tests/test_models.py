import json

import pytest

from marlin_bench.models import (
    CONFIG_LIMIT_BYTES,
    ModelError,
    architecture_of,
    builtin_model,
    model_names,
    read_config,
)


def shapes(model):
    return {layer.name: (layer.K, layer.N) for layer in model.layers}


PAPER = {
    # name: the (K, N) that the paper's benchmark lists, millions of weights a block, blocks
    "paper-llama-7b": ([(4096, 12288), (4096, 4096), (4096, 21504), (10752, 4096)], 199.2, 32),
    "paper-llama-13b": ([(5120, 15360), (5120, 5120), (5120, 27136), (13568, 5120)], 313.3, 40),
    "paper-llama-33b": ([(6656, 19968), (6656, 6656), (6656, 35328), (17664, 6656)], 529.9, 60),
    "paper-llama-65b": ([(8192, 24576), (8192, 8192), (8192, 43520), (21760, 8192)], 803.2, 80),
    "paper-falcon-180b": ([(14848, 75264), (74240, 14848)], 2219.8, 80),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_models_have_the_shapes_it_lists(name):
    expected, millions, blocks = PAPER[name]
    model = builtin_model(name)
    assert [(layer.K, layer.N) for layer in model.layers] == expected
    assert model.weights / model.blocks / 1e6 == pytest.approx(millions, abs=0.06)
    assert model.blocks == blocks


TRUE = {
    "llama-2-7b": {"qkv": (4096, 12288), "o": (4096, 4096), "gate_up": (4096, 22016), "down": (11008, 4096)},
    "llama-2-13b": {"qkv": (5120, 15360), "o": (5120, 5120), "gate_up": (5120, 27648), "down": (13824, 5120)},
    "llama-2-70b": {"qkv": (8192, 10240), "o": (8192, 8192), "gate_up": (8192, 57344), "down": (28672, 8192)},
    "llama-3-8b": {"qkv": (4096, 6144), "o": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)},
    "llama-3-70b": {"qkv": (8192, 10240), "o": (8192, 8192), "gate_up": (8192, 57344), "down": (28672, 8192)},
    "falcon-180b": {"qkv_up": (14848, 75264), "o_down": (74240, 14848)},
}


@pytest.mark.parametrize("name", TRUE)
def test_true_shapes(name):
    assert shapes(builtin_model(name)) == TRUE[name]


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-2-7b", 6.48), ("llama-2-70b", 68.5), ("llama-3-8b", 6.98), ("falcon-180b", 177.6)]
)
def test_the_layers_add_up_to_the_models_size_without_embeddings(name, billions):
    assert builtin_model(name).weights / 1e9 == pytest.approx(billions, abs=0.05)


def test_tensor_parallel_splits_N_of_the_first_layers_and_K_of_the_second():
    model = builtin_model("llama-2-70b", 4)
    assert model.name == "llama-2-70b-tp4"
    assert shapes(model) == {"qkv": (8192, 2560), "o": (2048, 8192), "gate_up": (8192, 14336), "down": (7168, 8192)}


def test_key_value_heads_are_copied_when_there_are_fewer_of_them_than_gpus():
    eight, sixteen = builtin_model("llama-3-8b", 8), builtin_model("llama-3-8b", 16)
    assert shapes(eight)["qkv"] == (4096, (4 + 2) * 128)
    assert shapes(sixteen)["qkv"] == (4096, (2 + 2) * 128)


def test_every_listed_model_exists():
    assert len(set(model_names())) == len(model_names()) == len(PAPER) + len(TRUE)
    assert all(builtin_model(name).name == name for name in model_names())


@pytest.mark.parametrize(
    ("name", "tensor_parallel", "sentence"),
    [
        ("llama-2-7", 1, "unknown model 'llama-2-7': did you mean llama-2-7b or llama-2-70b?"),
        ("zzz", 1, f"unknown model 'zzz': known are {', '.join(model_names())}"),
        ("llama-2-13b", 3, "llama-2-13b has 40 attention heads, which tensor_parallel 3 does not divide"),
        ("paper-llama-7b", 2, "'paper-llama-7b' is a list of the paper's shapes: it has no tensor_parallel"),
    ],
)
def test_what_cannot_be_built_is_a_sentence(name, tensor_parallel, sentence):
    with pytest.raises(ModelError) as caught:
        builtin_model(name, tensor_parallel)
    assert str(caught.value) == sentence


# -- config.json ----------------------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
}


def test_a_config_gives_the_same_layers_as_the_built_in_model():
    assert architecture_of(LLAMA, "llama-3-8b").model() == builtin_model("llama-3-8b")


def test_a_falcon_config_gives_the_papers_fused_layers():
    config = {
        "model_type": "falcon",
        "hidden_size": 14848,
        "num_attention_heads": 232,
        "num_kv_heads": 8,
        "num_hidden_layers": 80,
        "new_decoder_architecture": True,
        "multi_query": True,
        "parallel_attn": True,
    }
    assert architecture_of(config, "falcon-180b").model() == builtin_model("falcon-180b")
    apart = architecture_of({**config, "parallel_attn": False}, "apart").model()
    expected = {"qkv": (14848, 15872), "o": (14848, 14848), "up": (14848, 59392), "down": (59392, 14848)}
    assert shapes(apart) == expected


def test_multi_query_falcon_has_one_key_value_head():
    config = {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "num_hidden_layers": 32,
        "multi_query": True,
        "parallel_attn": True,
    }
    assert shapes(architecture_of(config, "falcon-7b").model())["qkv_up"] == (4544, 4544 + 128 + 4 * 4544)


def test_heads_may_be_wider_than_the_hidden_size_divided():
    config = {**LLAMA, "hidden_size": 5120, "head_dim": 128}
    layers = shapes(architecture_of(config, "nemo").model())
    assert (layers["qkv"], layers["o"]) == ((5120, 6144), (4096, 5120))


def test_an_ungated_mlp_has_one_projection_up_of_four_times_the_width():
    config = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_inner": None}
    layers = shapes(architecture_of(config, "gpt2").model())
    assert layers == {"qkv": (768, 2304), "o": (768, 768), "up": (768, 3072), "down": (3072, 768)}


def test_a_multi_modal_config_is_read_from_its_text_part():
    nested = {"model_type": "mistral3", "text_config": {**LLAMA, "model_type": "mistral"}}
    assert architecture_of(nested, "m").model() == architecture_of(LLAMA, "m").model()


WRONG = {
    "unknown type": (
        {**LLAMA, "model_type": "mamba"},
        "the config of m has the model_type 'mamba', whose MLP is not known here: write its layers out as {name, K, N}",
    ),
    "no type": (
        {},
        "the config of m has the model_type None, whose MLP is not known here: write its layers out as {name, K, N}",
    ),
    "experts": (
        {**LLAMA, "num_local_experts": 8},
        "m is a mixture of experts (num_local_experts 8): write its layers out as {name, K, N}",
    ),
    "latent attention": (
        {**LLAMA, "kv_lora_rank": 512},
        "m has latent attention (kv_lora_rank): write its layers out as {name, K, N}",
    ),
    "no width": (
        {key: value for key, value in LLAMA.items() if key != "intermediate_size"},
        "the config of m has no intermediate_size or ffn_hidden_size or ffn_dim or n_inner",
    ),
    "no heads": (
        {key: value for key, value in LLAMA.items() if key != "num_attention_heads"},
        "the config of m has no num_attention_heads or n_head or n_heads",
    ),
    "text for a number": (
        {**LLAMA, "hidden_size": "4096"},
        "the config of m has hidden_size '4096': it must be a whole number of at least 1",
    ),
    "nought blocks": (
        {**LLAMA, "num_hidden_layers": 0},
        "the config of m has num_hidden_layers 0: it must be a whole number of at least 1",
    ),
    "heads that do not divide": (
        {**LLAMA, "num_attention_heads": 30},
        "the config of m has 30 heads, which do not divide its hidden size 4096",
    ),
}


@pytest.mark.parametrize(("config", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_a_config_that_cannot_be_read_is_a_sentence(config, sentence):
    with pytest.raises(ModelError) as caught:
        architecture_of(config, "m").model()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds no JSON object: that is no config.json of a model"),
        (
            b" " * (CONFIG_LIMIT_BYTES + 1),
            f"has more than {CONFIG_LIMIT_BYTES} bytes: that is no config.json of a model",
        ),
    ],
    ids=["cut off", "binary", "deep", "list", "large"],
)
def test_a_file_that_is_no_config_is_a_sentence(tmp_path, content, complaint):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_config(path, "m")
    assert str(caught.value) == f"'{path}' {complaint}"


def test_a_config_is_read_from_its_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    assert read_config(path, "llama-3-8b").model(2) == builtin_model("llama-3-8b", 2)
