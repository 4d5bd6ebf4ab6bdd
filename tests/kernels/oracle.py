"""Layers and their gradients (Eq. 9, 10) in float64, neuron by neuron, without any code of the package."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.oracles import event_driven

# Output index, output channel, and the flat indices of its inputs and of their weights.
Neuron = tuple[tuple[int, ...], int, np.ndarray, np.ndarray]


@dataclass
class Expected:
    """A layer's expected results; `margin` is each neuron's distance from the borders of the rule."""

    activations: np.ndarray
    gradients: dict[str, np.ndarray]  # of each operand, by its name
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
    operands: dict[str, np.ndarray],
    grad: np.ndarray,
    *,
    psp_persistence: float = 1.0,
    derivative_clip: float = math.inf,
    surrogate_width: float = 0.0,
    split_gradient: float = 1.0,
) -> Expected:
    """Activations by the event-driven sweep, gradients by Eq. 9, 10 from each neuron's potential and slope.

    Operands are x and weight, and if there are any bias, skip and skip_weight: a delayed spike, of `skip` in the shape
    of the output, is one more input of its neuron. With a surrogate width δ, silent neurons within δ of a spike have a
    derivative, and inputs below δ a part of the gradient of their mask.
    """
    result = Expected(
        np.zeros(grad.shape), {name: np.zeros(a.shape) for name, a in operands.items()}, np.full(grad.shape, math.inf)
    )
    gradients, delayed = result.gradients, "skip" in operands
    all_inputs, all_weights = operands["x"].ravel(), operands["weight"].ravel()
    for index, channel, inputs, weights in neurons:
        activations, w = all_inputs[inputs], all_weights[weights]
        if delayed:
            activations = np.append(activations, operands["skip"][index])
            w = np.append(w, operands["skip_weight"][channel])
        initial = float(operands["bias"][channel]) if "bias" in operands else 0.0
        times = np.where(activations > 0, 1 - activations, math.inf)
        time = event_driven(times, w, initial, psp_persistence=psp_persistence)
        a = 0.0 if math.isinf(time) else 2 - time
        result.activations[index] = a

        spikes = (activations > 0).astype(np.float64)
        potential, slope = initial + w @ activations, psp_persistence * (w @ spikes)
        end = potential + slope
        result.margin[index] = min(abs(potential - 1), abs(end), abs(1 + slope))
        if potential >= 1 or (end <= 0 and end <= -surrogate_width):
            continue
        gain = 1 / (1 + slope) if slope > -1 else math.inf
        if end > 0:
            by_potential, by_slope = gain, (1 - split_gradient * a) * gain
        else:
            by_potential = by_slope = (1 + end / surrogate_width) * min(gain, 2)
        by_potential, by_slope = (grad[index] * min(share, derivative_clip) for share in (by_potential, by_slope))
        by_input = (spikes if psp_persistence > 0 else 1.0) * w * by_potential
        if surrogate_width > 0:
            by_input += psp_persistence * w * by_slope * np.maximum(1 - activations / surrogate_width, 0)
        by_weight = activations * by_potential + psp_persistence * spikes * by_slope
        np.add.at(gradients["x"].reshape(-1), inputs, by_input[: len(inputs)])
        np.add.at(gradients["weight"].reshape(-1), weights, by_weight[: len(inputs)])
        if delayed:
            gradients["skip"][index] = by_input[-1]
            gradients["skip_weight"][channel] += by_weight[-1]
        if "bias" in operands:
            gradients["bias"][channel] += by_potential
    return result
