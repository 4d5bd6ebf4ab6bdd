"""The oracles are derived in different ways; they must agree with each other before they judge anything else."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.oracle import conv2d_neurons, layer
from tests.oracles import clock_driven, event_driven, linear_layer

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


def test_neurons_of_layers_are_those_of_a_product():
    rng = np.random.default_rng(0)
    x, weight = np.maximum(rng.uniform(-0.5, 1, (3, 4)), 0), rng.normal(size=(5, 4))
    maps = {"x": x[:, :, None, None], "weight": weight[:, :, None, None]}
    convolution = conv2d_neurons((3, 4, 1, 1), (5, 4, 1, 1), (1, 1), (0, 0), (1, 1), 1)
    activations = layer(convolution, maps, np.zeros((3, 5, 1, 1))).activations[:, :, 0, 0]
    np.testing.assert_allclose(activations, linear_layer(x, weight), rtol=0, atol=1e-12)
