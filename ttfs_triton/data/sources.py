"""Finds the rows of a data set (bundled sample, Hugging Face Hub, local folder), its columns and labels."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow
import torch
from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError
from pyarrow import compute
from torch import Tensor

logger = logging.getLogger(__name__)

SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent.parent / "sample"

# Other names under which a split is accepted, in order of preference.
SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "testing", "validation", "valid", "val")}
# Usual names of the columns, and their types.
_COLUMNS = {
    "image_column": (("image", "img"), datasets.Image),
    "label_column": (("label", "fine_label"), datasets.ClassLabel),
}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_SHARE = 0.2  # of every class, in class folders without a split
MANY_CLASSES = 1000  # a column with larger numbers, which also exceed its number of rows, does not number classes
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Rows:
    """The rows of one split, not yet decoded."""

    table: datasets.Dataset  # columns as stored
    split: str  # the split's name in the data
    origin: str  # Hub name or folder, for messages
    embedded: bool = False  # the table must hold the images' bytes: if others wrote it, it must not name files here
    sensor: tuple[int, int] | None = None  # (height, width) in pixels, of recordings whose kind of file implies it

    @property
    def where(self) -> str:
        """Split and origin, for messages."""
        return f"the {self.split} split of {self.origin}"


def find_rows(dataset: str | None, data_dir: str | Path | None, split: str, *, progress: bool = False) -> Rows:
    """Find the rows of a split, where `load_images` says; `progress` shows the progress bars of `datasets`."""
    names, shown = SPLIT_NAMES.get(split, (split,)), datasets.is_progress_bar_enabled()
    (datasets.enable_progress_bars if progress else datasets.disable_progress_bars)()
    try:
        if data_dir is None and dataset != SAMPLE:
            return _hub_rows(dataset, names)
        return _local_rows(SAMPLE_FOLDER if data_dir is None else Path(data_dir), names)
    finally:
        (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()


def find_column(rows: Rows, argument: str, name: str | None = None) -> str:
    """The name of the "image_column" or "label_column": `name`, or a usual name, or the only column of a usual type."""
    features, (usual, kind) = rows.table.features, _COLUMNS[argument]
    columns = ", ".join(
        f"{column} ({getattr(feature, 'dtype', None) or type(feature).__name__})"
        for column, feature in features.items()
    )
    if name is not None:
        if name in features:
            return name
        raise ValueError(f"load_images: {argument} must be a column of {rows.where}; got {name!r}. Columns: {columns}.")
    candidates = [column for column in usual if column in features]
    candidates = candidates or [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(candidates) == 1:
        return candidates[0]
    problem = f"is ambiguous ({' or '.join(candidates)})" if candidates else "was not recognised"
    raise ValueError(
        f"load_images: {argument} must be named for {rows.where}; got None, and it {problem}. "
        f"Columns: {columns}. Name one with --{argument.replace('_', '-')}."
    )


def encoded_images(rows: Rows, name: str | None) -> datasets.Dataset:
    """The table of the encoded images alone."""
    column = find_column(rows, "image_column", name)
    table = rows.table.select_columns(column)
    try:
        table = table.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise ValueError(
            f"load_images: image_column must hold encoded images; got {column!r} of type "
            f"{rows.table.features[column]} in {rows.origin}. Name another with --image-column."
        ) from error
    for chunk in table.data.column(column).chunks if rows.embedded else ():
        named = compute.and_(chunk.field("bytes").is_null(), chunk.field("path").is_valid())  # pyright: ignore
        if compute.any(named).as_py():  # pyright: ignore
            raise ValueError(
                f"load_images: image_column must hold images, not names of files; got names in {column!r} of "
                f"{rows.origin}. Put the files' bytes into the table."
            )
    return table


def find_labels(
    rows: Rows, name: str | None = None, like: list[str] | None = None, classes: Sequence[str] | None = None
) -> tuple[Tensor, list[str]]:
    """Labels [N] int64, and class names: those of the data, or `like`, the training split's, or all of `classes`."""
    where, column = rows.where, find_column(rows, "label_column", name)
    feature = rows.table.features[column]
    table = cast(pyarrow.Table, rows.table.select_columns(column).with_format("arrow")[:])
    values = table.column(column).combine_chunks()
    if len(values) == 0:
        raise ValueError(f"load_images: {where} must hold rows; got none. Check the data.")
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"load_images: labels must be given; got none in row {row} of {where}. Remove the row.")
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
        distinct, numbers = np.unique(np.array(values.to_pylist(), dtype=object), return_inverse=True)
        names = distinct.tolist()
    elif pyarrow.types.is_integer(values.type):
        numbers = values.to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        raise ValueError(
            f"load_images: labels must be whole numbers or strings; got {values.type} in column {column!r} of "
            f"{where}. Name another column with --label-column."
        )
    labels = torch.from_numpy(numbers)
    if names is None:
        names = like or _numbers(_classes_of(labels, where))
        if names != _numbers(len(names)):
            logger.warning("labels are numbers in %s; taken for the classes %.200s, in order.", where, ", ".join(names))
    wrong = ((labels < 0) | (labels >= len(names))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"load_images: labels must be in 0 to {len(names) - 1}; got {int(labels[row])} in row {row} of {where} "
            f"({len(wrong)} such rows). Splits without labels carry -1: choose another split."
        )
    if like is None and classes is not None and len(names) < len(classes):
        names = list(classes[: len(names)]) if names == _numbers(len(names)) else names
        if set(names) <= set(classes):
            like = list(classes)
            logger.warning("%s has no images of %.200s.", where, ", ".join(name for name in like if name not in names))
    if like is None or names == like:
        return labels, names
    if unknown := [text for text in names if text not in like]:
        raise ValueError(
            f"load_images: classes of {where} must be those of the training split; got {', '.join(unknown[:5])}. "
            "Use the same data set for both."
        )
    return torch.tensor([like.index(text) for text in names])[labels], like


