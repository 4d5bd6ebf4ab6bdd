"""Recordings of event cameras: reads their files, finds the files in folders as published, makes images of them.

Three formats are read: N-MNIST's 40 bits per event, AEDAT 3.1, and arrays as .npz, into which users convert all others.
No library with a fitting licence reads the first two as they are published; see pyproject.toml.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor

from ttfs_triton.data.decode import BadImages, Decoded, InMemoryImages, require_memory, with_progress_bar
from ttfs_triton.data.events import EventWindows, first_spikes
from ttfs_triton.data.pixels import MAX_BYTES
from ttfs_triton.data.sources import SPLIT_NAMES, Rows, class_folders, labelled, require_folder
from ttfs_triton.untrusted_files import read_regular

EVENT = np.dtype([("t", np.int64), ("x", np.int32), ("y", np.int32), ("p", np.int8)])
"""Time in microseconds, column, row, polarity (1 is brighter)."""

# An "event" in this row marks that the sensor's counter of microseconds began anew.
_COUNTER_ROW, _COUNTER_STEP = 240, 2**13
_AEDAT, _END_OF_HEADER = b"#!AER-DAT3.1\r\n", b"#!END-HEADER\r\n"
# A packet's header: type, source, bytes per event, offset of its time, overflows, capacity, number, valid.
_PACKET = struct.Struct("<hhiiiiii")
_POLARITY, _POLARITY_BYTES = 1, 8
_DAMAGE = (KeyError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)

_SUFFIXES = {".bin", ".npz"}  # of recordings in class folders
_COLUMNS = {"path": datasets.Value("string"), "start": datasets.Value("int64"), "stop": datasets.Value("int64")}
_SENSORS = {".bin": (34, 34), ".aedat": (128, 128)}  # N-MNIST's, DVS-Gesture's
_LATEST = 2**62  # microseconds in AEDAT 3.1 have 31 bits, and their overflows 31 more
GESTURES = (
    *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter-clockwise"),
    *("left arm clockwise", "left arm counter-clockwise", "arm roll", "air drums", "air guitar", "other gestures"),
)
"""Classes of DVS-Gesture, numbered from 1 in its files (Amir et al., CVPR 2017)."""


def read_bin(path: Path) -> np.ndarray:
    """Events of a .bin file of N-MNIST or N-Caltech101.

    An event has 40 bits, most significant byte first: 8 of x, 8 of y, 1 of polarity, 23 of time.

    Returns:
        [n], dtype `EVENT`.
    Raises:
        ValueError: the file ends within an event.
        OSError: the file cannot be read, or is too large.
    Source: Orchard et al., Frontiers in Neuroscience 9:437, 2015, and their readers of the format.
    """
    content = read_regular(path, MAX_BYTES)
    if len(content) % 5:
        raise ValueError(f"{path.name} must hold whole events of 5 bytes; got {len(content)} bytes")
    column = np.frombuffer(content, np.uint8).reshape(-1, 5).astype(np.int64).T
    began_anew = column[1] == _COUNTER_ROW
    events = np.empty(column.shape[1], EVENT)
    events["x"], events["y"], events["p"] = column[0], column[1], column[2] >> 7
    events["t"] = (column[2] & 127) << 16 | column[3] << 8 | column[4]
    events["t"] += _COUNTER_STEP * began_anew.cumsum()
    return events[~began_anew]


def read_aedat(path: Path) -> np.ndarray:
    """Polarity events of an AEDAT 3.1 file, such as DVS-Gesture's; other events (frames, IMU, triggers) are left out.

    Returns:
        [n], dtype `EVENT`, without events that are marked invalid.
    Raises:
        ValueError: the file has another format, or is damaged.
        OSError: the file cannot be read, or is too large.
    Source: iniVation, AEDAT 3.1, "Event packets" and "Polarity event".
    """
    content = read_regular(path, MAX_BYTES)
    place = content.find(_END_OF_HEADER) + len(_END_OF_HEADER)
    if not content.startswith(_AEDAT) or place < len(_AEDAT):
        raise ValueError(f"{path.name} must be an AEDAT 3.1 file with a header; got one that begins {content[:16]!r}")
    words: list[np.ndarray] = [np.empty((0, 2), "<i4")]
    overflows = [np.empty(0, np.int64)]
    while place < len(content):
        if len(content) - place < _PACKET.size:
            raise ValueError(f"{path.name} must hold whole packets; it ends inside a packet's header, at byte {place}")
        kind, _, size, _, overflow, capacity, number, valid = _PACKET.unpack_from(content, place)
        place += _PACKET.size
        if not 0 <= valid <= number <= capacity or size <= 0 or capacity * size > len(content) - place:
            raise ValueError(
                f"{path.name} must hold whole packets; got {number} of {capacity} events of {size} bytes, at byte "
                f"{place} of {len(content)}"
            )
        if kind == _POLARITY and size == _POLARITY_BYTES:
            events = np.frombuffer(content, "<i4", 2 * number, place).reshape(-1, 2)
            words.append(events if valid == number else events[events[:, 0] & 1 == 1])
            overflows.append(np.full(len(words[-1]), overflow, np.int64))
        place += capacity * size
    address, time = np.concatenate(words).T
    events = np.empty(len(address), EVENT)
    events["x"], events["y"], events["p"] = address >> 17 & 0x7FFF, address >> 2 & 0x7FFF, address >> 1 & 1
    events["t"] = np.concatenate(overflows) << 31 | time
    return events


def read_npz(path: Path) -> Mapping[str, np.ndarray]:
    """Arrays t (microseconds), x, y and p of an .npz file, which `np.savez(path, t=t, x=x, y=y, p=p)` writes.

    Raises:
        ValueError: an array is missing, or the file is damaged, or unpacks to more than `MAX_BYTES`.
        OSError: the file cannot be read, or is too large.
    """
    content = read_regular(path, MAX_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > MAX_BYTES:
                raise ValueError(f"{path.name} must unpack to at most {MAX_BYTES} bytes; got {size}")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in EVENT.names or ()}
    except _DAMAGE as error:
        raise ValueError(f"{path.name} must hold the arrays t, x, y and p of `numpy.savez`; {error}") from error


READERS: dict[str, Callable[[Path], np.ndarray | Mapping[str, np.ndarray]]] = {
    ".bin": read_bin,
    ".aedat": read_aedat,
    ".npz": read_npz,
}


def find_recordings(folder: Path, split: str) -> Rows:
    """Find the recordings of a split: rows with the `path` of a file, `start` and `stop` in the file, and `label`.

    A recording that is a part of a file has bounds in microseconds. Without a start, it begins with its first event.
    """
    require_folder(folder)
    names = SPLIT_NAMES.get(split, (split,))
    for name in names:
        if (trials := folder / f"trials_to_{name}.txt").is_file():
            return Rows(_gestures(trials), name, str(folder), sensor=_SENSORS[".aedat"])
    if split_files := class_folders(folder, names, _SUFFIXES):
        name, files, classes = split_files
        sensors = {_SENSORS.get(path.suffix.lower()) for path in files}
        columns = {"path": list(map(str, files)), "start": list(map(_start, files)), "stop": [None] * len(files)}
        table = labelled(columns, _COLUMNS, files, classes)
        return Rows(table, name, str(folder), sensor=sensors.pop() if len(sensors) == 1 else None)
    raise ValueError(
        f"load_images: data_dir must hold a {names[0]} split of recordings; got {str(folder)!r}. Looked for "
        f"trials_to_{names[0]}.txt of DVS-Gesture, and for .bin and .npz files in NAME/<class>/, with NAME = "
        f"{', '.join(names)} in any case, and in <class>/."
    )


def decode_recordings(
    rows: Rows, row_numbers: Tensor, windows: EventWindows, *, max_bad_images: int, progress: bool
) -> Decoded:
    """Images of the recordings in these rows, all in memory; arguments are as in `decode_rows`."""
    sensor = windows.sensor or rows.sensor
    if sensor is None:
        raise ValueError(
            f"load_images: event_sensor must be height and width of the sensor of {rows.origin}; got None. Give it."
        )
    channels, height, width = windows.shape(sensor)
    shape = (len(row_numbers), height, width, channels)
    what, items = f"{len(row_numbers)} images of {rows.where}", rows.table.to_list()
    require_memory(math.prod(shape), what, "Use fewer windows or a larger pool.")
    pixels, digest = np.empty(shape, np.uint8), hashlib.sha256()
    content = lru_cache(maxsize=1)(lambda path: READERS[Path(path).suffix.lower()](Path(path)))  # shared by recordings

    def read(row: int) -> np.ndarray | Exception:
        path, start, stop = (items[row][name] for name in _COLUMNS)
        try:
            events = content(path)
            if stop is not None and isinstance(events, np.ndarray):
                events = events[(events["t"] >= start) & (events["t"] < stop)]
            levels = first_spikes(events, sensor, windows, start=start, stop=stop, levels=True)
        except (OSError, TypeError, ValueError) as error:
            return error
        return levels if levels.any() else ValueError("no event falls into its windows")

    numbers = with_progress_bar(row_numbers.tolist(), "Reading events", progress)
    bad = BadImages(rows.where, max_bad_images, lambda row: items[row]["path"])
    for place, (_, levels) in enumerate(bad.good(row_numbers, map(read, numbers))):
        pixels[place] = levels.transpose(1, 2, 0)
        digest.update(pixels[place].data)
    kept = bad.kept(row_numbers)
    images = InMemoryImages(torch.from_numpy(pixels[: len(kept)]))
    return Decoded(images, kept, bad.rows, digest.hexdigest())


def recording_pixels(path: Path, windows: EventWindows) -> np.ndarray:
    """The image of the one recording in a file (.bin, .aedat or .npz): [height, width, 2K], uint8."""
    suffix, trials = path.suffix.lower(), path.with_name(f"{path.stem}_labels.csv")
    if suffix not in READERS:
        raise ValueError(f"must be a recording, {', '.join(READERS)}; got {path.name}.")
    if trials.exists():
        raise ValueError(f"must be one recording; got {path.name}, whose trials {trials.name} lists. Save one as .npz.")
    sensor = windows.sensor or _SENSORS.get(suffix)
    if sensor is None:
        raise ValueError(f"must come from a sensor whose size the network's configuration holds; got {path.name}.")
    events = READERS[suffix](path)
    return first_spikes(events, sensor, windows, start=_start(path), levels=True).transpose(1, 2, 0)


def _start(path: Path) -> int | None:
    """Start of the recording in a file: 0 for .bin files, whose times count from 0; else None, unknown."""
    return 0 if path.suffix.lower() == ".bin" else None


def _gestures(trials: Path) -> datasets.Dataset:
    """The recordings in the files that a list names, in the order of the list."""
    items: list[tuple[str, int, int, int]] = []
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
                items.append((str(path), start, stop, label - 1))
        except ValueError as error:  # also if the file is not text
            raise ValueError(
                f"load_images: {table.name} must hold class (1 to {len(GESTURES)}), start and stop (in microseconds, "
                f"rising) in every row; {error}. Extract it anew."
            ) from error
    kinds = datasets.Features(**_COLUMNS, label=datasets.ClassLabel(names=list(GESTURES)))
    return datasets.Dataset.from_list([dict(zip(kinds, item, strict=True)) for item in items], features=kinds)
