"""Faults of real chips: spikes that come late, early or never, disturbed weights, broken neurons.

In training every step draws another chip, and gradients go through the spikes that are left. In the simulator a seed
draws one chip with its weights and broken neurons, then the spikes of each image.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from ttfs_triton.nn.clock import Clock
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.straight_through import straight_through

# Noise of weights is cut at so many standard deviations.
MOST_DEVIATIONS = 4.0

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Faults:
    """How much goes wrong; frozen. All are 0 on a chip without faults.

    Attributes:
        spike_jitter: standard deviation of every spike's time, in windows. A spike moved before its window comes at the
            start, one moved behind it is lost.
        weight_noise: standard deviation of every weight, as a share of its own magnitude; at most four of them.
        dead_neurons: share of the hidden neurons that never fire.
        stuck_neurons: share of the hidden neurons that always fire at their window's start.
        lost_spikes: share of the spikes, of hidden neurons and of a latency encoder, that reach no synapse.
    Raises:
        ValueError: a value that is no number, or out of range; more broken neurons than there are.
    Example:
        >>> Faults(spike_jitter=0.05, lost_spikes=0.01).text()
        'spike jitter 0.05 windows, 1% of spikes lost'
    """

    spike_jitter: Share = 0.0
    weight_noise: Share = 0.0
    dead_neurons: Share = 0.0
    stuck_neurons: Share = 0.0
    lost_spikes: Share = 0.0

    @model_validator(mode="after")
    def _breaks_no_more_than_all(self) -> Self:
        if (broken := self.dead_neurons + self.stuck_neurons) > 1:
            raise ValueError(f"dead_neurons and stuck_neurons must be at most 1 together; got {broken:g}")
        return self

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(self))

    @property
    def of_spikes(self) -> bool:
        """Whether spikes are moved or lost, each for itself."""
        return self.spike_jitter > 0 or self.lost_spikes > 0

    @property
    def of_neurons(self) -> bool:
        """Whether neurons are broken."""
        return self.dead_neurons > 0 or self.stuck_neurons > 0

    def text(self) -> str:
        """In words, with units; empty without faults."""
        parts = [
            (self.spike_jitter, f"spike jitter {self.spike_jitter:g} windows"),
            (self.weight_noise, f"weights {self.weight_noise:.3g} of their magnitude off"),
            (self.dead_neurons, f"{100 * self.dead_neurons:.3g}% of neurons dead"),
            (self.stuck_neurons, f"{100 * self.stuck_neurons:.3g}% of neurons stuck"),
            (self.lost_spikes, f"{100 * self.lost_spikes:.3g}% of spikes lost"),
        ]
        return ", ".join(words for value, words in parts if value)


class BrokenNeurons(NamedTuple):
    """Which neurons of a layer are broken: truth values of the shape of its activations without their batch."""

    dead: Tensor
    stuck: Tensor


def draw_broken(like: Tensor, faults: Faults, generator: torch.Generator | None = None) -> BrokenNeurons | None:
    """Broken neurons of a layer with activations like these [N, ...]; None if none breaks."""
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
    """Activations of spikes that went wrong.

    Args:
        activations: [N, ...] in [0, 1], 0 is silent.
        faults: how much goes wrong.
        broken: neurons; None: none.
        clock: rounds spike times to its time stamps; None: they are real numbers.
        generator: of the draws, on the CPU. Default: PyTorch's own of the device.
    Returns:
        A new tensor, shape and dtype of `activations`.
    """
    found = activations.clone()
    device = _device(activations, generator)
    if faults.spike_jitter:
        noise = torch.randn(activations.shape, generator=generator, device=device).to(activations)
        found = torch.where(activations > 0, (activations + faults.spike_jitter * noise).clamp_(0, 1), 0.0)
        if clock is not None:
            found = clock.stamped(found).to(activations.dtype)
    if faults.lost_spikes:
        drawn = torch.rand(activations.shape, generator=generator, device=device).to(activations.device)
        found = found.masked_fill_(drawn < faults.lost_spikes, 0.0)
    if broken is not None:
        found = found.masked_fill_(broken.dead, 0.0).masked_fill_(broken.stuck, 1.0)
    return found


def spikes_in_training(activations: Tensor, faults: Faults, grid: Grid | None, neurons: bool = True) -> Tensor:
    """A layer's spikes after faults, in a training step; gradients pass where a spike is left.

    Args:
        activations: [N, ...] in [0, 1].
        faults: how much goes wrong.
        grid: rounds spike times to its time stamps; None: they are real numbers.
        neurons: whether neurons can be broken, too.
    """
    broken = draw_broken(activations, faults) if neurons else None
    if not (faults.of_spikes or broken):
        return activations
    exact = disturbed(activations.detach(), faults, broken, None if grid is None else grid.clock)
    whole = (exact > 0) == (activations > 0)
    if broken is not None:
        whole &= ~(broken.dead | broken.stuck)
    return straight_through(activations * whole, exact)


def weight_factors(weight: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Factors of disturbed weights, 1 plus noise: shape of `weight`, float32."""
    noise = torch.randn(weight.shape, generator=generator, device=_device(weight, generator)).to(weight.device)
    return 1 + share * noise.clamp_(-MOST_DEVIATIONS, MOST_DEVIATIONS)


def _device(like: Tensor, generator: torch.Generator | None) -> torch.device:
    return like.device if generator is None else generator.device
