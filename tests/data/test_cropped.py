"""Photographs of different sizes, loaded cropped."""

from collections.abc import Iterable
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.data.fixtures import image_file, write_parquet
from ttfs_triton.data import decode
from ttfs_triton.data.decode import DataLostError
from ttfs_triton.data.images import ImageData, load_images
from ttfs_triton.data.pixels import Crop, centre_crop, random_crop

SIZES = [(30, 40), (40, 30), (64, 64), (25, 90), (120, 160)]


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


def test_damaged_images_are_black_if_few_and_vanished_ones_end_the_run(tmp_path, caplog, monkeypatch):
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
    data = load(tmp_path, max_bad_images=2)
    for images in (data.images, data.images):
        assert not images[[4, 6]].any()
        kept = [0, 1, 2, 3, 5, 7, 8, 9]
        assert torch.equal(images[kept], whole[kept])
    assert [message.partition(" ")[0] for message in caplog.messages] == [str(files[4]), str(files[6])]
    assert data.skipped == []
    files[7].write_bytes(b"no image")
    with pytest.raises(DataLostError, match=r"all but 2 images must be readable to the end; got .*b/05\.jpg"):
        _ = data.images
    data = load(tmp_path)
    files[0].unlink()
    with pytest.raises(DataLostError, match=r"a/00\.jpg \(FileNotFoundError: .*Put it back"):
        data.in_epoch(0, 1).images_at(torch.tensor([0]))


def test_fingerprint_is_that_of_the_files_wherever_they_lie(tmp_path):
    files = class_folders(tmp_path / "folders")
    labels = [0 if file.parent.name == "a" else 1 for file in files]
    write_parquet(tmp_path / "rows" / "train.parquet", [f.read_bytes() for f in files], labels, names=["a", "b"])
    first = load(tmp_path / "rows").fingerprint
    assert load(tmp_path / "folders").fingerprint == first
    files[3].write_bytes(jpeg(photograph(4)))
    assert load(tmp_path / "folders").fingerprint != first
