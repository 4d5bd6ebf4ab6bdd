"""Random layers of every kind, the backends that compute them, and the results that the float64 oracle expects."""

import math
from importlib.util import find_spec
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels import oracle
from ttfs_kernels import Neuron, Normalisation, dft_conv2d, dft_linear, normalised_conv2d, normalised_linear
from ttfs_kernels.checks import Geometry

HAS_TRITON = find_spec("triton") is not None
NAMES = ("x", "weight", "bias", "skip", "skip_weight")
Operands = dict[str, Tensor]  # by name; leaves that ask for gradients


class Kind(NamedTuple):
    """Shapes of a layer: a convolution, or without geometry a fully connected one."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    geometry: Geometry | None = None

    @property
    def out(self) -> tuple[int, ...]:
        size = () if self.geometry is None else self.geometry.map_size(self.x[2:], self.weight[2:])
        return self.x[0], self.weight[0], *size


LINEAR = Kind((5, 7), (6, 7))
CONV2D = Kind((2, 4, 6, 5), (6, 4, 3, 3), Geometry((1, 1), (0, 0), (1, 1), 1))
UNEVEN = Kind((2, 4, 7, 6), (6, 2, 3, 2), Geometry((2, 1), (1, 0), (1, 2), 2))
KINDS = pytest.mark.parametrize("kind", [LINEAR, CONV2D], ids=["linear", "conv2d"])
PERSISTENCES = pytest.mark.parametrize("psp_persistence", [0.0, 0.25, 1.0])


@st.composite
def convolutions(
    draw: st.DrawFn,
    batches: tuple[int, ...] = (0, 1, 2),
    channels: tuple[int, ...] = (1, 3, 16, 17),
    groups: tuple[int, ...] = (1, 1, 2, 5),
    slack: int = 3,
) -> Kind:
    """Any geometry, on maps that are up to `slack` larger than the dilated kernel; channels are those of a group."""
    group = draw(st.sampled_from(groups))
    inputs, outputs = (draw(st.sampled_from(channels)) for _ in range(2))
    choices = (1, 2, 3), (1, 1, 1, 2, 3), (0, 1, 2, 3), (1, 1, 1, 2, 3)
    kernel, stride, padding, dilation = (draw(st.tuples(*2 * [st.sampled_from(sizes)])) for sizes in choices)
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in (0, 1)]
    size = (draw(st.integers(side, side + slack)) for side in least)
    maps = (draw(st.sampled_from(batches)), group * inputs, *size)
    return Kind(maps, (group * outputs, inputs, *kernel), Geometry(stride, padding, dilation, group))


@st.composite
def linears(draw: st.DrawFn) -> Kind:
    """Fully connected layers, narrower and wider than the blocks of kernels."""
    rows, inputs, outputs = (draw(st.sampled_from(sizes)) for sizes in ((0, 1, 17, 65), (1, 17, 65), (1, 16, 33)))
    return Kind((rows, inputs), (outputs, inputs))


class Served(NamedTuple):
    """A backend, "torch" or "triton", as the operators' argument names it, and its device."""

    name: str
    device: torch.device


def serving(name: str, device: torch.device) -> Served:
    """The backend on the device that it is tested on."""
    return Served(name, torch.device("cpu") if name == "torch" else device)


def activations(*shape: int, dtype: torch.dtype = torch.float32, silent: float = 0.4, saturated: float = 0.1) -> Tensor:
    """Some silent, some saturated, the others uniform in [0, 1]."""
    kind = torch.rand(shape)
    return torch.where(kind < silent, 0.0, torch.where(kind < silent + saturated, 1.0, torch.rand(shape))).to(dtype)


def weights(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random weights, scaled so that some neurons saturate, some cross inside the window and some stay silent."""
    fan_in = max(1, torch.Size(shape[1:]).numel())
    return (1.2 * torch.randn(shape) / fan_in**0.5).to(dtype)


def operands(
    kind: Kind,
    *names: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    exact: bool = False,
    **how: float,
) -> Operands:
    """Random operands with these names, by default x, weight and bias; `how` goes to `activations`.

    Activations and weights that are `exact` are multiples of 1/8, whose sums are not rounded.
    """
    values = {
        "x": activations(*kind.x, **how),
        "weight": weights(*kind.weight),
        "bias": torch.randn(kind.weight[0]) / 2,
        "skip": activations(*kind.out, **how),
        "skip_weight": torch.randn(kind.weight[0]),
        "gamma": 0.3 + torch.rand(kind.weight[0]),  # of batch norm
    }
    chosen = {name: values[name] for name in names or NAMES[:3]}
    if exact:
        chosen |= {name: (8 * t).round().clamp(-4, 8) / 8 for name, t in chosen.items() if t.dim() > 1}
    return {name: value.to(device, dtype).requires_grad_() for name, value in chosen.items()}


def apply(kind: Kind, tensors: Operands, served: Served | None = None, *, estimate: float = 0.0, **options: Any) -> Any:
    """Activations of the layer; `Normalised` if an operand is γ of batch norm."""
    options |= {} if served is None else {"backend": served.name}
    options |= {} if kind.geometry is None else kind.geometry._asdict()
    if "gamma" not in tensors:
        return (dft_linear if kind.geometry is None else dft_conv2d)(**tensors, **options)
    others = dict(tensors)
    x, weight, gamma, beta = (others.pop(name) for name in ("x", "weight", "gamma", "bias"))
    norm = Normalisation(gamma, beta, torch.full_like(gamma, estimate))
    layer = normalised_linear if kind.geometry is None else normalised_conv2d
    return layer(x, weight, norm, **others, **options)


def results(kind: Kind, tensors: Operands, served: Served | None = None, **options: Any) -> list[Tensor]:
    """Activations, statistics of batch norm if it has any, and all gradients of half the activations' squares' sum."""
    outputs = apply(kind, tensors, served, **options)
    y, *statistics = [outputs] if isinstance(outputs, Tensor) else outputs
    return [y, *statistics, *torch.autograd.grad(y.float().square().sum() / 2, list(tensors.values()))]


def leaves(tensors: Operands) -> Operands:
    """The same values, asking for gradients of their own."""
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def expected(kind: Kind, tensors: Operands, grad: Tensor, neuron: Neuron) -> oracle.Expected:
    """The layer's expected results, computed neuron by neuron in float64."""
    clip = neuron.derivative_clip
    if kind.geometry is None:
        neurons = oracle.linear_neurons(kind.x, kind.weight)
    else:
        neurons = oracle.conv2d_neurons(kind.x, kind.weight, *kind.geometry)
    return oracle.layer(
        neurons,
        {name: tensor.detach().cpu().double().numpy() for name, tensor in tensors.items()},
        grad.cpu().double().numpy(),
        psp_persistence=neuron.psp_persistence,
        derivative_clip=math.inf if clip is None or not neuron.has_slope else clip,
        surrogate_width=neuron.surrogate_width if neuron.has_slope else 0.0,
        split_gradient=neuron.split_gradient,
    )
