"""Layers and their gradients (Eq. 9, 10) in float64, one neuron after the other; nothing of the package."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.oracles import event_driven

# Output index, output channel, and the flat indices of its inputs and of their weights.
Neuron = tuple[tuple[int, ...], int, np.ndarray, np.ndarray]


@dataclass
class Expected:
    """What a layer should return; `margin` is each neuron's distance from the borders of the rule."""

    activations: np.ndarray
    grad_x: np.ndarray
    grad_weight: np.ndarray
    grad_bias: np.ndarray
    grad_skip: np.ndarray
    grad_skip_weight: np.ndarray
    margin: np.ndarray


def linear_neurons(x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Iterator[Neuron]:
    """Neurons of a fully connected layer; x [N, C_in], weight [C_out, C_in]."""
    inputs = np.arange(weight_shape[1])
    for n, k in np.ndindex(x_shape[0], weight_shape[0]):
        yield (n, k), k, n * weight_shape[1] + inputs, k * weight_shape[1] + inputs


def conv2d_neurons(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Iterator[Neuron]:
    """Neurons of a convolution; x [N, C_in, H, W], weight [C_out, C_in / groups, R, S]."""
    size = [
        (x_shape[2 + d] + 2 * padding[d] - dilation[d] * (weight_shape[2 + d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    ]
    c, r, s = np.indices(weight_shape[1:])
    for n, k, p, q in np.ndindex(x_shape[0], weight_shape[0], *size):
        group = k // (weight_shape[0] // groups)
        i = p * stride[0] - padding[0] + r * dilation[0]
        j = q * stride[1] - padding[1] + s * dilation[1]
        inside = (0 <= i) & (i < x_shape[2]) & (0 <= j) & (j < x_shape[3])
        inputs = ((n * x_shape[1] + group * weight_shape[1] + c) * x_shape[2] + i) * x_shape[3] + j
        weights = np.ravel_multi_index((np.full_like(c, k), c, r, s), weight_shape)
        yield (n, k, p, q), k, inputs[inside], weights[inside]


def layer(
    neurons: Iterator[Neuron],
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    grad: np.ndarray,
    *,
    psp_persistence: float = 1.0,
    derivative_clip: float = math.inf,
    skip: np.ndarray | None = None,
    skip_weight: np.ndarray | None = None,
) -> Expected:
    """Activations by the event-driven sweep, gradients by Eq. 9, 10 from each neuron's potential and slope.

    A delayed spike, of `skip` in the shape of the output, is one more input of its neuron.
    """
    result = Expected(
        np.zeros(grad.shape),
        np.zeros(x.shape),
        np.zeros(weight.shape),
        np.zeros(weight.shape[0]),
        np.zeros(grad.shape),
        np.zeros(weight.shape[0]),
        np.full(grad.shape, math.inf),
    )
    all_inputs, all_weights = x.ravel(), weight.ravel()
    grad_x, grad_weight = result.grad_x.ravel(), result.grad_weight.ravel()
    for index, channel, inputs, weights in neurons:
        activations, w = all_inputs[inputs], all_weights[weights]
        if skip is not None and skip_weight is not None:
            activations, w = np.append(activations, skip[index]), np.append(w, skip_weight[channel])
        initial = 0.0 if bias is None else float(bias[channel])
        times = np.where(activations > 0, 1 - activations, math.inf)
        time = event_driven(times, w, initial, psp_persistence=psp_persistence)
        a = 0.0 if math.isinf(time) else 2 - time
        result.activations[index] = a

        spikes = (activations > 0).astype(np.float64)
        potential, slope = initial + w @ activations, psp_persistence * (w @ spikes)
        result.margin[index] = min(abs(potential - 1), abs(potential + slope), abs(1 + slope))
        if not (potential < 1 and potential + slope > 0):
            continue
        gain = 1 / (1 + slope)
        by_potential = grad[index] * min(gain, derivative_clip)
        by_slope = grad[index] * min((1 - a) * gain, derivative_clip)
        mask = spikes if psp_persistence > 0 else 1.0
        by_input = mask * w * by_potential
        by_weight = activations * by_potential + psp_persistence * spikes * by_slope
        np.add.at(grad_x, inputs, by_input[: len(inputs)])
        np.add.at(grad_weight, weights, by_weight[: len(inputs)])
        if skip is not None:
            result.grad_skip[index] = by_input[-1]
            result.grad_skip_weight[channel] += by_weight[-1]
        result.grad_bias[channel] += by_potential
    return result
