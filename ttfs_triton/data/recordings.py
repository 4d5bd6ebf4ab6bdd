"""Finds recordings of event cameras in folders as published, and makes images of them, once before training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ttfs_triton.data.decode import Decoded, InMemoryImages, require_memory
from ttfs_triton.data.event_files import READERS
from ttfs_triton.data.events import EventWindows, first_spikes
from ttfs_triton.data.reading import BadImages, with_progress_bar
from ttfs_triton.data.sources import SPLIT_NAMES, divide, require_folder, visible_files

_SUFFIXES = {".bin", ".npz"}  # of recordings in class folders
_SENSORS = {".bin": (34, 34), ".aedat": (128, 128)}  # N-MNIST's, DVS-Gesture's
_LATEST = 2**62  # microseconds in AEDAT 3.1 have 31 bits, and their overflows as many
GESTURES = (
    *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise"),
    *("left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures"),
)
"""Classes of DVS-Gesture, numbered from 1 in its files (Amir et al., CVPR 2017)."""


@dataclass(frozen=True)
class Recording:
    """A recording of one class: a file, or a part of it.

    Attributes:
        path: the file.
        label: number of the class.
        start, stop: bounds of the part in microseconds; None: the first event's time, and the end of the file.
    """

    path: Path
    label: int
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True)
class Recordings:
    """One split of a data set of recordings, which are not read yet.

    Attributes:
        items: the recordings, file by file.
        class_names: one name for each class.
        sensor: (height, width) in pixels, as the kind of file implies; None if it implies no size.
        split: the name under which the split was found.
        origin: folder, for messages.
    """

    items: Sequence[Recording]
    class_names: list[str]
    sensor: tuple[int, int] | None
    split: str
    origin: str


def find_recordings(folder: Path, split: str) -> Recordings:
    """Find the recordings of a split.

    Args:
        folder: DVS-Gesture as published (`trials_to_train.txt`, `trials_to_test.txt`, and the files that these list,
            with their `_labels.csv`), or class folders of recordings: `Train/<class>/*.bin`, as N-MNIST is published,
            or .npz files, or `<class>/*`, which `divide` splits.
        split: "train" or "test".
    Raises:
        ValueError: there is no such folder or split, or labels are damaged.
        OSError: a list or labels cannot be read.
    """
    require_folder(folder)
    names = SPLIT_NAMES.get(split, (split,))
    for name in names:
        if (trials := folder / f"trials_to_{name}.txt").is_file():
            return Recordings(_gestures(trials), list(GESTURES), _SENSORS[".aedat"], name, str(folder))
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    for name in names:
        for path in inside:
            if path.name.lower() == name and (files := _files(path)):
                return _class_folders(files, files, path.name, folder)
    known = {name for group in SPLIT_NAMES.values() for name in group}
    if names[0] in SPLIT_NAMES and not known & {path.name.lower() for path in inside} and (files := _files(folder)):
        return _class_folders(divide(files)[names[0]], files, names[0], folder)
    raise ValueError(
        f"load_images: data_dir must hold a {names[0]} split of recordings; got {str(folder)!r}. Looked for "
        f"trials_to_{names[0]}.txt of DVS-Gesture, and for .bin and .npz files in NAME/<class>/, with NAME = "
        f"{', '.join(names)} in any case, and in <class>/."
    )


def decode_recordings(
    found: Recordings,
    row_numbers: Tensor,
    windows: EventWindows,
    *,
    max_bad_images: int = 10,
    progress: bool = False,
) -> Decoded:
    """Make images of recordings, all in memory.

    Args:
        found: recordings of a split.
        row_numbers: [n], int64, numbers of the recordings to take.
        windows: how a recording becomes an image.
        max_bad_images: number of recordings that may be unusable; each is logged and skipped.
        progress: show a progress bar.
    Raises:
        ValueError: the sensor's size is unknown, too many recordings are unusable, or none is left.
        NotEnoughMemoryError: the images do not fit into memory.
    """
    sensor = windows.sensor or found.sensor
    if sensor is None:
        raise ValueError(
            f"load_images: event_sensor must be height and width of the sensor of {found.origin}; got None. Give it."
        )
    where = f"the {found.split} split of {found.origin}"
    channels, height, width = windows.shape(sensor)
    shape = (len(row_numbers), height, width, channels)
    require_memory(math.prod(shape), f"{len(row_numbers)} images of {where}", "Use fewer windows or a larger pool.")
    pixels, digest = np.empty(shape, np.uint8), hashlib.sha256()
    content = lru_cache(maxsize=1)(lambda path: READERS[path.suffix](path))  # for files with several recordings

    def read(row: int) -> np.ndarray | Exception:
        item = found.items[row]
        try:
            events = content(item.path)
            if item.stop is not None and isinstance(events, np.ndarray):
                events = events[(events["t"] >= item.start) & (events["t"] < item.stop)]
            levels = first_spikes(events, sensor, windows, start=item.start, stop=item.stop, levels=True)
        except (OSError, TypeError, ValueError) as error:
            return error
        return levels if levels.any() else ValueError("no event falls into its windows")

    rows = with_progress_bar(row_numbers.tolist(), "Reading events", progress)
    bad = BadImages(where, max_bad_images, lambda row: str(found.items[row].path))
    for place, (_, levels) in enumerate(bad.good(row_numbers, map(read, rows))):
        pixels[place] = levels.transpose(1, 2, 0)
        digest.update(pixels[place].data)
    images = InMemoryImages(torch.from_numpy(pixels[: len(bad.kept)]))
    return Decoded(images, torch.tensor(bad.kept), bad.rows, digest.hexdigest())


def recording_pixels(path: Path, windows: EventWindows) -> np.ndarray:
    """The image of the one recording in a file (.bin, .aedat or .npz): [height, width, 2K], uint8.

    Raises:
        TypeError, ValueError: the file is of another kind or damaged, or its events are impossible.
        OSError: the file cannot be read.
    """
    if path.suffix not in READERS:
        raise ValueError(f"must be a recording, {', '.join(READERS)}; got {path.name}.")
    sensor = windows.sensor or _SENSORS.get(path.suffix)
    if sensor is None:
        raise ValueError(f"must come from a sensor whose size the network's configuration holds; got {path.name}.")
    events = READERS[path.suffix](path)
    return first_spikes(events, sensor, windows, start=_start(path), levels=True).transpose(1, 2, 0)


def _files(folder: Path) -> list[Path]:
    """Recordings in class folders, class by class."""
    return [path for path in visible_files(folder) if path.suffix in _SUFFIXES]


def _class_folders(files: Sequence[Path], among: Sequence[Path], split: str, folder: Path) -> Recordings:
    """The recordings in `files`, numbered by all class folders that hold the files `among`."""
    names = sorted({path.parent.name for path in among})
    items = [Recording(path, names.index(path.parent.name), _start(path)) for path in files]
    sensors = {_SENSORS.get(path.suffix) for path in files}
    return Recordings(items, names, sensors.pop() if len(sensors) == 1 else None, split, str(folder))


def _start(path: Path) -> int | None:
    """Start of the recording in a file: 0 in .bin files, whose times count from there; else None, unknown."""
    return 0 if path.suffix == ".bin" else None


def _gestures(trials: Path) -> list[Recording]:
    """The recordings in the files that a list names, in the order of the list."""
    items: list[Recording] = []
    for name in filter(None, map(str.strip, trials.read_text(encoding="utf-8", errors="replace").splitlines())):
        path, table = trials.parent / name, trials.parent / f"{Path(name).stem}_labels.csv"
        if Path(name).name != name or path.suffix != ".aedat" or not path.is_file() or not table.is_file():
            raise ValueError(
                f"load_images: {trials.name} must name .aedat files beside it that have labels; got {name!r:.80}, for "
                f"which {path.name} and {table.name} must be there. Extract the whole archive."
            )
        try:
            for line in filter(None, table.read_text(encoding="utf-8").splitlines()[1:]):
                label, start, stop = map(int, line.split(","))
                if not 1 <= label <= len(GESTURES) or not 0 <= start <= stop <= _LATEST:
                    raise ValueError(f"got {line:.80}")
                items.append(Recording(path, label - 1, start, stop))
        except ValueError as error:  # also if the file is not text
            raise ValueError(
                f"load_images: {table.name} must hold class (1 to {len(GESTURES)}), start and stop (in microseconds, "
                f"rising) in each row; {error}. Extract it anew."
            ) from error
    return items
