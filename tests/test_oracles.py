"""The oracles are derived in different ways; they must agree with each other before they judge anything else."""

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import clock_driven, event_driven

neurons = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0, 1) | st.just(math.inf), min_size=n, max_size=n),
        st.lists(st.floats(-2, 2), min_size=n, max_size=n),
        st.floats(-1, 1),
    )
)


@given(neuron=neurons, psp_persistence=st.sampled_from([0.0, 0.25, 1.0]), layer=st.integers(0, 3))
def test_clock_driven_is_at_most_a_tick_later(neuron, psp_persistence, layer):
    times, weights, initial = neuron
    times = [t + layer for t in times]
    options = {"start": layer + 1.0, "psp_persistence": psp_persistence}
    exact = event_driven(times, weights, initial, **options)
    ticked = clock_driven(times, weights, initial, dt=0.01, **options)
    end = layer + 2.0  # silence is a spike at the window's end
    assert -1e-9 <= min(ticked, end) - min(exact, end) <= 0.01 + 1e-9
