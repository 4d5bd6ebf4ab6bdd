"""Initial weights other than Kaiming's: whitening encoders, convolutions that start as identities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.weighted import WeightedConv2d

SMALLEST_EIGENVALUE = 5e-4
"""Added to the eigenvalues, the variances of components, so that noise is not whitened (Jordan 2024, 3.2)."""


def whitening_weights(images: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Weights of a convolution that whitens patches of images: its outputs are uncorrelated, of variance 1.

    Each principal component of the patches comes with both signs, since neurons pass on positive values only.

    Args:
        images: normalised images, [N, C, height, width].
        kernel_size: (rows, columns) of a patch.
    Returns:
        [2·C·rows·columns, C, rows, columns], float32: the components by falling eigenvalue, then again, negated.
    Raises:
        ValueError: the images are smaller than a patch.
    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.2.
    """
    rows, columns = kernel_size
    if min(images.shape[2] - rows, images.shape[3] - columns) < 0:
        raise ValueError(
            f"whitening_weights: images must be at least as large as a patch, {rows}×{columns}; got "
            f"{images.shape[2]}×{images.shape[3]}. Use a smaller kernel."
        )
    channels = images.shape[1]
    patches = images.double().unfold(2, rows, 1).unfold(3, columns, 1).movedim(1, 3).flatten(0, 2).flatten(1)
    eigenvalues, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    components = (vectors / (eigenvalues + SMALLEST_EIGENVALUE).sqrt()).T.flip(0).view(-1, channels, rows, columns)
    return torch.cat([components, -components]).float()


@torch.no_grad()
def whiten(encoder: AnalogEncoder, images: Tensor) -> None:
    """Give an encoder whitening weights, times its initial gain, and initial potentials of 0.

    Args:
        encoder: an encoder with as many channels as `whitening_weights` returns, without weight standardisation and
            batch norm.
        images: images as the encoder takes them, [N, C, height, width].
    Raises:
        ValueError: the encoder has another number of channels.
    """
    weight = whitening_weights(encoder.normalise(images), encoder.kernel_size)
    if weight.shape != encoder.weight.shape:
        raise ValueError(
            f"whiten: encoder must have {len(weight)} channels, two per component of its patches; got "
            f"{encoder.weight.shape[0]}. Change its channels, or do not whiten."
        )
    encoder.weight.copy_(encoder.initial_gain * weight)
    if encoder.bias is not None:
        encoder.bias.zero_()


@torch.no_grad()
def start_as_identity(model: nn.Module) -> None:
    """Make the first filters of every spiking convolution pass on one input channel each; the others stay random.

    At most as many filters as there are input channels become identities, with weight 1 at their centre.

    Args:
        model: network of `ttfs_triton.nn` layers, changed in place.
    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.3.
    """
    for module in model.modules():
        if isinstance(module, WeightedConv2d) and module.kind != "analog" and module.groups == 1:
            nn.init.dirac_(module.weight[: module.weight.shape[1]])
