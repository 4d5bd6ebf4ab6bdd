"""Recordings of event cameras: bytes written by hand, event by event, and folders as published."""

import io
import logging
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch

from tests.data.synthetic_events import write_aedat, write_bin
from ttfs_triton.data import decode, recordings
from ttfs_triton.data.decode import NotEnoughMemoryError
from ttfs_triton.data.events import EventWindows, first_spikes
from ttfs_triton.data.images import load_images
from ttfs_triton.data.recordings import GESTURES, find_recordings, read_aedat, read_bin, read_npz

HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-01-01 00:00:00\r\n#!END-HEADER\r\n"


# ---- files


def rows_of(events: np.ndarray) -> list[tuple[int, int, int, int]]:
    return [tuple(event) for event in events.tolist()]


def packet(*events: tuple[int, int, int, int, int], kind: int = 1, overflow: int = 0, spare: int = 0) -> bytes:
    """Of events (t, x, y, p, valid), with room for more."""
    number, valid = len(events), sum(event[4] for event in events)
    content = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, number + spare, number, valid)
    for t, x, y, p, mark in events:
        content += struct.pack("<Ii", x << 17 | y << 2 | p << 1 | mark, t)
    return content + bytes(8 * spare)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 0, 0, 1), (7, 33, 12, 0), (2**23 - 1, 239, 239, 1)], None),
        ([], None),
        (  # the counter begins anew at an event of row 240, which is none
            [(5, 1, 1, 0), (0, 0, 240, 0), (6, 2, 1, 1), (0, 0, 240, 0), (0, 0, 240, 0), (1, 3, 1, 1)],
            [(5, 1, 1, 0), (6 + 8192, 2, 1, 1), (1 + 3 * 8192, 3, 1, 1)],
        ),
    ],
)
def test_bin_files_hold_forty_bits_an_event(tmp_path, rows, expected):
    path = tmp_path / "a.bin"
    path.write_bytes(b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for t, x, y, p in rows))
    assert rows_of(read_bin(path)) == (rows if expected is None else expected)


def test_aedat_files_hold_packets_of_polarity_events(tmp_path):
    path = tmp_path / "a.aedat"
    parts = [
        packet((5, 1, 2, 0, 1), (9, 127, 0, 1, 1)),
        packet((6, 3, 3, 1, 1), kind=2),  # a frame or another event, of which nothing is known
        packet((2**31 - 1, 2**15 - 1, 2**15 - 1, 1, 1), (11, 4, 4, 0, 0), spare=2),
        packet(),
        packet((3, 9, 8, 0, 1), overflow=1),
    ]
    path.write_bytes(HEADER + b"".join(parts))
    most = (2**31 - 1, 2**15 - 1, 2**15 - 1, 1)
    assert rows_of(read_aedat(path)) == [(5, 1, 2, 0), (9, 127, 0, 1), most, (2**31 + 3, 9, 8, 0)]
    path.write_bytes(HEADER)
    assert rows_of(read_aedat(path)) == []


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


