"""Photographs of different sizes, loaded cropped."""

import json
import os
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import config as datasets_config
from PIL import Image
from torch import Tensor

from tests.data.fixtures import image_file, write_parquet
from ttfs_triton.data import decode
from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.data.pixels import Crop, centre_crop, random_crop

SIZES = [(30, 40), (40, 30), (64, 64), (25, 90), (120, 160)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "checked-images"


def photograph(number: int, mode: str = "RGB") -> Image.Image:
    height, width = SIZES[number % len(SIZES)]
    coarse = np.random.default_rng(number).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height)).convert(mode)


def jpeg(image: Image.Image) -> bytes:
    return image_file(image, "JPEG")


def class_folders(folder: Path, n: int = 10) -> list[Path]:
    """Files in the order in which they are read."""
    for i in range(n):
        path = folder / "train" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(i)))
    return sorted((folder / "train").glob("*/*"))


def load(folder: Path, **options) -> ImageData:
    return load_images(None, folder, image_size=20, cropped=True, **options)


def cropped(files: Iterable[Path], crops: Iterable[Crop]) -> Tensor:
    images = [crop(Image.open(file).convert("RGB"), (20, 20)) for file, crop in zip(files, crops, strict=False)]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def test_cropped_images_are_the_middle_and_in_an_epoch_keyed_parts(tmp_path, monkeypatch):
    """Those of the image, in one thread or many, whichever others are left out."""
    files = class_folders(tmp_path)
    data = load(tmp_path)
    assert torch.equal(data.images, cropped(files, repeat(centre_crop)))
    data, chosen = data.in_epoch(5, 2), torch.tensor([7, 0, 7, 3])
    expected = cropped([files[i] for i in chosen], [random_crop(5, 2, i) for i in chosen.tolist()])
    for threads in (1, 3):
        monkeypatch.setattr("ttfs_triton.data.decode.decoding_threads", lambda threads=threads: threads)
        assert torch.equal(data.images_at(chosen), expected)
    assert not torch.equal(expected, load(tmp_path).in_epoch(5, 3).images_at(chosen))
    whole = data.images
    files[2].write_bytes(b"damaged")
    assert torch.equal(load(tmp_path).in_epoch(5, 2).images, whole[[0, 1, 3, 4, 5, 6, 7, 8, 9]])


@pytest.mark.parametrize(("modes", "channels"), [(["L", "L"], 1), (["L", "RGB"], 3), (["CMYK", "L"], 3)])
def test_channels_are_those_of_the_most_colourful_image(tmp_path, modes, channels):
    write_parquet(tmp_path / "train.parquet", [jpeg(photograph(i, mode)) for i, mode in enumerate(modes)], [0, 1])
    data = load(tmp_path)
    assert data.images.shape == (2, channels, 20, 20)
    write_parquet(tmp_path / "test.parquet", [jpeg(photograph(0))], [0])
    if channels == 3:
        assert load(tmp_path, split="test", like=data).shape == (1, 3, 20, 20)
        return
    with pytest.raises(ValueError, match="must be grayscale like the training images; got colour images in the test"):
        load(tmp_path, split="test", like=data)
    with pytest.raises(ValueError, match=r"image_size must be given for cropped images; got None\. Add"):
        load_images(None, tmp_path, cropped=True)


def test_damaged_images_are_found_once_and_remembered(tmp_path, caplog, monkeypatch):
    files = class_folders(tmp_path)
    whole = files[4].read_bytes()
    files[4].write_bytes(whole[: len(whole) // 2])
    files[6].write_bytes(b"no image")
    first = load(tmp_path)
    monkeypatch.setattr(decode, "read_checked", None)  # nothing is decoded again
    caplog.clear()
    again = load(tmp_path)
    assert f"{files[4]} cannot be decoded" in caplog.text
    assert (again.skipped, again.fingerprint, again.shape) == ([4, 6], first.fingerprint, first.shape)
    with pytest.raises(ValueError, match=r"at most 1 images may be undecodable; got 2 up to .*b/03\.jpg"):
        load(tmp_path, max_bad_images=1)


def test_changed_files_are_checked_again(tmp_path, cache):
    """Also files of the old size and modification time, and where a damaged check is left."""
    for files in (class_folders(tmp_path / "folders"), [tmp_path / "rows" / "train.parquet"]):
        folder, fingerprints = tmp_path / files[0].relative_to(tmp_path).parts[0], []
        for number in (3, 8):
            photographs = [image_file(photograph(i), "BMP") for i in (0, number, 8, 3)]
            if len(files) == 1:
                write_parquet(files[0], photographs, [0, 1, 0, 1])
            else:
                files[3].write_bytes(photographs[1])
            os.utime(files[3 % len(files)], ns=(10**18, 10**18))
            fingerprints.append(load(folder).fingerprint)
        assert fingerprints[0] != fingerprints[1]
    found = [set(json.loads(file.read_text())) for file in cache.iterdir()]
    assert found == [{"bad", "channels", "digest"}] * 4
    for damaged in ("{", "[]", '{"bad": [1]}'):
        for file in cache.iterdir():
            file.write_text(damaged)
        assert load(folder).fingerprint == fingerprints[1]


def test_fingerprint_is_that_of_the_files_wherever_they_lie(tmp_path, cache, caplog):
    """Also where a cache that cannot be written is only told."""
    files = class_folders(tmp_path / "folders")
    labels = [0 if file.parent.name == "a" else 1 for file in files]
    write_parquet(tmp_path / "rows" / "train.parquet", [f.read_bytes() for f in files], labels, names=["a", "b"])
    cache.parent.mkdir()
    cache.write_text("a file where a folder should be")
    assert load(tmp_path / "rows").fingerprint == load(tmp_path / "folders").fingerprint
    assert "the check of the train split" in caplog.text
