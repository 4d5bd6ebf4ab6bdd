"""The firing rule: at its borders in exact arithmetic, and for sums that overflowed."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from ttfs_kernels import Neuron
from ttfs_kernels.rule import fire, firing, run


def exact(A: float, W: float) -> tuple[Fraction, Fraction]:
    """Activation and gain of Eq. 7, decided by comparisons alone."""
    A, W = Fraction(A), Fraction(W)
    if A >= 1:
        return Fraction(1), Fraction(0)
    if A + W > 0:
        return (A + W) / (1 + W), 1 / (1 + W)
    return Fraction(0), Fraction(0)


def neighbours(value: float, dtype: type, count: int = 3) -> list[float]:
    """The number nearest to `value` and the `count` next ones on either side."""
    found = [dtype(value)]
    for _ in range(count):
        found = [np.nextafter(found[0], dtype(-math.inf)), *found, np.nextafter(found[-1], dtype(math.inf))]
    return [float(v) for v in found]


def border_pairs(dtype: type) -> list[tuple[float, float]]:
    """A and W on and near A = 1, A + W = 0 and 1 + W = 0, each met exactly and missed by units in the last place."""
    potentials = [v for centre in (1.0, 0.75, 0.3, 1e-3, 0.0, -0.4, -2.0) for v in neighbours(centre, dtype)]
    others = [*neighbours(-1.0, dtype), *neighbours(0.0, dtype, 1), -1.5, 2.0]
    return [(A, W) for A in potentials for W in (*neighbours(-A, dtype), *others)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fire_is_exact_at_its_borders(dtype):
    """Cases are decided right, values are right to rounding."""
    pairs = border_pairs(dtype)
    A, W = torch.from_numpy(np.array(pairs, dtype)).unbind(1)
    activations, gains = fire(A, W)
    eps = float(np.finfo(dtype).eps)
    for (a_, w_), activation, gain in zip(pairs, activations.tolist(), gains.tolist(), strict=True):
        expected, expected_gain = exact(a_, w_)
        assert (activation == 1) or a_ < 1, (a_, w_)
        assert (activation == 0 and gain == 0) or expected > 0, (a_, w_)
        assert abs(Fraction(activation) - expected) <= 2 * eps, (a_, w_)
        # A neuron within rounding of a border may count as beyond it; then it has no gradient.
        if eps < expected < 1 - eps:
            assert abs(Fraction(gain) - expected_gain) <= 2 * eps * expected_gain, (a_, w_)
        else:
            assert gain == 0 or abs(Fraction(gain) - expected_gain) <= 2 * eps * expected_gain, (a_, w_)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("surrogate_width", [0.0, 0.5])
@pytest.mark.parametrize("derivative_clip", [11.0, math.inf])
def test_nan_is_never_hidden_and_infinite_potentials_fire(dtype, surrogate_width, derivative_clip):
    """Infinite potentials come from 16-bit sums that overflowed. A ≥ 1 is decided before anything is divided."""
    large = (math.inf, 1e38, 2.0)
    values = (*large, *(-v for v in large), 0.5, 0.0)
    saturated = list(itertools.product(large, values))
    unknown = [pair for v in (*values, math.nan) for pair in ((math.nan, v), (v, math.nan))] + [(-math.inf, math.inf)]
    A, W = torch.tensor([*saturated, *unknown]).to(dtype).t()
    neuron = Neuron(1.0, derivative_clip, surrogate_width)
    activations, derivatives = run((firing, neuron, True), torch.stack([A, W])[:, None, None], *4 * [None])
    results = *fire(A, W), activations[0, 0], *derivatives[:, 0, 0]
    for result, at_once in zip(results, (1, 0, 1, 0, 0), strict=True):
        assert (result[: len(saturated)] == at_once).all()
        assert result[len(saturated) :].isnan().all()
