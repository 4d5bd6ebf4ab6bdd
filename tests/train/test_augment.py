"""Vectorised augmentation against slow references that take one image, and one pixel, at a time."""

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from ttfs_triton.train.augment import Augmentation, AugmentationParameters, auto_augment

SEVERAL = {"crop_padding": 2, "crop_fill": 128, "flip": True, "shift": 1, "rotation": 10, "cutout": 3}


def batch(n: int = 8, channels: int = 3, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def draw(augmentation: Augmentation, images: Tensor, seed: int = 1) -> AugmentationParameters:
    generator = torch.Generator().manual_seed(seed)
    return augmentation.draw(len(images), generator, images.shape[2], images.shape[3])


def window_reference(image: np.ndarray, offset: Tensor, padding: int, fill: int) -> np.ndarray:
    _, height, width = image.shape
    padded = np.full((image.shape[0], height + 2 * padding, width + 2 * padding), fill, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    top, left = offset.tolist()
    return padded[:, top : top + height, left : left + width]


def rotate_reference(image: np.ndarray, angle: float) -> np.ndarray:
    """Each pixel from the four neighbours of the point that is turned onto it, 0 outside."""
    _, height, width = image.shape
    result = np.zeros_like(image, dtype=np.float64)
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    for row in range(height):
        for column in range(width):
            x, y = column - middle_x, row - middle_y
            source_x = x * math.cos(angle) - y * math.sin(angle) + middle_x
            source_y = x * math.sin(angle) + y * math.cos(angle) + middle_y
            left, top = math.floor(source_x), math.floor(source_y)
            for i in (top, top + 1):
                for j in (left, left + 1):
                    if 0 <= i < height and 0 <= j < width:
                        share = (1 - abs(source_y - i)) * (1 - abs(source_x - j))
                        result[:, row, column] += share * image[:, i, j]
    return result


def cutout_reference(image: np.ndarray, centre: Tensor, side: int, fill: float) -> np.ndarray:
    _, height, width = image.shape
    row, column = centre.tolist()
    result = image.copy()
    top, left = row - side // 2, column - side // 2
    result[:, max(top, 0) : max(min(top + side, height), 0), max(left, 0) : max(min(left + side, width), 0)] = fill
    return result


@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    crop=st.integers(0, 4),
    fill=st.integers(0, 255),
    flip=st.booleans(),
    shift=st.integers(0, 3),
    rotation=st.sampled_from([0.0, 15.0, 180.0]),
    cutout=st.integers(0, 5),
    cutout_fill=st.sampled_from([0, 51]),
    seed=st.integers(0, 1000),
)
def test_apply_equals_the_slow_reference(
    channels, height, width, crop, fill, flip, shift, rotation, cutout, cutout_fill, seed
):
    augmentation = Augmentation(
        crop_padding=crop,
        crop_fill=fill,
        flip=flip,
        shift=shift,
        rotation=rotation,
        cutout=cutout,
        cutout_fill=cutout_fill,
    )
    images = batch(5, channels, height, width, seed)
    before = images.clone()
    parameters = draw(augmentation, images, seed)
    result = augmentation.apply(images, parameters)
    assert torch.equal(images, before)
    assert result.dtype == torch.float32
    assert result.shape == images.shape
    for i in range(5):
        image = images[i].numpy()
        if parameters.crop_offset is not None:
            image = window_reference(image, parameters.crop_offset[i], crop, fill)
        if parameters.flip is not None and parameters.flip[i]:
            image = image[:, :, ::-1]
        if parameters.shift_offset is not None:
            image = window_reference(image, parameters.shift_offset[i], shift, 0)
        expected = image / 255
        if parameters.angle is not None:
            expected = rotate_reference(expected, float(parameters.angle[i]))
        if parameters.cutout_centre is not None:
            expected = cutout_reference(expected, parameters.cutout_centre[i], cutout, cutout_fill / 255)
        # Sampling points carry a float32 rounding error of 1e-6 pixels, values change by at most 1 a pixel.
        np.testing.assert_allclose(result[i].numpy(), expected, rtol=0, atol=2e-5 if rotation else 1e-7)


def test_apply_without_augmentation_scales_to_the_unit_interval():
    images = batch()
    result = Augmentation().apply(images, draw(Augmentation(), images))
    assert torch.equal(result, images.float() / 255)


@pytest.mark.parametrize(
    "options",
    [{}, {"crop_padding": 2}, {"flip": True}, {"shift": 1}, {"rotation": 5.0}, {"cutout": 3}, {"auto_augment": True}],
)
def test_apply_keeps_colour_images_channels_last(options):
    augmentation, images = Augmentation(**options), batch()
    result = augmentation.apply(images, draw(augmentation, images))
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_apply_of_slices_equals_apply_of_the_batch():
    augmentation, images = Augmentation(**SEVERAL, auto_augment=True), batch(12)
    parameters = draw(augmentation, images)
    whole = augmentation.apply(images, parameters)
    parts = [augmentation.apply(images[rows], parameters[rows]) for rows in (slice(0, 5), slice(5, 6), slice(6, 12))]
    assert torch.equal(torch.cat(parts), whole)


def test_draw_is_a_function_of_the_generator_alone():
    augmentation, images = Augmentation(**SEVERAL), batch(64)
    torch.manual_seed(1)
    first = augmentation.apply(images, draw(augmentation, images, 7))
    torch.manual_seed(2)
    assert torch.equal(augmentation.apply(images, draw(augmentation, images, 7)), first)
    assert not torch.equal(augmentation.apply(images, draw(augmentation, images, 8)), first)


def test_draw_covers_the_whole_range():
    augmentation, images = Augmentation(crop_padding=4, flip=True, shift=2, rotation=30, cutout=3), batch(4000)
    parameters = draw(augmentation, images)
    assert parameters.crop_offset is not None
    assert parameters.crop_offset.unique().tolist() == list(range(9))
    assert parameters.shift_offset is not None
    assert parameters.shift_offset.unique().tolist() == list(range(5))
    assert parameters.cutout_centre is not None
    assert parameters.cutout_centre[:, 0].unique().tolist() == list(range(9))
    assert parameters.cutout_centre[:, 1].unique().tolist() == list(range(7))
    assert parameters.flip is not None
    assert abs(float(parameters.flip.float().mean()) - 0.5) < 0.04  # five standard deviations
    assert parameters.angle is not None
    assert float(parameters.angle.abs().max()) <= math.radians(30)
    assert float(parameters.angle.min()) < math.radians(-29)
    assert float(parameters.angle.max()) > math.radians(29)


def test_draw_leaves_out_what_is_off():
    assert draw(Augmentation(), batch()) == AugmentationParameters()


@pytest.mark.parametrize("channels", [1, 3])
def test_auto_augment_of_an_image_depends_on_its_seed_only(channels):
    images, seeds = batch(20, channels, 32, 32), torch.arange(100, 120)
    torch.manual_seed(0)
    whole = auto_augment(images, seeds, 128)
    torch.manual_seed(1)
    assert torch.equal(torch.cat([auto_augment(images[i : i + 1], seeds[i : i + 1], 128) for i in range(20)]), whole)
    assert whole.dtype == torch.uint8
    changed = (whole != images).flatten(1).any(1)
    assert changed.float().mean() > 0.5
    assert not torch.equal(auto_augment(images, seeds + 1000, 128), whole)


def test_auto_augment_applies_the_cifar10_policy():
    images, seeds = batch(20, 3, 32, 32), torch.arange(20)
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=[128.0, 128.0, 128.0])
    for image, seed, result in zip(images, seeds, auto_augment(images, seeds, 128), strict=True):
        torch.manual_seed(int(seed))
        assert torch.equal(result, policy(image))


