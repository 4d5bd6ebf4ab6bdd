"""Data sets where they lie: the bundled sample, folders and the Hub; their splits, labels and place in memory."""

import hashlib
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, call

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.fixtures import random_images, write_parquet
from tests.evaluate.cases import numbered
from ttfs_triton.data import images
from ttfs_triton.data.images import draw_images, load_images, place_images, train_validation_split
from ttfs_triton.data.sources import SAMPLE_FOLDER, Rows, find_column, find_rows


def labels(rows: Rows) -> list[int]:
    return list(rows.table["label"])


@pytest.mark.parametrize(
    "files",
    [
        ["train.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["train/part-0.parquet", "train/part-1.parquet"],
        ["training.parquet"],
        ["a [b] *c/train.parquet"],
    ],
)
def test_find_rows_reads_the_shapes_of_parquet_folders(tmp_path, files):
    for i, file in enumerate(files):
        write_parquet(tmp_path / file, random_images(3), [3 * i, 3 * i + 1, 3 * i + 2])
    write_parquet((tmp_path / files[0]).parent.parent / "test" / "part-0.parquet", random_images(2), [90, 91])
    rows = find_rows(None, tmp_path, "train")
    assert labels(rows) == list(range(3 * len(files)))
    assert (rows.split in ("train", "training"), rows.origin) == (True, str(tmp_path))


@pytest.mark.parametrize(
    ("files", "folder", "message"),
    [
        ([], "nowhere", r"data_dir must be an existing folder; got '.*nowhere', no such folder"),
        (["train.parquet"], "train.parquet", r"must be an existing folder; got .*, a file"),
        (["notes/train.parquet", "train.parquet"], "", r"must hold a test split; got .*, which holds notes/, train"),
        (["mnist/test.parquet", "cifar10/test.parquet"], "", r"one data set; .*cifar10, .*mnist\. Point --data-dir at"),
    ],
)
def test_find_rows_rejects_folders_without_the_split(tmp_path, files, folder, message):
    for file in files:
        write_parquet(tmp_path / file, random_images(2), [0, 1])
    with pytest.raises(ValueError, match=message):
        find_rows(None, tmp_path / folder, "test")


def test_find_rows_rejects_damaged_and_empty_files_and_pipes(tmp_path):
    path = tmp_path / "train.parquet"
    columns = {"image": pyarrow.array([], pyarrow.binary()), "label": pyarrow.array([], pyarrow.int64())}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"must hold readable parquet files; .*Arrow.*whole and not empty"):
            find_rows(None, tmp_path, "train")
        path.write_bytes(b"PAR1 but not really")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"must hold regular files; got .*train\.parquet, which is not one"):
        find_rows(None, tmp_path, "train")


def test_replaced_file_is_read_anew_although_its_modification_time_is_the_old_one(tmp_path):
    for order in ([0, 1, 2, 3], [2, 3, 0, 1]):
        write_parquet(tmp_path / "train.parquet", random_images(4), order)
        os.utime(tmp_path / "train.parquet", ns=(10**18, 10**18))
        assert labels(find_rows(None, tmp_path, "train")) == order


