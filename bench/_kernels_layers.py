"""Layers that scripts measure, number formats that GPUs multiply in, and the launches of a pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import _bench as bench
import torch
from torch import Tensor

from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend.planning import Config
from ttfs_kernels.triton_backend.problem import Problem

if TYPE_CHECKING:  # they import Triton, which need not be installed to list layers
    from ttfs_kernels.triton_backend.launch import Device
    from ttfs_kernels.triton_backend.passes import Plan

SHAPES = bench.ROOT / "bench" / "shapes.json"  # layers of the networks
Number = Literal["bf16", "fp16", "tf32", "fp32"]
WIDE = 2**31  # elements from which offsets exceed 32 bits
SURROGATE_WIDTH = 0.5  # as in the recipes; all widths above 0 compile alike


class Format(NamedTuple):
    """A dtype, and the precision of its products if it is float32, "ieee" or "tf32"."""

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
    networks: tuple[str, ...]  # layers of networks that have this shape
    fields: dict[str, Any]  # fields of `Problem`, without batch and dtype
    wide: bool = False  # whether the batch is so large that offsets into activations exceed 32 bits

    @property
    def has_norm(self) -> bool:
        """Whether the layer's networks have batch norm; if so, all of them."""
        return any(name.startswith("cifarnet") for name in self.networks)

    def problem(
        self, batch: int, number: Number, sigma: float, *, surrogate: bool = False, shared: bool = False
    ) -> Problem:
        if self.wide:
            image = self.fields["height"] * self.fields["width"] * self.fields["in_channels"]
            batch = max(batch, -(-WIDE // image))
        settings = {"batch": batch, "with_slope": sigma > 0, "surrogate": surrogate and sigma > 0}
        settings["shared"] = shared and sigma > 0
        return replace(Problem.from_dict(self.fields | settings), dtype=FORMATS[number].dtype)


def load(path: Path) -> list[Layer]:
    """Layers of a file: a list of objects with `name`, optionally `layers`, `wide`, and fields of `Problem`.

    Raises:
        ValueError, KeyError, TypeError: the file is not such a list; OSError: it cannot be read.
    """
    layers = []
    for fields in json.loads(path.read_text(encoding="utf-8")):
        name, networks = fields.pop("name"), tuple(fields.pop("layers", ()))
        layers.append(Layer(name, networks, fields, wide=fields.pop("wide", False)))
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


def plan_pass(which: str, problem: Problem, config: Config | None, precision: str, device: Device) -> Plan:
    """Launches of one pass with a bias and gradients, planned on the meta device: needs no memory and no GPU.

    Args:
        which: "forward", "grad_x", "grad_w"; "local_gradient", which precedes both gradients; or
            "normalised", all launches of a layer with batch norm that precede grad_x.
        problem: the layer.
        config: blocks; for "normalised" those of the forward pass; None for "local_gradient", whose blocks are always
            the same.
        precision: precision of float32 products, "ieee" or "tf32".
        device: device to plan for.
    """
    from ttfs_kernels.triton_backend import layer, passes
    from ttfs_kernels.triton_backend.normalisation import STATISTICS, Neurons

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=problem.dtype, device="meta")

    neuron = neuron_of(problem)
    h = empty(problem.batch, *problem.out_size, problem.out_channels)
    slope_h = h if problem.with_slope else None
    bias = torch.empty(problem.out_channels, device="meta")  # and weights of a skip
    if which == "local_gradient":
        delayed = (h, bias) if problem.skip else ()
        return passes.local_gradient(problem, h, h, slope_h, neuron, not problem.shared, True, *delayed)
    assert config is not None
    x = empty(problem.batch, problem.height, problem.width, problem.in_channels)
    weight = empty(problem.out_channels, *problem.kernel, problem.group_inputs)
    if which == "normalised":
        bare, late = replace(problem, skip=False), (h, bias) if problem.skip else (None, None)
        statistics = bias.new_empty(STATISTICS, problem.out_channels)
        neurons = Neurons(h, slope_h, statistics, *late)
        plans = (
            passes.forward(bare, x, weight, None, neuron, True, config, precision, device.chip, fires=False),
            layer.statistics_of(problem, (h, slope_h), bias, bias, 1e-5, neuron),
            layer.fire(problem, neurons, neuron),
            layer.reduce(problem, neurons, h, neuron),
            layer.spread(problem, neurons, h, statistics, neuron),
        )
        return passes.Plan([launch for plan in plans for launch in plan.launches], ())
    if which == "forward":
        skip = (h, bias) if problem.skip else ()
        return passes.forward(problem, x, weight, bias, neuron, True, config, precision, device.chip, *skip)
    slope_h = h if problem.contractions(which) == 2 else None
    if which == "grad_x":
        return passes.grad_x(problem, h, x, weight, config, precision, slope_h, neuron, device.processors)
    return passes.grad_w(problem, h, slope_h, x, config, precision, device, neuron)
