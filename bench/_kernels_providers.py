"""The providers that `kernels.py` compares: a layer as a function, its passes, and their numbers of contractions."""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from train_step import fire_by_cases, normalise

from ttfs_kernels import Neuron, Normalisation, dft_conv2d, dft_linear, normalised_conv2d
from ttfs_kernels.triton.problem import Problem

Provider = Literal["triton", "torch", "composed", "composed-compiled", "ann-compiled", "ann"]
MARKS: dict[Provider, tuple[str, str]] = {  # colours (Okabe and Ito's) and markers of the picture
    "triton": ("#D55E00", "D"),
    "torch": ("#0072B2", "o"),
    "composed": ("#009E73", "s"),
    "composed-compiled": ("#009E73", "^"),
    "ann-compiled": ("#7A7A7A", "^"),
    "ann": ("#7A7A7A", "|"),
}
PLAIN, NORM = ("forward", "grad_x", "grad_w"), ("norm_forward", "norm_backward")
# By pass: operands (x, weight, γ, β) with a gradient; contractions of a spiking layer, and of the ANN.
PASSES = {
    "forward": ((1,), 2, 1),
    "grad_x": ((0,), 1, 1),
    "grad_w": ((1,), 2, 1),
    "norm_forward": ((0, 1, 2, 3), 2, 1),
    "norm_backward": ((0, 1, 2, 3), 3, 2),
}


class Functions:
    """A layer as a function of x, weight and, with batch norm, γ and β; one function per provider."""

    def __init__(self, problem: Problem, sigma: float) -> None:
        self.sigma, self.neuron = sigma, Neuron(sigma, derivative_clip=None)
        self.geometry = None if problem.is_matrix_product else problem.geometry._asdict()

    def of(self, provider: str) -> Callable[..., Tensor]:
        if provider in ("torch", "triton"):
            return partial(self.ours, provider)
        function = self.ann if provider.startswith("ann") else self.composed
        return torch.compile(function, dynamic=False) if provider.endswith("-compiled") else function

    def ours(self, backend: str, x: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        options: dict[str, Any] = {"neuron": self.neuron, "backend": backend}
        if self.geometry is None:
            return dft_linear(x, weight, **options)
        if not norm:
            return dft_conv2d(x, weight, **self.geometry, **options)
        how = Normalisation(norm[0], norm[1], torch.zeros_like(norm[0]))
        return normalised_conv2d(x, weight, how, **self.geometry, **options).activations

    def contract(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight) if self.geometry is None else F.conv2d(x, weight, **self.geometry)

    def potentials(self, x: Tensor, weight: Tensor, *norm: Tensor) -> tuple[Tensor, Tensor]:
        """(A, W) of the composition."""
        A, W = self.contract(x, weight), self.sigma * self.contract((x > 0).to(x.dtype), weight)
        return normalise(A, W, SimpleNamespace(weight=norm[0], bias=norm[1], eps=1e-5)) if norm else (A, W)

    def composed(self, x: Tensor, *others: Tensor) -> Tensor:
        return fire_by_cases(*self.potentials(x, *others)).to(x.dtype)

    def potential(self, x: Tensor, weight: Tensor, *norm: Tensor) -> Tensor:
        """A of the ANN."""
        A = self.contract(x, weight)
        return F.batch_norm(A, None, None, *norm, training=True, eps=1e-5) if norm else A

    def ann(self, *operands: Tensor) -> Tensor:
        return F.hardtanh(self.potential(*operands), 0.0, 1.0)


def prepare(which: str, function: Callable[..., Tensor], operands: Sequence[Tensor], grad: Tensor) -> Callable[[], Any]:
    """A function that runs a pass and returns its results; for a backward pass, the forward pass has been run."""
    learning = PASSES[which][0]
    leaves = [operand.detach().requires_grad_(index in learning) for index, operand in enumerate(operands)]
    if which.endswith("forward"):
        return lambda: (function(*leaves),)
    y, wanted = function(*leaves), [leaves[index] for index in learning]
    return lambda: torch.autograd.grad(y, wanted, grad, retain_graph=True)
