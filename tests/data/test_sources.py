"""Data sets where they lie: the bundled sample, folders and the Hub; splits and columns."""

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock, call

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from tests.data.fixtures import random_images, write_parquet
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
        rows = find_rows("sample", None, split).table
        assert (np.bincount(rows["label"]) == [count] * 10).all()
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
