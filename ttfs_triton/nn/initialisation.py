"""Initial weights other than Kaiming's: whitening encoders, convolutions that start as identities."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ttfs_triton.nn.coding import AnalogEncoder
from ttfs_triton.nn.layers import DFTConv2d

SMALLEST_EIGENVALUE = 5e-4
"""Added to the eigenvalues, the variances of components, so that noise is not whitened (Jordan 2024, 3.2)."""


@torch.no_grad()
def whiten(encoder: AnalogEncoder, images: Tensor) -> None:
    """Give an encoder weights that whiten patches of images: uncorrelated outputs, of variance 1 before the gain.

    Each principal component of the patches takes two channels, one for each sign, since neurons pass on positive values
    only; components come by falling eigenvalue. Weights are multiplied by the initial gain, initial potentials are 0.

    Args:
        encoder: an encoder with two channels per value of a patch, without weight standardisation and batch norm.
        images: images as the encoder takes them, [N, C, height, width].
    Raises:
        ValueError: the encoder has another number of channels, or the images are smaller than a patch.
    Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.2.
    """
    images, (rows, columns) = encoder.normalise(images), encoder.kernel_size
    if min(images.shape[2] - rows, images.shape[3] - columns) < 0:
        raise ValueError(
            f"whiten: images must be at least as large as a patch, {rows}×{columns}; got "
            f"{images.shape[2]}×{images.shape[3]}. Use a smaller kernel."
        )
    patches = images.double().unfold(2, rows, 1).unfold(3, columns, 1)
    patches = rearrange(patches, "n c h w rows columns -> (n h w) (c rows columns)")
    eigenvalues, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    components = (vectors / (eigenvalues + SMALLEST_EIGENVALUE).sqrt()).T.flip(0)
    components = rearrange(components, "k (c rows columns) -> k c rows columns", rows=rows, columns=columns)
    weight = torch.cat([components, -components]).float()
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
        if isinstance(module, DFTConv2d) and module.kind != "analog" and module.groups == 1:
            nn.init.dirac_(module.weight[: module.weight.shape[1]])