WHOLE = HEADER + packet((5, 1, 2, 0, 1), (9, 127, 0, 1, 1))


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_bin, b"123456", "must hold whole events of 5 bytes; got 6 bytes"),
        (read_aedat, b"#!AER-DAT2.0\r\n", "must be an AEDAT 3.1 file with a header; got one that begins b'#!AER"),
        (read_aedat, HEADER[:-4], "must be an AEDAT 3.1 file with a header"),
        (read_aedat, WHOLE[:-1], "must hold whole packets; got 2 of 2 events of 8 bytes, at byte"),
        (read_aedat, WHOLE + b"123", "must hold whole packets; it ends inside of one's header"),
        (read_aedat, WHOLE.replace(struct.pack("<ii", 2, 2), struct.pack("<ii", 2, 3)), "must hold whole packets"),
        (read_npz, b"123", "must hold the arrays t, x, y and p of `numpy.savez`; File is not a zip file"),
        (read_npz, npz(t=np.zeros(1, int)), "must hold the arrays t, x, y and p of `numpy.savez`; 'x"),
        (read_npz, npz(**dict.fromkeys("txyp", np.array([None]))), "Object arrays cannot be loaded"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_files_are_refused(tmp_path, read, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a")


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(recordings, "MAX_BYTES", 10_000)
    (tmp_path / "a").write_bytes(bytes(10_001))
    with pytest.raises(OSError, match="10001 bytes, at most 10000 are allowed"):
        read_bin(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.npy", bytes(10**6))
    with pytest.raises(ValueError, match=r"b\.npz must unpack to at most 10000 bytes; got 1000000"):
        read_npz(tmp_path / "b.npz")


# ---- folders


WINDOWS = EventWindows(2, 50)


def events(seed: int, n: int = 40, side: int = 34, until: int = 100) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    columns = {name: generator.integers(0, high, n) for name, high in zip("xyp", (side, side, 2), strict=True)}
    return columns | {"t": np.sort(generator.integers(0, until, n))}


@pytest.fixture
def n_mnist(tmp_path):
    """Two classes, of which the test split has both too."""
    for seed, name in enumerate(("Train/3/00002", "Train/3/00007", "Train/8/00001", "Test/3/00001", "Test/8/00002")):
        write_bin(tmp_path / f"{name}.bin", events(seed))
    (tmp_path / "Train" / "3" / "._00002.bin").write_bytes(b"of a Macintosh")
    return tmp_path


@pytest.fixture
def gestures(tmp_path):
    """A user in each split; three gestures in a file, and events between them."""
    for seed, split in enumerate(("train", "test")):
        (tmp_path / f"trials_to_{split}.txt").write_text(f"user{seed}_led.aedat\n\n")
        write_aedat(tmp_path / f"user{seed}_led.aedat", events(seed, 2000, 128, 1000))
        (tmp_path / f"user{seed}_led_labels.csv").write_text("class,start,end\n1,100,300\n11,300,420\n8,500,999\n")
    return tmp_path


def test_n_mnist_is_read_as_published(n_mnist):
    train = load_images(None, n_mnist, events=WINDOWS)
    test = load_images(None, n_mnist, split="test", like=train, events=WINDOWS)
    assert (train.shape, test.shape) == ((3, 4, 34, 34), (2, 4, 34, 34))
    assert (train.labels.tolist(), test.labels.tolist(), train.class_names) == ([0, 0, 1], [0, 1], ["3", "8"])
    assert (train.split, test.split, train.name) == ("Train", "Test", str(n_mnist))
    for seed, image in enumerate(train.images):
        assert image.equal(torch.from_numpy(first_spikes(events(seed), (34, 34), WINDOWS, start=0, levels=True)))
    assert train.fingerprint != load_images(None, n_mnist, events=EventWindows(2, 60)).fingerprint
    assert len(load_images(None, n_mnist, events=WINDOWS, max_samples=2)) == 2


def test_gestures_are_cut_out_of_their_files(gestures):
    windows = EventWindows(2, None, 4)
    train = load_images(None, gestures, events=windows)
    assert (train.labels.tolist(), train.class_names) == ([0, 10, 7], list(GESTURES))
    recorded = read_aedat(gestures / "user0_led.aedat")
    for image, (start, stop) in zip(train.images, ((100, 300), (300, 420), (500, 999)), strict=True):
        part = recorded[(recorded["t"] >= start) & (recorded["t"] < stop)]
        levels = first_spikes(part, (128, 128), windows, start=start, stop=stop, levels=True)
        assert image.equal(torch.from_numpy(levels))
    windows = EventWindows(1, 1000, 4)  # longer; the next gesture is not in it
    part = recorded[(recorded["t"] >= 100) & (recorded["t"] < 300)]
    expected = torch.from_numpy(first_spikes(part, (128, 128), windows, start=100, levels=True))
    assert load_images(None, gestures, events=windows).images[0].equal(expected)


def test_recordings_of_ones_own_get_a_split_and_say_their_sensor(tmp_path):
    for number in range(10):
        for name in ("left", "right"):
            (tmp_path / name).mkdir(exist_ok=True)
            np.savez_compressed(tmp_path / name / f"{number}.npz", **events(0, side=20))
    windows = EventWindows(1, 50, sensor=(20, 24))
    train = load_images(None, tmp_path, events=windows)
    test = load_images(None, tmp_path, split="test", like=train, events=windows)
    assert (train.shape, test.shape) == ((16, 2, 20, 24), (4, 2, 20, 24))
    assert train.class_names == test.class_names == ["left", "right"]
    assert train.images[0].equal(torch.from_numpy(first_spikes(events(0, side=20), (20, 24), windows, levels=True)))
    with pytest.raises(ValueError, match=r"event_sensor must be height and width of the sensor of .*; got None"):
        load_images(None, tmp_path, events=WINDOWS)


def test_recordings_that_cannot_be_used_are_skipped_and_named(n_mnist, caplog):
    (n_mnist / "Train" / "3" / "00002.bin").write_bytes(b"123456")
    write_bin(n_mnist / "Train" / "8" / "00001.bin", events(2, side=60))
    with caplog.at_level(logging.WARNING):
        data = load_images(None, n_mnist, events=WINDOWS, max_bad_images=2)
    assert (data.labels.tolist(), data.skipped) == ([0], [0, 2])
    assert f"{n_mnist}/Train/3/00002.bin cannot be decoded" in caplog.text
    assert "events must be on the sensor of 34 × 34 pixels" in caplog.text
    with pytest.raises(ValueError, match=r"at most 1 images may be undecodable; got 2 up to .*/Train/8/00001\.bin"):
        load_images(None, n_mnist, events=WINDOWS, max_bad_images=1)
    for name in ("3/00002", "3/00007", "8/00001"):
        (n_mnist / "Train" / f"{name}.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="must hold images; got none that can be decoded"):
        load_images(None, n_mnist, events=WINDOWS)
    assert "(ValueError: no event falls into its windows)" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trials_to_train.txt", "../user0_led.aedat\n", r"must name .aedat files beside it .*; got '\.\./user0_led"),
        ("trials_to_train.txt", "user7_led.aedat\n", "user7_led.aedat and user7_led_labels.csv must be there"),
        ("user0_led_labels.csv", "class,start,end\n1,100\n", r"must hold class \(1 to 11\), .*; not enough"),
        ("user0_led_labels.csv", "class,start,end\n12,0,7\n", "in each row; got 12,0,7. Extract it anew"),
        ("user0_led_labels.csv", "class,start,end\n1,7,6\n", "; got 1,7,6"),
        ("user0_led_labels.csv", f"class,start,end\n1,0,{10**20}\n", "; got 1,0,1000"),
        ("user0_led_labels.csv", "classe,début,fin\n", "must hold class .* in each row; 'utf-8' codec can't decode"),
        ("trials_to_train.txt", "usér0_led.aedat\n", "must name .aedat files beside it that have labels; got 'us"),
    ],
)
def test_gestures_that_are_damaged_are_refused(gestures, name, content, message):
    (gestures / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        find_recordings(gestures, "train")


def test_missing_or_unfit_recordings_are_refused(n_mnist, monkeypatch):
    train = load_images(None, n_mnist, events=WINDOWS)
    with pytest.raises(ValueError, match=r"must be an existing folder; got .*no such folder"):
        find_recordings(n_mnist / "none", "train")
    with pytest.raises(ValueError, match=r"events must go with data_dir and without .*; got image_size, streaming"):
        load_images(None, n_mnist, events=WINDOWS, image_size=20, streaming=True)
    with pytest.raises(ValueError, match="Recordings of an event camera need --event-windows"):
        load_images(None, n_mnist)
    shutil.rmtree(n_mnist / "Test" / "3")
    assert load_images(None, n_mnist, split="test", like=train, events=WINDOWS).labels.tolist() == [1]
    shutil.rmtree(n_mnist / "Test")
    with pytest.raises(ValueError, match=r"must hold a test split of recordings; got .* Looked for trials_to_test.txt"):
        find_recordings(n_mnist, "test")  # a training split is not divided
    monkeypatch.setattr(decode, "_MEMORY_FRACTION", 0)
    with pytest.raises(NotEnoughMemoryError, match=r"3 images of the Train split.*Use fewer windows or a larger pool"):
        load_images(None, n_mnist, events=WINDOWS)
