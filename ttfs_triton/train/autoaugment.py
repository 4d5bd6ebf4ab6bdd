"""AutoAugment with the CIFAR-10 policy, through torchvision, reproducible image by image."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor


def auto_augment(images: Tensor, seeds: Tensor, fill: int = 0) -> Tensor:
    """Apply one sub-policy of the CIFAR-10 policy to each image.

    Args:
        images: [n, C, height, width], uint8, C = 1 or 3.
        seeds: [n], int64. An image's result depends on its own seed only.
        fill: pixel value, 0 to 255, of the border that geometric operations uncover.
    Returns:
        [n, C, height, width], uint8. The global random state is left as it was.

    Source: Cubuk et al., "AutoAugment", CVPR 2019, Table 7.
    """
    policy = _cifar10_policy(fill, images.shape[1])
    # The policy takes its random numbers from the global generator.
    with torch.random.fork_rng(devices=[]):
        augmented = []
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            augmented.append(policy(image))
    return torch.stack(augmented)


def torchvision_transforms() -> ModuleType:
    """The module `torchvision.transforms.v2`.

    Raises:
        RuntimeError: torchvision is not installed.
    """
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise RuntimeError(
            "Augmentation: torchvision must be installed for auto_augment; got no such package. "
            "Run `pip install 'ttfs-triton[vision]'`, or switch auto_augment off."
        ) from error
    return v2


@functools.cache
def _cifar10_policy(fill: int, channels: int) -> Callable[[Tensor], Tensor]:
    v2 = torchvision_transforms()
    return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=[float(fill)] * channels)
