"""A model's architecture → the linear layers of one block, as one GPU of a tensor-parallel group holds them.

Three sources: built-in architectures at their true shapes, the shapes that the MARLIN paper lists for its models
(its MLP widths are padded to multiples of 256), and any Hugging Face `config.json`. Attention projections are fused
to `qkv`, gate and up to `gate_up`, as every serving engine does. Where attention and MLP run in parallel (Falcon),
all four products become two, `qkv_up` and `o_down`, as in the paper (figure 9): both read the same normalised
activations, once the norm's gain is folded into the weights, and their outputs are added.

Column-parallel layers (qkv, gate_up) split N over the group, row-parallel ones (o, down) split K; key/value heads
are copied when there are fewer of them than GPUs. Embeddings, router and head are not counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

CONFIG_LIMIT_BYTES = 1024 * 1024


class ModelError(ValueError):
    """A model that cannot be turned into layers, as one sentence."""


@dataclass(frozen=True, slots=True)
class ModelLayer:
    """One linear layer of a block: K input features, N output features, `per_block` of them in each block."""

    name: str
    K: int
    N: int
    per_block: int = 1


@dataclass(frozen=True, slots=True)
class Model:
    """The linear layers of a model: `blocks` identical blocks of `layers`."""

    name: str
    blocks: int
    layers: tuple[ModelLayer, ...]

    @property
    def weights(self) -> int:
        """Weights of all linear layers."""
        return self.blocks * sum(layer.K * layer.N * layer.per_block for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What fixes the shapes of a decoder block.

    `kv_heads` equals `heads` for multi-head attention and is smaller for grouped queries; `gated` MLPs have a gate
    beside the up projection; `parallel` blocks feed attention and MLP from the same activations.
    """

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    blocks: int
    gated: bool = True
    parallel: bool = False

    def model(self, tensor_parallel: int = 1) -> Model:
        """The layers that one GPU of `tensor_parallel` holds; ModelError when the shapes do not divide."""
        heads = _shard(self.heads, tensor_parallel, f"{self.name} has {self.heads} attention heads")
        width = f"{self.name} has an MLP width of {self.intermediate}"
        intermediate = _shard(self.intermediate, tensor_parallel, width)
        if self.kv_heads >= tensor_parallel:
            shared = f"{self.name} has {self.kv_heads} key/value heads"
            kv_heads = _shard(self.kv_heads, tensor_parallel, shared)
        else:
            kv_heads = 1  # every GPU holds a copy of the head that its queries share
        attention = heads * self.head_dim
        qkv = attention + 2 * kv_heads * self.head_dim
        up = (2 if self.gated else 1) * intermediate
        layers: tuple[ModelLayer, ...]
        if self.parallel:
            layers = (
                ModelLayer("qkv_up", self.hidden, qkv + up),
                ModelLayer("o_down", attention + intermediate, self.hidden),
            )
        else:
            layers = (
                ModelLayer("qkv", self.hidden, qkv),
                ModelLayer("o", attention, self.hidden),
                ModelLayer("gate_up" if self.gated else "up", self.hidden, up),
                ModelLayer("down", intermediate, self.hidden),
            )
        name = self.name if tensor_parallel == 1 else f"{self.name}-tp{tensor_parallel}"
        return Model(name, self.blocks, layers)


def _shard(count: int, tensor_parallel: int, what: str) -> int:
    if count % tensor_parallel:
        raise ModelError(f"{what}, which tensor_parallel {tensor_parallel} does not divide")
    return count // tensor_parallel


_ARCHITECTURES = (
    # name, hidden, heads, kv_heads, head_dim, intermediate, blocks: the models' published config.json
    Architecture("llama-2-7b", 4096, 32, 32, 128, 11008, 32),
    Architecture("llama-2-13b", 5120, 40, 40, 128, 13824, 40),
    Architecture("llama-2-70b", 8192, 64, 8, 128, 28672, 80),
    Architecture("llama-3-8b", 4096, 32, 8, 128, 14336, 32),
    Architecture("llama-3-70b", 8192, 64, 8, 128, 28672, 80),
    Architecture("falcon-180b", 14848, 232, 8, 64, 59392, 80, gated=False, parallel=True),
)


def _paper_llama(size: str, blocks: int, hidden: int, intermediate: int) -> Model:
    layers = (
        ModelLayer("qkv", hidden, 3 * hidden),
        ModelLayer("o", hidden, hidden),
        ModelLayer("gate_up", hidden, 2 * intermediate),
        ModelLayer("down", intermediate, hidden),
    )
    return Model(f"paper-llama-{size}", blocks, layers)


_PAPER_MODELS = (
    # the shapes of the paper's benchmark, with its padded MLP widths (true: 11008, 13824, 17920, 22016)
    _paper_llama("7b", 32, 4096, 10752),
    _paper_llama("13b", 40, 5120, 13568),
    _paper_llama("33b", 60, 6656, 17664),
    _paper_llama("65b", 80, 8192, 21760),
    Model("paper-falcon-180b", 80, (ModelLayer("qkv_up", 14848, 75264), ModelLayer("o_down", 74240, 14848))),
)


def model_names() -> list[str]:
    """Every built-in model: true shapes first, then the paper's."""
    return [*(architecture.name for architecture in _ARCHITECTURES), *(model.name for model in _PAPER_MODELS)]


