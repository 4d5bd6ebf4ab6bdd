"""A chip with faults: its weights and broken neurons, drawn once, and what happens to each image's spikes."""

import torch
from torch import Tensor

from ttfs_triton.nn.clock import Clock
from ttfs_triton.nn.faults import BrokenNeurons, Faults, disturbed, draw_broken, weight_factors
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.integers import QuantisedWeight


class FaultyChip:
    """What goes wrong, in the order in which layers and images come.

    Args:
        faults: how much.
        clock: of the simulation.
        seed: of the chip, and of what happens to spikes.
    """

    def __init__(self, faults: Faults, clock: Clock, seed: int) -> None:
        self.faults, self.clock = faults, clock
        self._chip, self._spikes = (torch.Generator().manual_seed(seed) for _ in range(2))
        self._broken: dict[str, BrokenNeurons | None] = {}

    def weights(self, quantised: QuantisedWeight) -> QuantisedWeight:
        """Weights as this chip has them."""
        if not self.faults.weight_noise:
            return quantised
        return quantised.multiplied(weight_factors(quantised.integers, self.faults.weight_noise, self._chip))

    def spikes(self, stage: Stage, instant: Tensor) -> Tensor:
        """What is left of a stage's spikes, by the indices [N, ...] of their instants, of a latency encoder too."""
        if not (self.faults.of_spikes or (self.faults.of_neurons and stage.kind != "latency")):
            return instant
        activations = self.clock.remaining(instant) / self.clock.steps
        if stage.name not in self._broken:
            whole = stage.kind == "latency"
            self._broken[stage.name] = None if whole else draw_broken(activations, self.faults, self._chip)
        left = disturbed(activations, self.faults, self._broken[stage.name], self.clock, self._spikes)
        # What is in time is as it was: at the window's start there are two instants with one stamp.
        return torch.where(left == activations, instant, self.clock.encode(left))
