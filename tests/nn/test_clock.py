import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from ttfs_triton.nn.grid import Clock, Ramp

COMPARE_AT = st.sampled_from(["middle", "start"])


def test_instants_and_stamps():
    assert Clock(3, "start").instants() == [0, 2, 4]
    assert Clock(3, "middle").instants() == [0, 1, 3, 5]
    assert Clock(3, "start").instants(1.5) == [0, 2, 4, 6, 8]
    assert Clock(3, "middle").instants(1.5) == [0, 1, 3, 5, 7]
    assert Clock(4, "middle").instants(0.3) == [0, 1]  # 2.4 half steps
    assert Clock(3, "start").step_of(torch.arange(4)).tolist() == [0, 1, 2, 3]
    assert Clock(3, "middle").step_of(torch.arange(5)).tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("compare_at", "activations", "remaining"),
    [
        ("middle", [1.0, 0.9, 0.88, 0.87, 0.5, 0.13, 0.12, 0.01, 0.0], [4, 4, 4, 3, 2, 1, 0, 0, 0]),
        ("start", [1.0, 0.99, 0.75, 0.74, 0.5, 0.25, 0.24, 0.01, 0.0], [4, 3, 3, 2, 2, 1, 0, 0, 0]),
    ],
)
def test_encode_rounds_to_nearest_or_late(compare_at, activations, remaining):
    clock = Clock(4, compare_at)
    assert clock.remaining(clock.encode(torch.tensor(activations, dtype=torch.float64))).tolist() == remaining


@settings(max_examples=50)
@given(COMPARE_AT, st.integers(1, 300), st.integers(0, 10**6))
def test_encode_error_is_at_most_a_step(compare_at, steps, seed):
    clock = Clock(steps, compare_at)
    activations = torch.rand(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    error = activations - clock.remaining(clock.encode(activations)) / steps
    if compare_at == "start":  # late, or lost in the window's last step
        assert ((error > -1e-12) & (error < 1 / steps)).all()
    else:
        assert (error.abs() <= 0.5 / steps + 1e-12).all()


@settings(max_examples=100)
@given(
    COMPARE_AT,
    st.integers(1, 40),
    st.sampled_from([0.3, 0.5, 1.0, 2.0]),
    st.sampled_from([0.5, 1.0, 20.0]),
    st.integers(1, 2**18),
    st.integers(0, 10**6),
)
def test_first_instant_is_the_first_true_comparison(compare_at, steps, window, threshold, reach, seed):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(3, generator=generator, dtype=torch.float64) + 0.01
    ramp = Ramp(Clock(steps, compare_at), unit, threshold, window)
    potential = torch.randint(-reach << 17, reach << 17, (50, 3), generator=generator)
    drift = torch.randint(-reach << 15, reach << 15, (50, 3), generator=generator)
    found = ramp.first_instant(potential, drift)
    for n, c in torch.cartesian_prod(torch.arange(50), torch.arange(3)).tolist():
        index, values = int(found[n, c]), [int(v) for v in (potential[n, c], drift[n, c])]
        values += [int(ramp.height[c]), int(ramp.decrement[c])]
        true = [i for i, h in enumerate(ramp.instants) if values[0] + values[1] * h >= values[2] - values[3] * h]
        assert index == (true[0] if true else ramp.never)
        if true:
            assert true == list(range(true[0], true[-1] + 1))  # what is true once stays true...
            assert true[-1] == len(ramp.instants) - 1 or values[1] + values[3] < 0  # ...or the lines part again


def test_first_instant_at_equality_fires():
    ramp = Ramp(Clock(4, "start"), torch.ones(1, dtype=torch.float64))
    # The ramp at step 2 is half its height.
    half = int(ramp.height) // 2
    potential = torch.tensor([[half], [half - 1], [int(ramp.height)], [int(ramp.height) - 1]])
    assert ramp.first_instant(potential, torch.zeros_like(potential)).flatten().tolist() == [2, 3, 0, 1]


def test_ramp_falls_to_zero_and_is_as_high_as_the_threshold():
    unit = torch.tensor([0.01, 1 / 7], dtype=torch.float64)
    ramp = Ramp(Clock(8), unit, threshold=20.0, window=2.0)
    heights = [Fraction(int(height)) * Fraction(float(u)) for height, u in zip(ramp.height, unit, strict=True)]
    for height in heights:  # unit of the potential: unit / (8 steps · 2^17)
        assert math.isclose(height / (8 * 2**17), 20, rel_tol=1e-6)
    assert torch.equal(ramp.height - ramp.decrement * 32, torch.zeros(2, dtype=torch.int64))
