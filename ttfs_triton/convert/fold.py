"""Equal networks with fewer parts: normalisations and average pools become weights and initial potentials.

All of it is computed in float64 and is exact but for rounding, except for input normalisation at padded borders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ttfs_triton.convert.errors import ConversionError


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm in evaluation: y = (x − mean) / √(var + epsilon) · weight + bias, per channel.

    Attributes:
        mean, var: [C], running statistics.
        weight, bias: [C], or None for 1 and 0.
        epsilon: not part of a state dict; PyTorch's default is 1e-5.
    """

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    epsilon: float = 1e-5

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], prefix: str, epsilon: float) -> "BatchNorm":
        """Batch norm whose tensors are named `prefix.weight`, `prefix.running_mean` and so on.

        Raises:
            ConversionError: negative variances, or an epsilon that is not positive.
        """
        mean, var = tensors[f"{prefix}.running_mean"], tensors[f"{prefix}.running_var"]
        if not epsilon > 0:
            raise ConversionError(f"convert: batch_norm_epsilon must be positive; got {epsilon}.")
        if float(var.min()) < 0:
            raise ConversionError(f"convert: {prefix}.running_var must not be negative; got {float(var.min()):.6g}.")
        return cls(mean, var, tensors.get(f"{prefix}.weight"), tensors.get(f"{prefix}.bias"), epsilon)

    def scale(self) -> Tensor:
        """[C] float64, what the output is multiplied by."""
        scale = (self.var.double() + self.epsilon).rsqrt()
        return scale if self.weight is None else scale * self.weight.double()


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Weight and initial potential of the layer that computes a layer and the batch norm behind it.

    Args:
        weight: [C_out, ...], of the convolution or fully connected layer.
        bias: [C_out], or None.
        norm: of C_out channels.
    Returns:
        (weight, bias), shapes as above, float64.
    """
    scale = norm.scale()
    return _per_channel(scale, weight) * weight.double(), fold_batch_norm_bias(bias, norm)


def fold_batch_norm_bias(bias: Tensor | None, norm: BatchNorm) -> Tensor:
    """[C_out] float64, the initial potential alone: (bias − mean) · scale + shift."""
    centred = -norm.mean.double() if bias is None else bias.double() - norm.mean.double()
    shift = 0.0 if norm.bias is None else norm.bias.double()
    return centred * norm.scale() + shift


def fold_input_normalisation(
    weight: Tensor, bias: Tensor | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Weight and initial potential of the first convolution that reads pixels instead of (pixel − mean) / std.

    Exact only without padding. Padding is 0 behind the normalisation, which is the mean image; in front of it, it is a
    black one. `AnalogEncoder` therefore normalises itself.

    Args:
        weight: [C_out, C_in, height, width].
        bias: [C_out], or None.
        mean, std: C_in values.
    Returns:
        (weight, bias), shapes as above, float64.
    """
    divisor = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    folded = weight.double() / divisor
    shift = (folded * torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)).sum((1, 2, 3))
    return folded, -shift if bias is None else bias.double() - shift


def fold_average_pool(weight: Tensor, side: int, maps: tuple[int, int]) -> Tensor:
    """Weights that read maps themselves, from weights that read their adaptive average pool.

    Maps smaller than the pool's output are replicated by it, so that weights add up: a 7×7 head on 1×1 maps becomes the
    sum over its 49 places.

    Args:
        weight: [features, channels·side·side].
        side: height and width of the pool's output.
        maps: height and width of its input.
    Returns:
        [features, channels·height·width], float64.
    """
    places = maps[0] * maps[1]
    basis = torch.eye(places, dtype=torch.float64).view(places, 1, *maps)
    pool = F.adaptive_avg_pool2d(basis, side).view(places, side * side)
    return (weight.double().view(weight.shape[0], -1, side * side) @ pool.T).flatten(1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
