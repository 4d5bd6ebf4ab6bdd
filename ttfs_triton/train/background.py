"""Neurons that nothing reaches: all of a channel fire together, and a goal may lie inside that jump.

Where images are empty, a convolution's neurons are left at the initial potential of their channel. When an update takes
it past 0, all of them begin to fire at once: one channel of CNN1 is 8 % of an activity of 0.3 on MNIST. A multiplier
then drives it to and fro over 0, so that the cost is right on average over the steps, and of no network in particular.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ttfs_triton.hardware.counts.synapses import neurons_reached
from ttfs_triton.nn import NetworkGraph, Stage

# A jump of a layer's spikes, by one channel, that is too large for a goal that is to be met within 2 %.
JUMP = 0.01


class Background:
    """Lets no channel begin to fire where nothing reaches it, while held; that it ceases to is always allowed.

    What is left of a cost is then continuous in the weights, but for jumps down. Everything happens on the device.

    Args:
        graph: of the network, on its device.
        images: [N, *image_shape] there, some that it is trained with.
    Attributes:
        layers: names of those of which a channel would jump by more than 1 % of what the layer fires now.
    """

    def __init__(self, graph: NetworkGraph, images: Tensor) -> None:
        self.layers: list[str] = []
        self._potentials: list[nn.Parameter] = []
        self._was_silent: list[Tensor] = []
        self._held = torch.zeros((), dtype=torch.bool, device=images.device)

        def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
            activations = stage.activations(inputs, skip)
            reached = neurons_reached(stage.weighted, inputs, skip) if stage.kind == "spiking" else None
            if reached is not None and stage.weighted.bias is not None:
                jump = (reached == 0).sum() / (activations > 0).sum().clamp_min(1)
                if jump > JUMP:
                    self.layers.append(stage.name)
                    self._potentials.append(stage.weighted.bias)
            return activations

        with torch.no_grad():
            graph.run(images, fire)

    def attach(self, optimizer: Optimizer) -> None:
        """Watch each step of the optimizer of these weights."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    def hold(self, held: bool) -> None:
        """Whether channels are held from now on; the host does not wait."""
        self._held.fill_(held)

    def _before(self, *_: object) -> None:
        self._was_silent = [(potential.detach() <= 0) & self._held for potential in self._potentials]

    @torch.no_grad()
    def _after(self, *_: object) -> None:
        for potential, silent in zip(self._potentials, self._was_silent, strict=True):
            potential.copy_(torch.where(silent, potential.clamp_max(0), potential))
