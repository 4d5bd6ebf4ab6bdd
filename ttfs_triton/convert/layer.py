"""Layers of a traced ANN, and exact ways to fold one: sums of two layers; batch norm, linear layers, average pools."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ttfs_triton.convert.source import ConversionError
from ttfs_triton.nn import EarliestSpikePool2d, Wire
from ttfs_triton.nn.trace import Call
from ttfs_triton.nn.weighted import pair

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class ANNLayer:
    """A convolution or fully connected layer, its batch norm folded, up to its activation function.

    Attributes:
        name: name of the layer's call in the traced ANN.
        weight, bias: the layer's parameters, with other operations folded in; float64 after folding.
        inputs: sources of its inputs, which are concatenated: layers by name (None: the images), and pools in between.
        window: number of layers in front of it.
        shape: shape of its output for one image, before pooling.
        potential: call that makes its output before the activation function.
        geometry: stride, padding and dilation; a fully connected layer is a 1×1 convolution of 1×1 maps.
        groups: number of groups of its channels.
        skip: source of the activations that are added to the output of `potential`; None without a skip.
        bound: upper bound of its activations; None for ReLU.
        average: size of an average pool in front: for a convolution the side of its windows, for a linear layer places.
        folded: names of the operations folded into its weights.
        order: numbers of its channels in the ANN, [C_out]; None: the same.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    inputs: tuple[Wire, ...]
    window: int
    shape: tuple[int, ...]
    potential: Call
    geometry: Geometry = ((1, 1), (0, 0), (1, 1))
    groups: int = 1
    skip: Wire | None = None
    bound: float | None = None
    average: int = 1
    folded: tuple[str, ...] = ()
    order: Tensor | None = None

    @property
    def linear(self) -> bool:
        """Whether it is fully connected."""
        return self.weight.dim() == 2

    @property
    def kernel(self) -> Tensor:
        """Weights [C_out, C_in, rows, columns], float64; 0 between channels of different groups."""
        dense = torch.block_diag(*self.weight.double().flatten(1).chunk(self.groups))
        return dense.view(len(dense), -1, *(self.weight.shape[2:] or (1, 1)))

    def with_kernel(self, kernel: Tensor, **changes: Any) -> "ANNLayer":
        """The layer with other weights, without groups, and other changes."""
        return replace(self, weight=kernel[:, :, 0, 0] if self.linear else kernel, groups=1, **changes)

    def reordered(self, *, rows: Tensor | None = None, columns: Tensor | None = None) -> "ANNLayer":
        """The layer with its outputs, or its inputs, in another order."""
        rows, columns = (None if x is None or x.equal(torch.arange(len(x))) else x for x in (rows, columns))
        if rows is None and columns is None:
            return self
        layer = self.with_kernel(self.kernel) if self.groups > 1 else self
        if columns is not None:
            layer = replace(layer, weight=layer.weight[:, columns])
        if rows is not None:
            bias = None if layer.bias is None else layer.bias[rows]
            layer = replace(layer, weight=layer.weight[rows], bias=bias, order=rows)
        return layer


@dataclass(frozen=True)
class Value:
    """Output of a call: of `layer` (None for images and concatenations), or of an operation behind that layer.

    Attributes:
        active: whether the output has passed the activation function, so that spikes can represent it.
        wires: the layers whose activations it concatenates, and the pools and flattening behind them.
        window: number of layers in front of a layer that reads it.
        average: an average pool for the next layer to fold, and the size of the maps that it reads.
        front: zeros in front of its channels; None if its channels are not padded.
        carried: activations added to the layer's output, and the call that makes them.
    """

    layer: ANNLayer | None
    active: bool
    wires: tuple[Wire, ...]
    window: int
    average: tuple[nn.Module, tuple[int, int]] | None = None
    front: int | None = None
    carried: "tuple[Value, Call] | None" = None

    @classmethod
    def of(cls, layer: ANNLayer, carried: "tuple[Value, Call] | None" = None) -> "Value":
        """Output of a layer without its activation function."""
        return cls(layer, False, (Wire(layer.name, (), layer.shape),), layer.window + 1, carried=carried)

    @property
    def names(self) -> str:
        return ", ".join(wire.source or "the images" for wire in self.wires)

    def routed(self, module: nn.Module) -> "Value":
        """The value behind a pool or a flattening, operations that treat channels one by one."""
        return replace(self, wires=tuple(wire.routed(module) for wire in self.wires))


