"""From an image's file to pixels: modes, formats, limits and crops; rows of images, in order, damaged ones named."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data.fixtures import image_file, png, random_images, write_parquet
from ttfs_triton.data import decode
from ttfs_triton.data.decode import DataLostError, decode_rows, read_rows
from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.data.pixels import Crop, centre_crop, crop_numbers, decode_image, random_crop, random_part


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
    assert not decode_image(encoded(Image.fromarray(0 * values))).any()
    with pytest.raises(ValueError, match="must use their upper bits; the brightest is 1023 of 65535"):
        decode_image(encoded(Image.fromarray(values.clip(max=1023))))
    pixels, exif = random_images(1, 1, 4, 7)[0], Image.Exif()
    exif[0x0112] = 6  # turned clockwise by 90 degrees when shown
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = decode_image({"bytes": None, "path": str(tmp_path / "a.png")})
    np.testing.assert_array_equal(turned[:, :, 0], np.rot90(pixels, -1))


def test_other_formats_pipes_and_huge_images_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    os.truncate(tmp_path / "b.png", 2**29 + 1)
    for wrong, message in (
        *((nothing, "no image") for nothing in (None, {"bytes": None, "path": None}, {"bytes": b"", "path": "a.png"})),
        *((encoded(Image.new(mode, (2, 2)), "TIFF"), f"pixel mode {mode} has no 8-bit meaning") for mode in ("I", "F")),
        ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 6\n%%EndComments\n"}, "it must be one of PNG"),
        ({"bytes": None, "path": tmp_path / "a.png"}, "no regular file"),
        ({"bytes": None, "path": tmp_path / "b.png"}, "536870913 bytes, at most 536870912 are allowed"),
    ):
        with pytest.raises((OSError, ValueError), match=message):  # Pillow's UnidentifiedImageError is an OSError
            decode_image(wrong)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match="must have at most 134217728 pixels; got 16384 × 8193"),
    ):
        decode_image(encoded(Image.new("1", (2**14, 2**13 + 1))))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (300, 1200), (1200, 300), (224, 224)])
def test_random_part_is_distributed_as_torchvisions(height, width):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    transform, image = v2.RandomResizedCrop(8), Image.new("L", (width, height))
    drawn = [transform.make_params([image]) for _ in range(4000)]
    theirs = np.array([[part[name] for name in ("top", "left", "height", "width")] for part in drawn], np.float64)
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
    image = Image.fromarray(random_images(1, 3, 100, 200)[0])  # 28 is 7/8 of 32
    expected = v2.functional.center_crop(v2.functional.resize(image, [32, 64]), [28, 14])
    np.testing.assert_array_equal(centre_crop(image, (28, 14)), expected)


# ---- rows of images


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
    rows, kept = [bad.get(i, image) for i, image in enumerate(images)], [i for i in range(600) if i not in bad]
    decoded = decode_all(rows, keep=keep)
    assert (decoded.skipped, decoded.kept.tolist()) == (list(bad), kept)
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
    with pytest.raises(ValueError, match=r"got 9x3 in row 2 of .*, where row 1 of .* has 6x7\. Resize .* --image-size"):
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
    with pytest.raises(RuntimeError, match=r"got 100 images .* per process \(2 processes\).*train with --streaming"):
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


# ---- photographs of different sizes, loaded cropped

SIZES = [(30, 40), (40, 30), (64, 64), (25, 90), (120, 160)]
jpeg = partial(image_file, file_format="JPEG")


def photograph(number: int, mode: str = "RGB") -> Image.Image:
    height, width = SIZES[number % len(SIZES)]
    coarse = np.random.default_rng(number).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height)).convert(mode)


def class_folders(folder: Path, n: int = 10) -> list[Path]:
    """Files in the order in which they are read."""
    for i in range(n):
        path = folder / "train" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(i)))
    return sorted((folder / "train").glob("*/*"))


def load(folder: Path, **options) -> ImageData:
    return load_images(None, folder, image_size=20, cropped=True, **options)


def cropped(files: Sequence[Path], crops: Sequence[Crop]) -> Tensor:
    images = [crop(Image.open(file).convert("RGB"), (20, 20)) for file, crop in zip(files, crops, strict=True)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def test_cropped_images_are_the_middle_and_in_an_epoch_keyed_parts(tmp_path, monkeypatch):
    """Those of the image, in one thread or many, whichever others are left out."""
    files = class_folders(tmp_path)
    data = load(tmp_path)
    assert torch.equal(data.images, cropped(files, [centre_crop] * 10))
    data, chosen = data.in_epoch(5, 2), torch.tensor([7, 0, 7, 3])
    expected = cropped([files[i] for i in chosen], [random_crop(5, 2, i) for i in chosen.tolist()])
    for threads in (1, 3):
        monkeypatch.setattr("ttfs_triton.data.decode.decoding_threads", lambda threads=threads: threads)
        assert torch.equal(data.images_at(chosen), expected)
    assert not torch.equal(expected, data.in_epoch(5, 3).images_at(chosen))
    whole = data.images
    files[2].write_bytes(b"damaged")
    assert torch.equal(load(tmp_path).in_epoch(5, 2).images, whole[[0, 1, 3, 4, 5, 6, 7, 8, 9]])


@pytest.mark.parametrize(("modes", "channels"), [(["L", "L"], 1), (["L", "RGB"], 3), (["CMYK", "L"], 3)])
def test_channels_are_those_of_the_most_colourful_image(tmp_path, modes, channels):
    write_parquet(tmp_path / "train.parquet", [jpeg(photograph(i, mode)) for i, mode in enumerate(modes)], [0, 1])
    write_parquet(tmp_path / "test.parquet", [jpeg(photograph(0))], [0])
    data = load(tmp_path)
    assert data.images.shape == (2, channels, 20, 20)
    if channels == 3:
        assert load(tmp_path, split="test", like=data).shape == (1, 3, 20, 20)
        return
    with pytest.raises(ValueError, match="must be grayscale like the training images; got colour images in the test"):
        load(tmp_path, split="test", like=data)
    with pytest.raises(ValueError, match=r"image_size must be given for cropped images; got None\. Add"):
        load_images(None, tmp_path, cropped=True)


def test_damaged_images_are_black_if_few(tmp_path, caplog, monkeypatch):
    """Those that are decoded when the others are loaded, are skipped."""
    files = class_folders(tmp_path)
    whole = load(tmp_path).images
    for place in (4, 6):
        files[place].write_bytes(files[place].read_bytes()[:200])
    assert load(tmp_path).skipped == [4, 6]
    with pytest.raises(ValueError, match=r"at most 1 images may be undecodable; got 2 up to .*b/03\.jpg"):
        load(tmp_path, max_bad_images=1)
    monkeypatch.setattr(decode, "_SAMPLE", 1)
    caplog.clear()
    data, kept = load(tmp_path, max_bad_images=2), [0, 1, 2, 3, 5, 7, 8, 9]
    for images in (data.images, data.images):
        assert not images[[4, 6]].any()
        assert torch.equal(images[kept], whole[kept])
    assert [message.partition(" ")[0] for message in caplog.messages] == [str(files[4]), str(files[6])]
    files[7].write_bytes(b"no image")
    with pytest.raises(DataLostError, match=r"all but 2 images must be readable to the end; got .*b/05\.jpg"):
        _ = data.images


def test_fingerprint_is_that_of_the_files_wherever_they_lie(tmp_path):
    files = class_folders(tmp_path / "a")
    labels = [0 if file.parent.name == "a" else 1 for file in files]
    write_parquet(tmp_path / "b" / "train.parquet", [f.read_bytes() for f in files], labels, names=["a", "b"])
    assert load(tmp_path / "a").fingerprint == load(tmp_path / "b").fingerprint
    files[3].write_bytes(jpeg(photograph(4)))
    assert load(tmp_path / "a").fingerprint != load(tmp_path / "b").fingerprint
