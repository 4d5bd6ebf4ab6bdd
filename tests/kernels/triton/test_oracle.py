"""`backend="triton"` against neurons in float64, one after the other: usual values, forward pass and gradients.

Potentials are summed in float32, so a neuron within rounding of a firing border may take the case beside its own.
Such neurons are counted apart, and get no gradient here.
"""

import dataclasses
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels import oracle
from tests.kernels.common import activations, away_from_borders, weights
from tests.kernels.triton.common import convolutions, examples
from ttfs_kernels import Neuron, dft_conv2d, dft_linear

DTYPES = st.sampled_from([torch.float32, torch.float16])
PERSISTENCES = st.sampled_from([1.0, 0.3, 0.0])
CLIPS = st.sampled_from([None, 11.0, 0.5])
BORDER = 1e-4  # distance, in threshold heights, within which float32 sums may decide otherwise


def tolerance(dtype: torch.dtype, terms: int) -> dict[str, float]:
    """Of a sum of `terms` products that is rounded to a dtype."""
    eps = torch.finfo(dtype).eps
    if dtype == torch.float32:
        return {"rtol": 1e-4, "atol": 1e-4}
    return {"rtol": 6e-3 if terms < 1024 else 1.2e-2, "atol": max(8 * eps, 10 * eps * math.sqrt(terms))}


def case(y: Tensor) -> Tensor:
    """0 silent, 1 crosses inside the window, 2 saturated."""
    return (y > 0).int() + (y >= 1).int()


def check(y: Tensor, tensors: tuple[Tensor, Tensor, Tensor | None], neurons, persistence: float, clip: float | None):
    """Compare activations and all gradients of one layer with the oracle."""
    weight = tensors[1]
    arrays = [None if t is None else t.detach().cpu().double().numpy() for t in tensors]
    fan_in = max(1, weight[0].numel())

    def expect(grad: Tensor) -> oracle.Expected:
        derivative_clip = math.inf if clip is None or persistence == 0 else clip
        options = {"psp_persistence": persistence, "derivative_clip": derivative_clip}
        return oracle.layer(neurons(), *arrays, grad.double().numpy(), **options)

    grad = torch.randn(y.shape).to(y.dtype)
    grad = away_from_borders(grad, expect(grad))
    expected = expect(grad)
    expected_y = torch.from_numpy(expected.activations)
    near = torch.from_numpy(expected.margin) < BORDER
    ours = y.detach().cpu().double()
    torch.testing.assert_close(ours[~near], expected_y[~near], **tolerance(y.dtype, fan_in))
    if y.dtype == torch.float32:
        disagree = case(ours) != case(expected_y)
        assert not disagree[~near].any()
        assert disagree.sum() <= 1 + 0.01 * disagree.numel()

    wanted = [t for t in tensors if t is not None]
    gradients = torch.autograd.grad(y, wanted, grad.to(y.device))
    terms = (weight.shape[0] * fan_in, max(1, y.numel() // weight.shape[0]), max(1, y.numel() // weight.shape[0]))
    for tensor, gradient, array, count in zip(
        wanted, gradients, (expected.grad_x, expected.grad_weight, expected.grad_bias), terms, strict=False
    ):
        assert gradient.dtype == tensor.dtype
        torch.testing.assert_close(gradient.cpu().double(), torch.from_numpy(array), **tolerance(y.dtype, count))


@examples(40)
@given(
    rows=st.sampled_from([0, 1, 3, 17, 65]),
    inputs=st.sampled_from([1, 3, 17, 65]),
    outputs=st.sampled_from([1, 3, 17]),
    dtype=DTYPES,
    has_bias=st.booleans(),
    persistence=PERSISTENCES,
    clip=CLIPS,
)
def test_linear_matches_float64(device, rows, inputs, outputs, dtype, has_bias, persistence, clip):
    torch.manual_seed(0)
    x = activations(rows, inputs, dtype=dtype).to(device).requires_grad_()
    weight = weights(outputs, inputs, dtype=dtype).to(device).requires_grad_()
    bias = (torch.randn(outputs) / 2).to(device, dtype).requires_grad_() if has_bias else None
    y = dft_linear(x, weight, bias, neuron=Neuron(persistence, clip), backend="triton")

    def neurons():
        return oracle.linear_neurons((rows, inputs), (outputs, inputs))

    check(y, (x, weight, bias), neurons, persistence, clip)


@examples(40)
@given(
    problem=convolutions(),
    dtype=DTYPES,
    has_bias=st.booleans(),
    persistence=PERSISTENCES,
    clip=CLIPS,
    channels_last=st.booleans(),
)
def test_conv2d_matches_float64(device, problem, dtype, has_bias, persistence, clip, channels_last):
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x_shape = (problem.batch, problem.in_channels, problem.height, problem.width)
    weight_shape = (problem.out_channels, problem.group_inputs, *problem.kernel)
    x = activations(*x_shape, dtype=dtype).to(device).contiguous(memory_format=layout).requires_grad_()
    weight = weights(*weight_shape, dtype=dtype).to(device).contiguous(memory_format=layout).requires_grad_()
    bias = (torch.randn(problem.out_channels) / 2).to(device, dtype).requires_grad_() if has_bias else None
    geometry = dataclasses.asdict(problem)
    y = dft_conv2d(
        x,
        weight,
        bias,
        **{key: geometry[key] for key in ("stride", "padding", "dilation", "groups")},
        neuron=Neuron(persistence, clip),
        backend="triton",
    )
    assert y.is_contiguous(memory_format=torch.channels_last)

    def neurons():
        return oracle.conv2d_neurons(x_shape, weight_shape, *problem.geometry)

    check(y, (x, weight, bias), neurons, persistence, clip)
