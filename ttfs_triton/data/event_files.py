"""Readers of event files: N-MNIST's 40 bits an event, AEDAT 3.1, and arrays in .npz files, for all other formats.

No library with a fitting licence reads the first two as they are published; see pyproject.toml.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ttfs_triton.data.reading import MAX_BYTES
from ttfs_triton.untrusted_files import read_regular

EVENT = np.dtype([("t", np.int64), ("x", np.int32), ("y", np.int32), ("p", np.int8)])
"""Time in microseconds, column, row, polarity (1 is brighter)."""

# An "event" in this row marks that the sensor's counter of microseconds began anew.
_COUNTER_ROW, _COUNTER_STEP = 240, 2**13
_AEDAT, _END_OF_HEADER = b"#!AER-DAT3.1\r\n", b"#!END-HEADER\r\n"
# A packet's header: type, source, bytes an event, offset of its time, overflows, capacity, number, valid.
_PACKET = struct.Struct("<hhiiiiii")
_POLARITY, _POLARITY_BYTES = 1, 8
_DAMAGE = (KeyError, OSError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


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
    words, overflows = [np.empty((0, 2), "<i4")], [np.empty(0, np.int64)]
    while place < len(content):
        if len(content) - place < _PACKET.size:
            raise ValueError(f"{path.name} must hold whole packets; it ends inside of one's header, at byte {place}")
        kind, _, size, _, overflow, capacity, number, valid = _PACKET.unpack_from(content, place)
        place += _PACKET.size
        if not 0 <= valid <= number <= capacity or size <= 0 or capacity * size > len(content) - place:
            raise ValueError(
                f"{path.name} must hold whole packets; got {number} of {capacity} events of {size} bytes, at byte "
                f"{place} of {len(content)}"
            )
        if kind == _POLARITY and size == _POLARITY_BYTES:
            found = np.frombuffer(content, "<i4", 2 * number, place).reshape(-1, 2)
            words.append(found if valid == number else found[found[:, 0] & 1 == 1])
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
