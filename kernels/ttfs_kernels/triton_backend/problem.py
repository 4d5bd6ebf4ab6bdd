"""What a pass has to compute: the shape of a layer, its floors, and the key under which choices are kept."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ttfs_kernels.contraction import Geometry
from ttfs_kernels.neuron import Neuron

PASSES = ("forward", "grad_x", "grad_w")
# Channels of a group below which a step runs over the joint index (r, s, c).
FEW_CHANNELS = 16


@dataclass(frozen=True)
class Problem:
    """A layer on a batch. A fully connected layer is a 1×1 convolution of 1×1 maps.

    Attributes:
        batch, height, width, in_channels: of the input.
        out_channels: neurons of a map's position.
        kernel, stride, padding, dilation: (rows, columns).
        groups: blocks of channels that are not connected with each other.
        dtype: of activations and weights.
        with_slope: whether σ > 0, so that there are two contractions.
        surrogate: whether silent neurons have a derivative too, so that grad_x has two contractions.
        pool: side of the windows of neurons of which the earliest spike is passed on; 1: every neuron's.
        skip: whether each neuron has a synapse for a delayed spike, too.
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
    pool: int = 1
    skip: bool = False

    @staticmethod
    def of(
        x: Tensor, weight: Tensor, geometry: Geometry | None, neuron: Neuron, pool: int = 1, skip: bool = False
    ) -> Problem:
        """From x [B, C, H, W] and weight [N, C / groups, R, S]; without geometry from x [M, K] and weight [N, K]."""
        if geometry is None:
            sizes = (x.shape[0], 1, 1, x.shape[1], weight.shape[0])
            slope, surrogate = neuron.has_slope, neuron.has_surrogate
            return Problem(*sizes, dtype=x.dtype, with_slope=slope, surrogate=surrogate, skip=skip)
        stride, padding, dilation = (_pair(value) for value in geometry[:3])
        batch, channels, height, width = x.shape
        return Problem(
            batch,
            height,
            width,
            channels,
            weight.shape[0],
            _pair(weight.shape[2:]),
            stride,
            padding,
            dilation,
            geometry.groups,
            x.dtype,
            neuron.has_slope,
            neuron.has_surrogate,
            pool,
            skip,
        )

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.dilation, self.groups)

    @property
    def out_size(self) -> tuple[int, int]:
        """Rows and columns of the output map."""
        return self.geometry.map_size((self.height, self.width), self.kernel)

    @property
    def pooled_size(self) -> tuple[int, int]:
        """Rows and columns of the map that is passed on."""
        rows, columns = self.out_size
        return rows // self.pool, columns // self.pool

    @property
    def needed_positions(self) -> int:
        """Output positions of a map that are in a window of the pool."""
        return self.pooled_size[0] * self.pooled_size[1] * self.pool**2

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

    def of_pass(self, which: str) -> Problem:
        """This layer as one of its passes sees it: the surrogate changes grad_x alone, pool and skip the forward pass.

        Both contractions of the backward pass read what is left of them, the local gradient.
        """
        surrogate, forward = self.surrogate and which == "grad_x", which == "forward"
        pool, skip = (self.pool, self.skip) if forward else (1, False)
        return dataclasses.replace(self, surrogate=surrogate, pool=pool, skip=skip)

    @property
    def unpooled(self) -> Problem:
        """The layer without its pool."""
        return dataclasses.replace(self, pool=1)

    @property
    def joint_steps(self) -> bool:
        """Whether steps run over the joint index (r, s, c), since channels are few."""
        return self.group_inputs < FEW_CHANNELS and not self.is_matrix_product

    def flops(self, which: str) -> int:
        """Floating point operations of a pass: 2 a multiply-accumulate, both contractions; none in "grad_b"."""
        if which == "grad_b":
            return 0
        contractions = 2 if self.with_slope and (which != "grad_x" or self.surrogate) else 1
        return 2 * contractions * self.rows * self.out_channels * self.depth

    def bytes(self, which: str) -> int:
        """Bytes that a pass cannot avoid: every operand read once, every result written once."""
        inputs = self.batch * self.height * self.width * self.in_channels
        outputs = self.rows * self.out_channels
        passed_on = self.batch * math.prod(self.pooled_size) * self.out_channels
        weights = self.out_channels * self.depth
        pair = 2 if self.with_slope else 1
        delayed = outputs if self.skip else 0
        elements = {
            "forward": inputs + weights + delayed + pair * passed_on,
            "grad_x": (2 if self.surrogate else 1) * outputs + weights + pair * inputs,
            "grad_w": pair * outputs + inputs + weights,
            "grad_b": (1 + pair) * outputs + 2 * delayed + self.out_channels,
        }
        winners = passed_on if which == "forward" and self.pool > 1 else 0  # a byte each
        return elements[which] * self.dtype.itemsize + winners

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = dataclasses.asdict(self)
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Problem:
        """The inverse of `to_dict`; keys with a default may be missing.

        Raises:
            TypeError, AttributeError: unknown keys or dtypes.
        """
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        if isinstance(plain.get("dtype"), str):
            plain["dtype"] = getattr(torch, plain["dtype"])
        return Problem(**plain)


def _pair(values: Any) -> tuple[int, int]:
    rows, columns = values
    return int(rows), int(columns)
