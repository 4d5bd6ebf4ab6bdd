"""What clock-driven neurons did beyond synaptic operations, as a simulation counts it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerActivity:
    """Work of a layer's clock-driven neurons beyond its synaptic operations, summed over samples.

    With gating, a neuron rests until its first input spike and from its own spike on. Without, it works in every step
    of its two windows.

    Attributes:
        name: of the layer.
        integration_updates: additions of the slope to the potential in the integration window.
        firing_updates: the same in the firing window; 0 if no slope persists (σ = 0).
        compares: of the potential with the threshold.
        state_reads, state_writes: of the words slope and potential. A synaptic operation reads and writes the slope; an
            update reads both words and writes the potential; a compare without update reads the potential.
    """

    name: str
    integration_updates: int
    firing_updates: int
    compares: int
    state_reads: int
    state_writes: int

    @property
    def neuron_updates(self) -> int:
        """Updates in both windows."""
        return self.integration_updates + self.firing_updates
