"""Layers that scripts measure, number formats that GPUs multiply in, and the launches of a pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _bench as bench
import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton.problem import Problem

SHAPES = bench.ROOT / "bench" / "shapes.json"  # layers of the networks
Number = Literal["bf16", "fp16", "tf32", "fp32"]
WIDE = 2**31  # number of elements from which offsets exceed 32 bits
SURROGATE_WIDTH = 0.5  # as in the recipes; all widths above 0 compile alike


class Format(NamedTuple):
    """A number format: dtype, and for float32 the precision of products, "ieee" or "tf32"."""

    name: str
    dtype: torch.dtype
    precision: str


FORMATS: dict[Number, Format] = {
    "bf16": Format("bfloat16", torch.bfloat16, "ieee"),
    "fp16": Format("float16", torch.float16, "ieee"),
    "tf32": Format("tf32", torch.float32, "tf32"),
    "fp32": Format("float32", torch.float32, "ieee"),
}


@dataclass(frozen=True)
class Layer:
    """A layer to measure."""

    name: str  # kernel size, input and output channels, side of the maps; "c" is a convolution, "f" fully connected
    networks: tuple[str, ...]  # names of the networks' layers that have this shape
    fields: dict[str, Any]  # fields of `Problem`, without batch and dtype
    wide: bool = False  # whether the batch is so large that offsets into activations exceed 32 bits
    skip: bool = False  # whether its neurons have a synapse for a skip

    @property
    def has_norm(self) -> bool:
        """Whether the layer's networks have batch norm; either all of them have it, or none."""
        return any(name.startswith("cifarnet") for name in self.networks)

    def problem(
        self, batch: int, number: Number, sigma: float, *, surrogate: bool = False, shared: bool = False
    ) -> Problem:
        if self.wide:
            image = self.fields["height"] * self.fields["width"] * self.fields["in_channels"]
            batch = max(batch, -(-WIDE // image))
        settings = {"batch": batch, "with_slope": sigma > 0, "surrogate": surrogate and sigma > 0}
        settings["shared"] = shared and sigma > 0
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.fields.items()
        }
        return Problem(**plain | settings, dtype=FORMATS[number].dtype)


def load(path: Path) -> list[Layer]:
    """Layers of a file: a list of objects with `name`, optionally `layers`, `wide`, `skip`, and fields of `Problem`.

    Raises:
        ValueError, KeyError, TypeError: the file is not such a list; OSError: it cannot be read.
    """
    layers = []
    for fields in json.loads(path.read_text(encoding="utf-8")):
        name, networks = fields.pop("name"), tuple(fields.pop("layers", ()))
        layers.append(Layer(name, networks, fields, fields.pop("wide", False), fields.pop("skip", False)))
        layers[-1].problem(1, "fp32", 1.0)  # refuses unknown fields
    return layers


@contextmanager
def products(number: Number) -> Iterator[None]:
    """A context in which float32 products, ours and the libraries', have the precision of a number format."""
    convolutions: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009  (type checkers do not know it)
    switches = (torch.backends.cuda.matmul, convolutions)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = FORMATS[number].precision
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision


def neuron_of(problem: Problem) -> Neuron:
    """The neuron that a problem's flags stand for: the paper's, or at σ = 0 a clamped ReLU."""
    width = SURROGATE_WIDTH if problem.surrogate else 0.0
    return Neuron(float(problem.with_slope), surrogate_width=width, split_gradient=float(not problem.shared))


def plan_pass(which: str, problem: Problem, config: Any, skip: bool = False) -> list[Any]:
    """All `common.Launch`es of a pass with a bias and gradients, on the meta device: needs no memory and no GPU.

    Args:
        which: "forward" or, with batch norm, "normalised", all launches that precede grad_x; "inference"; "grad_x"; or
            "grad_w".
        problem, config: the layer, and the blocks of its contraction.
        skip: whether neurons have a synapse for a skip.
    """
    from ttfs_kernels.triton import common, contractions, grad_input, neurons

    def empty(*shape: int, dtype: torch.dtype = problem.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    neuron, precise, norm = neuron_of(problem), torch.float32, which == "normalised"
    x = empty(problem.batch, problem.height, problem.width, problem.in_channels)
    weight = empty(problem.out_channels, *problem.kernel, problem.group_inputs)
    grad, channels = empty(*problem.out_shape), empty(problem.out_channels, dtype=precise)
    pair = empty(1 + (problem.with_slope and not problem.shared), *grad.shape)
    with common.planned() as launches:
        if which == "inference":
            contractions.contract_and_fire(problem, x, weight, config, channels, neuron)
        elif which == "grad_x":
            grad_input.gradient_of_input(problem, pair, x, weight, config, neuron)
        elif which == "grad_w":
            contractions.gradient_of_weight(problem, pair, x, config, neuron)
        else:
            dtype, measured = (x.dtype, neuron) if norm else (precise, None)
            A, W, parts = contractions.contract(problem, x, weight, config, dtype, measured)
            statistics = None if parts is None else neurons.statistics_of(parts, channels, channels, 1e-5, None)
            skipped = (grad, channels) if skip else (None, None)
            layer = neurons.Neurons(A, W, statistics, None if norm else channels, *skipped)
            neurons.fire_neurons(layer, neuron, problem.dtype)
            totals = neurons.differentiate(layer, neuron, grad, 0 if norm else len(pair), sums=1 + norm + skip)[1]
            if norm:
                neurons.differentiate(layer, neuron, grad, len(pair), totals)
    return launches


def useful_flops(problem: Problem) -> int:
    """Operations of one contraction: two per synapse that lies on the map, not on its padding."""
    taps = 1
    for axis, size in enumerate((problem.height, problem.width)):
        step, padding, gap = problem.stride[axis], problem.padding[axis], problem.dilation[axis]
        positions, kernel = range(problem.out_size[axis]), range(problem.kernel[axis])
        taps *= sum(0 <= position * step - padding + tap * gap < size for position in positions for tap in kernel)
    return 2 * problem.batch * taps * problem.group_inputs * problem.out_channels
