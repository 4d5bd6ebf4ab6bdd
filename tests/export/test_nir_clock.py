"""Steps, channels and weights of the clock."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ttfs_triton.export.nir_clock import Axis, Clock, clock_weights, sampling, square

CLOCK = Clock(steps=5, windows=3, readout_steps=5, image_shape=(2, 4, 6), analog=False)


def test_every_channel_spikes_once_when_it_should():
    spikes = [(channel, step) for step in range(CLOCK.total_steps) for channel in CLOCK.channels_at(step)]
    expected = [(CLOCK.border(k), 5 * k) for k in range(4)] + [(CLOCK.after(k), 5 * k + 1) for k in range(1, 4)]
    assert sorted(spikes) == sorted(expected)
    assert sorted(channel for channel, _ in spikes) == list(range(2, CLOCK.channels))
    assert CLOCK.total_steps == 20


def test_metadata_bring_it_back():
    assert Clock.from_metadata(CLOCK.to_metadata()) == CLOCK
    with pytest.raises(ValueError, match='metadata must hold "clock"'):
        Clock.from_metadata({"network": "{}"})


@pytest.mark.parametrize("ramp", [1.0, 20.0])
def test_weights_build_potentials_up_ramp_and_gate(ramp):
    bias, gate = np.array([0.5, -0.25], np.float32), 8.0
    weights = clock_weights(CLOCK, 1, bias, ramp, gate, stop=ramp + 2)
    slope, potential, found = np.zeros(2), np.zeros(2), []
    for step in range(CLOCK.total_steps):
        slope = slope + weights[:, CLOCK.channels_at(step)].sum(1)
        potential = potential + slope
        found.append(potential / CLOCK.steps)
    found = np.stack(found)
    np.testing.assert_allclose(found[4], bias, atol=1e-6)  # complete in the last step before the window
    middle = (np.arange(5) + 0.5) / 5
    np.testing.assert_allclose(found[5:10], bias + gate + ramp * middle[:, None], atol=1e-5)
    np.testing.assert_allclose(np.diff(found[9:], axis=0), -2 / 5, atol=1e-5)


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    pools=st.integers(0, 2),
)
def test_sampling_reaches_maps_behind_convolutions_and_pools(size, kernel, stride, pools):
    wanted = tuple((length - kernel) // stride + 1 for length in size)
    for _ in range(pools):
        wanted = tuple(length // 2 for length in wanted)
    assume(min(wanted) >= 1)
    try:
        side, *axes = sampling(size, wanted)
    except NotImplementedError:
        assume(size[0] != size[1])  # square maps are always reached
        return
    taps = torch.zeros(1, 1, side, side)
    taps[0, 0, axes[0].padding, axes[1].padding] = 1
    stride, padding, _ = zip(*axes, strict=True)
    maps = torch.nn.functional.conv2d(torch.ones(1, 1, *size), taps, stride=stride, padding=padding)
    assert torch.equal(maps, torch.ones(1, 1, *wanted))


@given(
    size=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    axes=st.tuples(*[st.builds(Axis, st.integers(1, 3), st.integers(0, 2))] * 2),
)
def test_square_kernels_compute_the_same(size, kernel, axes):
    found = square(kernel, size, axes)
    assume(found is not None)
    side, (above, before) = found
    taps, maps = torch.rand(1, 1, *kernel), torch.rand(1, 1, *size)
    padded = torch.zeros(1, 1, side, side)
    padded[:, :, above : above + kernel[0], before : before + kernel[1]] = taps
    stride, padding, _ = zip(*axes, strict=True)
    expected = torch.nn.functional.conv2d(maps, taps, stride=stride, padding=padding)
    wider = (padding[0] + above, padding[1] + before)
    torch.testing.assert_close(torch.nn.functional.conv2d(maps, padded, stride=stride, padding=wider), expected)
    assert found[0] == max(kernel) or (kernel[0] - kernel[1]) % 2
