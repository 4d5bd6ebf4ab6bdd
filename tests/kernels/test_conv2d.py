"""`dft_conv2d` against neurons in float64: forward pass and all gradients, any geometry, both providers."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels import oracle
from tests.kernels.common import activations, assert_matches_oracle, away_from_borders, weights
from ttfs_kernels import Neuron, contraction, dft_conv2d

DTYPES = (torch.float64, torch.float32)


class Case(NamedTuple):
    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 3, 17]))
    channels = st.sampled_from([c for c in (1, 3, 17) if c % groups == 0])
    in_channels, out_channels = draw(channels), draw(channels)
    pairs = [draw(st.tuples(*2 * [st.sampled_from(values)])) for values in ((1, 3, 5), (1, 2), (0, 1, 2), (1, 2))]
    kernel, stride, padding, dilation = pairs
    smallest = [max(1, dilation[d] * (kernel[d] - 1) + 1 - 2 * padding[d]) for d in (0, 1)]
    size = [draw(st.integers(least, least + 3)) for least in smallest]
    x_shape = (draw(st.sampled_from([0, 1, 2])), in_channels, *size)
    return Case(x_shape, (out_channels, in_channels // groups, *kernel), stride, padding, dilation, groups)


@settings(max_examples=120)
@given(
    case=cases(),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
    psp_persistence=st.sampled_from([0.0, 0.25, 1.0]),
    derivative_clip=st.sampled_from([None, 11.0, 0.5]),
    channels_last=st.booleans(),
    columns=st.booleans(),
)
def test_conv2d_matches_float64(case, dtype, has_bias, psp_persistence, derivative_clip, channels_last, columns):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = activations(*case.x_shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    weight = weights(*case.weight_shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    bias = (torch.randn(weight.shape[0], dtype=dtype) / 2).requires_grad_() if has_bias else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contraction, "LARGEST_MAP", math.inf if columns else -1)
        patch.setattr(contraction, "WEIGHTS_PER_NEURON", dict.fromkeys(DTYPES, 0))
        y = dft_conv2d(
            x,
            weight,
            bias,
            stride=case.stride,
            padding=case.padding,
            dilation=case.dilation,
            groups=case.groups,
            neuron=Neuron(psp_persistence, derivative_clip),
        )
        assert y.is_contiguous(memory_format=torch.channels_last)
        arrays = [None if t is None else t.detach().double().numpy() for t in (x, weight, bias)]

        def expect(grad):
            return oracle.layer(
                oracle.conv2d_neurons(*case),
                *arrays,
                grad.double().numpy(),
                psp_persistence=psp_persistence,
                derivative_clip=math.inf if derivative_clip is None or psp_persistence == 0 else derivative_clip,
            )

        grad = torch.randn_like(y)
        if dtype == torch.float32:
            grad = away_from_borders(grad, expect(grad))
        assert_matches_oracle(y, (x, weight, bias), grad, expect(grad))


def test_conv2d_takes_integers_for_pairs():
    x, weight = activations(2, 3, 9, 9), weights(4, 3, 3, 3)
    ours = dft_conv2d(x, weight, stride=2, padding=1, dilation=2)
    assert torch.equal(ours, dft_conv2d(x, weight, stride=(2, 2), padding=[1, 1], dilation=torch.Size([2, 2])))


@pytest.mark.parametrize("psp_persistence", [0.25, 1.0])
def test_conv2d_gradcheck(psp_persistence):
    weight = weights(4, 3, 3, 3, dtype=torch.float64).requires_grad_()
    bias = torch.tensor([0.2, -0.1, 0.3, 0.0], dtype=torch.float64, requires_grad=True)
    # Inputs far enough from 0: a finite difference must not make a silent input fire.
    x = activations(2, 3, 5, 5, dtype=torch.float64, silent=0.0).clamp(0.1, 0.9).requires_grad_()
    expected = oracle.layer(
        oracle.conv2d_neurons(tuple(x.shape), tuple(weight.shape), (1, 1), (1, 1), (1, 1), 1),
        *(t.detach().numpy() for t in (x, weight, bias)),
        torch.zeros(2, 4, 5, 5).double().numpy(),
        psp_persistence=psp_persistence,
    )
    kept = torch.from_numpy(expected.margin) > 1e-3
    assert kept.float().mean() > 0.9

    def layer(x, weight, bias):
        y = dft_conv2d(x, weight, bias, padding=1, neuron=Neuron(psp_persistence, None))
        return y[kept]

    assert torch.autograd.gradcheck(layer, (x, weight, bias))
