"""From encoded files to pixels: exactly, in order, in bounded memory, and the damaged ones named."""

import logging
import os
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from tests.data.fixtures import image_file, png, random_images
from ttfs_triton.data import decode, reading
from ttfs_triton.data.decode import decode_rows
from ttfs_triton.data.pixels import to_float
from ttfs_triton.data.reading import decode_image, open_image, read_rows


def encoded(image: Image.Image, file_format: str = "PNG") -> dict:
    return {"bytes": image_file(image, file_format), "path": None}


def decode_all(images, **options) -> decode.Decoded:
    """Decode pixels, encoded bytes or None."""
    rows = [
        encoded(Image.fromarray(image)) if isinstance(image, np.ndarray) else image and {"bytes": image, "path": None}
        for image in images
    ]
    features = datasets.Features(image=datasets.Image(decode=False))
    table = datasets.Dataset.from_dict({"image": rows}, features=features)
    return decode_rows(table, torch.arange(len(images)), **{"keep": True, "where": "the train split of a/b", **options})


# ---- one image


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
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="no regular file"):
        decode_image({"bytes": None, "path": str(tmp_path / "a.png")})
    with pytest.raises(UnidentifiedImageError):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n")
    Image.new("1", (2**14, 2**13 + 1)).save(tmp_path / "b.png")
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="must have at most 134217728 pixels; got 16384 × 8193"),
    ):
        open_image((tmp_path / "b.png").read_bytes())
    (tmp_path / "c.png").touch()
    os.truncate(tmp_path / "c.png", 2**29 + 1)
    with pytest.raises(OSError, match="536870913 bytes, at most 536870912 are allowed"):
        decode_image({"bytes": None, "path": str(tmp_path / "c.png")})


@pytest.mark.parametrize("channels", [1, 3])
def test_to_float_is_exact_and_the_same_on_any_device(channels, device):
    pixels = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
    pixels[0, 0, 0, :4] = torch.tensor([0, 1, 254, 255])
    here, there = to_float(pixels), to_float(pixels.to(device))
    assert here[0, 0, 0, :4].tolist() == [0.0, pytest.approx(1 / 255), pytest.approx(254 / 255), 1.0]
    assert channels == 1 or here.is_contiguous(memory_format=torch.channels_last)
    assert (there.device, there.stride()) == (device, here.stride())
    torch.testing.assert_close(there.cpu(), here)


# ---- all images of a split


@pytest.mark.parametrize("keep", [True, False])
def test_grayscale_is_expanded_once_colour_is_met_or_asked_for(keep):
    gray, colour = random_images(2), random_images(1, 3)
    images = decode_all([gray[0], colour[0], gray[1]], keep=keep).images.images_at(torch.arange(3))
    assert torch.equal(images[0], torch.from_numpy(gray[0]).expand(3, 6, 6))
    assert torch.equal(images[1], torch.from_numpy(colour[0]).permute(2, 0, 1))
    assert torch.equal(images[2], torch.from_numpy(gray[1]).expand(3, 6, 6))
    assert decode_all(list(gray), channels=3, keep=keep).images.shape == (2, 3, 6, 6)
    with pytest.raises(ValueError, match="must be grayscale like the training images; got a colour image, row 1"):
        decode_all([gray[0], colour[0]], channels=1, keep=keep)


@pytest.mark.parametrize("keep", [True, False])
def test_bad_images_are_reported_and_skipped(caplog, keep):
    images = list(random_images(600))
    damaged = png(images[517])
    flipped = bytearray(png(images[8]))
    flipped[flipped.index(b"IDAT") + 10] ^= 0xFF
    bad = {3: b"not an image", 8: bytes(flipped), 517: damaged[: len(damaged) // 2], 599: None}
    rows = [bad.get(i, image) for i, image in enumerate(images)]
    with caplog.at_level(logging.WARNING):
        decoded = decode_all(rows, keep=keep)
    assert decoded.skipped == list(bad)
    kept = [i for i in range(600) if i not in bad]
    assert decoded.kept.tolist() == kept
    for row in bad:
        assert f"row {row} of the train split of a/b cannot be decoded" in caplog.text
    expected = torch.from_numpy(np.stack(images)[kept])[:, None]
    assert torch.equal(decoded.images.images_at(torch.arange(596)), expected)
    message = r"at most 3 images may be undecodable; got 4 up to row 599 .*--max-bad-images"
    with pytest.raises(ValueError, match=message):
        decode_all(rows, keep=keep, max_bad_images=3)
    with pytest.raises(ValueError, match="the train split of a/b must hold images; got none that can be decoded"):
        decode_all([b"x", b"y"], keep=keep)


@pytest.mark.parametrize("keep", [True, False])
def test_images_of_different_sizes_are_resized_or_refused(keep):
    images = [b"x", random_images(1, 1, 6, 7)[0], random_images(1, 3, 9, 3)[0]]
    with pytest.raises(ValueError, match=r"got 9x3 in row 2 of .*, where row 1 of .* has 6x7\. Resize with --im"):
        decode_all(images, keep=keep)
    with pytest.raises(ValueError, match=r"got 6x7 in row 1 of .*, where the training images have 4x4"):
        decode_all(images, size=(4, 4), keep=keep)
    decoded = decode_all(images, size=(4, 5), resize=True, keep=keep)
    assert decoded.images.shape == (2, 3, 4, 5)
    expected = np.array(Image.fromarray(images[2]).resize((5, 4), Image.Resampling.BILINEAR))
    assert torch.equal(decoded.images.images_at(torch.tensor([1]))[0], torch.from_numpy(expected).permute(2, 0, 1))


def test_pixels_must_fit_into_the_memory_of_all_processes(monkeypatch):
    images = list(random_images(100))  # 3,600 bytes of pixels
    monkeypatch.setattr(decode.psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    assert decode_all(images).images.shape == (100, 1, 6, 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"must fit into memory; got 100 images .* each of 2 .*Use --streaming"):
        decode_all(images)
    assert decode_all(images, keep=False).images.shape == (100, 1, 6, 6)


# ---- rows, decoded ahead


@pytest.mark.parametrize(("size", "most"), [(reading._AHEAD_BYTES, 3), (reading._AHEAD_BYTES // 4, 12), (1, 96)])
def test_large_images_are_not_decoded_ahead(monkeypatch, size, most):
    monkeypatch.setattr(reading, "decoding_threads", lambda: 2)
    rows, started = datasets.Dataset.from_dict({"image": list(range(1200))}), []

    def read(_, number):
        started.append(number)
        return np.empty(size, np.uint8)

    results = read_rows(rows, torch.arange(1200), read, progress=False)
    for taken in range(1, 100):
        next(results)
        assert len(started) <= taken + most
