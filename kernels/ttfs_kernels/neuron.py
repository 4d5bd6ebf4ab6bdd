"""`Neuron`: the properties of a neuron, their defaults and ranges, defined in this one place."""

from __future__ import annotations

import dataclasses
import math
from collections import namedtuple
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Real
from typing import Any

# Bounds on δ: with these, 1/δ and x/δ stay far within the range of float32.
SMALLEST_WIDTH, LARGEST_WIDTH = 1e-6, 1e6


@dataclass(frozen=True)
class Neuron:
    """A neuron with a dynamic firing threshold: how it fires and how it is differentiated.

    Layers pass a neuron as a whole to the firing rule: only this class and the rule interpret its properties.

    Attributes:
        psp_persistence: σ, the share of a postsynaptic potential's slope that persists in the firing window, from 0 to
            1. 1 is the paper's ReL-PSP neuron; 0 is an ANN's clamped ReLU, a = clamp(A, 0, 1), by one contraction.
        derivative_clip: upper bound on both local derivatives, ∂a/∂A and ∂a/∂W, as in the published training code;
            None = no bound. Unused at σ = 0, where the derivative is 1.
        surrogate_width: δ, the width in which spikes that could appear or vanish have a gradient, too. 0 = the exact
            gradient, which only spikes that move have: a neuron that is silent for all images learns no more. With
            δ > 0, a silent neuron has a derivative if its potential at the window's end, A + W, exceeds −δ: at most
            min(1/(1 + W), 2), at A + W = 0. An input x < δ gets (1 − x/δ) of its mask's gradient. Unused at σ = 0.
        split_gradient: q, from 0 to 1, in ∂a/∂W = (1 − q·a)/(1 + W). 1 = the exact gradient. With q = 0, only A + W,
            the potential at the window's end, learns, and not its split into A and W. Batch norm leaves the split free;
            exact gradients can shift the split until a layer fires only at its window's start.
    Raises:
        ValueError: a property is not a number, or out of range.
    Source: Wei et al., ICCV 2023, Eq. 5 to 7, 9, 10.
    Example:
        >>> Neuron(psp_persistence=0.25)
        Neuron(psp_persistence=0.25, derivative_clip=11.0, surrogate_width=0.0, split_gradient=1.0)
        >>> Neuron(psp_persistence=2)
        Traceback (most recent call last):
        ValueError: Neuron: psp_persistence must lie in [0, 1]; got 2.0. 1 is the paper's ReL-PSP neuron, 0 an \
ANN's clamped ReLU.
    """

    psp_persistence: float = 1.0
    derivative_clip: float | None = 11.0
    surrogate_width: float = 0.0
    split_gradient: float = 1.0
    # Not fields. Set in __post_init__, since PyTorch's compiler cannot trace through a cached property.
    has_slope = True  # whether potentials change inside the window (σ > 0): two contractions instead of one
    has_surrogate = False  # whether spikes that could appear or vanish have derivatives

    def __post_init__(self) -> None:
        for name in _NAMES:
            value = getattr(self, name)
            if value is None and name == "derivative_clip":
                continue
            if not isinstance(value, Real) or isinstance(value, bool):
                raise ValueError(f"Neuron: {name} must be a number; got {value!r:.80}. Convert it.")
            object.__setattr__(self, name, float(value))  # tensors cannot compute with a Fraction
        for name, remedy in (
            ("psp_persistence", "1 is the paper's ReL-PSP neuron, 0 an ANN's clamped ReLU"),
            ("split_gradient", "1 gives exact gradients"),
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"Neuron: {name} must lie in [0, 1]; got {getattr(self, name)}. {remedy}.")
        clip, width = self.derivative_clip, self.surrogate_width
        if clip is not None and not clip > 0:
            raise ValueError(
                f"Neuron: derivative_clip must be positive or None; got {clip}. None gives exact gradients."
            )
        if width != 0 and not SMALLEST_WIDTH <= width <= LARGEST_WIDTH:
            raise ValueError(
                f"Neuron: surrogate_width must be 0 or from {SMALLEST_WIDTH:g} to {LARGEST_WIDTH:g}; got {width}. "
                "0 gives the exact event-driven gradient."
            )
        object.__setattr__(self, "has_slope", self.psp_persistence > 0)
        object.__setattr__(self, "has_surrogate", self.has_slope and width > 0)

    def pack(self) -> list[float]:
        """The properties as floats, which a registered operator can take as an argument; inf stands for None."""
        values = [getattr(self, name) for name in _NAMES]
        return [math.inf if value is None else float(value) for value in values]

    @cached_property
    def numbers(self) -> Any:
        """The values of `pack` and 1/δ as a named tuple, which a kernel takes as one argument and passes to the rule.

        σ is None, since kernels load σ from a scalar tensor.
        """
        return _Numbers(None, *self.pack()[1:], 1 / self.surrogate_width if self.surrogate_width else 0.0)

    def of_any_persistence(self) -> Neuron:
        """The same neuron, with σ = 1 if its σ > 0."""
        others = self.derivative_clip, self.surrogate_width, self.split_gradient
        return Neuron(1.0, *others) if self.has_slope else self

    @staticmethod
    @lru_cache  # every pass unpacks, and validating takes microseconds
    def unpack(values: tuple[float, ...]) -> Neuron:
        """The neuron with these properties: the inverse of `pack`."""
        properties: list[Any] = [None if value == math.inf else value for value in values]
        return Neuron(*properties)


_NAMES = tuple(field.name for field in dataclasses.fields(Neuron))


@dataclass(frozen=True)
class PlacedNeuron(Neuron):
    """A neuron whose σ is a tensor on the device: a captured CUDA graph follows a change of σ.

    Attributes:
        sigma: float32 scalar on the layers' device, which holds the value of `psp_persistence`. Layers in float64 read
            `psp_persistence` itself.
    """

    sigma: Any = dataclasses.field(default=None, compare=False, repr=False)


_Numbers = namedtuple("_Numbers", (*_NAMES, "inverse_width"))
