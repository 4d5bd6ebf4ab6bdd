"""Calibrate a spiking network against the ANN that its weights come from: initial potentials, layer by layer.

With psp_persistence σ > 0 a copied neuron fires by (A + σW)/(1 + σW) where the ANN has A. The slope W, the sum of the
weights of all active inputs, is far from 0 in a trained ANN: neurons that the ANN has silent rise into the threshold,
or active ones never meet it, and every layer adds to it. Another initial potential makes up for the mean of that. It is
one number a channel, found on a few hundred images, and leaves the weights, standardised or not, as they are.

`bench/conversion.py` compares it with a gain a channel, centred weights, and fitting all weights of a layer.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from ttfs_kernels.rule import fire
from ttfs_triton.convert.clean import ConversionError
from ttfs_triton.convert.conversion import Converted
from ttfs_triton.convert.fit_range import fit_range, rows_of
from ttfs_triton.convert.fold import FoldedANN
from ttfs_triton.nn import DFTConv2d, DFTLinear, LatencyEncoder, SignedEncoder, TTFSNetwork
from ttfs_triton.nn.weighted import WeightedLayer

# Grids of 17 initial potentials, each eight times finer than the one before. The first reaches two threshold heights
# up and down, the last resolves 1/256 of one.
REACH, POINTS, GRIDS = 2.0, 17, 3


@dataclass(frozen=True)
class LayerCalibration:
    """What calibration did to a layer.

    Attributes:
        name: of the layer.
        before, after: correlation of its activations with the ANN's, in [−1, 1]; None where either is constant.
        shift: mean change of the initial potential over channels, in threshold heights; 0 for a layer left alone.
    """

    name: str
    before: float | None
    after: float | None
    shift: float


@dataclass(frozen=True)
class Calibration:
    """What calibration did to a network.

    Attributes:
        layers: hidden layers in their order.
        images: how many decided.
    """

    layers: tuple[LayerCalibration, ...]
    images: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"images": self.images, "layers": [asdict(layer) for layer in self.layers]}

    def table(self) -> Table:
        """For a terminal."""
        table = Table("layer", title=f"Calibrated on {self.images} images", title_justify="left")
        for heading in ("correlation\nwith the ANN", "\ncalibrated", "mean change of\ninitial potential"):
            table.add_column(heading, justify="right")
        for layer in self.layers:
            table.add_row(layer.name, _text(layer.before), _text(layer.after), f"{layer.shift:+.3f}")
        return table


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

    Layers follow one another: each sees what those before it, calibrated, make of the images. Analog layers and the
    readout are left alone. Both networks' activations of a layer and of the next are held in memory.

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
    training = network.training
    network.eval()
    before = layer_correlations(network, ann, images, batch_size)
    generator, shifts = torch.Generator().manual_seed(seed), {}
    spiking = list(images.split(batch_size))
    analog = [ann.encode(batch) for batch in spiking]
    for name, layer in network.features.named_children():
        if not isinstance(layer, LatencyEncoder):  # done by `encode`
            analog = [ann.run_layer(name, batch) for batch in analog]
        if isinstance(layer, DFTConv2d | DFTLinear):
            progress(name)
            shifts[name] = _choose_initial_potentials(layer, spiking, analog, samples, generator)
        spiking = [layer(batch) for batch in spiking]
    after = layer_correlations(network, ann, images, batch_size)
    network.train(training)
    layers = tuple(LayerCalibration(name, before[name], after[name], shifts.get(name, 0.0)) for name in before)
    return Calibration(layers, len(images))


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


def _choose_initial_potentials(
    layer: DFTConv2d | DFTLinear, inputs: list[Tensor], targets: list[Tensor], samples: int, generator: torch.Generator
) -> float:
    """Search every channel's at once; returns the mean change."""
    assert layer.bias is not None
    share = min(1.0, samples / sum(rows_of(target).shape[0] for target in targets))
    chosen = [_sample(layer, x, target, share, generator) for x, target in zip(inputs, targets, strict=True)]
    return search_initial_potentials(layer.bias, *(torch.cat(parts) for parts in zip(*chosen, strict=True)))


