"""One look for every figure: a colour and a marker for each backend, told apart in greyscale as well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

INK = "#222222"
MUTED = "#767676"
FAINT = "#d9d9d9"
BAND = "#ededed"
FONT_SIZE = 9

RC: dict[str, object] = {
    "font.size": FONT_SIZE,
    "axes.titlesize": FONT_SIZE + 0.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "marlin-bench",
}


@dataclass(frozen=True, slots=True)
class Look:
    """How one backend is drawn."""

    colour: str
    marker: str


# Colours of Okabe and Ito (2008), which colour-blind readers tell apart; baselines are grey.
_FIXED: dict[str, Look] = {
    "cublas_fp16": Look("#3b3b3b", "s"),
    "cublas_bf16": Look("#8c8c8c", "D"),
    "dense_bf16": Look("#3b3b3b", "s"),
    "dense_fp32": Look("#8c8c8c", "D"),
    "marlin": Look("#0072b2", "o"),
    "marlin_hopper": Look("#d55e00", "^"),
    "marlin_sparse": Look("#009e73", "v"),
    "tinygemm": Look("#e69f00", "P"),
    "tinygemm_cpu": Look("#0072b2", "o"),
    "naive_w4a16": Look("#cc79a7", "X"),
    "dequantize_cublas": Look("#56b4e9", "<"),
}
_OTHERS = (
    Look("#882255", ">"),
    Look("#117733", "p"),
    Look("#999933", "h"),
    Look("#332288", "*"),
    Look("#aa4499", "d"),
    Look("#661100", "8"),
    Look("#44aa99", "H"),
)


def looks(backends: Iterable[str]) -> dict[str, Look]:
    """A look for each backend; those without a fixed one take theirs in order of name, so that a set keeps its own.

    Past the first seven colours come again with other markers: 49 backends are told apart.
    """
    names = list(dict.fromkeys(backends))
    strangers = sorted(name for name in names if name not in _FIXED)
    count = len(_OTHERS)
    chosen = {
        name: Look(_OTHERS[index % count].colour, _OTHERS[(index + index // count) % count].marker)
        for index, name in enumerate(strangers)
    }
    return {name: _FIXED.get(name) or chosen[name] for name in names}
