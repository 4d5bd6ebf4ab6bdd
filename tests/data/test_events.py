"""From events to spikes: against the definition, event by event, in fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttfs_triton.data.events import EventWindows, first_spikes

SENSOR = (5, 7)


def recording(*rows: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """Events (t, x, y, p)."""
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return dict(zip("txyp", columns, strict=True))


@st.composite
def recordings(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    event = st.tuples(st.integers(-40, 400), st.integers(0, 6), st.integers(0, 4), st.integers(0, 1))
    return sorted(draw(st.lists(event, max_size=60)))


@given(
    rows=recordings(),
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
    found = first_spikes(events, SENSOR, windows, start=start, stop=stop)
    assert found.shape == shape == windows.shape(SENSOR)
    assert found.dtype == np.float32
    assert (found == expected.astype(np.float64).astype(np.float32)).all()
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


@pytest.mark.parametrize(
    ("events", "error", "message"),
    [
        (recording((5, 0, 0, 0), (4, 0, 0, 0)), ValueError, "t must not fall; got 4 after 5 µs, event 1"),
        (recording((5, 7, 0, 0)), ValueError, r"on the sensor of 7 × 5 pixels; got x = 7, y = 0 \(1 such"),
        (recording((5, 0, 0, -1)), ValueError, "p must be 0 .* or 1 .*; got values from -1 to -1. For -1 and 1"),
        (recording((5, 0, 0, 0)) | {"t": np.array([0.5])}, TypeError, "t must be whole numbers; got float64. For sec"),
        (recording((5, 0, 0, 0)) | {"x": np.array([1, 2])}, ValueError, "must be .n., one of each for an event; got"),
    ],
)
def test_impossible_events_are_refused(events, error, message):
    with pytest.raises(error, match=f"first_spikes: .*{message}"):
        first_spikes(events, SENSOR, EventWindows())
    with pytest.raises(ValueError, match=r"first_spikes: stop must not be before start \(5\); got 4"):
        first_spikes(recording((5, 0, 0, 0)), SENSOR, EventWindows(), stop=4)


@pytest.mark.parametrize("values", [{"count": 0}, {"length_us": 0.5}, {"pool": True}, {"sensor": (34, 0)}], ids=str)
def test_impossible_windows_are_refused(values):
    with pytest.raises(ValueError, match=rf"{next(iter(values))}\S*\n +Input should be"):
        EventWindows(**values)