def test_auto_augment_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    auto_augment(batch(), torch.arange(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_says_how_to_install_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    with pytest.raises(RuntimeError, match=r"pip install 'ttfs-triton\[vision\]'"):
        Augmentation(auto_augment=True)


def test_rotation_stays_in_the_unit_interval():
    augmentation, images = Augmentation(rotation=180), torch.full((256, 1, 28, 28), 255, dtype=torch.uint8)
    result = augmentation.apply(images, draw(augmentation, images))
    assert 0 <= float(result.min()) < float(result.max()) <= 1


@pytest.mark.parametrize("name", ["crop_padding", "shift", "rotation", "cutout"])
def test_augmentation_rejects_negative_sizes(name):
    with pytest.raises(
        ValueError, match=rf"Augmentation\n{name}\n +Input should be greater than or equal to 0 .*input_value=-1"
    ):
        Augmentation(**{name: -1})


@pytest.mark.parametrize("name", ["crop_fill", "cutout_fill"])
@pytest.mark.parametrize(("value", "rule"), [(-1, "greater than or equal to 0"), (256, "less than or equal to 255")])
def test_augmentation_rejects_fills_that_are_no_pixel_value(name, value, rule):
    with pytest.raises(ValueError, match=rf"Augmentation\n{name}\n +Input should be {rule} .*input_value={value}"):
        Augmentation(**{name: value})
