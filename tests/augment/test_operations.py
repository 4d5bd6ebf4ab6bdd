"""Operations of the policies against torchvision's on Pillow images, each at every magnitude and sign."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ttfs_triton.augment.policy import (
    SIGNED,
    apply_operations,
    auto_augment_policy,
    policy_tables,
    trivial_augment_policy,
)

CPU = torch.device("cpu")
SHAPES = [(32, 32, 3), (28, 28, 1), (17, 40, 3), (2, 5, 3)]
POLICIES = ["cifar10", "svhn", "imagenet", "trivial"]


def photographs(n: int, height: int, width: int, channels: int) -> Tensor:
    """Images with what operations depend on: smooth and noisy, dark and bright, narrow and wide, one constant."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n, height, width, channels, generator=generator)
    ramp = torch.linspace(0, 1, width)[:, None] * torch.rand(n, 1, 1, channels, generator=generator)
    lowest, highest = (torch.rand(2, n, 1, 1, channels, generator=generator) * 256).sort(0).values
    images = lowest + (highest - lowest) * (0.5 * noise + 0.5 * ramp)
    images[0] = 77
    return images.clamp(0, 255).to(torch.uint8).permute(0, 3, 1, 2).contiguous()


def torchvision_result(image: Tensor, name: str, magnitude: float, fill: int) -> Tensor:
    """As `v2.AutoAugment` applies it to a Pillow image."""
    channels = image.shape[0]
    picture = Image.fromarray(image[0].numpy() if channels == 1 else image.permute(1, 2, 0).contiguous().numpy())
    transform = v2.AutoAugment(fill=[float(fill)] * channels)
    result = transform._apply_image_or_video_transform(
        picture, name, magnitude, interpolation=transform.interpolation, fill=transform._fill
    )
    return torch.from_numpy(np.array(result)).view(*image.shape[1:], channels).permute(2, 0, 1)


def policy_of(name: str, height: int, width: int):
    return trivial_augment_policy(height, width) if name == "trivial" else auto_augment_policy(name, height, width)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("height", "width", "channels"), SHAPES)
def test_operations_equal_those_of_torchvision_and_pillow(policy, height, width, channels):
    """Without exceptions and without tolerance."""
    operations = [operation for sub_policy in policy_of(policy, height, width) for operation in sub_policy]
    tables, images = policy_tables(policy, height, width, CPU), photographs(6, height, width, channels)
    for row in range(1, 2 * len(operations) + 1):
        operation = operations[(row - 1) // 2]
        negative = row % 2 == 0 and operation.name in SIGNED
        magnitude = -operation.magnitude if negative else operation.magnitude
        result = apply_operations(images, torch.full((6,), row), tables, 128)
        for image, ours in zip(images, result, strict=True):
            theirs = (
                image if operation.name == "Identity" else torchvision_result(image, operation.name, magnitude, 128)
            )
            assert torch.equal(ours, theirs), (operation, magnitude, (ours.int() - theirs.int()).abs().max())
