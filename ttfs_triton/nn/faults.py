"""Faults of real chips: spikes that come late, early or never, disturbed weights, broken neurons.

In training, every step draws a new chip, and gradients pass through the spikes that remain. In the simulator, a seed
draws one chip, with its disturbed weights and broken neurons, and then the spike faults of every image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ttfs_triton.nn.grid import Clock, Grid
from ttfs_triton.nn.integers import straight_through
from ttfs_triton.shared_options import Faults

# Weight noise is clipped at this many standard deviations.
MOST_DEVIATIONS = 4.0


class BrokenNeurons(NamedTuple):
    """Bool masks of a layer's neurons for one image: `dead` ones never fire, `stuck` ones at the window's start."""

    dead: Tensor
    stuck: Tensor


def draw_broken(like: Tensor, faults: Faults, generator: torch.Generator | None = None) -> BrokenNeurons | None:
    """Draw the broken neurons of a layer, whose activations have the shape of `like`, [N, ...]; None without any."""
    if not faults.of_neurons:
        return None
    drawn = torch.rand(like.shape[1:], generator=generator, device=_device(like, generator)).to(like.device)
    return BrokenNeurons(drawn < faults.dead_neurons, drawn >= 1 - faults.stuck_neurons)


@torch.no_grad()
def disturbed(
    activations: Tensor,
    faults: Faults,
    broken: BrokenNeurons | None = None,
    clock: Clock | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Activations [N, ...] after spike faults and broken neurons, in a new tensor; with a clock, on time stamps.

    `generator` is on the CPU; without one, PyTorch's generator of the device draws.
    """
    spikes = activations.clone()
    device = _device(activations, generator)
    if faults.spike_jitter:
        noise = torch.randn(activations.shape, generator=generator, device=device).to(activations)
        spikes = torch.where(activations > 0, (activations + faults.spike_jitter * noise).clamp_(0, 1), 0.0)
        if clock is not None:
            spikes = clock.stamped(spikes).to(activations.dtype)
    if faults.lost_spikes:
        drawn = torch.rand(activations.shape, generator=generator, device=device).to(activations.device)
        spikes = spikes.masked_fill_(drawn < faults.lost_spikes, 0.0)
    if broken is not None:
        spikes = spikes.masked_fill_(broken.dead, 0.0).masked_fill_(broken.stuck, 1.0)
    return spikes


def spikes_in_training(activations: Tensor, faults: Faults, grid: Grid | None, neurons: bool = True) -> Tensor:
    """Activations [N, ...] after faults in a training step; gradients pass unless a fault removed or forced a spike.

    With a grid, spikes are rounded to its time stamps. `neurons`: whether neurons can break, too.
    """
    broken = draw_broken(activations, faults) if neurons else None
    if not (faults.of_spikes or broken):
        return activations
    exact = disturbed(activations.detach(), faults, broken, None if grid is None else grid.clock)
    whole = (exact > 0) == (activations > 0)
    if broken is not None:
        whole &= ~(broken.dead | broken.stuck)
    return straight_through(activations * whole, exact).to(activations.dtype)


def weight_factors(weight: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Random factors that disturb weights, 1 + share · noise: shape of `weight`, float32."""
    noise = torch.randn(weight.shape, generator=generator, device=_device(weight, generator)).to(weight.device)
    return 1 + share * noise.clamp_(-MOST_DEVIATIONS, MOST_DEVIATIONS)


def _device(like: Tensor, generator: torch.Generator | None) -> torch.device:
    return like.device if generator is None else generator.device
