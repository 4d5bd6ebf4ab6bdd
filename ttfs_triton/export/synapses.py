"""Weights as other programs get them: standardisation and batch norm folded in, float32."""

import numpy as np
import torch
from torch import Tensor

from ttfs_triton.nn.weighted import WeightedLayer


@torch.no_grad()
def plain_synapses(layer: WeightedLayer) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and initial potentials that a layer computes with in evaluation mode.

    Args:
        layer: on any device.
    Returns:
        weight [C_out, ...] and bias [C_out] or None, float32, contiguous. Without batch norm they are what the layer
        uses, bit for bit.
    """
    weight, bias = layer.effective_weight(), layer.bias
    norm = getattr(layer, "batch_norm", None)
    if norm is not None:
        gain = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
        weight = weight.double() * gain.view(-1, *[1] * (weight.dim() - 1))
        bias = norm.bias.double() - norm.running_mean.double() * gain
    return _array(weight), None if bias is None else _array(bias)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().contiguous().numpy().copy()
