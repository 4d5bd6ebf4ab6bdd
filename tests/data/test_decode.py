import io
import logging
from collections.abc import Sequence
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ttfs_triton.data import decode
from ttfs_triton.data.decode import EncodedImages, InMemoryImages, decode_rows
from ttfs_triton.data.reading import decode_image


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def table(images: Sequence[np.ndarray | bytes | None]) -> datasets.Dataset:
    rows = [
        encoded(Image.fromarray(image)) if isinstance(image, np.ndarray) else image and {"bytes": image, "path": None}
        for image in images
    ]
    return datasets.Dataset.from_dict({"image": rows}, features=datasets.Features(image=datasets.Image(decode=False)))


def decode_all(images: Sequence[np.ndarray | bytes | None], **options: object) -> decode.Decoded:
    arguments = {"keep": True, "where": "the train split of a/b", **options}
    return decode_rows(table(images), torch.arange(len(images)), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)],
)
def test_decode_image_converts_modes(random_images, mode, channels):
    image = Image.fromarray(random_images(1, 3)[0]).convert(mode)
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(6, 6, channels)
    pixels = decode_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_decode_image_keeps_the_upper_bits_of_16_bit_images():
    values = np.array([[0, 255, 256], [0x1234, 0xABCD, 0xFFFF]], dtype=np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels[:, :, 0], [[0, 0, 1], [0x12, 0xAB, 0xFF]])


def test_decode_image_turns_photographs_upright(random_images):
    pixels = random_images(1, 1, 4, 7)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned clockwise by 90 degrees when shown
    turned = decode_image(encoded(Image.fromarray(pixels), exif=exif))
    np.testing.assert_array_equal(turned[:, :, 0], np.rot90(pixels, -1))


def test_decode_image_reads_a_path(tmp_path, random_images):
    pixels = random_images(1)[0]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = decode_image({"bytes": None, "path": str(tmp_path / "a.png")})
    np.testing.assert_array_equal(image[:, :, 0], pixels)


def test_decode_image_resizes_to_height_and_width():
    flat = Image.new("RGB", (9, 5), (10, 20, 30))
    pixels = decode_image(encoded(flat), (4, 3))
    assert pixels.shape == (4, 3, 3)
    assert (pixels == (10, 20, 30)).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_decode_image_rejects_modes_without_an_8_bit_meaning(mode):
    with pytest.raises(ValueError, match=f"pixel mode {mode} has no 8-bit meaning"):
        decode_image(encoded(Image.new(mode, (2, 2)), "TIFF"))


@pytest.mark.parametrize("nothing", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_decode_image_rejects_rows_without_image(nothing):
    with pytest.raises(ValueError, match="no image"):
        decode_image(nothing)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_decode_rows_keeps_pixels_and_order(random_images, channels, keep):
    images = random_images(70, channels, 5, 8)
    decoded = decode_all(list(images), keep=keep)
    assert isinstance(decoded.images, InMemoryImages if keep else EncodedImages)
    assert decoded.images.shape == (70, channels, 5, 8)
    indices = torch.tensor([69, 0, 33, 0])
    batch = decoded.images.images_at(indices)
    expected = torch.from_numpy(images.reshape(70, 5, 8, channels)).permute(0, 3, 1, 2)[indices]
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch, expected)


def test_decode_rows_digest_depends_on_pixels_only(random_images):
    images = list(random_images(5))
    digest = decode_all(images).digest
    assert decode_all(images, keep=False).digest == digest
    assert decode_all(images[::-1]).digest != digest
    images[3] = images[3] ^ 1
    assert decode_all(images).digest != digest


@pytest.mark.parametrize("keep", [True, False])
def test_decode_rows_expands_grayscale_once_colour_is_met(random_images, keep):
    gray, colour = random_images(2), random_images(1, 3)
    images = decode_all([gray[0], colour[0], gray[1]], keep=keep).images.images_at(torch.arange(3))
    assert torch.equal(images[0], torch.from_numpy(gray[0]).expand(3, 6, 6))
    assert torch.equal(images[1], torch.from_numpy(colour[0]).permute(2, 0, 1))
    assert torch.equal(images[2], torch.from_numpy(gray[1]).expand(3, 6, 6))


