"""From an image's file to pixels: modes, formats, limits and crops."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from tests.data.fixtures import image_file, random_images
from ttfs_triton.data.pixels import (
    centre_crop,
    crop_numbers,
    decode_image,
    open_image,
    random_crop,
    random_part,
    to_float,
)


def encoded(image: Image.Image, file_format: str = "PNG") -> dict:
    return {"bytes": image_file(image, file_format), "path": None}


@pytest.mark.parametrize("stored", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_are_converted_as_pillow_does(stored):
    image = Image.fromarray(random_images(1, 3)[0]).convert(stored)
    natural = "L" if stored in ("1", "L", "LA") else "RGB"
    for mode in (None, "L", "RGB"):
        expected = np.asarray(image.convert(mode or natural)).reshape(6, 6, 1 if (mode or natural) == "L" else 3)
        pixels = decode_image(encoded(image, "TIFF" if stored == "CMYK" else "PNG"), mode=mode)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, expected)


def test_16_bit_images_keep_their_upper_bits_and_photographs_are_turned_upright(tmp_path):
    values = np.array([[0, 255, 256], [0x1234, 0xABCD, 0xFFFF]], dtype=np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels[:, :, 0], [[0, 0, 1], [0x12, 0xAB, 0xFF]])
    assert decode_image(encoded(Image.fromarray(np.zeros((2, 3), np.uint16)))).shape == (2, 3, 1)
    with pytest.raises(ValueError, match="must use their upper bits; the brightest is 1023 of 65535"):
        decode_image(encoded(Image.fromarray(values.clip(max=1023))))
    pixels, exif = random_images(1, 1, 4, 7)[0], Image.Exif()
    exif[0x0112] = 6  # turned clockwise by 90 degrees when shown
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = decode_image({"bytes": None, "path": str(tmp_path / "a.png")})
    np.testing.assert_array_equal(turned[:, :, 0], np.rot90(pixels, -1))


def test_other_formats_pipes_and_huge_images_are_refused(tmp_path):
    for nothing in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": "a.png"}):
        with pytest.raises(ValueError, match="no image"):
            decode_image(nothing)
    for mode in ("I", "F"):
        with pytest.raises(ValueError, match=f"pixel mode {mode} has no 8-bit meaning"):
            decode_image(encoded(Image.new(mode, (2, 2)), "TIFF"))
    with pytest.raises(UnidentifiedImageError, match="it must be one of PNG"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n")
    huge = image_file(Image.new("1", (2**14, 2**13 + 1)))
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="must have at most 134217728 pixels; got 16384 × 8193"),
    ):
        open_image(huge)
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    os.truncate(tmp_path / "b.png", 2**29 + 1)
    for name, message in (("a", "no regular file"), ("b", "536870913 bytes, at most 536870912 are allowed")):
        with pytest.raises(OSError, match=message):
            decode_image({"bytes": None, "path": str(tmp_path / f"{name}.png")})


@pytest.mark.parametrize("channels", [1, 3])
def test_to_float_is_exact_and_the_same_on_any_device(channels, device):
    pixels = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
    pixels[0, 0, 0, :4] = torch.tensor([0, 1, 254, 255])
    here, there = to_float(pixels), to_float(pixels.to(device))
    assert here[0, 0, 0, :4].tolist() == [0.0, pytest.approx(1 / 255), pytest.approx(254 / 255), 1.0]
    assert channels == 1 or here.is_contiguous(memory_format=torch.channels_last)
    assert (there.device, there.stride()) == (device, here.stride())
    torch.testing.assert_close(there.cpu(), here)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 1200), (1200, 300), (224, 224)])
def test_random_part_is_distributed_as_torchvisions(height, width):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    transform, image = v2.RandomResizedCrop(8), Image.new("L", (width, height))
    torch.manual_seed(0)
    theirs = [transform.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs], dtype=np.float64)
    ours = np.array([random_part(height, width, crop_numbers(0, 0, i)) for i in range(4000)], dtype=np.float64)
    assert (ours >= [0, 0, 1, 1]).all()
    assert (ours[:, :2] + ours[:, 2:] <= [height, width]).all()

    def figures(parts: np.ndarray) -> np.ndarray:
        area = parts[:, 2] * parts[:, 3] / (height * width)
        return np.stack([*(parts / [height, width, height, width]).T, area, area**2, np.log(parts[:, 3] / parts[:, 2])])

    one, other = figures(ours), figures(theirs)
    error = np.sqrt((one.var(1) + other.var(1)) / 4000)
    assert (np.abs(one.mean(1) - other.mean(1)) < 4 * error + 1e-9).all()


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 100), (333, 1000), (1000, 333)])
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
