"""Layers of the package's networks as the Triton backend sees them."""

from itertools import pairwise

import torch
from torch import Tensor

from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend.problem import Problem
from ttfs_triton.nn import Stage, network_graph, networks
from ttfs_triton.nn.models import computes_pool
from ttfs_triton.nn.weighted import WeightedConv2d


def network_layers(
    model: str, batch: int, dtype: torch.dtype
) -> tuple[list[tuple[str, Problem]], list[tuple[str, Problem]]]:
    """Names and problems of a network's spiking layers at σ = 1, with the pools that they compute, and of its encoder.

    `model` is a function of `ttfs_triton.nn.networks`. It runs on the meta device: no memory, no GPU.
    """
    with torch.device("meta"):
        network = getattr(networks, model)()
    layers = pairwise(network.features.named_children())
    computed = {name for (name, layer), (_, following) in layers if computes_pool(layer, following)}
    found: dict[str, list[tuple[str, Problem]]] = {"spiking": [], "analog": []}

    def fire(stage: Stage, x: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind in found:
            layer, neuron, pool = stage.weighted, Neuron(float(stage.kind == "spiking")), 1 + (stage.name in computed)
            geometry = Geometry(**layer.geometry) if isinstance(layer, WeightedConv2d) else None
            found[stage.kind].append((stage.name, Problem.of(x.to(dtype), layer.weight, geometry, neuron, pool)))
        return torch.empty(batch, *stage.shape, device="meta")

    network_graph(network).run(torch.empty(batch, *network.image_shape, device="meta"), fire)
    return found["spiking"], found["analog"]
