"""How the kernels' operands are described to the device: needs no GPU, as the driver's call is replaced."""

import pytest
import torch

from marlin_bench import kernel_launch


@pytest.mark.parametrize(("dtype", "named"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_a_matrix_is_cut_into_panels_of_64_columns(monkeypatch, dtype, named):
    monkeypatch.setattr(kernel_launch, "tensor_map_3d", lambda *operands, **shape: (operands, shape))
    matrix = torch.zeros((5, 192), dtype=dtype)
    operands, shape = kernel_launch.panel_map(matrix, rows=16, panels=2)
    assert operands == (named, matrix.data_ptr())
    assert shape == {"extents": (64, 5, 3), "strides": (384, 128), "box": (64, 16, 2)}
