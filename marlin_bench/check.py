"""Right first: outputs against the float64 product of the dequantised weights (DESIGN 3.1).

Outputs are filled with a NaN of a pattern that no arithmetic produces before every check, so that an element nobody
wrote is told from one that was computed wrong. No comparison here lets a NaN pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from marlin_bench.record import Check

BF16_UNROUNDED_LIMIT = 0.003
_POISON = {  # integer view, bit pattern: quiet NaNs with a payload
    torch.float16: (torch.int16, 0x7E5A),
    torch.bfloat16: (torch.int16, 0x7FDA),
    torch.float32: (torch.int32, 0x7FDA5A5A),
}
_INFINITE_ERROR = float(torch.finfo(torch.float64).max)


def poison(output: Tensor) -> None:
    """Fill `output` with the NaN that means: not written."""
    integer, pattern = _POISON[output.dtype]
    output.view(integer).fill_(pattern)


@dataclass(frozen=True)
class _Errors:
    mean: float
    largest: float
    nan: int
    untouched: int


def _errors(output: Tensor, expected: Tensor) -> _Errors:
    integer, pattern = _POISON[output.dtype]
    untouched = int((output.view(integer) == pattern).sum())
    nan = int(torch.isnan(output).sum()) - untouched
    difference = (output.double() - expected).abs_()
    scale = float(expected.abs().mean())
    mean, largest = float(difference.mean()) / scale, float(difference.max()) / scale
    return _Errors(
        mean if mean < _INFINITE_ERROR else _INFINITE_ERROR,
        largest if largest < _INFINITE_ERROR else _INFINITE_ERROR,
        nan,
        untouched,
    )


def check_output(output: Tensor, expected: Tensor, limit: float, when: Literal["before", "after"]) -> Check:
    """Compare output [M, N] with the float64 `expected`; for BF16 the reference is rounded to BF16 first."""
    reference = expected.bfloat16().double() if output.dtype is torch.bfloat16 else expected
    found = _errors(output, reference)
    unrounded = _errors(output, expected).mean if output.dtype is torch.bfloat16 else None
    return Check(
        mean_error=found.mean,
        largest_error=found.largest,
        unrounded_error=unrounded,
        limit=limit,
        outputs=output.numel(),
        nan=found.nan,
        untouched=found.untouched,
        when=when,
    )


def fault(check: Check) -> str | None:
    """One sentence on what is wrong with a checked output, or None when it is right."""
    if check.untouched:
        return f"{check.untouched} of {check.outputs} outputs were not written ({check.when} timing)"
    if check.nan:
        return f"{check.nan} of {check.outputs} outputs are NaN ({check.when} timing)"
    if not check.mean_error < check.limit:
        return f"mean error {check.mean_error:.3g} is not below {check.limit:g} ({check.when} timing)"
    unrounded_limit = max(BF16_UNROUNDED_LIMIT, check.limit)  # a wider limit has its reason in the sums, rounded or not
    if check.unrounded_error is not None and not check.unrounded_error < unrounded_limit:
        return f"unrounded mean error {check.unrounded_error:.3g} is not below {unrounded_limit:g}"
    return None
