"""How far from firing an analog encoder's neurons should be where an image is even.

Standardised weights have no mean, so that an even patch of an image leaves a neuron near its initial potential. In a
trained ANN that is near 0, and it does not matter whether such activations are a little above: the next layer reads
almost nothing. A spiking layer with σ > 0 also reads whether a neuron fired, σ·w at once, and even patches become noise
to it. A lower initial potential keeps those neurons silent, and costs the ANN's least activations.
"""

from collections.abc import Callable

from ttfs_triton.nn import AnalogEncoder, DFTConv2d, DFTLinear
from ttfs_triton.nn.graph import NetworkGraph, Stage

STEP, MOST = 0.05, 0.5  # threshold heights
# Enough for one number, and each margin that is tried has the reader calibrated on them.
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


def choose_margin(encoder: Stage, reader: Stage, correlation: Callable[[], float | None]) -> float:
    """Lower the encoder's initial potentials as long as its reader comes closer to the ANN, in place.

    Args:
        encoder, reader: see `reader_of_encoder`; the reader keeps its initial potentials.
        correlation: calibrates the reader and tells its activations' correlation with the ANN's.
    Returns:
        By how much they were lowered, in threshold heights.
    """
    bias, readers = encoder.weighted.bias, reader.weighted.bias
    assert bias is not None
    assert readers is not None
    first, its_first = bias.clone(), readers.clone()
    best, margin = correlation(), 0.0
    for step in range(1, round(MOST / STEP) + 1):
        readers.copy_(its_first)
        bias.copy_(first - step * STEP)
        found = correlation()
        if best is None or found is None or found <= best:
            break
        best, margin = found, step * STEP
    bias.copy_(first - margin)
    readers.copy_(its_first)
    return margin