def added(one: ANNLayer, other: ANNLayer, call: Call) -> ANNLayer | None:
    """One layer that computes the sum of two layers' outputs, which `call` adds; it reads the inputs of both.

    The smaller kernel is placed inside the larger one. A layer with a larger stride reads every k-th row and column of
    its inputs. None if no such kernel computes the sum.
    """
    large, small = sorted((one, other), key=lambda layer: (-layer.kernel[0, 0].numel(), max(layer.geometry[0])))
    (kernel, inner), wires = (large.kernel, small.kernel), small.inputs
    steps, around = [], []
    for axis in (1, 0):  # F.pad counts from the last
        stride, padding, dilation = (sizes[axis] for sizes in large.geometry)
        pace, border, spread = (sizes[axis] for sizes in small.geometry)
        before, size, single = (padding - border) // dilation, kernel.shape[2 + axis], inner.shape[2 + axis] == 1
        around += [before, size - before - inner.shape[2 + axis]]
        steps.insert(0, pace // stride)
        fits = pace % stride == 0 and before * dilation == padding - border and (single or spread == dilation)
        if not fits or min(around) < 0 or (pace > stride and not (single and border == 0)):
            return None
    if max(steps) > 1:
        wires = tuple(wire.routed(EarliestSpikePool2d(1, (steps[0], steps[1]))) for wire in wires)
    both = (*large.inputs, *wires)
    joins = all(wire.source is not None and wire.shape[1:] == both[0].shape[1:] for wire in both)
    if max(large.average, small.average) > 1 or not (joins or large.inputs == wires):
        return None
    inner = F.pad(inner, around)
    kernel, wires = (kernel + inner, wires) if large.inputs == wires else (torch.cat([kernel, inner], 1), both)
    biases = [layer.bias.double() for layer in (large, small) if layer.bias is not None]
    changes: dict[str, Any] = {"inputs": wires, "bias": sum(biases) if biases else None, "potential": call}
    folded = (*large.folded, *small.folded, f"{small.name}, added")
    return large.with_kernel(kernel, window=max(large.window, small.window), folded=folded, **changes)


def behind(linear: ANNLayer, layer: ANNLayer) -> ANNLayer | None:
    """One layer that computes the outputs of `layer` from the inputs of `linear`, the layer before it.

    No activation function stands between them. The result is exact if the outputs of `linear` are not padded, or if
    padding its inputs with zeros is the same, as for a 1×1 convolution without bias. None otherwise.
    """
    (stride, padding, dilation), (pace, border, spread) = linear.geometry, layer.geometry
    inner, outer = linear.kernel, layer.kernel
    plain = inner[0, 0].numel() == 1 and not any(padding) and (linear.bias is None or not linear.bias.any())
    one = max(linear.average, layer.average) == 1 and linear.linear == layer.linear
    if not one or (any(border) and not plain):
        return None
    grown = (stride[0] * spread[0], stride[1] * spread[1])
    kernel = F.conv_transpose2d(outer, inner, stride=grown, dilation=dilation)
    paces = (stride[0] * pace[0], stride[1] * pace[1])
    borders = (padding[0] + stride[0] * border[0], padding[1] + stride[1] * border[1])
    bias = None if layer.bias is None else layer.bias.double()
    if linear.bias is not None:
        bias = outer.sum((2, 3)) @ linear.bias.double() + (0 if bias is None else bias)
    folded = (*linear.folded, *layer.folded, f"{linear.name}, linear")
    changes: dict[str, Any] = {"inputs": linear.inputs, "window": linear.window, "bias": bias, "folded": folded}
    return layer.with_kernel(kernel, geometry=(paces, borders, (1, 1)), **changes)


def fold_norm(
    name: str, weight: Tensor, bias: Tensor | None, norm: Mapping[str, Tensor], epsilon: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of a layer with the batch norm behind it folded in; `norm` is the norm's state."""
    if not (least := float(norm["running_var"].min()) + epsilon) > 0:
        raise ConversionError(f"convert: {name}.running_var + epsilon must be positive; got {least:.6g}.")
    norm, bias = {key: values.double() for key, values in norm.items()}, None if bias is None else bias.double()
    statistics = norm["running_mean"], norm["running_var"], epsilon, norm.get("weight"), norm.get("bias")
    fused = fuse_conv_bn_weights(weight.double(), bias, *statistics)  # also for Linear
    return fused[0].detach(), fused[1].detach()


def fold_average_pool(weight: Tensor, pool: nn.Module, maps: tuple[int, int]) -> Tensor:
    """Weights of the fully connected layer that reads an average pool, with the pool folded in, float64.

    `maps` are (height, width) of the pool's input. Weights [features, channels·rows·columns] of its outputs become
    [features, channels·height·width] of its inputs. An adaptive pool replicates maps smaller than its output: a head
    for 7×7 maps, on 1×1 maps, becomes the sum over its 49 places.
    """
    places = maps[0] * maps[1]
    one_hot = rearrange(torch.eye(places, dtype=torch.float64), "p (h w) -> p 1 h w", h=maps[0])
    basis = rearrange(pool(one_hot), "p 1 h w -> p (h w)")
    by_map = rearrange(weight.double().cpu(), "o (c p) -> o c p", p=basis.shape[1])
    return rearrange(by_map @ basis.T, "o c p -> o (c p)").to(weight.device)


def pooled_size(pool: nn.Module, maps: tuple[int, int]) -> tuple[int, ...]:
    """Height and width of a pool's outputs, for maps of this height and width."""
    return tuple(pool(torch.empty(1, 1, *maps)).shape[2:])


def window_of(pool: nn.Module, maps: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of the windows that a pool divides its maps into; None if it does not divide them."""
    rows, columns = pooled_size(pool, maps)
    window = (maps[0] // rows, maps[1] // columns)
    whole = (rows * window[0], columns * window[1]) == maps
    if isinstance(pool, nn.AvgPool2d):
        whole = pair(pool.kernel_size) == window and (window == maps or pair(pool.stride) == window)
        whole = whole and pair(pool.padding) == (0, 0) and pool.divisor_override is None
    return window if whole else None
