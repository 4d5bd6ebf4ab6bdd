"""Rows of encoded images: decoded exactly, in order, in bounded memory, and the damaged ones named."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.fixtures import png, random_images
from ttfs_triton.data import decode
from ttfs_triton.data.decode import decode_rows, read_rows


def decode_all(images, **options) -> decode.Decoded:
    """Decode pixels, encoded bytes or None."""
    files = [png(image) if isinstance(image, np.ndarray) else image for image in images]
    rows = [file and {"bytes": file, "path": None} for file in files]
    features = datasets.Features(image=datasets.Image(decode=False))
    table = datasets.Dataset.from_dict({"image": rows}, features=features)
    return decode_rows(table, torch.arange(len(images)), **{"keep": True, "where": "the train split of a/b", **options})


@pytest.mark.parametrize("keep", [True, False])
def test_grayscale_is_expanded_once_colour_is_met_or_asked_for(keep):
    gray, colour = random_images(2), random_images(1, 3)
    images = decode_all([gray[0], colour[0], gray[1]], keep=keep).images.images_at(torch.arange(3))
    for image, expected in zip(images[::2], gray, strict=True):
        assert torch.equal(image, torch.from_numpy(expected).expand(3, 6, 6))
    assert torch.equal(images[1], torch.from_numpy(colour[0]).permute(2, 0, 1))
    assert decode_all(list(gray), channels=3, keep=keep).images.shape == (2, 3, 6, 6)
    with pytest.raises(ValueError, match="must be grayscale like the training images; got a colour image, row 1"):
        decode_all([gray[0], colour[0]], channels=1, keep=keep)


@pytest.mark.parametrize("keep", [True, False])
def test_bad_images_are_reported_and_skipped(caplog, keep):
    images = list(random_images(600))
    damaged, flipped = png(images[517]), bytearray(png(images[8]))
    flipped[flipped.index(b"IDAT") + 10] ^= 0xFF
    bad = {3: b"not an image", 8: bytes(flipped), 517: damaged[: len(damaged) // 2], 599: None}
    rows = [bad.get(i, image) for i, image in enumerate(images)]
    decoded = decode_all(rows, keep=keep)
    assert decoded.skipped == list(bad)
    kept = [i for i in range(600) if i not in bad]
    assert decoded.kept.tolist() == kept
    assert all(f"row {row} of the train split of a/b cannot be decoded" in caplog.text for row in bad)
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


@pytest.mark.parametrize(("size", "most"), [(decode._AHEAD_BYTES, 3), (decode._AHEAD_BYTES // 4, 12), (1, 96)])
def test_large_images_are_not_decoded_ahead(monkeypatch, size, most):
    monkeypatch.setattr(decode, "decoding_threads", lambda: 2)
    rows, started = datasets.Dataset.from_dict({"image": list(range(1200))}), []

    def read(_, number):
        started.append(number)
        return np.empty(size, np.uint8)

    results = read_rows(rows, torch.arange(1200), read, progress=False)
    for taken in range(1, 100):
        next(results)
        assert len(started) <= taken + most
