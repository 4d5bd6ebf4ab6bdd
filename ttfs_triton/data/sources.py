"""Finds the rows of a data set (bundled sample, Hugging Face Hub, local folder) and its columns, without decoding."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import datasets
from datasets import config as datasets_config
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from pyarrow import parquet

logger = logging.getLogger(__name__)

SAMPLE = "sample"
SAMPLE_FOLDER = Path(__file__).parent.parent / "sample"

# Other names under which a split is accepted, in order of preference.
SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "testing", "validation", "valid", "val")}
# Usual names of the columns, and their type.
_COLUMNS = {
    "image_column": (("image", "img"), datasets.Image),
    "label_column": (("label", "fine_label"), datasets.ClassLabel),
}
_IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_SHARE = 0.2
"""Share of each class that are test images, in class folders without a split."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Rows:
    """The rows of one split, not yet decoded.

    Attributes:
        table: columns as stored.
        split: the name under which the split was found.
        origin: Hub name or folder, for messages.
        embedded: the table must hold the images' bytes: a table from others must not name files of this machine.
    """

    table: datasets.Dataset
    split: str
    origin: str
    embedded: bool = False


def find_rows(dataset: str | None, data_dir: str | Path | None, split: str, *, progress: bool = False) -> Rows:
    """Find the rows of a split.

    Args:
        dataset: "sample" or a Hub name, `owner/name`. Ignored if `data_dir` is given.
        data_dir: folder of parquet files (`train*.parquet`, also one level down, or `train/*.parquet`) or of
            image files in class folders (`train/<class>/*.png`, or `<class>/*.png`, which `divide` splits).
        split: "train", "test", or any other name of a split.
        progress: show the progress bars of `datasets`.
    Raises:
        ValueError: there is no such folder or split, or `dataset` is not the name of a data set.
        RuntimeError: the data set cannot be read from the Hub, the cache or the folder.
    """
    names = SPLIT_NAMES.get(split, (split,))
    with _progress_bars(progress):
        if data_dir is not None:
            return _local_rows(Path(data_dir), names)
        if dataset == SAMPLE:
            return _local_rows(SAMPLE_FOLDER, names)
        return _hub_rows(dataset, names)


def find_column(rows: Rows, argument: str, name: str | None = None) -> str:
    """The column of the images or of the labels.

    Args:
        argument: "image_column" or "label_column".
        name: name of the column. Default: `image` or `img`, `label` or `fine_label`, or the only column of type Image,
            or ClassLabel.
    Raises:
        ValueError: there is no such column, or no column is certain.
    """
    features, (usual, kind) = rows.table.features, _COLUMNS[argument]
    columns = ", ".join(
        f"{column} ({getattr(feature, 'dtype', None) or type(feature).__name__})"
        for column, feature in features.items()
    )
    where = f"the {rows.split} split of {rows.origin}"
    if name is not None:
        if name in features:
            return name
        raise ValueError(f"load_images: {argument} must be a column of {where}; got {name!r}. Columns: {columns}.")
    found = [column for column in usual if column in features]
    found = found or [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) == 1:
        return found[0]
    problem = f"is ambiguous ({' or '.join(found)})" if found else "was not recognised"
    raise ValueError(
        f"load_images: {argument} must be named for {where}; got None, and it {problem}. "
        f"Columns: {columns}. Name one with --{argument.replace('_', '-')}."
    )


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
        if files := _image_files(folder / name):
            return Rows(_class_folders(files), name, str(folder))
    if names[0] in SPLIT_NAMES and (files := _undivided(folder)):
        chosen = divide(files)[names[0]]
        logger.warning(
            "%s has class folders and no split: of each class, %g %% of the images are test images, drawn "
            "by their names (%d training, %d test). For another split, make folders train and test.",
            *(folder, 100 * TEST_SHARE, *map(len, divide(files).values())),
        )
        return Rows(_class_folders(chosen), names[0], str(folder))
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
    try:
        # `datasets` keys its cache by path and modification time, which another file at that path may share; nobody can
        # set the time of a file's last change.
        about = [(status.st_size, status.st_ctime_ns) for status in map(os.stat, files)]
        if empty := [path.name for path in files if parquet.read_metadata(path).num_rows == 0]:
            raise ValueError(f"no rows in {', '.join(empty)}")
        # `datasets` reads paths as patterns.
        table = datasets.Dataset.from_parquet([glob.escape(str(path)) for path in files], description=str(about))
        return cast(datasets.Dataset, table)
    except Exception as error:  # readers of damaged files raise many types
        raise RuntimeError(
            f"load_images: data_dir must hold readable parquet files; got {str(folder)!r} and {_reason(error)}. "
            "Check that the files are complete and not empty, and that the cache "
            f"({datasets_config.HF_DATASETS_CACHE}) is writable."
        ) from error


