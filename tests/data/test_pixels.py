"""Pixels of decoded images; files and their formats are in tests/train/test_decode.py."""

import numpy as np
import pytest
import torch
from PIL import Image

from ttfs_triton.data.pixels import image_pixels, to_float


def test_to_float_is_exact_at_both_ends():
    images = torch.tensor([0, 1, 254, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    assert to_float(images).flatten().tolist() == [0.0, pytest.approx(1 / 255), pytest.approx(254 / 255), 1.0]


def test_to_float_keeps_colour_channels_innermost():
    assert to_float(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
def test_to_float_does_not_depend_on_the_device(channels, device):
    pixels = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
    there = to_float(pixels.to(device))
    assert there.device == device
    assert there.stride() == to_float(pixels).stride()
    torch.testing.assert_close(there.cpu(), to_float(pixels))


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
@pytest.mark.parametrize("stored", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_image_pixels_converts_to_the_mode_asked_for(stored, mode, channels):
    pixels = image_pixels(Image.new(stored, (5, 4)), mode=mode)
    assert (pixels.shape, pixels.dtype) == ((4, 5, channels), np.uint8)


def test_gray_pixels_are_equal_in_all_three_colours():
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert (image_pixels(gray, mode="RGB") == image_pixels(gray)).all()


def test_image_pixels_resizes_after_converting():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    expected = image.convert("L").resize((3, 4), Image.Resampling.BILINEAR)
    assert (image_pixels(image, (4, 3), "L")[:, :, 0] == np.asarray(expected)).all()


def test_image_pixels_rejects_modes_without_an_8_bit_meaning():
    with pytest.raises(ValueError, match="pixel mode F has no 8-bit meaning"):
        image_pixels(Image.new("F", (2, 2)))