@cache
def builtin_model(name: str, tensor_parallel: int = 1) -> Model:
    """The built-in model called `name`; ModelError when there is none or when it cannot be split."""
    for architecture in _ARCHITECTURES:
        if architecture.name == name:
            return architecture.model(tensor_parallel)
    for model in _PAPER_MODELS:
        if model.name == name:
            if tensor_parallel != 1:
                raise ModelError(f"'{name}' is a list of the paper's shapes: it has no tensor_parallel")
            return model
    near = get_close_matches(name, model_names(), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(model_names())}"
    raise ModelError(f"unknown model '{name}': {hint}")


# model_type of a config.json -> whether its MLP has a gate. Guessing would give wrong shapes without a word.
_GATED = {
    "baichuan": True,
    "bloom": False,
    "cohere": True,
    "cohere2": True,
    "exaone": True,
    "falcon": False,
    "gemma": True,
    "gemma2": True,
    "gemma3": True,
    "gemma3_text": True,
    "glm": True,
    "glm4": True,
    "gpt2": False,
    "gpt_bigcode": False,
    "gpt_neox": False,
    "gptj": False,
    "granite": True,
    "internlm2": True,
    "internlm3": True,
    "llama": True,
    "mistral": True,
    "mistral3": True,
    "mpt": False,
    "nemotron": False,
    "olmo": True,
    "olmo2": True,
    "opt": False,
    "phi": False,
    "phi3": True,
    "qwen2": True,
    "qwen3": True,
    "smollm3": True,
    "stablelm": True,
    "starcoder2": False,
}
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_LATENT_KEY = "kv_lora_rank"
_HIDDEN = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_BLOCKS = ("num_hidden_layers", "n_layer", "n_layers")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_INTERMEDIATE = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
_UNGATED_RATIO = 4  # the MLP width of GPT-2, BLOOM, Falcon and MPT when their config does not give one


def read_config(path: Path, name: str) -> Architecture:
    """The architecture that a Hugging Face `config.json` describes, under `name`; ModelError says what it lacks."""
    try:
        with path.open("rb") as file:
            content = file.read(CONFIG_LIMIT_BYTES + 1)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}") from error
    if len(content) > CONFIG_LIMIT_BYTES:
        raise ModelError(f"'{path}' has more than {CONFIG_LIMIT_BYTES} bytes: that is no config.json of a model")
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"'{path}' is not JSON") from error
    if not isinstance(config, dict):
        raise ModelError(f"'{path}' holds no JSON object: that is no config.json of a model")
    return architecture_of(config, name)


def architecture_of(config: dict[str, Any], name: str) -> Architecture:
    """The architecture in a Hugging Face config; a multi-modal one is read from its `text_config`."""
    text_config = config.get("text_config")
    if isinstance(text_config, dict):
        config = text_config
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _GATED:
        raise ModelError(
            f"the config of {name} has the model_type {model_type!r}, whose MLP is not known here: "
            "write its layers out as {name, K, N}"
        )
    for key in _EXPERT_KEYS:
        experts = config.get(key)
        if isinstance(experts, int) and experts > 1:
            raise ModelError(
                f"{name} is a mixture of experts ({key} {experts}): write its layers out as {{name, K, N}}"
            )
    if config.get(_LATENT_KEY):
        raise ModelError(f"{name} has latent attention ({_LATENT_KEY}): write its layers out as {{name, K, N}}")
    hidden = _required(config, _HIDDEN, name)
    heads = _required(config, _HEADS, name)
    gated = _GATED[model_type]
    return Architecture(
        name=name,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, heads, name),
        head_dim=_head_dim(config, hidden, heads, name),
        intermediate=_intermediate(config, hidden, gated, name),
        blocks=_required(config, _BLOCKS, name),
        gated=gated,
        parallel=model_type == "falcon" and config.get("parallel_attn", True) is not False,
    )


def _optional(config: dict[str, Any], keys: tuple[str, ...], name: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"the config of {name} has {key} {value!r}: it must be a whole number of at least 1")
        return value
    return None


def _required(config: dict[str, Any], keys: tuple[str, ...], name: str) -> int:
    value = _optional(config, keys, name)
    if value is None:
        raise ModelError(f"the config of {name} has no {' or '.join(keys)}")
    return value


def _head_dim(config: dict[str, Any], hidden: int, heads: int, name: str) -> int:
    given = _optional(config, ("head_dim",), name)
    if given is not None:
        return given
    if hidden % heads:
        raise ModelError(f"the config of {name} has {heads} heads, which do not divide its hidden size {hidden}")
    return hidden // heads


def _kv_heads(config: dict[str, Any], heads: int, name: str) -> int:
    """Key/value heads; Falcon and GPT-BigCode say `multi_query` for one, unless the new decoder gives a number."""
    if config.get("multi_query") is True and config.get("new_decoder_architecture") is not True:
        return 1
    attention = config.get("attn_config")  # where MPT keeps it
    nested = _optional(attention, ("kv_n_heads",), name) if isinstance(attention, dict) else None
    return _optional(config, _KV_HEADS, name) or nested or heads


def _intermediate(config: dict[str, Any], hidden: int, gated: bool, name: str) -> int:
    given = _optional(config, _INTERMEDIATE, name)
    if given is not None:
        return given
    if gated:
        raise ModelError(f"the config of {name} has no {' or '.join(_INTERMEDIATE)}")
    return hidden * (_optional(config, ("expansion_ratio",), name) or _UNGATED_RATIO)
