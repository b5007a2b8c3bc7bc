"""The linear operator without a GPU: what it hands to a kernel, and what it gives back."""

import pytest
import torch

from marlin_bench import linear


class StandIn:
    """A kernel that multiplies by a dense matrix and remembers the rows it was given."""

    def __init__(self):
        self.given = []

    def multiply(self, activations, tensors, bias, output, group_size):
        self.given.append(activations)
        torch.matmul(activations, tensors[0], out=output)
        if bias is not None:
            output += bias


@pytest.fixture
def stand_in(monkeypatch):
    kernel = StandIn()
    monkeypatch.setattr(linear, "_kernel_named", lambda name: kernel)
    return kernel


def multiply(activations, W, bias=None):
    return linear.w4a16_linear(activations, [W], bias, "stand-in", W.shape[1], 128)


def test_the_product_comes_back(stand_in):
    A, W, bias = torch.randn(3, 8), torch.randn(8, 5), torch.randn(5)
    assert torch.equal(multiply(A, W, bias), A @ W + bias)


def test_an_empty_batch_reaches_no_kernel(stand_in):
    assert multiply(torch.empty(0, 8), torch.randn(8, 5)).shape == (0, 5)
    assert stand_in.given == []


@pytest.mark.parametrize("kind", ["transposed", "odd address"])
def test_kernels_get_contiguous_aligned_rows(stand_in, kind):
    memory = torch.randn(8 * 8 + 1)
    A = memory[:64].view(8, 8).t() if kind == "transposed" else memory[1:].view(8, 8)
    W = torch.randn(8, 5)
    assert torch.equal(multiply(A, W), A.contiguous() @ W)
    (rows,) = stand_in.given
    assert rows.is_contiguous()
    assert rows.data_ptr() % 16 == 0
