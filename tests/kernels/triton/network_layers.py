"""Layers of the package's networks as the Triton backend sees them."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron
from ttfs_kernels.triton_backend.problem import Problem
from ttfs_triton.nn import DFTConv2d, DFTLinear, networks
from ttfs_triton.nn.models import computes_pool
from ttfs_triton.nn.weighted import WeightedConv2d, WeightedLayer


def network_layers(
    model: str, batch: int, dtype: torch.dtype
) -> tuple[list[tuple[str, Problem]], list[tuple[str, Problem]]]:
    """Names and problems of a network's spiking layers at σ = 1, with the pools that they compute, and of its encoder.

    `model` is a function of `ttfs_triton.nn.networks`. It runs on the meta device: no memory, no GPU.
    """
    with torch.device("meta"):
        network = getattr(networks, model)()
    spiking: list[tuple[str, Problem]] = []
    analog: list[tuple[str, Problem]] = []
    layers = list(network.features.named_children())
    computed = {pair[0][0] for pair in pairwise(layers) if computes_pool(pair[0][1], pair[1][1])}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if isinstance(module, WeightedLayer):
                spikes = isinstance(module, DFTConv2d | DFTLinear)
                x, neuron = inputs[0].to(dtype), Neuron(float(spikes))
                geometry = None
                if isinstance(module, WeightedConv2d):
                    geometry = Geometry(module.stride, module.padding, module.dilation, module.groups)
                problem = Problem.of(x, module.weight, geometry, neuron, 2 if name in computed else 1)
                (spiking if spikes else analog).append((name, problem))

        return hook

    for name, module in layers:
        module.register_forward_hook(note(name))  # a hook also keeps a layer from computing the pool behind it
    config = network.config
    network.hidden(torch.empty(batch, config.in_channels, *config.image_size, device="meta"))
    return spiking, analog
