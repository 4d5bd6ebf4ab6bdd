"""Steps, channels and weights of the clock; what goes into a graph, and what comes out."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ttfs_triton.export import decide, input_frames
from ttfs_triton.export.nir_clock import Clock, sampling
from ttfs_triton.nn import LatencyEncoder


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    pools=st.integers(0, 2),
)
def test_sampling_reaches_maps_behind_convolutions_and_pools(size, kernel, stride, pools):
    wanted = tuple(((length - kernel) // stride + 1) // 2**pools for length in size)
    assume(min(wanted) >= 1)
    try:
        side, stride, tap = sampling(size, wanted)
    except NotImplementedError:
        assert size[0] != size[1], "square maps are always reached"
        return
    taps = torch.zeros(1, 1, side, side)
    taps[0, 0, *tap] = 1
    maps = torch.nn.functional.conv2d(torch.ones(1, 1, *size), taps, stride=stride, padding=tap)
    assert torch.equal(maps, torch.ones(1, 1, *wanted))


CLOCK = Clock(4, 2, (2, 9, 8), False)


def test_earliest_spike_decides():
    output = torch.zeros(CLOCK.total_steps, 3, 3)
    output[9, 0, 2] = output[10, 0, 0] = 1  # class 2 first
    output[8, 1, 1] = output[8, 1, 2] = 1  # a tie
    decision = decide(output, CLOCK)
    assert decision.prediction.tolist() == [2, 1, -1]
    assert (decision.tie.tolist(), decision.no_spike.tolist()) == ([False, True, False], [False, False, True])
    assert decision.spike_times[0].tolist() == [0.5, torch.inf, 0.25]
    assert decision.spike_times[2].isinf().all()


def test_other_graphs_images_of_another_shape_and_incomplete_runs_are_refused():
    with pytest.raises(ValueError, match='metadata must hold "clock"'):
        Clock.from_metadata({"network": "{}"})
    with pytest.raises(ValueError, match=r"images must have shape \[N, 2, 9, 8\]; got \(1, 1, 9, 8\)"):
        next(input_frames(torch.zeros(1, 1, 9, 8), LatencyEncoder(), CLOCK))
    with pytest.raises(ValueError, match="all 12 steps of a run must have passed; got 11"):
        decide(torch.zeros(11, 1, 3), CLOCK)