def _image_files(folder: Path) -> list[Path]:
    """Image files in class folders, class by class."""
    return [path for path in visible_files(folder) if path.suffix.lower() in _IMAGE_SUFFIXES]


def visible_files(folder: Path) -> list[Path]:
    """Files in class folders, class by class, without the hidden ones that notebooks and file managers leave."""
    return sorted(folder.glob("[!.]*/[!.]*"))


def _undivided(folder: Path) -> list[Path]:
    """Image files of a folder of class folders, none of which is a split by its name."""
    splits = {name for names in SPLIT_NAMES.values() for name in names}
    divided = any((folder / name).is_dir() or _parquet_files(folder, name) for name in splits)
    return [] if divided else _image_files(folder)


def divide(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Divide the files CLASS/NAME into {"train": …, "test": …}; `TEST_SHARE` of each class are test images.

    Hashes of the names decide, so that the split is the same on every machine. A class of one image has no test image.
    """
    classes: dict[str, list[Path]] = {}
    for file in files:
        classes.setdefault(file.parent.name, []).append(file)
    found: dict[str, list[Path]] = {"train": [], "test": []}
    for name in sorted(classes):
        drawn = sorted(classes[name], key=lambda file: hashlib.sha256(f"{name}/{file.name}".encode()).digest())
        count = 0 if len(drawn) == 1 else max(1, round(TEST_SHARE * len(drawn)))
        found["test"] += sorted(drawn[:count])
        found["train"] += sorted(drawn[count:])
    return found


def _class_folders(files: Sequence[Path]) -> datasets.Dataset:
    names = sorted({path.parent.name for path in files})
    numbers = {name: number for number, name in enumerate(names)}
    return datasets.Dataset.from_dict(
        {
            "image": [{"bytes": None, "path": str(path)} for path in files],
            "label": [numbers[path.parent.name] for path in files],
        },
        features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names)),
    )


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
    try:
        splits = cast(datasets.DatasetDict, datasets.load_dataset(dataset))
    except Exception as error:  # builders raise many types
        remedy = "Connect once; choose another copy"
        if isinstance(error, DatasetNotFoundError):
            remedy = "Correct the name; log in with `hf auth login` if it is private"
        raise RuntimeError(
            "load_images: dataset must be readable by `datasets.load_dataset`, from the Hugging Face Hub or the cache "
            f"({datasets_config.HF_DATASETS_CACHE}); got {dataset!r} and {_reason(error)}. {remedy}; or download it on "
            "another machine, and give the folder with --data-dir."
        ) from error
    for name in names:
        if name in splits:
            return Rows(splits[name], name, dataset)
    raise ValueError(
        f"load_images: dataset must have a {names[0]} split; got {dataset!r}, with {', '.join(map(str, splits))}. "
        f"Looked for {', '.join(names)}."
    )


def _reason(error: BaseException) -> str:
    """Type and first line of an error, or of its cause if `datasets` only says that generation failed."""
    if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _progress_bars(show: bool) -> Iterator[None]:
    before = datasets.is_progress_bar_enabled()
    (datasets.enable_progress_bars if show else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.enable_progress_bars if before else datasets.disable_progress_bars)()
