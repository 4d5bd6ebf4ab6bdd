"""Weight standardisation against its definition in float64: layouts, dtypes, gradients."""

import pytest
import torch
from torch import Tensor

from ttfs_kernels import ops, standardise_weight

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 8e-2}
SHAPES = ((3, 5), (4, 7, 3, 3), (2, 1500), (5, 1, 3, 3), (4, 6, 1, 1), (4, 3, 1, 2))


def by_definition(weight: Tensor, gain: Tensor) -> Tensor:
    flat = weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    norm = (centred.square().sum(1, keepdim=True) + ops.EPSILON).sqrt()
    return (gain[:, None] * centred / norm).view(weight.shape)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "scattered"])
@pytest.mark.parametrize("of_result", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_results_and_gradients_match_the_definition_in_float64(device, shape, dtype, of_result, layout):
    # Small numbers in random order, so that no neuron's weights are nearly equal: rounding would be enlarged.
    weight = torch.rand(shape).flatten(1).argsort(1).view(shape).to(device, dtype) % 16 / 8
    gain = torch.randn(shape[0]).to(device, dtype)
    if layout == "channels last" and weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    if layout == "scattered":
        weight, gain = (torch.stack([tensor] * 2, -1)[..., 0] for tensor in (weight, gain))
    operands = weight.requires_grad_(), gain.requires_grad_()
    result = standardise_weight(*operands, dtype=of_result)
    grad = torch.randn_like(result)
    gradients = torch.autograd.grad(result, operands, grad)
    precise = [tensor.detach().double().requires_grad_() for tensor in operands]
    expected = by_definition(*precise)
    expected = [expected, *torch.autograd.grad(expected, precise, grad.double())]
    kept = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    format_ = torch.channels_last if kept else torch.contiguous_format
    dtypes = of_result or dtype, dtype, dtype
    for tensor, wanted, kind in zip((result, *gradients), expected, dtypes, strict=True):
        assert tensor.dtype == kind
        assert tensor.dim() == 1 or tensor.is_contiguous(memory_format=format_)
        scale = wanted.abs().max().clamp_min(1)
        torch.testing.assert_close(tensor.double() / scale, wanted / scale, rtol=0, atol=TOLERANCE[kind])


def test_constant_neurons_give_zero_and_finite_gradients(device):
    weight = torch.full((2, 8), 0.25, device=device, requires_grad=True)
    for dtype in (torch.float32, torch.float16):
        result = standardise_weight(weight, torch.ones(2, device=device), dtype=dtype)
        assert not result.any()
        assert torch.autograd.grad(result.sum(), weight)[0].isfinite().all()