def _numbers(count: int) -> list[str]:
    """Names of classes that have only numbers: "0", "1", ..."""
    return [str(number) for number in range(count)]


def _classes_of(labels: Tensor, where: str) -> int:
    """The number of classes, one more than the largest label."""
    count = int(labels.max()) + 1
    if count > max(MANY_CLASSES, len(labels)):
        raise ValueError(
            f"load_images: labels must number the classes from 0; got {count - 1} in row {int(labels.argmax())} of "
            f"{where}, which has {len(labels)} rows. Number the classes without gaps, or name them."
        )
    if (empty := count - len(labels.unique())) > 0:
        logger.warning("%d of %d classes have no image in %s.", empty, count, where)
    return count


def require_folder(folder: Path) -> None:
    """Raise ValueError unless the folder exists."""
    if not folder.is_dir():
        problem = "a file" if folder.exists() else "no such folder"
        raise ValueError(
            f"load_images: data_dir must be an existing folder; got {str(folder)!r}, {problem}. "
            "Correct --data-dir, or leave it out to use the data set by its name on the Hub."
        )


def _local_rows(folder: Path, names: Sequence[str]) -> Rows:
    require_folder(folder)
    for name in names:
        if files := _parquet_files(folder, name):
            return Rows(_read_parquet(files, folder), name, str(folder), embedded=True)
    if split_files := class_folders(folder, names, _IMAGE_SUFFIXES):
        name, files, classes = split_files
        images = {"image": [{"bytes": None, "path": str(path)} for path in files]}
        return Rows(labelled(images, {"image": datasets.Image()}, files, classes), name, str(folder))
    entries = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    listing = ", ".join(entries[:10]) + (", ..." if len(entries) > 10 else "") if entries else "nothing"
    raise ValueError(
        f"load_images: data_dir must hold a {names[0]} split; got {str(folder)!r}, which holds {listing}. Looked for "
        f"NAME*.parquet (here or one folder down), NAME/*.parquet and image files in NAME/<class>/, "
        f"with NAME = {', '.join(names)}, and image files in <class>/. Recordings of an event camera need "
        "--event-windows."
    )


def _parquet_files(folder: Path, name: str) -> list[Path]:
    """Parquet files of a split, in the shapes that the Hub uses; all from one folder."""
    stem = re.compile(rf"{re.escape(name)}(?![a-zA-Z])", re.IGNORECASE)

    def named(pattern: str) -> list[Path]:
        return [path for path in folder.glob(pattern) if stem.match(path.name)]

    files = named("*.parquet") or list((folder / name).glob("*.parquet")) or named("*/*.parquet")
    parents = sorted({str(path.parent) for path in files})
    if len(parents) > 1:
        raise ValueError(
            f"load_images: data_dir must hold one data set; got {str(folder)!r}, with {name} files in "
            f"{', '.join(parents)}. Point --data-dir at one of them."
        )
    if odd := next((path for path in files if not path.is_file()), None):  # reading a pipe would wait for ever
        raise ValueError(f"load_images: data_dir must hold regular files; got {odd}, which is not one. Remove it.")
    return sorted(files)


def _read_parquet(files: Sequence[Path], folder: Path) -> datasets.Dataset:
    # `datasets` keys its cache by path and modification time, which another file at that path may share; nobody can
    # set the time of a file's last change.
    about = [(status.st_size, status.st_ctime_ns) for status in map(os.stat, files)]
    with _errors_of_datasets(f"data_dir must hold readable parquet files; got {str(folder)!r}"):
        # `datasets` reads paths as patterns.
        table = datasets.Dataset.from_parquet([glob.escape(str(path)) for path in files], description=str(about))
    return cast(datasets.Dataset, table)


