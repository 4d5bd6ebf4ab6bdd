"""`Problem`: the shape of a layer on a batch, by which its passes are cut into programs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch

from ttfs_kernels.checks import Geometry

PASSES = ("forward", "grad_x", "grad_w")
FEW_CHANNELS = 16  # with fewer input channels a group, a step runs over the joint index (r, s, c)
LARGEST_UNIT = 16  # largest divisor of channels that kernels are told; no load takes more elements at once


class Moves(NamedTuple):
    """How a kernel moves over a map, and powers of two that divide its channels: a constant of the contractions."""

    R: int
    S: int
    STRIDE_H: int
    STRIDE_W: int
    PAD_H: int
    PAD_W: int
    DILATION_H: int
    DILATION_W: int
    GROUPS: int
    UNIT_C: int
    UNIT_N: int


@dataclass(frozen=True)
class Problem:
    """A layer on a batch. A fully connected layer is a 1×1 convolution of 1×1 maps.

    Attributes:
        batch, height, width, in_channels: size of the input.
        out_channels: output channels, in all groups.
        kernel, stride, padding, dilation: (rows, columns).
        groups: blocks of channels, not connected with other blocks.
        dtype: dtype of activations and weights.
        with_slope: whether σ > 0, so that there are two contractions.
        surrogate: whether silent neurons have a derivative, so that grad_x has two contractions.
        shared: whether both potentials have the same gradient (σ > 0, split_gradient 0), so that grad_x and grad_w
            have one contraction, not two.
    """

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: torch.dtype = torch.float32
    with_slope: bool = True
    surrogate: bool = False
    shared: bool = False

    def contractions(self, which: str) -> int:
        """Contractions of a pass, 1 or 2."""
        if not self.with_slope or (which != "forward" and self.shared):
            return 1
        return 1 if which == "grad_x" and not self.surrogate else 2

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    @cached_property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output map."""
        return self.geometry.map_size((self.height, self.width), self.kernel)

    @cached_property
    def rows(self) -> int:
        """M: output positions of the whole batch."""
        return self.batch * math.prod(self.out_size)

    @cached_property
    def group_inputs(self) -> int:
        """C: input channels of a group."""
        return self.in_channels // self.groups

    @cached_property
    def group_outputs(self) -> int:
        """N: output channels of a group."""
        return self.out_channels // self.groups

    @cached_property
    def is_matrix_product(self) -> bool:
        """Whether every position is a row of its own: fully connected, or a 1×1 convolution with stride 1."""
        return self.kernel == self.stride == self.dilation == (1, 1) and self.padding == (0, 0) and self.groups == 1

    @property
    def flat(self) -> Problem:
        """A matrix product as a layer on a batch of 1×1 maps, one a position; other layers unchanged."""
        if not self.is_matrix_product:
            return self
        return dataclasses.replace(self, batch=self.batch * self.height * self.width, height=1, width=1)

    @property
    def joint_steps(self) -> bool:
        """Whether steps run over the joint index (r, s, c), because channels are few."""
        return self.group_inputs < FEW_CHANNELS and not self.is_matrix_product

    @property
    def depth(self) -> int:
        """Synapses of a neuron over which steps run: of one tap, or of all taps with joint steps."""
        return self.group_inputs * (math.prod(self.kernel) if self.joint_steps else 1)

    @cached_property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the potentials, [B, P, Q, N]."""
        return self.batch, *self.out_size, self.out_channels

    @property
    def sizes(self) -> dict[str, int]:
        """Arguments of the contractions' kernels; C and N are channels of a group."""
        (P, Q), inputs = self.out_size, {"B": self.batch, "H": self.height, "W_in": self.width, "C": self.group_inputs}
        return inputs | {"P": P, "Q": Q, "N": self.group_outputs}

    @property
    def moves(self) -> Moves:
        units = (math.gcd(channels, LARGEST_UNIT) for channels in (self.group_inputs, self.group_outputs))
        return Moves(*self.kernel, *self.stride, *self.padding, *self.dilation, self.groups, *units)


@lru_cache(maxsize=1024)
def problem_of(x: tuple[int, ...], weight: tuple[int, ...], geometry: Geometry | None, *kinds: Any) -> Problem:
    """The problem of x [B, C, H, W] and weight [N, C / groups, R, S]; without geometry x is [M, K], weight [N, K].

    `kinds` are dtype, with_slope, surrogate and shared. A layer that comes again gets the same object, whose sizes are
    computed once.
    """
    batch, channels, height, width = (*x, 1, 1)[:4]
    neurons, _, *kernel = (*weight, 1, 1)[:4]
    moves: Any = geometry or ((1, 1), (0, 0), (1, 1), 1)
    return Problem(batch, height, width, channels, neurons, (kernel[0], kernel[1]), *moves, *kinds)
