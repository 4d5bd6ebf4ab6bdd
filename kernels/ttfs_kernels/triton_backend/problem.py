"""`Problem`: the shape of a layer on a batch, by which passes are planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron

PASSES = ("forward", "grad_x", "grad_w")
# With fewer input channels per group, a step runs over the joint index (r, s, c).
FEW_CHANNELS = 16


@dataclass(frozen=True)
class Problem:
    """A layer on a batch. A fully connected layer is a 1×1 convolution of 1×1 maps.

    Attributes:
        batch, height, width, in_channels: size of the input.
        out_channels: output channels, in all groups.
        kernel, stride, padding, dilation: (rows, columns).
        groups: blocks of channels that are not connected with each other.
        dtype: dtype of activations and weights.
        with_slope: whether σ > 0, so that there are two contractions.
        surrogate: whether silent neurons have a derivative, so that grad_x has two contractions.
        skip: whether each neuron also has a synapse for a delayed spike.
        shared: whether both potentials have the same gradient (σ > 0, split_gradient 0), so that grad_x and grad_w have
            one contraction each.
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
    skip: bool = False
    shared: bool = False

    @staticmethod
    def of(x: Tensor, weight: Tensor, geometry: Geometry | None, neuron: Neuron, skip: bool = False) -> Problem:
        """Problem of x [B, C, H, W] and weight [N, C / groups, R, S]; without geometry x is [M, K], weight [N, K]."""
        batch, channels, height, width = (*x.shape, 1, 1)[:4]
        neurons, _, *kernel = (*weight.shape, 1, 1)[:4]
        stride, padding, dilation, groups = geometry or Geometry((1, 1), (0, 0), (1, 1), 1)
        sizes = int(batch), int(height), int(width), int(channels), int(neurons)  # a compiler's may be symbols
        moves = _pair(kernel), _pair(stride), _pair(padding), _pair(dilation), groups
        shared = neuron.has_slope and neuron.split_gradient == 0
        return Problem(*sizes, *moves, x.dtype, neuron.has_slope, neuron.has_surrogate, skip, shared)

    def contractions(self, which: str) -> int:
        """Contractions of a pass, 1 or 2."""
        if not self.with_slope or (which != "forward" and self.shared):
            return 1
        return 1 if which == "grad_x" and not self.surrogate else 2

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output map."""
        return self.geometry.map_size((self.height, self.width), self.kernel)

    @property
    def rows(self) -> int:
        """M: output positions of the whole batch."""
        return self.batch * self.out_size[0] * self.out_size[1]

    @property
    def group_inputs(self) -> int:
        """C: input channels of a group."""
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        """N: output channels of a group."""
        return self.out_channels // self.groups

    @property
    def depth(self) -> int:
        """K: synapses of a neuron, those on the padding included."""
        return self.group_inputs * self.kernel[0] * self.kernel[1]

    @property
    def is_matrix_product(self) -> bool:
        """Whether every position is a row of its own: fully connected, or a 1×1 convolution with stride 1."""
        plain = self.kernel == self.stride == self.dilation == (1, 1) and self.padding == (0, 0)
        return plain and self.groups == 1

    @property
    def flat(self) -> Problem:
        """A matrix product as a layer on a batch of 1×1 maps, one for each position; other layers unchanged."""
        if not self.is_matrix_product:
            return self
        return dataclasses.replace(self, batch=self.rows, height=1, width=1)

    @property
    def joint_steps(self) -> bool:
        """Whether steps run over the joint index (r, s, c), because channels are few."""
        return self.group_inputs < FEW_CHANNELS and not self.is_matrix_product

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Problem:
        """The problem with these attributes, lists for pairs; those with a default may be missing.

        Raises:
            TypeError, AttributeError: unknown keys or dtypes.
        """
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return Problem(**plain | {"dtype": getattr(torch, plain.get("dtype", "float32"))})


def _pair(values: Sequence[int]) -> tuple[int, int]:
    rows, columns = values
    return int(rows), int(columns)