def test_decode_rows_gives_grayscale_the_channels_asked_for(random_images):
    assert decode_all(list(random_images(2)), channels=3).images.shape == (2, 3, 6, 6)


def test_decode_rows_rejects_colour_where_grayscale_was_asked_for(random_images):
    images = [random_images(1)[0], random_images(1, 3)[0]]
    with pytest.raises(ValueError, match="must be grayscale like the training images; got a colour image in row 1"):
        decode_all(images, channels=1)


@pytest.mark.parametrize("keep", [True, False])
def test_decode_rows_reports_and_skips_bad_images(random_images, encode_png, caplog, keep):
    images = list(random_images(600))
    damaged = encode_png(images[517])
    bad = {3: b"not an image", 517: damaged[: len(damaged) // 2], 599: None}
    rows = [bad.get(i, image) for i, image in enumerate(images)]
    with caplog.at_level(logging.WARNING):
        decoded = decode_all(rows, keep=keep)
    assert decoded.skipped == [3, 517, 599]
    kept = [i for i in range(600) if i not in bad]
    assert decoded.kept.tolist() == kept
    for row in bad:
        assert f"row {row} of the train split of a/b cannot be decoded" in caplog.text
    expected = torch.from_numpy(np.stack(images)[kept])[:, None]
    assert torch.equal(decoded.images.images_at(torch.arange(597)), expected)


def test_decode_rows_finds_a_flipped_byte_in_the_pixel_data(random_images, encode_png):
    images = list(random_images(3))
    damaged = bytearray(encode_png(images[1]))
    damaged[damaged.index(b"IDAT") + 10] ^= 0xFF
    assert decode_all([images[0], bytes(damaged), images[2]]).skipped == [1]


def test_decode_rows_stops_at_the_limit_of_bad_images(random_images):
    images = [*random_images(3), b"x", b"y", b"z"]
    assert decode_all(images, max_bad_images=3).skipped == [3, 4, 5]
    message = r"at most 2 images must be undecodable; got 3 up to row 5 .*--max-bad-images"
    with pytest.raises(ValueError, match=message):
        decode_all(images, max_bad_images=2)


def test_decode_rows_rejects_data_without_a_single_image():
    with pytest.raises(ValueError, match="the train split of a/b must hold images; got none that can be decoded"):
        decode_all([b"x", b"y"])


def test_decode_rows_names_the_row_of_another_size(random_images):
    images = [b"x", *random_images(3), random_images(1, 1, 6, 7)[0]]
    with pytest.raises(ValueError, match=r"got 6x7 in row 4 of .*, where row 1 has 6x6\. Resize with --image-size"):
        decode_all(images)


def test_decode_rows_compares_with_the_size_asked_for(random_images):
    with pytest.raises(ValueError, match=r"got 6x6 in row 0 of .*, where the training images have 4x4"):
        decode_all(list(random_images(2)), size=(4, 4))


@pytest.mark.parametrize("keep", [True, False])
def test_decode_rows_resizes_images_of_different_sizes(random_images, keep):
    images = [random_images(1, 1, 6, 7)[0], random_images(1, 1, 9, 3)[0]]
    decoded = decode_all(images, size=(4, 5), resize=True, keep=keep)
    assert decoded.images.shape == (2, 1, 4, 5)
    expected = np.asarray(Image.fromarray(images[1]).resize((5, 4), Image.Resampling.BILINEAR))
    assert torch.equal(decoded.images.images_at(torch.tensor([1]))[0, 0], torch.from_numpy(expected.copy()))


def test_decode_rows_compares_with_the_memory_of_all_processes(random_images, monkeypatch):
    images = list(random_images(100))  # 3,600 bytes of pixels
    monkeypatch.setattr(decode.psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    assert decode_all(images).images.shape == (100, 1, 6, 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"must fit into memory; got 100 images .* each of 2 .*Use --streaming"):
        decode_all(images)
    assert decode_all(images, keep=False).images.shape == (100, 1, 6, 6)


def test_decode_rows_shows_progress_only_when_asked(random_images, capsys):
    decode_all(list(random_images(2)))
    assert capsys.readouterr().out == ""
    decode_all(list(random_images(2)), progress=True)
    captured = capsys.readouterr()
    assert captured.err == ""
