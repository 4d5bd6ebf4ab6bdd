"""Weight standardisation against its definition in float64: layouts, dtypes, gradients."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ttfs_kernels import ops, standardise_weight

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = ((3, 5), (4, 7, 3, 3), (2, 1500), (5, 1, 3, 3), (4, 6, 1, 1), (4, 3, 1, 2), (1, 2))
LAYOUTS = ("contiguous", "channels last", "scattered")


def layer(shape, device="cpu", dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    """Weights with a mean, and gains, that ask for gradients."""
    weight, gain = (torch.randn(shape) + 0.3).to(device, dtype), torch.randn(shape[0]).to(device, dtype)
    if layout == "channels last" and weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    if layout == "scattered":
        weight, gain = (torch.stack([tensor] * 2, -1)[..., 0] for tensor in (weight, gain))
    return weight.requires_grad_(), gain.requires_grad_()


def by_definition(weight: Tensor, gain: Tensor) -> Tensor:
    flat = weight.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    norm = (centred.square().sum(1, keepdim=True) + ops.EPSILON).sqrt()
    return (gain[:, None] * centred / norm).view(weight.shape)


def conditioning(weight: Tensor, gain: Tensor) -> float:
    """By how much rounding errors of gradients may grow: gain/‖w − mean‖ · ‖w‖/‖w − mean‖, at least 1."""
    flat = weight.flatten(1)
    norm = (flat - flat.mean(1, keepdim=True)).norm(dim=1)
    return max(1.0, (gain.abs() / norm * flat.norm(dim=1) / norm).max().item())


@given(
    shape=st.sampled_from(SHAPES)
    | st.tuples(st.integers(1, 9), st.integers(2, 5), st.integers(1, 3), st.integers(1, 3)),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    of_result=st.sampled_from([None, torch.float16, torch.bfloat16]),
    expanded=st.booleans(),
)
def test_layers_match_the_definition(device, shape, layout, dtype, of_result, expanded):
    """Results and gradients, against float64, by autograd through the definition.

    expanded: the gradient is that of one neuron, expanded.
    """
    weight, gain = layer(shape, device, dtype, layout)
    result = standardise_weight(weight, gain, dtype=of_result)
    grad = torch.randn_like(result[0]).expand_as(result) if expanded else torch.randn_like(result)
    ours = torch.autograd.grad(result, (weight, gain), grad)
    precise = [tensor.detach().double().requires_grad_() for tensor in (weight, gain)]
    wanted = by_definition(*precise)
    wanted = [wanted, *torch.autograd.grad(wanted, precise, grad.double())]
    factor, kinds = conditioning(*precise), (of_result or weight.dtype, weight.dtype, gain.dtype)
    kept = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if kept else torch.contiguous_format
    for tensor, expected, kind in zip((result, *ours), wanted, kinds, strict=True):
        tolerance = TOLERANCE[kind] * (1 if tensor is result else 5)
        assert tensor.dtype == kind
        assert tensor.dim() == 1 or tensor.is_contiguous(memory_format=layout)
        torch.testing.assert_close(tensor.double(), expected, rtol=tolerance, atol=tolerance * factor)


def test_constant_neurons_give_zero_and_finite_gradients(device):
    weight = torch.full((2, 8), 0.25, device=device, requires_grad=True)
    for dtype in (torch.float32, torch.float16):
        result = standardise_weight(weight, torch.ones(2, device=device), dtype=dtype)
        assert not result.any()
        assert torch.autograd.grad(result.sum(), weight)[0].isfinite().all()