@contextmanager
def _errors_of_datasets(rule: str) -> Iterator[None]:
    """Errors in the `with` block, which are of many types, become RuntimeErrors that say what has to hold."""
    try:
        yield
    except Exception as error:
        # A DatasetGenerationError only says that something failed.
        reason = (error.__cause__ if isinstance(error, DatasetGenerationError) else None) or error
        text = ": ".join([type(reason).__name__, *str(reason).strip().splitlines()[:1]])
        raise RuntimeError(
            f"load_images: {rule} and {text}. Check that files are whole and not empty, and that the cache "
            f"({datasets_config.HF_DATASETS_CACHE}) is writable; for the Hub also the name, the connection and "
            "`hf auth login`. Offline, give a downloaded folder by --data-dir."
        ) from error


def class_folders(folder: Path, names: Sequence[str], suffixes: Set[str]) -> tuple[str, list[Path], list[str]] | None:
    """Name of a split, its files in class folders, class by class, and the names of all classes; None without files.

    The split is the subfolder with one of `names`, in upper or lower case. Class folders without splits are divided.
    """

    def files_in(place: Path) -> list[Path]:  # without the hidden ones that notebooks and file managers leave
        return [path for path in sorted(place.glob("[!.]*/[!.]*")) if path.suffix.lower() in suffixes]

    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    for name in names:
        if name.lower() in inside and (files := files_in(inside[name.lower()])):
            return inside[name.lower()].name, files, sorted({path.parent.name for path in files})
    splits = {name for group in SPLIT_NAMES.values() for name in group}
    divided = any(name in inside or _parquet_files(folder, name) for name in splits)
    if names[0] not in SPLIT_NAMES or divided or not (files := files_in(folder)):
        return None
    parts = divide(files)
    level = logging.WARNING if names[0] == "train" else logging.DEBUG  # a run reads both parts
    logger.log(
        level,
        "%s has class folders and no split: of every class, %g %% of the images are test images, drawn "
        "by their names (%d training, %d test). For another split, make folders train and test.",
        *(folder, 100 * TEST_SHARE, len(parts["train"]), len(parts["test"])),
    )
    return names[0], parts[names[0]], sorted({path.parent.name for path in files})


def divide(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Divide the files CLASS/NAME into {"train": …, "test": …}; `TEST_SHARE` of every class are test images.

    Hashes of the names decide, so that the split is the same on every machine. A class of one image has no test image.
    """
    classes: dict[str, list[Path]] = {}
    for file in files:
        classes.setdefault(file.parent.name, []).append(file)
    splits: dict[str, list[Path]] = {"train": [], "test": []}
    for name in sorted(classes):
        drawn = sorted(classes[name], key=lambda file: hashlib.sha256(f"{name}/{file.name}".encode()).digest())
        count = 0 if len(drawn) == 1 else max(1, round(TEST_SHARE * len(drawn)))
        splits["test"] += sorted(drawn[:count])
        splits["train"] += sorted(drawn[count:])
    return splits


def labelled(
    columns: dict[str, list[Any]], features: dict[str, Any], files: Sequence[Path], classes: list[str]
) -> datasets.Dataset:
    """A table of these columns; the label of a file is the number of its class folder in `classes`."""
    labels = [classes.index(path.parent.name) for path in files]
    kinds = datasets.Features(**features, label=datasets.ClassLabel(names=classes))
    return datasets.Dataset.from_dict({**columns, "label": labels}, features=kinds)


def _hub_rows(dataset: str | None, names: Sequence[str]) -> Rows:
    if dataset is None or not HUB_NAME.fullmatch(dataset):
        raise ValueError(
            f'load_images: dataset must be "{SAMPLE}" or a Hub name such as ylecun/mnist; got {dataset!r}. '
            "For a local folder use --data-dir."
        )
    if Path(dataset).exists():  # `datasets` would read this folder instead of the Hub
        raise ValueError(
            f"load_images: dataset must name a data set on the Hub; got {dataset!r}, which is also a folder here. "
            f"For that folder use --data-dir {dataset}; for the Hub's, start in another folder."
        )
    with _errors_of_datasets(f"dataset must be readable from the Hub or the cache; got {dataset!r}"):
        splits = cast(datasets.DatasetDict, datasets.load_dataset(dataset))
    for name in names:
        if name in splits:
            return Rows(splits[name], name, dataset)
    raise ValueError(
        f"load_images: dataset must have a {names[0]} split; got {dataset!r}, with {', '.join(map(str, splits))}. "
        f"Looked for {', '.join(names)}."
    )
