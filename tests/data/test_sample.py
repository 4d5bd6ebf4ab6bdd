import hashlib

import pytest
import torch

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
    assert float(train.images.float().mean()) == pytest.approx(0.2860 * 255, abs=1)  # as of the full training split
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
