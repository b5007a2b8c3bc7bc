"""8-bit operands: quantising rows and matrices, with one kernel on a GPU and in plain torch elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from marlin_bench.backends.protocol import EightBitActivations

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
_TINY = 1e-12
_WIDTH = 4096


def quantized_rows(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [rows, K] of `dtype` and FP32 scales [rows, 1] with max|row| at the largest code."""
    exact = values.float()
    scales = exact.abs().amax(1, keepdim=True).clamp_min(_TINY) / LARGEST[dtype]
    return as_codes(exact / scales, dtype), scales


def as_codes(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in units of their scale → codes: rounded for integers, cast for floating point, never out of range."""
    largest = LARGEST[dtype]
    rounded = torch.floor(scaled + 0.5) if dtype is torch.int8 else scaled
    return rounded.clamp(-largest, largest).to(dtype)


def row_quantization(activations: Tensor, dtype: torch.dtype) -> EightBitActivations:
    """Activations [M,K] in 8 bits with a scale a row: one kernel a call on a GPU."""
    M, K = activations.shape
    codes = torch.empty(M, K, dtype=dtype, device=activations.device)
    scales = torch.empty(M, 1, dtype=torch.float32, device=activations.device)

    def on_gpu() -> None:
        from marlin_bench.backends.triton_kernels import quantize_rows

        width = min(_WIDTH, 1 << (K - 1).bit_length())
        quantize_rows[(M,)](
            activations, codes, scales, K, LARGEST=LARGEST[dtype], INTEGER=dtype is torch.int8, WIDTH=width
        )

    def in_torch() -> None:
        fresh_codes, fresh_scales = quantized_rows(activations, dtype)
        codes.copy_(fresh_codes)
        scales.copy_(fresh_scales)

    return EightBitActivations(
        {"codes": codes, "scales": scales},
        quantize=on_gpu if activations.is_cuda else in_torch,
        dequantized=lambda: codes.float() * scales,
    )


def tensor_quantization(activations: Tensor, dtype: torch.dtype) -> EightBitActivations:
    """Activations [M,K] in 8 bits with one scale in all, in torch's own steps: largest value, scale, cast."""
    codes = torch.empty(activations.shape, dtype=dtype, device=activations.device)
    scale = torch.empty(1, 1, dtype=torch.float32, device=activations.device)

    def quantize() -> None:
        low, high = torch.aminmax(activations)
        scale.copy_(torch.maximum(-low, high).float().clamp_min(_TINY).div(LARGEST[dtype]).view(1, 1))
        codes.copy_(as_codes(activations.float() / scale, dtype))

    return EightBitActivations({"codes": codes, "scales": scale}, quantize, lambda: codes.float() * scale)
