"""Events as spikes, against the definition in fractions; bytes written by hand; folders of recordings as published."""

import io
import shutil
import struct
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.data.synthetic_events import write_aedat, write_bin
from ttfs_triton.data import decode, recordings
from ttfs_triton.data.decode import NotEnoughMemoryError
from ttfs_triton.data.events import EventWindows, first_spikes
from ttfs_triton.data.images import load_images
from ttfs_triton.data.recordings import GESTURES, find_recordings, read_aedat, read_bin, read_npz, recording_pixels

SENSOR = (5, 7)


def recording(*rows: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """Events (t, x, y, p)."""
    return dict(zip("txyp", np.array(rows, dtype=np.int64).reshape(-1, 4).T, strict=True))


EVENTS = st.tuples(st.integers(-40, 400), st.integers(0, 6), st.integers(0, 4), st.integers(0, 1))


@given(
    rows=st.lists(EVENTS, max_size=60).map(sorted),
    count=st.integers(1, 4),
    length=st.none() | st.integers(1, 130),
    pool=st.integers(1, 6),
    start=st.none() | st.integers(-50, 300),
    duration=st.none() | st.integers(0, 500),
)
def test_first_spikes_are_those_of_the_definition(rows, count, length, pool, start, duration):
    begin = start if start is not None else (rows[0][0] if rows else 0)
    stop = None if duration is None else begin + duration
    end = stop if stop is not None else (rows[-1][0] + 1 if rows else begin)
    size = length or max(1, -((begin - end) // count))
    windows = EventWindows(count, length, pool)
    shape = (2 * count, -(-SENSOR[0] // pool), -(-SENSOR[1] // pool))
    expected = np.full(shape, Fraction(0), dtype=object)
    for t, x, y, p in rows:
        for k in range(count):
            if begin + k * size <= t < begin + (k + 1) * size and t < end:
                place = (2 * k + p, y // pool, x // pool)
                expected[place] = max(expected[place], 1 - Fraction(t - begin - k * size, size))
    events = recording(*rows)
    spikes = first_spikes(events, SENSOR, windows, start=start, stop=stop)
    assert (spikes.dtype, spikes.shape, windows.shape(SENSOR)) == (np.float32, shape, shape)
    assert (spikes == expected.astype(np.float64).astype(np.float32)).all()
    levels = first_spikes(events, SENSOR, windows, start=start, stop=stop, levels=True)
    assert levels.dtype == np.uint8
    assert (levels == np.vectorize(lambda a: -(-255 * a.numerator // a.denominator), otypes=[int])(expected)).all()


def test_an_event_is_no_silence_however_late_and_a_recording_without_events_is():
    events = recording((0, 0, 0, 0), (10**9 - 1, 1, 0, 1))
    assert first_spikes(events, (1, 2), EventWindows())[1, 0, 1] == np.float32(1e-9)
    assert first_spikes(events, (1, 2), EventWindows(), levels=True).tolist() == [[[255, 0]], [[0, 1]]]
    assert not first_spikes(recording(), SENSOR, EventWindows(2)).any()


def test_events_of_other_libraries_are_read():
    rows = ((3, 6, 1, 1), (3, 2, 4, 0), (9, 6, 1, 1))
    expected = first_spikes(recording(*rows), SENSOR, EventWindows())
    for types in (("i2", "i2", "i8", "?"), ("<u2", "<u2", "<u4", "u1"), ("i8", "i8", "i8", "i8")):  # Tonic's first
        structured = np.array([(x, y, t, p) for t, x, y, p in rows], dtype=list(zip("xytp", types, strict=True)))
        assert (first_spikes(structured, SENSOR, EventWindows()) == expected).all()


def test_impossible_events_and_windows_are_refused():
    one = recording((5, 0, 0, 0))
    for events, stop, message in (
        (recording((5, 0, 0, 0), (4, 0, 0, 0)), None, "t must not fall; got 4 after 5 µs, event 1"),
        (recording((5, 7, 0, 0)), None, r"on the sensor of 7 × 5 pixels; got x = 7, y = 0 \(1 such"),
        (recording((5, 0, 0, -1)), None, "p must be 0 .* or 1 .*; got values from -1 to -1. For -1 and 1"),
        (one | {"t": np.array([0.5])}, None, "t must be whole numbers; got float64. For times in seconds"),
        (one | {"x": np.array([1, 2])}, None, r"must be \[n\], n the number of events; got"),
        (one, 4, r"stop must not be before start \(5\); got 4"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"first_spikes: .*{message}"):
            first_spikes(events, SENSOR, EventWindows(), stop=stop)
    for name, value in (("count", 0), ("length_us", 0.5), ("pool", True), ("sensor", (34, 0))):
        with pytest.raises(ValueError, match=rf"{name}\S*\n +Input should be"):
            EventWindows(**{name: value})


# ---- files

HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-01-01 00:00:00\r\n#!END-HEADER\r\n"


def packet(*events: tuple[int, int, int, int, int], kind: int = 1, overflow: int = 0, spare: int = 0) -> bytes:
    """Of events (t, x, y, p, valid), with room for more."""
    number, valid = len(events), sum(event[4] for event in events)
    content = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, number + spare, number, valid)
    for t, x, y, p, mark in events:
        content += struct.pack("<Ii", x << 17 | y << 2 | p << 1 | mark, t)
    return content + bytes(8 * spare)


def test_bin_files_hold_forty_bits_an_event(tmp_path):
    plain = [(0, 0, 0, 1), (7, 33, 12, 0), (2**23 - 1, 239, 239, 1)]
    # The counter begins anew at an event of row 240, which is none.
    counted = [(5, 1, 1, 0), (0, 0, 240, 0), (6, 2, 1, 1), (0, 0, 240, 0), (0, 0, 240, 0), (1, 3, 1, 1)]
    expected = [(5, 1, 1, 0), (6 + 8192, 2, 1, 1), (1 + 3 * 8192, 3, 1, 1)]
    for rows, events in ((plain, plain), ([], []), (counted, expected)):
        content = b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for t, x, y, p in rows)
        (tmp_path / "a").write_bytes(content)
        assert read_bin(tmp_path / "a").tolist() == events


def test_aedat_files_hold_packets_of_polarity_events(tmp_path):
    parts = [
        packet((5, 1, 2, 0, 1), (9, 127, 0, 1, 1)),
        packet((6, 3, 3, 1, 1), kind=2),  # a frame or another event, of which nothing is known
        packet((2**31 - 1, 2**15 - 1, 2**15 - 1, 1, 1), (11, 4, 4, 0, 0), spare=2),
        packet(),
        packet((3, 9, 8, 0, 1), overflow=1),
    ]
    most = (2**31 - 1, 2**15 - 1, 2**15 - 1, 1)
    for some, expected in ((parts, [(5, 1, 2, 0), (9, 127, 0, 1), most, (2**31 + 3, 9, 8, 0)]), ([], [])):
        (tmp_path / "a").write_bytes(HEADER + b"".join(some))
        assert read_aedat(tmp_path / "a").tolist() == expected


def npz(**arrays: np.ndarray) -> bytes:
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


def test_damaged_and_too_large_files_are_refused(tmp_path, monkeypatch):
    whole, bomb = HEADER + packet((5, 1, 2, 0, 1), (9, 127, 0, 1, 1)), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.npy", bytes(10**6))
    monkeypatch.setattr(recordings, "MAX_BYTES", 10_000)
    for read, content, message in (
        (read_bin, b"123456", "must hold whole events of 5 bytes; got 6 bytes"),
        (read_aedat, b"#!AER-DAT2.0\r\n", "must be an AEDAT 3.1 file with a header; got one that begins b'#!AER"),
        (read_aedat, HEADER[:-4], "must be an AEDAT 3.1 file with a header"),
        (read_aedat, whole[:-1], "must hold whole packets; got 2 of 2 events of 8 bytes, at byte"),
        (read_aedat, whole + b"123", "must hold whole packets; it ends inside a packet's header"),
        (read_aedat, whole.replace(struct.pack("<ii", 2, 2), struct.pack("<ii", 2, 3)), "must hold whole packets"),
        (read_npz, b"123", "must hold the arrays t, x, y and p of `numpy.savez`; File is not a zip file"),
        (read_npz, npz(t=np.zeros(1, int)), "must hold the arrays t, x, y and p of `numpy.savez`; 'x"),
        (read_npz, npz(**dict.fromkeys("txyp", np.array([None]))), "Object arrays cannot be loaded"),
        (read_npz, bomb.getvalue(), "must unpack to at most 10000 bytes; got 1000000"),
        (read_bin, bytes(10_001), "10001 bytes, at most 10000 are allowed"),
    ):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises((ValueError, OSError), match=message):
            read(tmp_path / "a")


# ---- folders


WINDOWS, BOUNDS = EventWindows(2, 50), ((100, 300), (300, 420), (500, 999))


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
    """Three gestures in a file, and events between them."""
    (tmp_path / "trials_to_train.txt").write_text("user0_led.aedat\n\n")
    write_aedat(tmp_path / "user0_led.aedat", events(0, 2000, 128, 1000))
    (tmp_path / "user0_led_labels.csv").write_text("class,start,end\n1,100,300\n11,300,420\n8,500,999\n")
    return tmp_path


def levels(recorded, sensor, windows, **bounds) -> Tensor:
    return torch.from_numpy(first_spikes(recorded, sensor, windows, levels=True, **bounds))


def test_n_mnist_is_read_as_published(n_mnist):
    train = load_images(None, n_mnist, events=WINDOWS)
    test = load_images(None, n_mnist, split="test", like=train, events=WINDOWS)
    assert (train.shape, test.shape) == ((3, 4, 34, 34), (2, 4, 34, 34))
    assert (train.labels.tolist(), test.labels.tolist(), train.class_names) == ([0, 0, 1], [0, 1], ["3", "8"])
    assert (train.split, test.split, train.name) == ("Train", "Test", str(n_mnist))
    for seed, image in enumerate(train.images):
        assert image.equal(levels(events(seed), (34, 34), WINDOWS, start=0))
    assert train.fingerprint != load_images(None, n_mnist, events=EventWindows(2, 60)).fingerprint
    assert len(load_images(None, n_mnist, events=WINDOWS, max_samples=2)) == 2


def test_gestures_are_cut_out_of_their_files(gestures):
    recorded = read_aedat(gestures / "user0_led.aedat")
    parts = [(start, stop, recorded[(recorded["t"] >= start) & (recorded["t"] < stop)]) for start, stop in BOUNDS]
    for windows in (EventWindows(2, None, 4), EventWindows(1, 1000, 4)):  # the second are longer than a gesture
        train = load_images(None, gestures, events=windows)
        assert (train.labels.tolist(), train.class_names) == ([0, 10, 7], list(GESTURES))
        for image, (start, stop, part) in zip(train.images, parts, strict=True):
            assert image.equal(levels(part, (128, 128), windows, start=start, stop=stop))


def test_a_file_of_several_trials_is_no_recording(gestures, n_mnist):
    with pytest.raises(
        ValueError, match=r"must be one recording; got user0_led\.aedat, whose trials user0_led_labels\.csv"
    ):
        recording_pixels(gestures / "user0_led.aedat", WINDOWS)
    path = next(n_mnist.rglob("*.bin"))
    (other := path.with_suffix(".BIN")).write_bytes(path.read_bytes())
    assert (recording_pixels(other, WINDOWS) == recording_pixels(path, WINDOWS)).all()


def test_class_folders_of_npz_files_get_a_split_and_need_the_sensor(tmp_path):
    for number in range(10):
        for name in ("left", "right"):
            (tmp_path / name).mkdir(exist_ok=True)
            np.savez_compressed(tmp_path / name / f"{number}.npz", **events(0, side=20))
    windows = EventWindows(1, 50, sensor=(20, 24))
    train = load_images(None, tmp_path, events=windows)
    test = load_images(None, tmp_path, split="test", like=train, events=windows)
    assert (train.shape, test.shape) == ((16, 2, 20, 24), (4, 2, 20, 24))
    assert train.class_names == ["left", "right"]
    assert train.images[0].equal(levels(events(0, side=20), (20, 24), windows))
    with pytest.raises(ValueError, match=r"event_sensor must be height and width of the sensor of .*; got None"):
        load_images(None, tmp_path, events=WINDOWS)


def test_recordings_that_cannot_be_used_are_skipped_and_named(n_mnist, caplog):
    (n_mnist / "Train" / "3" / "00002.bin").write_bytes(b"123456")
    write_bin(n_mnist / "Train" / "8" / "00001.bin", events(2, side=60))
    data = load_images(None, n_mnist, events=WINDOWS, max_bad_images=2)
    assert (data.labels.tolist(), data.skipped) == ([0], [0, 2])
    assert f"{n_mnist}/Train/3/00002.bin cannot be decoded" in caplog.text
    assert "events must be on the sensor of 34 × 34 pixels" in caplog.text
    with pytest.raises(ValueError, match=r"at most 1 images may be undecodable; got 2 up to .*/Train/8/00001\.bin"):
        load_images(None, n_mnist, events=WINDOWS, max_bad_images=1)
    for path in n_mnist.glob("Train/*/0*.bin"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="must hold images; got none that can be decoded"):
        load_images(None, n_mnist, events=WINDOWS)
    assert "(ValueError: no event falls into its windows)" in caplog.text


def test_gestures_that_are_damaged_are_refused(gestures):
    trials, labels = gestures / "trials_to_train.txt", gestures / "user0_led_labels.csv"
    for path, content, message in (
        (labels, "class,start,end\n1,100\n", r"must hold class \(1 to 11\), .*; not enough"),
        (labels, "class,start,end\n12,0,7\n", "in every row; got 12,0,7. Extract it anew"),
        (labels, "class,start,end\n1,7,6\n", "; got 1,7,6"),
        (labels, f"class,start,end\n1,0,{10**20}\n", "; got 1,0,1000"),
        (labels, "classe,début,fin\n", "must hold class .* in every row; 'utf-8' codec can't decode"),
        (trials, "../user0_led.aedat\n", r"must name .aedat files beside it .*; got '\.\./user0_led"),
        (trials, "user7_led.aedat\n", "user7_led.aedat and user7_led_labels.csv must be there"),
        (trials, "usér0_led.aedat\n", "must name .aedat files beside it that have labels; got 'us"),
    ):
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match=message):
            find_recordings(gestures, "train")


def test_missing_or_unfit_recordings_are_refused(n_mnist, monkeypatch):
    train = load_images(None, n_mnist, events=WINDOWS)
    with pytest.raises(ValueError, match=r"events must go with data_dir and without .*; got image_size, streaming"):
        load_images(None, n_mnist, events=WINDOWS, image_size=20, streaming=True)
    with pytest.raises(ValueError, match="Recordings of an event camera need --event-windows"):
        load_images(None, n_mnist)
    shutil.rmtree(n_mnist / "Test" / "3")
    assert load_images(None, n_mnist, split="test", like=train, events=WINDOWS).labels.tolist() == [1]
    shutil.rmtree(n_mnist / "Test")
    for folder, message in (
        (n_mnist / "none", r"must be an existing folder; got .*no such folder"),
        (n_mnist, r"must hold a test split of recordings; got .* Looked for trials_to_test.txt"),  # not divided
    ):
        with pytest.raises(ValueError, match=message):
            find_recordings(folder, "test")
    monkeypatch.setattr(decode, "_MEMORY_FRACTION", 0)
    with pytest.raises(NotEnoughMemoryError, match=r"3 images of the Train split.*Use fewer windows or a larger pool"):
        load_images(None, n_mnist, events=WINDOWS)
