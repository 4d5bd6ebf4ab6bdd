"""A network built from a configuration."""

from typing import Any

import torch
from torch import Tensor, nn

from ttfs_kernels.backends import check_name
from ttfs_triton.nn.builder import LayerBuilder
from ttfs_triton.nn.chip import put_on_grid
from ttfs_triton.nn.config import NetworkConfig
from ttfs_triton.nn.folding import fold_batch_norm, fold_weight_standardisation
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.layers import DFTConv2d, DFTLinear
from ttfs_triton.nn.pooling import EarliestSpikePool2d
from ttfs_triton.nn.readout import FirstSpikeDecision
from ttfs_triton.nn.statistics import SpikeCounter
from ttfs_triton.nn.weighted import WeightedLayer


class TTFSNetwork(nn.Module):
    """A feed-forward network with time-to-first-spike coding: one spike per neuron, one window per layer.

    Input [N, in_channels, height, width] floating point images, output [N, classes] logits. Weights and activations of
    convolutions are channels last throughout; the input is converted once.

    Args:
        config: the network; also kept as the attribute `config`.
        backend: of the spiking layers on this machine: "auto", "torch" or "triton"; see `ttfs_kernels.dft_linear`.
    Attributes:
        features: hidden layers by name ("conv1", "pool1", ..., "fc1"), each with a `SpikeCounter`.
        readout: `PotentialReadout` or `FirstSpikeReadout`.
    Raises:
        ValueError: an unknown backend, or images that are too small for the layers; the message names the token.
    Example:
        >>> network = TTFSNetwork(NetworkConfig("16C5-P2-128", image_size=(28, 28), classes=10))
        >>> images = torch.rand(8, 1, 28, 28)
        >>> network(images).shape  # logits: train them with cross entropy
        torch.Size([8, 10])
        >>> network.decide(images).spike_times.shape  # let the output neurons fire
        torch.Size([8, 10])
    """

    def __init__(self, config: NetworkConfig, *, backend: str = "auto") -> None:
        super().__init__()
        check_name("TTFSNetwork", backend)
        self.config = config
        built = LayerBuilder(config)
        self._waits = built.waits
        self._longest_wait = max(self._waits.values(), default=0)
        self.features = nn.Sequential(built.layers)
        self.readout = built.readout()
        self.readout.statistics = SpikeCounter((config.classes,))
        for layer in self.features:
            if isinstance(layer, DFTConv2d | DFTLinear):
                layer.backend = backend
        put_on_grid(self, config.grid)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image: (channels, height, width)."""
        return (self.config.in_channels, *self.config.image_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.readout(self.hidden(images))

    def hidden(self, images: Tensor) -> Tensor:
        """Activations [N, features] of the last hidden layer."""
        expected = self.image_shape
        if images.dim() != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"TTFSNetwork: images must have shape [N, {', '.join(map(str, expected))}]; got {tuple(images.shape)}. "
                "Set in_channels and image_size in the configuration."
            )
        activations = images.contiguous(memory_format=torch.channels_last)
        names, layers = zip(*self.features.named_children(), strict=True)
        entered: list[Tensor] = []  # inputs of the last layers with weights, which skips may still read
        pooled = False
        for name, layer, following in zip(names, layers, (*layers[1:], None), strict=True):
            if pooled:
                pooled = False
                continue
            options: dict[str, Any] = {}
            if isinstance(layer, WeightedLayer):
                entered = [*entered, activations][-1 - self._longest_wait :]
                if name in self._waits:
                    options["skip"] = entered[-1 - self._waits[name]]
            pooled = computes_pool(layer, following)
            if pooled:
                options["pool"] = 2
            activations = layer(activations, **options)
        return activations

    def decide(self, images: Tensor) -> FirstSpikeDecision:
        """Classify images by the earliest output spike, whichever readout the network was trained with."""
        return self.readout.decide(self.hidden(images))

    def put_on_grid(self, grid: Grid | None) -> None:
        """Compute on a chip's grid from now on, or on none; the units of weights are those that fit them best.

        Batch norm is folded first.
        """
        if grid is not None:
            self.fold_batch_norm()
        self.config = self.config.replace(grid=grid)
        put_on_grid(self, grid)

    def fold_batch_norm(self) -> None:
        """Fold every layer, as `ttfs_triton.nn.fold_batch_norm` does, and note it in the configuration."""
        if not self.config.batch_norm:
            return
        fold_batch_norm(self.features)
        if self.readout.bias is None:
            self.readout.bias = nn.Parameter(torch.zeros_like(self.readout.weight[:, 0]))
        fold_weight_standardisation(self.readout)
        self.config = self.config.replace(batch_norm=False, weight_standardisation=False, bias=True)

    def fold_standardisation(self) -> None:
        """Fold every layer, as `fold_weight_standardisation` does, and note it in the configuration."""
        fold_weight_standardisation(self.features)
        fold_weight_standardisation(self.readout)
        self.config = self.config.replace(weight_standardisation=False)


def computes_pool(layer: nn.Module, following: nn.Module | None) -> bool:
    """Whether a layer computes the pool behind it; not while its own spikes are counted or read by a hook."""
    if not (isinstance(layer, DFTConv2d) and isinstance(following, EarliestSpikePool2d)) or layer.skip:
        return False
    if layer.grid is not None or (layer.training and layer.faults):
        return False
    if following.kernel_size != (2, 2) or following.stride != (2, 2):
        return False
    counted = layer.statistics is not None and layer.statistics.recording
    return not (counted or layer._forward_hooks or following._forward_hooks or following._forward_pre_hooks)
