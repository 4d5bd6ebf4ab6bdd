"""Splits: labels, classes, samples, and what training and test images must share."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.fixtures import random_images, write_parquet
from tests.evaluate.common import numbered
from ttfs_triton.data import images
from ttfs_triton.data.images import draw_images, load_images, place_images, train_validation_split


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_is_read(tmp_path, channels, streaming):
    images, labels = random_images(20, channels), [i % 3 for i in range(20)]
    rows = {"images": [*images[:2], b"damaged", *images[2:]], "labels": [*labels[:2], 0, *labels[2:]]}
    write_parquet(tmp_path / "train.parquet", **rows, names=["x", "y", "z"], image="img", label="fine_label")
    data = load_images(None, tmp_path, streaming=streaming)
    expected = torch.from_numpy(images.reshape(20, 6, 6, channels)).permute(0, 3, 1, 2)
    assert torch.equal(data.images, expected)
    assert torch.equal(data.images_at(torch.tensor([7, 0, 7])), expected[[7, 0, 7]])
    assert data.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.in_epoch(0, 1).images, expected), "images that are not cropped are the same in each"
    assert data.in_memory == (not streaming)
    if streaming:
        assert place_images([data], torch.device("cpu")) == ([data], "images: encoded on disk, decoded batch by batch")
    assert (data.labels.dtype, data.labels.tolist(), data.class_names) == (torch.int64, labels, ["x", "y", "z"])
    assert (data.name, data.split, data.skipped, len(data)) == (str(tmp_path), "train", [2], 20)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([4, 0, 2], ([4, 0, 2], list("01234"))),
        (["dog", "cat", "dog"], ([1, 0, 1], ["cat", "dog"])),
        ([0, -1, -1], r"must be in 0 to 0; got -1 in row 1 of the train split of .* \(2 such rows\)\. Splits without"),
        ([0, None, 1], "labels must be given; got none in row 1"),
        ([0.5, 1.0, 2.0], "labels must be whole numbers or strings; got double in column 'label'"),
        ([0, 10**18, 1], "labels must number the classes from 0; got 1000000.* in row 1 of .*, which has 3 rows"),
    ],
)
def test_labels_are_numbers_of_classes_or_names(tmp_path, caplog, labels, expected):
    write_parquet(tmp_path / "train.parquet", random_images(3), labels)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            load_images(None, tmp_path)
        return
    data = load_images(None, tmp_path)
    assert (data.labels.tolist(), data.class_names) == expected
    assert ("2 of 5 classes have no image in the train split" in caplog.text) == (len(data.class_names) == 5)


def test_columns_and_splits_without_images_are_refused(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"image": [1, 2], "label": [0, 1]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"image_column must hold encoded images; got 'image' of type .*int64"):
        load_images(None, tmp_path)
    rows = {"image": [{"bytes": None, "path": "/dev/stdin"}, {"bytes": None, "path": None}], "label": [0, 1]}
    named = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    named.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="image_column must hold images, not names of files; got names in 'image'"):
        load_images(data_dir=tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=named.select([])))
    with pytest.raises(ValueError, match="the train split of a/b must hold rows; got none"):
        load_images("a/b")


@pytest.mark.parametrize(
    ("train", "test", "size", "message"),
    [
        ([0, 1], [0, 5], 4, "labels must be in 0 to 1; got 5 in row 1 of the test split"),
        (["a", "b"], ["a", "c"], 4, "classes of the test split of .* must be those of the training split; got c"),
        (["a", "b"], ["b", "b"], None, "where the training images have 4x4"),
        (["a", "b"], ["b", "b"], 4, None),
    ],
)
def test_the_test_split_has_classes_channels_and_size_of_training(tmp_path, train, test, size, message):
    write_parquet(tmp_path / "train.parquet", random_images(2, 3), train)
    write_parquet(tmp_path / "test.parquet", random_images(2), test)
    options = {"split": "test", "like": load_images(None, tmp_path, image_size=4), "image_size": size}
    if message is not None:
        with pytest.raises(ValueError, match=message):
            load_images(None, tmp_path, **options)
        return
    found = load_images(None, tmp_path, **options)
    assert (found.shape, found.labels.tolist(), found.class_names) == ((2, 3, 4, 4), [1, 1], ["a", "b"])


def test_max_samples_keeps_class_proportions_and_validation_images_serve_as_test_images(tmp_path, caplog):
    write_parquet(tmp_path / "train.parquet", random_images(40), [0] * 30 + [1] * 10)
    data = load_images(None, tmp_path, max_samples=8)
    assert torch.bincount(data.labels).tolist() == [6, 2]
    assert load_images(None, tmp_path, max_samples=8, streaming=True).fingerprint == data.fingerprint
    assert len(load_images(None, tmp_path, max_samples=100)) == 40
    (tmp_path / "train.parquet").rename(tmp_path / "validation.parquet")
    assert load_images(None, tmp_path, split="test").split == "validation"
    assert "has no test split; using validation" in caplog.text


def test_fingerprint_depends_on_content_only(tmp_path):
    images, labels = random_images(6), [0, 1, 2, 0, 1, 2]

    def fingerprint(folder: str, pixels: np.ndarray = images, classes: list[int] = labels, **options: str) -> str:
        write_parquet(tmp_path / folder / "train.parquet", pixels, classes, **options)
        return load_images(None, tmp_path / folder).fingerprint

    first = fingerprint("a")
    assert fingerprint("b", image="img", label="fine_label") == first
    others = (fingerprint("c", images ^ 1), fingerprint("d", classes=[0, 1, 2, 0, 2, 1]))
    assert len({first, *others, fingerprint("e", images.reshape(6, 4, 9))}) == 4


@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.floats(0, 0.99), st.integers(0, 3))
def test_validation_split_is_stratified_complete_and_a_function_of_the_seed(labels, fraction, seed):
    data = replace(numbered(len(labels)), labels=torch.tensor(labels))
    fraction = min(fraction, 1 - 1 / len(labels))
    count = round(fraction * len(labels))
    train, validation = train_validation_split(data, fraction, seed)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert all(part.tolist() == sorted(part.tolist()) for part in (train, validation))
    sizes, chosen = torch.bincount(data.labels, minlength=5), torch.bincount(data.labels[validation], minlength=5)
    assert ((chosen - sizes * count / len(labels)).abs() < 1).all()
    assert torch.equal(train_validation_split(data, fraction, seed)[1], validation)
    many = replace(numbered(200), labels=torch.arange(200) % 10)
    assert not torch.equal(*(train_validation_split(many, 0.1, seed + more)[1] for more in (0, 1)))
    with pytest.raises(ValueError, match=f"fraction must leave images to train on; got 1 of {len(labels)} images"):
        train_validation_split(data, 1.0, seed)


def test_images_are_drawn_by_the_seed_among_those_named():
    data, among = numbered(20), torch.arange(10, 20)
    some, again, other = ((draw_images(data, 5, seed, among) * 255)[:, 0, 0, 0].tolist() for seed in (1, 1, 2))
    assert set(some) < set(range(10, 20))
    assert some == again != other
    torch.testing.assert_close(draw_images(data, 100, 1)[:, 0, 0, 0].sort().values, torch.arange(20) / 255)


# ---- their place in memory


SIZE = 50 * 8 * 8 * 3


def test_placed_images_are_the_images(device):
    data, indices = numbered(50, 3), torch.tensor([7, 3, 49, 3])
    (placed,), where = place_images([data], device)
    assert where.startswith("images: 0.0 MiB " + ("in main memory" if device.type == "cpu" else "on the device, 80"))
    assert placed.labels.device.type == device.type
    images = placed.images_at(indices.to(device))
    assert torch.equal(images.cpu(), data.images_at(indices))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert placed.labels[indices.to(device)].tolist() == [7, 3, 49, 3]


@pytest.mark.parametrize(
    ("wanted", "free", "place"),
    [("auto", 2 * SIZE, "cuda"), ("auto", 2 * SIZE - 1, "cpu"), ("device", SIZE, "cuda"), ("host", 9 * SIZE, "cpu")],
)
def test_place_follows_from_free_memory_and_the_host_helps_a_device_that_refuses(monkeypatch, wanted, free, place):
    def placed(splits, device, pinned=False):
        if device.type == "cuda" and refuses:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return device.type, pinned

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, free))
    monkeypatch.setattr(images, "_placed", placed)
    data, device, refuses = [numbered(50, 3)], torch.device("cuda", 0), False
    assert place_images(data, device, wanted)[0] == (place, place == "cpu")
    refuses = True
    if wanted == "device":
        with pytest.raises(RuntimeError, match=r"place_images: .* must fit .*; got 0.0 MiB.* --data-placement host"):
            place_images(data, device, wanted)
    else:
        assert place_images(data, device, wanted)[0] == ("cpu", True)
