"""The whole pass against slow references that take one image, and one pixel, at a time."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ttfs_triton.augment import Augmentation
from ttfs_triton.augment.geometry import ONE, move
from ttfs_triton.augment.parameters import Parameters, draw_parameters

EVERYTHING = {
    "crop_padding": 2, "crop_fill": 128, "flip": True, "shift": 1, "auto_augment": True, "rotation": 10, "cutout": 3,
}  # fmt: skip


def batch(n: int = 8, channels: int = 3, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def draw(augmentation: Augmentation, images: Tensor, seed: int = 1) -> Parameters:
    return draw_parameters(augmentation, seed, 0, torch.arange(len(images)), images.shape[2], images.shape[3])


def affine_reference(image: np.ndarray, fixed: Sequence[int], fill: int) -> np.ndarray:
    """Each pixel from the one whose area its place is in."""
    result = np.full_like(image, fill)
    _, height, width = image.shape
    a, b, c, d, e, f = (term / ONE for term in fixed)
    for y in range(height):
        for x in range(width):
            column, row = math.floor(a * x + b * y + c), math.floor(d * x + e * y + f)
            if 0 <= row < height and 0 <= column < width:
                result[:, y, x] = image[:, row, column]
    return result


def window_reference(image: np.ndarray, top: int, left: int, fill: int) -> np.ndarray:
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (9, 9), (9, 9)), constant_values=fill)
    return padded[:, 9 + top : 9 + top + height, 9 + left : 9 + left + width]


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
    crop=st.integers(0, 9),
    fill=st.integers(0, 255),
    flip=st.booleans(),
    shift=st.integers(0, 3),
    cutout=st.integers(0, 5),
    cutout_fill=st.sampled_from([0, 51]),
    seed=st.integers(0, 1000),
)
def test_apply_equals_the_slow_reference(channels, height, width, crop, fill, flip, shift, cutout, cutout_fill, seed):
    augmentation = Augmentation(
        crop_padding=crop, crop_fill=fill, flip=flip, shift=shift, cutout=cutout, cutout_fill=cutout_fill
    )
    images = batch(5, channels, height, width, seed)
    before = images.clone()
    parameters = draw(augmentation, images, seed)
    result = augmentation.apply(images, parameters)
    assert torch.equal(images, before)
    for i in range(5):
        expected = images[i].numpy()
        if parameters.crop is not None:
            expected = window_reference(expected, *parameters.crop[i].tolist(), fill)
        if parameters.flip is not None and parameters.flip[i]:
            expected = expected[:, :, ::-1]
        if parameters.shift is not None:
            expected = window_reference(expected, *parameters.shift[i].tolist(), 0)
        if parameters.cutout is not None:
            expected = cutout_reference(expected, parameters.cutout[i], cutout, cutout_fill)
        assert np.array_equal(result[i].numpy(), expected)


@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    padding=st.integers(1, 8),
    seed=st.integers(0, 1000),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_reflecting_crop_equals_a_window_of_the_padded_image(channels, height, width, padding, seed, layout):
    padding = min(padding, height - 1, width - 1)
    augmentation = Augmentation(crop_padding=padding, crop_fill="reflect")
    images = batch(5, channels, height, width, seed)
    parameters = draw(augmentation, images, seed)
    result = augmentation.apply(images.contiguous(memory_format=layout), parameters)
    padded = torch.nn.functional.pad(images.float(), (padding,) * 4, mode="reflect").byte()
    assert parameters.crop is not None
    for ours, whole, corner in zip(result, padded, parameters.crop + padding, strict=True):
        top, left = corner.tolist()
        assert torch.equal(ours, whole[:, top : top + height, left : left + width])


def test_what_a_policy_uncovers_is_black_where_the_crop_reflects():
    images, indices = batch(50, height=12, width=12), torch.arange(50)
    reflecting, black = (Augmentation(auto_augment=True, crop_fill=fill) for fill in ("reflect", 0))
    assert torch.equal(*(each(images, indices, seed=0, epoch=0) for each in (reflecting, black)))


@given(seed=st.integers(0, 2**64 - 1), first=st.integers(0, 2**40), epoch=st.integers(0, 100))
def test_alternating_flip_is_random_in_the_first_epoch_and_alternates_from_there(seed, first, epoch):
    images, indices = batch(64), torch.arange(first, first + 64)
    alternating = Augmentation(flip="alternating")
    start = Augmentation(flip=True)(images, indices, seed=seed, epoch=0)
    here, next_one, later = (alternating(images, indices, seed=seed, epoch=epoch + more) for more in (0, 1, 2))
    assert torch.equal(here, start if epoch % 2 == 0 else start.flip(3))
    assert torch.equal(next_one, here.flip(3))
    assert torch.equal(later, here)


turn, place = st.integers(-2 * ONE, 2 * ONE), st.integers(-10 * ONE, 10 * ONE)


@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    maps=st.lists(st.tuples(turn, turn, place, turn, turn, place), min_size=1, max_size=3),
    fill=st.integers(0, 255),
)
def test_move_equals_the_slow_reference(channels, height, width, maps, fill):
    images = batch(len(maps), channels, height, width)
    result = move(images, torch.tensor(maps, dtype=torch.int32), fill)
    for image, ours, fixed in zip(images, result, maps, strict=True):
        assert np.array_equal(ours.numpy(), affine_reference(image.numpy(), fixed, fill))


@pytest.mark.parametrize("degrees", [15.0, 180.0])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 9, 7), (3, 4, 8)])
def test_rotation_equals_the_slow_reference_to_a_level_and_the_rounding_of_places(degrees, channels, height, width):
    augmentation, images = Augmentation(rotation=degrees), batch(20, channels, height, width)
    parameters = draw(augmentation, images)
    result = augmentation.apply(images, parameters)
    assert parameters.rotation is not None
    for image, ours, (a, _, _, d, _, _) in zip(images, result, parameters.rotation.tolist(), strict=True):
        expected = rotate_reference(image.numpy(), math.atan2(d, a))
        # Places count in 1/256 pixel, cut off, across and down; neighbours differ by up to 255 levels.
        assert np.abs(ours.numpy() - expected).max() <= 2.5


def test_one_call_scales_what_apply_gives():
    augmentation, images = Augmentation(**EVERYTHING), batch()
    result = augmentation(images, torch.arange(8), seed=1, epoch=0)
    assert torch.equal(result, augmentation.apply(images, draw(augmentation, images)).float() / 255)


def test_no_augmentation_scales_to_the_unit_interval():
    images = batch()
    assert torch.equal(Augmentation()(images, torch.arange(8), seed=0, epoch=0), images.float() / 255)


@pytest.mark.parametrize(
    "options",
    [
        *({}, {"trivial_augment": True}, {"flip": "alternating"}, {"crop_padding": 2, "crop_fill": "reflect"}),
        *({name: value} for name, value in EVERYTHING.items()),
    ],
)
def test_colour_images_are_channels_last(options):
    result = Augmentation(**options)(batch(), torch.arange(8), seed=0, epoch=0)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [EVERYTHING, {"trivial_augment": True}, {"auto_augment": "svhn"}])
def test_an_image_depends_on_seed_epoch_and_index_only(channels, options):
    augmentation, images, indices = Augmentation(**options), batch(12, channels, 12, 12), torch.arange(100, 112)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = augmentation(images, indices, seed=7, epoch=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    shuffled = augmentation(images[order], indices[order], seed=7, epoch=3)
    alone = torch.cat([augmentation(images[i : i + 1], indices[i : i + 1], seed=7, epoch=3) for i in range(12)])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(shuffled, whole[order])
    assert torch.equal(alone, whole)
    for changed in ({"seed": 8, "epoch": 3}, {"seed": 7, "epoch": 4}):
        assert not torch.equal(augmentation(images, indices, **changed), whole)
    assert not torch.equal(augmentation(images, indices + 1, seed=7, epoch=3), whole)


def test_memory_layout_of_the_images_changes_nothing():
    augmentation, images = Augmentation(**EVERYTHING), batch()
    turned = images.contiguous(memory_format=torch.channels_last)
    results = [augmentation(each, torch.arange(8), seed=0, epoch=0) for each in (images, turned)]
    assert torch.equal(*results)


def test_draw_covers_the_whole_range():
    augmentation, images = Augmentation(crop_padding=4, flip=True, shift=2, rotation=30, cutout=3), batch(4000)
    parameters = draw(augmentation, images)
    assert parameters.crop is not None
    assert [each.unique().tolist() for each in parameters.crop.unbind(1)] == [list(range(-4, 5))] * 2
    assert parameters.flip is not None
    assert abs(float(parameters.flip.float().mean()) - 0.5) < 0.04  # five standard deviations
    assert parameters.shift is not None
    assert [each.unique().tolist() for each in parameters.shift.unbind(1)] == [list(range(-2, 3))] * 2
    assert parameters.cutout is not None
    assert parameters.cutout[:, 0].unique().tolist() == list(range(9))
    assert parameters.cutout[:, 1].unique().tolist() == list(range(7))
    assert parameters.rotation is not None
    angles = torch.atan2(parameters.rotation[:, 3].double(), parameters.rotation[:, 0].double()).rad2deg()
    assert 29 < float(angles.max()) <= 30
    assert -30 <= float(angles.min()) < -29


def test_a_parameter_does_not_depend_on_what_else_is_on():
    images = batch(50)
    several, one = draw(Augmentation(**EVERYTHING), images), draw(Augmentation(cutout=3), images)
    assert several.cutout is not None
    assert one.cutout is not None
    assert torch.equal(several.cutout, one.cutout)


def test_draw_leaves_out_what_is_off():
    assert draw(Augmentation(), batch()) == Parameters()


@pytest.mark.parametrize("name", ["crop_padding", "shift", "rotation", "cutout", "mixup", "cutmix"])
def test_augmentation_rejects_negative_sizes(name):
    with pytest.raises(
        ValueError, match=rf"Augmentation\n{name}\n +Input should be greater than or equal to 0 .*input_value=-1"
    ):
        Augmentation(**{name: -1})


@pytest.mark.parametrize("name", ["crop_fill", "cutout_fill"])
@pytest.mark.parametrize(("value", "rule"), [(-1, "greater than or equal to 0"), (256, "less than or equal to 255")])
def test_augmentation_rejects_fills_that_are_no_pixel_value(name, value, rule):
    with pytest.raises(ValueError, match=rf"{name}.*\n +Input should be {rule} .*input_value={value}"):
        Augmentation(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("crop_fill", "mirror", "should be 'reflect'"),
        ("cutout_fill", "reflect", "should be a valid integer"),
        ("flip", "sometimes", "should be 'alternating'"),
    ],
)
def test_augmentation_rejects_words_that_it_does_not_know(name, value, rule):
    with pytest.raises(ValueError, match=rf"{name}.*\n +Input {rule}"):
        Augmentation(**{name: value})


@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 3)])
def test_augmentation_rejects_to_reflect_more_pixels_than_the_image_has_beside_its_border(height, width):
    augmentation = Augmentation(crop_padding=4, crop_fill="reflect")
    with pytest.raises(
        ValueError, match=rf"crop_padding must be less than .*; got 4 for \({height}, {width}\)\. Lower"
    ):
        augmentation(batch(height=height, width=width), torch.arange(8), seed=0, epoch=0)


def test_augmentation_rejects_two_policies():
    with pytest.raises(ValueError, match="auto_augment and trivial_augment exclude each other"):
        Augmentation(auto_augment="svhn", trivial_augment=True)


def test_augmentation_rejects_an_unknown_policy():
    with pytest.raises(ValueError, match="auto_augment"):
        Augmentation(auto_augment="mnist")


def test_augmentation_rejects_images_that_are_not_levels():
    with pytest.raises(TypeError, match=r"images must be uint8; got torch\.float32"):
        Augmentation(flip=True)(batch().float(), torch.arange(8), seed=0, epoch=0)


def test_augmentation_rejects_indices_of_other_images():
    with pytest.raises(ValueError, match=r"indices must be one for each image; got \(7,\) for 8 images"):
        Augmentation(flip=True)(batch(), torch.arange(7), seed=0, epoch=0)


def test_augmentation_rejects_images_of_too_many_pixels():
    images = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 1, 1, 8193)
    with pytest.raises(ValueError, match=r"images must be at most 8192 pixels a side; got \(1, 8193\)"):
        Augmentation(flip=True)(images, torch.arange(1), seed=0, epoch=0)


@pytest.mark.parametrize("options", [{"auto_augment": True}, {"trivial_augment": True}])
def test_augmentation_rejects_channels_that_are_no_colours(options):
    with pytest.raises(ValueError, match="images must have 1 or 3 channels for a policy; got 2"):
        Augmentation(**options)(batch(channels=2), torch.arange(8), seed=0, epoch=0)
