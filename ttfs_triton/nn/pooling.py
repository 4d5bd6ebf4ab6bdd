"""Pooling that keeps one spike per neuron."""

import torch.nn.functional as F
from torch import Tensor, nn

from ttfs_kernels.checks import pair as checked_pair
from ttfs_triton.nn.sizes import Size


class EarliestSpikePool2d(nn.Module):
    """Pass on the earliest spike of each patch: the maximum over activations.

    Input [N, C, height, width], output [N, C, ...], activations; a patch of silent neurons stays silent. A mean of
    spike times is no spike: average pooling belongs to the synapses of the layer behind, `average` of `DFTConv2d`.

    Args:
        kernel_size: patch size.
        stride: distance between patches; None means kernel_size.
    Raises:
        ValueError: a size that is no positive integer, nor two of them.
    Example:
        >>> spikes = torch.tensor([[[[0.2, 0.9], [0.0, 0.5]]]])  # 0 is silent, larger is earlier
        >>> EarliestSpikePool2d(2)(spikes)
        tensor([[[[0.9000]]]])
    """

    def __init__(self, kernel_size: Size, stride: Size | None = None) -> None:
        super().__init__()
        self.kernel_size = checked_pair("EarliestSpikePool2d", "kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else checked_pair("EarliestSpikePool2d", "stride", stride, 1)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(channels, height, width) behind the pool, of maps (channels, height, width); ValueError if too small."""
        sizes = zip(shape[1:], self.kernel_size, self.stride, strict=True)
        places = [(size - kernel) // stride + 1 for size, kernel, stride in sizes]
        if min(places) < 1:
            raise ValueError(f"maps must be at least as large as the patches, {self.kernel_size}; got {shape}.")
        return (shape[0], *places)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}"
