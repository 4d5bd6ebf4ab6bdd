import hashlib

import pytest
import torch

from recipes import make_sample
from ttfs_triton.data.images import load_images
from ttfs_triton.data.sources import SAMPLE_FOLDER

SPLITS = {"train": 600, "test": 100}  # images a class


def test_sample_is_balanced_small_shuffled_and_like_fashion_mnist():
    found = [load_images("sample", split=split, max_bad_images=0) for split in SPLITS]
    for data, count in zip(found, SPLITS.values(), strict=True):
        assert data.shape == (10 * count, 1, 28, 28)
        assert torch.bincount(data.labels).tolist() == [count] * 10
        assert (data.class_names[0], data.class_names[9]) == ("T-shirt/top", "Ankle boot")
    train = found[0]
    pixels = train.images / 255
    # The full training split has mean 0.2860 and standard deviation 0.3530.
    assert float(pixels.mean()) == pytest.approx(0.2860, abs=0.005)
    assert float(pixels.std()) == pytest.approx(0.3530, abs=0.005)
    images = [{image.numpy().tobytes() for image in data.images} for data in found]
    assert len(images[0]) > 5990  # Fashion-MNIST itself holds a few duplicates
    assert not images[0] & images[1]
    assert train.labels[:100].unique().tolist() == list(range(10))
    assert sum((SAMPLE_FOLDER / f"{split}.parquet").stat().st_size for split in SPLITS) < 4_000_000


def test_sample_keeps_licence_and_checksums():
    licence = (SAMPLE_FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("The MIT License (MIT) Copyright © 2017 Zalando SE")
    readme = (SAMPLE_FOLDER / "README.md").read_text(encoding="utf-8")
    for split in SPLITS:
        assert hashlib.sha256((SAMPLE_FOLDER / f"{split}.parquet").read_bytes()).hexdigest() in readme


def test_make_sample_writes_the_same_bytes_twice(tmp_path, monkeypatch, random_images, write_parquet):
    monkeypatch.setattr(make_sample, "SAMPLES", {"train": 20, "test": 10})
    for split, count in (("train", 60), ("test", 30)):
        write_parquet(
            tmp_path / "source" / f"{split}.parquet", random_images(count, 1, 28, 28), [i % 10 for i in range(count)]
        )
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        for split in SPLITS:
            make_sample.make_split(split, tmp_path / "source", tmp_path / folder)
    for split, per_class in (("train", 2), ("test", 1)):
        first = (tmp_path / "first" / f"{split}.parquet").read_bytes()
        assert first == (tmp_path / "second" / f"{split}.parquet").read_bytes()
        data = load_images(None, tmp_path / "first", split=split)
        assert torch.bincount(data.labels).tolist() == [per_class] * 10
        source = load_images(None, tmp_path / "source", split=split)
        known = {image.numpy().tobytes(): int(label) for image, label in zip(source.images, source.labels, strict=True)}
        for image, label in zip(data.images, data.labels, strict=True):
            assert known[image.numpy().tobytes()] == int(label)


def test_make_sample_rejects_a_source_that_is_not_balanced(tmp_path, monkeypatch, random_images, write_parquet):
    monkeypatch.setattr(make_sample, "SAMPLES", {"train": 20})
    write_parquet(tmp_path / "train.parquet", random_images(40, 1, 28, 28), [i % 9 for i in range(40)])
    with pytest.raises(ValueError, match=r"the source must be Fashion-MNIST, balanced; got .* Check --data-dir"):
        make_sample.make_split("train", tmp_path, tmp_path)
