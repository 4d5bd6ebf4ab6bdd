"""Layers of the package's networks as the Triton backend sees them."""

import torch
from torch import Tensor

from ttfs_kernels.checks import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton.problem import Problem
from ttfs_triton.nn import Stage, network_graph, networks


def network_layers(
    model: str, batch: int, dtype: torch.dtype
) -> tuple[list[tuple[str, Problem]], list[tuple[str, Problem]]]:
    """Names and problems of a network's spiking layers at σ = 1, and of its encoder.

    `model` is a function of `ttfs_triton.nn.networks`. It runs on the meta device: no memory, no GPU.
    """
    with torch.device("meta"):
        network = getattr(networks, model)()
    found: dict[str, list[tuple[str, Problem]]] = {"spiking": [], "analog": []}

    def fire(stage: Stage, x: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind in found:
            layer, neuron = stage.weighted, Neuron(float(stage.kind == "spiking"))
            geometry = Geometry(**layer.geometry) if layer.geometry else None
            found[stage.kind].append((stage.name, Problem.of(x.to(dtype), layer.weight, geometry, neuron)))
        return torch.empty(batch, *stage.shape, device="meta")

    network_graph(network).run(torch.empty(batch, *network.image_shape, device="meta"), fire)
    return found["spiking"], found["analog"]
