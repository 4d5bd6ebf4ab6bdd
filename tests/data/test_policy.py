"""The policy and its operations against torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ttfs_triton.data.augment.policy import PLAIN, SIGNED, apply_operations, auto_augment_policy, policy_tables

CPU = torch.device("cpu")


def test_auto_augment_policy_is_that_of_torchvision():
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    ours = auto_augment_policy(32, 48)
    assert len(ours) == len(theirs) == 25
    for our_pair, their_pair in zip(ours, theirs, strict=True):
        for (operation, probability, magnitude), (their_operation, their_probability, level) in zip(
            our_pair, their_pair, strict=True
        ):
            assert (operation, probability) == (their_operation, their_probability)
            if operation not in PLAIN:
                values, _ = v2.AutoAugment._AUGMENTATION_SPACE[operation]
                assert magnitude == values(10, 32, 48).tolist()[level]


def words(applied, choice=0, negative=0) -> torch.Tensor:
    """Random words of images that draw a sub-policy of 25, two words to be compared with probabilities, two signs."""
    drawn = torch.zeros(len(applied), 12, dtype=torch.int64)
    drawn[:, 3] = (torch.as_tensor(choice) << 32) // 25 + 1
    drawn[:, 4:6] = torch.as_tensor(applied)
    drawn[:, 6] = torch.as_tensor(negative) << 30
    return drawn


def test_rows_follow_sub_policy_stage_sign_and_probability():
    tables = policy_tables(32, 32, CPU)
    assert tables.kinds.shape == (1 + 25 * 2 * 2,)
    never, always = 2**32 - 1, 0
    applied = [[always, never], [never, always], [always, always], [always, never], [never, always]]
    # The last one is an inversion with probability 0.
    rows = tables.draw(words(applied, choice=[0, 0, 3, 24, 14], negative=[0b00, 0b11, 0b10, 0b01, 0b00]))
    assert rows.tolist() == [[1, 0], [0, 4], [14, 15], [97, 0], [0, 0]]
    word = torch.arange(0, 2**32, 2**22)
    rows = tables.draw(words(torch.stack([word, word], 1), choice=7))
    assert (rows > 0).sum(0).tolist() == [308, 717]  # 0.3 and 0.7


SHAPES = [(32, 32, 3), (28, 28, 1), (17, 40, 3), (2, 5, 3)]


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


@pytest.mark.parametrize(("height", "width", "channels"), SHAPES)
def test_operations_equal_those_of_torchvision_and_pillow(height, width, channels):
    """Without exceptions and without tolerance."""
    operations = [operation for sub_policy in auto_augment_policy(height, width) for operation in sub_policy]
    tables, images = policy_tables(height, width, CPU), photographs(6, height, width, channels)
    for row in range(1, 2 * len(operations) + 1):
        operation = operations[(row - 1) // 2]
        negative = row % 2 == 0 and operation.name in SIGNED
        magnitude = -operation.magnitude if negative else operation.magnitude
        result = apply_operations(images, torch.full((6,), row), tables, 128)
        for image, ours in zip(images, result, strict=True):
            theirs = torchvision_result(image, operation.name, magnitude, 128)
            assert torch.equal(ours, theirs), (operation, magnitude, (ours.int() - theirs.int()).abs().max())
