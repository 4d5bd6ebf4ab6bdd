"""Files of events: bytes written by hand, event by event, as the formats' descriptions say."""

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.synthetic_events import write_aedat, write_bin
from ttfs_triton.data import event_files
from ttfs_triton.data.event_files import read_aedat, read_bin, read_npz

HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#Start-Time: 2016-01-01 00:00:00\r\n#!END-HEADER\r\n"
ROWS = [(0, 0, 0, 1), (7, 33, 12, 0), (2**23 - 1, 239, 239, 1)]


def rows_of(events: np.ndarray) -> list[tuple[int, int, int, int]]:
    return [tuple(event) for event in events.tolist()]


def columns_of(rows: list[tuple[int, int, int, int]]) -> dict[str, np.ndarray]:
    return {name: np.array(column) for name, column in zip("txyp", zip(*rows, strict=True), strict=True)}


def packet(*events: tuple[int, int, int, int, int], kind: int = 1, overflow: int = 0, spare: int = 0) -> bytes:
    """Of events (t, x, y, p, valid), with room for more."""
    number, valid = len(events), sum(event[4] for event in events)
    found = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, number + spare, number, valid)
    for t, x, y, p, mark in events:
        found += struct.pack("<Ii", x << 17 | y << 2 | p << 1 | mark, t)
    return found + bytes(8 * spare)


def test_bin_files_hold_forty_bits_an_event(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for t, x, y, p in ROWS))
    assert rows_of(read_bin(path)) == ROWS
    write_bin(tmp_path / "b.bin", columns_of(ROWS))
    assert (tmp_path / "b.bin").read_bytes() == path.read_bytes()
    path.write_bytes(b"")
    assert rows_of(read_bin(path)) == []
    # The counter begins anew at an event of row 240, which is none.
    rows = [(5, 1, 1, 0), (0, 0, 240, 0), (6, 2, 1, 1), (0, 0, 240, 0), (0, 0, 240, 0), (1, 3, 1, 1)]
    path.write_bytes(b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for t, x, y, p in rows))
    assert rows_of(read_bin(path)) == [(5, 1, 1, 0), (6 + 8192, 2, 1, 1), (1 + 3 * 8192, 3, 1, 1)]


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


event = st.tuples(st.integers(0, 2**33), st.integers(0, 127), st.integers(0, 127), st.integers(0, 1))


@given(rows=st.lists(event, min_size=1).map(sorted), size=st.integers(1, 5))
def test_synthetic_aedat_files_hold_what_was_written(tmp_path_factory, rows, size):
    path = tmp_path_factory.mktemp("aedat") / "a.aedat"
    write_aedat(path, columns_of(rows), size)
    assert rows_of(read_aedat(path)) == rows


def test_npz_files_hold_arrays(tmp_path):
    path = tmp_path / "a.npz"
    columns = {"t": np.array([1, 2]), "x": np.array([0, 1], "u2"), "y": np.array([3, 4]), "p": np.array([True, False])}
    np.savez_compressed(path, **columns)
    found = read_npz(path)
    assert sorted(found) == sorted(columns)
    assert all((found[name] == column).all() for name, column in columns.items())


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
    monkeypatch.setattr(event_files, "MAX_BYTES", 10_000)
    (tmp_path / "a").write_bytes(bytes(10_001))
    with pytest.raises(OSError, match="10001 bytes, at most 10000 are allowed"):
        read_bin(tmp_path / "a")
    with pytest.raises(OSError, match="Is a directory"):
        read_aedat(tmp_path)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.npy", bytes(10**6))
    with pytest.raises(ValueError, match=r"b\.npz must unpack to at most 10000 bytes; got 1000000"):
        read_npz(tmp_path / "b.npz")
