import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.fixtures import random_images
from ttfs_triton.data.pixels import centre_crop, crop_numbers, random_crop, random_part


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 2**40))
def test_random_part_lies_in_the_image(height, width, seed, number):
    top, left, part_height, part_width = random_part(height, width, crop_numbers(seed, 3, number))
    assert 0 <= top <= top + part_height <= height
    assert 0 <= left <= left + part_width <= width
    assert part_height > 0
    assert part_width > 0


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (300, 1200), (1200, 300), (224, 224)])
def test_random_part_is_distributed_as_torchvisions(height, width):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    transform, image = v2.RandomResizedCrop(8), Image.new("L", (width, height))
    torch.manual_seed(0)
    theirs = [transform.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs], dtype=np.float64)
    ours = np.array([random_part(height, width, crop_numbers(0, 0, i)) for i in range(4000)], dtype=np.float64)

    def figures(parts: np.ndarray) -> np.ndarray:
        area = parts[:, 2] * parts[:, 3] / (height * width)
        return np.stack([*(parts / [height, width, height, width]).T, area, area**2, np.log(parts[:, 3] / parts[:, 2])])

    one, other = figures(ours), figures(theirs)
    error = np.sqrt((one.var(1) + other.var(1)) / 4000)
    assert (np.abs(one.mean(1) - other.mean(1)) < 4 * error + 1e-9).all()


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (225, 300), (100, 100), (333, 1000), (1000, 333)])
def test_crops_equal_torchvisions_pixels(shape):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    image = Image.fromarray(random_images(1, 3, *shape)[0])
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)
    np.testing.assert_array_equal(centre_crop(image, (224, 224)), expected)
    for number in range(3):
        part = random_part(*shape, crop_numbers(7, 2, number))
        expected = v2.functional.resized_crop(image, *part, [24, 20], antialias=True)
        np.testing.assert_array_equal(random_crop(7, 2, number)(image, (24, 20)), expected)


def test_centre_crop_of_another_shape_keeps_proportions():
    columns = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    cropped = np.asarray(centre_crop(Image.fromarray(columns), (28, 14)))
    assert cropped.shape == (28, 14)
    # 100 rows become 32, so 14 columns are 43.75 of the original ones, about the middle at 99.5.
    np.testing.assert_allclose(cropped[0], 99.5 + (np.arange(14) - 6.5) * 3.125, atol=0.6)