def search_initial_potentials(bias: Tensor, potential: Tensor, slope: Tensor, wanted: Tensor) -> float:
    """Give each channel the initial potential of least squared error, in place; returns the mean change.

    Args:
        bias: [C], to start from.
        potential, slope: [rows, C], A without an initial potential, and σW.
        wanted: [rows, C], activations of the ANN.
    """
    first = bias.float().clone()
    best, reach = first, REACH
    error = _squared_error(potential, slope, wanted, best)
    for _ in range(GRIDS):
        centre = best
        for step in torch.linspace(-reach, reach, POINTS).tolist():
            candidate = centre + step
            its_error = _squared_error(potential, slope, wanted, candidate)
            best, error = torch.where(its_error < error, candidate, best), torch.minimum(error, its_error)
        reach *= 2 / (POINTS - 1)
    bias.copy_(best)
    return (best - first).mean().item()


def _sample(
    layer: DFTConv2d | DFTLinear, x: Tensor, target: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A without initial potential, σW and the ANN's activation, each [rows, channels], at some positions of a batch."""
    contract = contraction(layer)
    x = layer.normalise(x) if isinstance(layer, SignedEncoder) else x
    rows = rows_of(target)
    kept = torch.randperm(len(rows), generator=generator)[: max(1, round(share * len(rows)))].to(x.device)
    potential, slope = contract(x), layer.neuron.psp_persistence * contract((x > 0).to(x.dtype))
    return rows_of(potential)[kept].float(), rows_of(slope)[kept].float(), rows[kept].float()


def contraction(layer: DFTConv2d | DFTLinear) -> Callable[[Tensor], Tensor]:
    """Σ w·x over the synapses of a layer, without initial potentials."""
    weight = layer.effective_weight()
    if isinstance(layer, DFTLinear):
        return lambda x: F.linear(x, weight)
    return lambda x: F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _squared_error(potential: Tensor, slope: Tensor, wanted: Tensor, initial: Tensor) -> Tensor:
    """Mean squared difference [C] of the activations, for an initial potential [C]."""
    activations, _ = fire(potential + initial, slope)
    return (activations - wanted).square().mean(0)


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
    moments: dict[str, Tensor] = {}
    for batch in images.split(batch_size):
        for name, spiking, analog in _side_by_side(network, ann, batch):
            sums = _moments(spiking, analog)
            moments[name] = moments.get(name, torch.zeros_like(sums)) + sums
    return {name: _pearson(*sums.tolist()) for name, sums in moments.items()}


def _side_by_side(network: TTFSNetwork, ann: FoldedANN, images: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, spiking, analog) activations of each hidden layer with weights."""
    spiking, analog = images, ann.encode(images)
    for name, layer in network.features.named_children():
        spiking = layer(spiking)
        if isinstance(layer, LatencyEncoder):
            continue  # done by `encode`
        analog = ann.run_layer(name, analog)
        if isinstance(layer, WeightedLayer):
            yield name, spiking, analog


def correlation(spiking: Tensor, analog: Tensor) -> float | None:
    """Pearson's coefficient of activations, in [−1, 1]; None where either side is constant."""
    return _pearson(*_moments(spiking, analog).tolist())


def _moments(spiking: Tensor, analog: Tensor) -> Tensor:
    pairs = torch.stack([spiking.flatten(), analog.flatten()]).double()
    return torch.cat([torch.tensor([float(pairs.shape[1])]), pairs.sum(1).cpu(), (pairs @ pairs.T).view(-1).cpu()])


def _pearson(count: float, x: float, y: float, xx: float, xy: float, _: float, yy: float) -> float | None:
    covariance, spread = xy - x * y / count, (xx - x * x / count) * (yy - y * y / count)
    # Rounding leaves about 1e-16 of the squares where nothing varies.
    return covariance / spread**0.5 if spread > 1e-20 * xx * yy and xx * yy > 0 else None


def _text(correlation: float | None) -> str:
    return "constant" if correlation is None else f"{correlation:.3f}"
