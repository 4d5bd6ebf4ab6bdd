"""Options that several commands share: faults of a chip and augmentation of images; the base class of all options."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from ttfs_triton.option_rules import Needs, RuledOptions

Share = Annotated[float, Field(ge=0, le=1)]


class CommandOptions(RuledOptions):
    """Base class of a command's options. The string below a field is the help text of its flag."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True, config=ConfigDict(strict=True))
class Faults:
    """Faults of a chip, as amounts; frozen. All are 0 on a chip without faults.

    Attributes:
        spike_jitter: standard deviation of every spike's time, in windows. A spike moved before its window comes at the
            window's start; a spike moved behind its window is lost.
        weight_noise: standard deviation of every weight, as a share of its magnitude; cut at four standard deviations.
        dead_neurons: share of the hidden neurons that never fire.
        stuck_neurons: share of the hidden neurons that always fire at their window's start.
        lost_spikes: share of the spikes, of hidden neurons and of a latency encoder, that reach no synapse.
    Raises:
        ValueError: a value is not a number or out of range, or dead and stuck neurons together are more than all.
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
        """Whether single spikes are moved or lost."""
        return self.spike_jitter > 0 or self.lost_spikes > 0

    @property
    def of_neurons(self) -> bool:
        """Whether neurons are dead or stuck."""
        return self.dead_neurons > 0 or self.stuck_neurons > 0

    def text(self) -> str:
        """The faults in words, with units; "" without faults."""
        parts = [
            (self.spike_jitter, f"spike jitter {self.spike_jitter:g} windows"),
            (self.weight_noise, f"weights {self.weight_noise:.3g} of their magnitude off"),
            (self.dead_neurons, f"{100 * self.dead_neurons:.3g}% of neurons dead"),
            (self.stuck_neurons, f"{100 * self.stuck_neurons:.3g}% of neurons stuck"),
            (self.lost_spikes, f"{100 * self.lost_spikes:.3g}% of spikes lost"),
        ]
        return ", ".join(words for value, words in parts if value)


class FaultOptions(BaseModel):
    """Faults of a chip; see `ttfs_triton.nn.Faults`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    spike_jitter: Share = 0.0
    """Standard deviation of spike times, in windows."""
    weight_noise: Share = 0.0
    """Standard deviation of every weight, as a share of its magnitude."""
    dead_neurons: Share = 0.0
    """Share of the hidden neurons that never fire."""
    stuck_neurons: Share = 0.0
    """Share of the hidden neurons that always fire at their window's start."""
    lost_spikes: Share = 0.0
    """Share of the spikes that reach no synapse."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        _ = self.faults  # raises if dead and stuck neurons are more than all
        return self

    @property
    def faults(self) -> Faults:
        """These options as `Faults`."""
        return Faults(**{name: getattr(self, name) for name in FaultOptions.model_fields})


Fill = Annotated[int, Field(ge=0, le=255)] | Literal["reflect"]
Flip = bool | Literal["alternating"]


class AugmentationOptions(BaseModel):
    """Augmentation of training images, in this order; all off by default."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)

    crop_padding: int = Field(default=0, ge=0, le=8192)
    """Pad by this many pixels and crop at random."""
    crop_fill: Annotated[Fill, Needs("crop_padding", "auto_augment", flag=True)] = 0
    """Pixel value of the padding that crop_padding adds, and of pixels that AutoAugment uncovers; reflect: the padding
    mirrors the image, and AutoAugment uncovers black pixels."""
    flip: Flip = False
    """Flip images left to right with probability one half; alternating: at random in the first epoch, then flipped in
    every other epoch."""
    shift: int = Field(default=0, ge=0, le=8192)
    """Shift images by up to this many pixels, filling with zeros."""
    auto_augment: bool = False
    """AutoAugment, with its policy for CIFAR-10."""
    cutout: int = Field(default=0, ge=0, le=8192)
    """Cutout: blank a square of this many pixels a side, at a random place."""
