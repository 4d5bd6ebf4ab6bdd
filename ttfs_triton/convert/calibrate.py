"""Calibrate a spiking network against the ANN that its weights come from: initial potentials, layer by layer.

With psp_persistence σ > 0 a copied neuron fires by (A + σW)/(1 + σW) where the ANN has A. The slope W, the sum of the
weights of all active inputs, is far from 0 in a trained ANN: neurons that the ANN has silent rise into the threshold,
or active ones never meet it, and every layer adds to it. Another initial potential makes up for the mean of that. It is
one number a channel, found on a few hundred images, and leaves the weights, standardised or not, as they are. An analog
encoder gets a margin, see `encoder_margin`.

`bench/conversion.py` compares it with a gain a channel, centred weights, and fitting all weights of a layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ttfs_triton.convert.calibrate_network import calibrate_layers
from ttfs_triton.convert.calibration import Calibration, moments, pearson
from ttfs_triton.convert.clean import ConversionError
from ttfs_triton.convert.conversion import Converted
from ttfs_triton.convert.fit_range import fit_range
from ttfs_triton.convert.fold import FoldedANN
from ttfs_triton.nn import TTFSNetwork
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.trace import network_graph


def calibrate_converted(
    converted: Converted,
    images: Tensor,
    *,
    percentile: float = 99.9,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[Converted, Calibration]:
    """`fit_range`, then `calibrate`, on the images' device: all that brings a converted network to its source.

    Args:
        converted: as `convert` gave, on the CPU; its network is changed in place.
        images: see `calibrate`, on the device to compute on.
        percentile: see `fit_range`.
        progress: see `calibrate`.
    Returns:
        The networks, on the CPU again, and what calibration did.
    Raises:
        ConversionError: as `fit_range` and `calibrate`.
    """
    converted.network.to(images.device)
    converted.ann.to(images.device)
    converted = fit_range(converted, images, percentile=percentile)
    calibration = calibrate(converted.network, converted.ann, images, progress=progress)
    converted.network.cpu()
    converted.ann.cpu()
    return converted, calibration


@torch.no_grad()
def calibrate(
    network: TTFSNetwork,
    ann: FoldedANN,
    images: Tensor,
    *,
    batch_size: int = 64,
    samples: int = 8192,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
) -> Calibration:
    """Choose initial potentials that bring each layer's activations closest to the ANN's (least squares), in place.

    Layers follow one another: each sees what those before it, calibrated, make of the images. The readout is left
    alone; an analog encoder's initial potentials are lowered as long as the layer behind comes closer to the ANN. Both
    networks' activations of a layer and of the next are held in memory.

    Args:
        network: spiking network with the weights of `ann`, in any mode; its initial potentials are changed in place.
        ann: reference, with activations clamped to [0, 1].
        images: [N, in_channels, height, width], as the networks read them; 256 are enough.
        batch_size: images that run at once.
        samples: outputs of a channel that decide, drawn among all positions of all images.
        seed: of that draw.
        progress: told each layer's name before it is calibrated.
    Returns:
        What it did to each hidden layer.
    Raises:
        ConversionError: activations of the ANN are not clamped; the network is not of spiking neurons with initial
            potentials, or has other layers than the ANN; there are no images.
    """
    _check(network, ann, images)
    return calibrate_layers(
        network,
        network_graph(network),
        images,
        ann.activate,
        batch_size=batch_size,
        samples=samples,
        seed=seed,
        progress=progress,
    )


def _check(network: TTFSNetwork, ann: FoldedANN, images: Tensor) -> None:
    if network.config.analog or not network.config.bias:
        found = "an ANN" if network.config.analog else "bias=False"
        raise ConversionError(
            f"calibrate: network must be of spiking neurons with initial potentials; got {found}. "
            "Convert with bias=True."
        )
    if ann.bound != 1:
        raise ConversionError(
            f"calibrate: ann must have activations clamped to [0, 1]; got an upper bound of {ann.bound}. "
            "Use fit_range first."
        )
    if network.config.specification != ann.config.specification:
        raise ConversionError(
            f"calibrate: ann must have the layers of the network, {network.config.specification}; got "
            f"{ann.config.specification}."
        )
    if len(images) == 0:
        raise ConversionError("calibrate: images must hold at least one image; got none.")


@torch.no_grad()
def layer_correlations(
    network: TTFSNetwork, ann: FoldedANN, images: Tensor, batch_size: int = 64
) -> dict[str, float | None]:
    """Correlation of each hidden layer's activations with the ANN's, over all neurons and images, before pooling.

    Args:
        network: in the mode, training or evaluation, that is meant.
        ann: with the same layers.
        images: [N, in_channels, height, width], as the networks read them.
        batch_size: images that run at once.
    Returns:
        Pearson's coefficient by name of the layer, in [−1, 1]; None where either side is constant.
    """
    graph = network_graph(network)
    sums: dict[str, Tensor] = {}

    def fire(stage: Stage, inputs: Tensor, skip: Tensor | None) -> Tensor:
        """Both networks' activations, those of the spiking one first."""
        (ours, theirs), (our_skip, their_skip) = inputs.chunk(2), (None, None) if skip is None else skip.chunk(2)
        spiking, analog = stage.activations(ours, our_skip), ann.activate(stage, theirs, their_skip)
        if stage.kind not in ("latency", "readout"):
            found = moments(spiking, analog)
            sums[stage.name] = sums.get(stage.name, torch.zeros_like(found)) + found
        return torch.cat([spiking, analog])

    for batch in images.split(batch_size):
        graph.run(torch.cat([batch, batch]), fire)
    return {name: pearson(*found.tolist()) for name, found in sums.items()}
