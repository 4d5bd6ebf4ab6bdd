"""Options of all commands in which chips have faults; each says its unit."""

from typing import Self

from pydantic import BaseModel, model_validator

from ttfs_triton.nn.faults import Faults, Share


class FaultOptions(BaseModel):
    """How much goes wrong; see `ttfs_triton.nn.Faults`."""

    spike_jitter: Share = 0.0
    """Standard deviation of spike times, in windows."""
    weight_noise: Share = 0.0
    """Standard deviation of each weight, as a share of its own magnitude."""
    dead_neurons: Share = 0.0
    """Share of the hidden neurons that never fire."""
    stuck_neurons: Share = 0.0
    """Share of the hidden neurons that always fire at their window's start."""
    lost_spikes: Share = 0.0
    """Share of the spikes that reach no synapse."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        _ = self.faults  # which says what excludes each other
        return self

    @property
    def faults(self) -> Faults:
        """All of them."""
        return Faults(**{name: getattr(self, name) for name in FaultOptions.model_fields})
