"""How far from firing an analog encoder's neurons should be where an image is uniform.

Standardised weights have no mean, so that a uniform patch of an image leaves the encoder's neurons near their initial
potential, which is near 0 in a trained ANN. The next layer of the ANN reads almost nothing there; a spiking one with
σ > 0 also reads whether a neuron fired, σ·w at once, and uniform patches become noise to it. A lower initial potential
keeps those neurons silent, and costs the ANN's least activations.
"""

from collections.abc import Callable

from ttfs_triton.nn import AnalogEncoder, DFTConv2d, DFTLinear
from ttfs_triton.nn.graph import NetworkGraph, Stage

STEP, LARGEST = 0.05, 0.5  # threshold heights
# Enough for one number, and each margin that is tried has the next layer calibrated on them.
MARGIN_IMAGES = 64


def reader_of_encoder(graph: NetworkGraph) -> Stage | None:
    """The first spiking layer that reads an analog encoder's spikes; None if no margin helps or can be given."""
    encoder = graph.encoder
    if not isinstance(encoder.layer, AnalogEncoder) or encoder.weighted.bias is None:
        return None
    for stage in graph.stages:
        if stage.input.source == encoder.name and isinstance(stage.layer, DFTConv2d | DFTLinear):
            return stage if stage.skip is None and stage.layer.neuron.has_slope else None
    return None


def choose_margin(encoder: Stage, reader: Stage, reader_correlation: Callable[[], float | None]) -> float:
    """Lower an analog encoder's initial potentials as long as its reader comes closer to the ANN, in place.

    Args:
        encoder, reader: the encoder, and the first spiking layer behind it, which keeps its initial potentials.
        reader_correlation: calibrates the reader and tells its activations' correlation with the ANN's.
    Returns:
        By how much they were lowered, in threshold heights.
    """
    bias, reader_bias = encoder.weighted.bias, reader.weighted.bias
    assert bias is not None
    assert reader_bias is not None
    first, reader_first = bias.clone(), reader_bias.clone()
    best, margin = reader_correlation(), 0.0
    for step in range(1, round(LARGEST / STEP) + 1):
        reader_bias.copy_(reader_first)
        bias.copy_(first - step * STEP)
        found = reader_correlation()
        if best is None or found is None or found <= best:
            break
        best, margin = found, step * STEP
    bias.copy_(first - margin)
    reader_bias.copy_(reader_first)
    return margin
