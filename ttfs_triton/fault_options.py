"""Options of all commands in which chips have faults; each says its unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, Field, model_validator

if TYPE_CHECKING:
    from ttfs_triton.nn.faults import Faults

Share = Annotated[float, Field(ge=0, le=1)]


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
        if any(getattr(self, name) for name in FaultOptions.model_fields):
            _ = self.faults  # which says what excludes each other
        return self

    @property
    def faults(self) -> Faults:
        """All of them."""
        from ttfs_triton.nn.faults import Faults  # with PyTorch, which the options alone do without

        return Faults(**{name: getattr(self, name) for name in FaultOptions.model_fields})
