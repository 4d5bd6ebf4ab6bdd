"""A small synthetic data set of an event camera, in the layout and file format of N-MNIST or DVS-Gesture.

    python -m tests.data.synthetic_events nmnist EVENTS        # bundled images, moved as N-MNIST's were
    python -m tests.data.synthetic_events dvs_gesture EVENTS   # random events, twice as many in each next class

The camera is ideal: a pixel sends an event when the logarithm of its brightness crosses one of equally spaced levels,
which differ from pixel to pixel. Results do not compare with either data set's.
"""

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ttfs_triton.data.images import load_images
from ttfs_triton.data.recordings import GESTURES

SACCADES = np.array([[0, 0], [3, 6], [6, 0], [0, 0]])  # pixels; N-MNIST's camera also moved along a triangle
SACCADE_US = 105_000
THRESHOLD = 0.3
FRAME_US = 5_000  # events lie between frames, where levels are interpolated
GESTURE_US, PAUSE_US = 500_000, 100_000


def events_of(frames: np.ndarray, frame_us: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Events t, x, y, p of an ideal camera that looks at frames, [n, height, width]; the generator draws its levels."""
    level = np.log(frames) / THRESHOLD + generator.random(frames.shape[1:])  # an event is a crossing of an integer
    steps = np.diff(np.floor(level).astype(np.int64), axis=0)
    frame, y, x = steps.nonzero()
    count = np.abs(steps[frame, y, x])
    frame, y, x, count = (values.repeat(count) for values in (frame, y, x, count))
    first = np.flatnonzero(np.r_[True, (np.diff(frame) != 0) | (np.diff(y) != 0) | (np.diff(x) != 0)])
    number = np.arange(len(frame)) - first.repeat(count[first])  # counts crossings of one pixel between two frames
    before, after = level[frame, y, x], level[frame + 1, y, x]
    crossed = np.where(after > before, np.floor(before) + 1 + number, np.floor(before) - number)
    t = ((frame + (crossed - before) / (after - before)) * frame_us).astype(np.int64)
    order = t.argsort(kind="stable")
    return {"t": t[order], "x": x[order], "y": y[order], "p": (after > before).astype(np.int64)[order]}


def saccades(image: np.ndarray, side: int = 34) -> np.ndarray:
    """Frames, [n, side, side], of a camera that moves along N-MNIST's triangle over an image, [28, 28] in [0, 1]."""
    margin = side - len(image)
    scene = np.pad(0.1 + image, (margin, margin + 1), constant_values=0.1)
    corners = np.arange(len(SACCADES)) * SACCADE_US
    times = np.arange(0, corners[-1] + 1, FRAME_US)
    row, column = (np.interp(times, corners, SACCADES[:, axis]) for axis in (1, 0))
    frames = []
    for top, left in zip(row, column, strict=True):
        y, x, dy, dx = int(top), int(left), top % 1, left % 1
        part = scene[y : y + side + 1, x : x + side + 1]
        part = (1 - dy) * part[:-1] + dy * part[1:]
        frames.append((1 - dx) * part[:, :-1] + dx * part[:, 1:])
    return np.stack(frames)


def write_bin(path: Path, events: dict[str, np.ndarray]) -> None:
    """Write events in N-MNIST's format: 40 bits an event, x, y, polarity, and time in 23 bits."""
    t = events["t"]
    columns = (events["x"], events["y"], events["p"] << 7 | t >> 16, t >> 8 & 255, t & 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.stack(columns, axis=1).astype(np.uint8).tobytes())


def write_aedat(path: Path, events: dict[str, np.ndarray], packet: int = 4096) -> None:
    """Write events as AEDAT 3.1: polarity events, all valid."""
    address = events["x"] << 17 | events["y"] << 2 | events["p"] << 1 | 1
    words = np.stack([address, events["t"] & 0x7FFFFFFF], axis=1).astype("<u4")
    overflow = events["t"] >> 31
    with path.open("wb") as file:
        file.write(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n")
        for times in np.unique(overflow).tolist():  # all events of a packet share one overflow count
            of_it = words[overflow == times]
            for some in np.split(of_it, range(packet, len(of_it), packet)):
                counts = (times, len(some), len(some), len(some))
                file.write(struct.pack("<hhiiiiii", 1, 1, 8, 4, *counts) + some.tobytes())


def write_nmnist(folder: Path, counts: Mapping[str, int], generator: np.random.Generator) -> None:
    """Write Train/<class>/NUMBER.bin and Test/<class>/NUMBER.bin: bundled images, moved as N-MNIST's were."""
    for split, count in counts.items():
        data = load_images("sample", split=split, max_samples=count)
        images = zip(data.images[:, 0].numpy() / 255, data.labels.tolist(), strict=True)
        for number, (image, label) in enumerate(images, 1):
            path = folder / split.capitalize() / str(label) / f"{number:05d}.bin"
            write_bin(path, events_of(saccades(image), FRAME_US, generator))


def write_gestures(folder: Path, counts: Mapping[str, int], generator: np.random.Generator) -> None:
    """Write recordings with all gestures in turn, their labels, and both splits' lists."""
    folder.mkdir(parents=True)
    for split, count in counts.items():
        names = [f"{split}{number:02d}_led" for number in range(round(count / len(GESTURES)))]
        for name in names:
            parts, rows = [], ["class,startTime_usec,endTime_usec"]
            for label in range(len(GESTURES)):
                start = 2**31 - 3_000_000 + label * (GESTURE_US + PAUSE_US)
                limits = {"t": GESTURE_US, "x": 128, "y": 128, "p": 2}
                events = {key: generator.integers(limit, size=8 << label) for key, limit in limits.items()}
                parts.append(events | {"t": np.sort(events["t"]) + start})
                rows.append(f"{label + 1},{start},{start + GESTURE_US}")
            columns = {key: np.concatenate([part[key] for part in parts]) for key in "txyp"}
            write_aedat(folder / f"{name}.aedat", columns)
            (folder / f"{name}_labels.csv").write_text("\n".join(rows) + "\n")
        (folder / f"trials_to_{split}.txt").write_text("".join(f"{name}.aedat\n" for name in names))


def write_recordings(kind: str, folder: Path, train: int = 200, test: int = 100) -> None:
    """Write a data set in the files of "nmnist" or "dvs_gesture"; the folder must not exist."""
    write = {"nmnist": write_nmnist, "dvs_gesture": write_gestures}[kind]
    write(folder, {"train": train, "test": test}, np.random.default_rng(0))


if __name__ == "__main__":
    write_recordings(sys.argv[1], Path(sys.argv[2]))