def make_class_folders(folder: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(random_images(count)):
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_find_rows_reads_class_folders(tmp_path):
    train = tmp_path / "with [brackets]" / "train"
    make_class_folders(train, {"cat": 2, "dog": 3})
    (train / "metadata.csv").write_text("file_name,x\ncat/0.png,1\n")
    for hidden in (".ipynb_checkpoints/0.png", "cat/._0.png"):
        (train / hidden).parent.mkdir(exist_ok=True)
        (train / hidden).write_bytes((train / "cat/0.png").read_bytes())
    rows = find_rows(None, train.parent, "train")
    assert (rows.table.features["label"].names, labels(rows)) == (["cat", "dog"], [0, 0, 1, 1, 1])


def test_class_folders_without_a_split_get_the_same_one_everywhere(tmp_path, caplog):
    def names(folder, classes):
        make_class_folders(folder, {name: {"cat": 10, "dog": 7, "emu": 1}[name] for name in classes})
        rows = [find_rows(None, folder, split) for split in ("train", "test")]
        assert labels(rows[1]) == [0, 0, 1]
        columns = [split.table.cast_column("image", datasets.Image(decode=False))["image"] for split in rows]
        return [[Path(row["path"]).relative_to(folder) for row in column] for column in columns]

    train, test = names(tmp_path / "a", ["cat", "dog", "emu"])
    assert [train, test] == names(tmp_path / "elsewhere" / "b", ["emu", "dog", "cat"])
    assert len({*train, *test}) == len(train + test) == 18
    assert [name.parent.name for name in test] == ["cat", "cat", "dog"]
    assert "20 % of the images are test images, drawn by their names (15 training, 3 test)" in caplog.text
    (tmp_path / "a" / "train").mkdir()
    with pytest.raises(ValueError, match="must hold a test split"):
        find_rows(None, tmp_path / "a", "test")


def test_sample_keeps_licence_and_checksums():
    licence = (SAMPLE_FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("The MIT License (MIT) Copyright © 2017 Zalando SE")
    readme = (SAMPLE_FOLDER / "README.md").read_text(encoding="utf-8")
    for split, count in (("train", 600), ("test", 100)):
        assert (np.bincount(find_rows("sample", None, split).table["label"]) == [count] * 10).all()
        assert hashlib.sha256((SAMPLE_FOLDER / f"{split}.parquet").read_bytes()).hexdigest() in readme


def test_find_rows_rejects_what_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner/name").mkdir(parents=True)
    for name in (None, "mnist", "../folder", "/absolute/folder", "a/b/c", "", "owner/name"):
        message = "which is also a folder here" if name == "owner/name" else '"sample" or a Hub name'
        with pytest.raises(ValueError, match=f"dataset must .*{message}"):
            find_rows(name, None, "train")


def test_find_rows_takes_a_split_of_a_hub_data_set(monkeypatch):
    rows = datasets.Dataset.from_dict({"label": [0, 1]})
    load = Mock(return_value=datasets.DatasetDict(train=rows, validation=rows.select([1])))
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert labels(find_rows("a/b", None, "train")) == [0, 1]
    rows = find_rows("a/b", None, "test")
    assert (labels(rows), rows.split, rows.origin) == ([1], "validation", "a/b")
    assert load.mock_calls == [call("a/b")] * 2  # in particular, no code from the Hub is trusted
    with pytest.raises(ValueError, match=r"must have a extra split; got 'a/b', with train, validation"):
        find_rows("a/b", None, "extra")
    load.side_effect = DatasetGenerationError("It failed.")
    load.side_effect.__cause__ = KeyError("a")
    with pytest.raises(RuntimeError, match=r"dataset must be readable .*'a/b' and KeyError: 'a'\. Check .*login`"):
        find_rows("a/b", None, "train")


IMAGE, CLASS, INTEGER = datasets.Image(), datasets.ClassLabel(names=["a", "b"]), datasets.Value("int64")
TWICE = {"image": IMAGE, "img": IMAGE, "label": CLASS, "fine_label": CLASS}


@pytest.mark.parametrize(
    ("argument", "name", "features", "expected"),
    [
        ("image_column", None, {"img": IMAGE, "label": INTEGER}, "img"),
        ("label_column", None, {"img": IMAGE, "fine_label": CLASS, "coarse_label": CLASS}, "fine_label"),
        ("image_column", None, {"picture": IMAGE, "digit": CLASS, "weight": INTEGER}, "picture"),
        ("label_column", None, {"picture": IMAGE, "digit": CLASS, "weight": INTEGER}, "digit"),
        ("image_column", "img", TWICE, "img"),
        ("label_column", "labels", TWICE, r"must be a column of .*; got 'labels'\. Columns: image \("),
        ("image_column", None, TWICE, r"ambiguous \(image or img\)\. Columns: image \(.*\), .*--image-column"),
        ("label_column", None, {"x": INTEGER}, r"label_column must be named for .* a/b.*not recognised\..*x \(int64\)"),
    ],
)
def test_columns_are_detected_or_must_be_named(argument, name, features, expected):
    table = datasets.Dataset.from_dict({name: [] for name in features}, features=datasets.Features(features))
    refused = nullcontext() if expected in features else pytest.raises(ValueError, match=expected)
    with refused:
        assert find_column(Rows(table, "train", "a/b"), argument, name) == expected


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


def test_labels_are_numbers_of_classes_or_names(tmp_path, caplog):
    for labels, message in (
        ([0, -1, -1], r"must be in 0 to 0; got -1 in row 1 of the train split of .* \(2 such rows\)\. Splits without"),
        ([0, None, 1], "labels must be given; got none in row 1"),
        ([0.5, 1.0, 2.0], "labels must be whole numbers or strings; got double in column 'label'"),
        ([0, 10**18, 1], "labels must number the classes from 0; got 1000000.* in row 1 of .*, which has 3 rows"),
    ):
        write_parquet(tmp_path / "train.parquet", random_images(3), labels)
        with pytest.raises(ValueError, match=message):
            load_images(None, tmp_path)
    for labels, numbers, names in (([4, 0, 2], [4, 0, 2], list("01234")), (["b", "a", "b"], [1, 0, 1], ["a", "b"])):
        write_parquet(tmp_path / "train.parquet", random_images(3), labels)
        data = load_images(None, tmp_path)
        assert (data.labels.tolist(), data.class_names) == (numbers, names)
    assert "2 of 5 classes have no image in the train split" in caplog.text


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


def test_the_test_split_has_classes_channels_and_size_of_training(tmp_path):
    for train, test, size, message in (
        ([0, 1], [0, 5], 4, "labels must be in 0 to 1; got 5 in row 1 of the test split"),
        (["a", "b"], ["a", "c"], 4, "classes of the test split of .* must be those of the training split; got c"),
        (["a", "b"], ["b", "b"], None, "where the training images have 4x4"),
        (["a", "b"], ["b", "b"], 4, None),
    ):
        write_parquet(tmp_path / "train.parquet", random_images(2, 3), train)
        write_parquet(tmp_path / "test.parquet", random_images(2), test)
        like = load_images(None, tmp_path, image_size=4)
        with nullcontext() if message is None else pytest.raises(ValueError, match=message):
            data = load_images(None, tmp_path, split="test", like=like, image_size=size)
    assert (data.shape, data.labels.tolist(), data.class_names) == ((2, 3, 4, 4), [1, 1], ["a", "b"])


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
    images, labels, fingerprints = random_images(6), [0, 1, 2, 0, 1, 2], []
    for pixels, classes, columns in (
        (images, labels, {}),
        (images, labels, {"image": "img", "label": "fine_label"}),
        (images ^ 1, labels, {}),
        (images, [0, 1, 2, 0, 2, 1], {}),
        (images.reshape(6, 4, 9), labels, {}),
    ):
        write_parquet(tmp_path / "train.parquet", pixels, classes, **columns)
        fingerprints.append(load_images(None, tmp_path).fingerprint)
    assert (len(set(fingerprints)), fingerprints[0]) == (4, fingerprints[1])


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


def test_placed_images_are_the_images(device):
    data, indices = numbered(50, 3), torch.tensor([7, 3, 49, 3])
    (placed,), where = place_images([data], device)
    assert where.startswith("images: 0.0 MiB " + ("in main memory" if device.type == "cpu" else "on the device, "))
    assert placed.labels.device.type == device.type
    images = placed.images_at(indices.to(device))
    assert torch.equal(images.cpu(), data.images_at(indices))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert placed.labels[indices.to(device)].tolist() == [7, 3, 49, 3]


@pytest.mark.parametrize(
    ("wanted", "free", "place"),  # the images have 9,600 bytes
    [("auto", 19_200, "cuda"), ("auto", 19_199, "cpu"), ("device", 9_600, "cuda"), ("host", 90_000, "cpu")],
)
def test_place_follows_from_free_memory_and_the_host_helps_a_device_that_refuses(monkeypatch, wanted, free, place):
    placed = Mock(side_effect=lambda splits, device, pinned=False: (device.type, pinned))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, free))
    monkeypatch.setattr(images, "_placed", placed)
    arguments = [numbered(50, 3)], torch.device("cuda", 0), wanted
    assert place_images(*arguments)[0] == (place, place == "cpu")
    if place == "cuda":
        placed.side_effect = [torch.OutOfMemoryError("CUDA out of memory"), "host"]
        if wanted == "auto":
            assert place_images(*arguments)[0] == "host"
            return
        with pytest.raises(RuntimeError, match=r"place_images: .* must fit .*; got 0.0 MiB.* --data-placement host"):
            place_images(*arguments)
