"""Conversion of any ANN made of convolutions, linear layers and operations that fold into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.convert.ann import run_ann, trace_ann
from ttfs_triton.convert.build import ReadoutTime, build_network
from ttfs_triton.convert.calibration import calibrate_network, fit_range
from ttfs_triton.convert.layer import ANNLayer
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.model.files import not_finite
from ttfs_triton.nn import AnalogEncoder
from ttfs_triton.nn.graph import NetworkGraph, Stage, network_graph
from ttfs_triton.nn.trace import float32_products
from ttfs_triton.table import Table

ROUNDING = 1e-4
"""An activation counts as clipped if it exceeds its clip by more than this share of the clip."""


@dataclass(frozen=True)
class LayerLoss:
    """What the conversion of one hidden layer loses: operations folded, activations clipped, and errors.

    Attributes:
        name: name of the layer in the spiking network.
        source: name of the layer's call in the ANN.
        folded: operations that became part of the layer's weights, in words.
        clip: activation of the ANN that the earliest spike stands for, mean over channels.
        clipped: share of the ANN's activations above their channel's clip.
        copied, calibrated: root mean square of the difference between both networks' activations, relative to the
            ANN's, before and after calibration; None for a layer that is never active.
    """

    name: str
    source: str
    folded: tuple[str, ...]
    clip: float
    clipped: float
    copied: float | None
    calibrated: float | None


@dataclass(frozen=True)
class ANNReport:
    """Losses of a conversion, measured on the calibration images.

    Attributes:
        layers: hidden layers in their order.
        images: number of images compared.
        same_decisions: share of the images to which both networks give the same class.
        logits: root mean square of the difference between both networks' logits, relative to the ANN's.
    """

    layers: tuple[LayerLoss, ...]
    images: int
    same_decisions: float
    logits: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return to_jsonable_python(self)

    def table(self) -> Table:
        """The report as a table for a terminal."""

        def share(value: float | None) -> str:
            return "never active" if value is None else f"{value:.2%}"

        headers = ("layer", "of the ANN", "folded", "clip", "clipped", "error copied", "calibrated")
        rows = [
            (
                *(layer.name, layer.source, ", ".join(layer.folded), f"{layer.clip:.4g}"),
                *(share(layer.clipped), share(layer.copied), share(layer.calibrated)),
            )
            for layer in self.layers
        ]
        caption = f"same class for {self.same_decisions:.1%} of {self.images} images, logits off by {self.logits:.2%}"
        return Table("Losses of the conversion", headers, rows, caption=caption)


@float32_products()
def convert_ann(
    model: nn.Module,
    images: Tensor,
    *,
    psp_persistence: float = 0.0,
    encoder: Literal["analog", "latency"] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    readout: ReadoutTime = "potential_start",
    calibrate: bool = True,
    percentile: float | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[nn.Module, ANNReport]:
    """Convert a trained ANN into a spiking network: trace, fold, scale, calibrate, compare.

    Args:
        model: Conv2d (groups, dilation and stride too) and Linear layers, followed by ReLU, ReLU6, Hardtanh or clamp
            from 0. Batch norm, pools, flattening and dropout may stand in between. Activations may be concatenated and
            added, also behind 1×1 convolutions. A layer without an activation function becomes part of the next one
            where that is exact. Logits are outputs of a Linear layer or means of activations. The model is not changed.
        images: [N, channels, height, width], as the spiking network reads them, on the device to compute on; 256 are
            enough. If `mean` and `std` are given, the model reads (images − mean) / std.
        psp_persistence: σ of all neurons. At 0, the network computes the same as the ANN, up to the clip; above 0, it
            needs training to be as accurate.
        encoder: "analog": the first convolution multiplies pixels by real numbers, and its clipped activations are
            spikes; "latency": pixels, in [0, 1], become spike times. Default: "analog" if the first layer is a
            convolution without groups and dilation.
        mean, std: mean and standard deviation by channel, in units of the images; for an analog encoder.
        readout: when the logits are read: at the start or the end of the output window.
        calibrate: choose initial potentials, see `calibrate_network`; at σ = 0 there is nothing to choose.
        percentile: percentile of a channel's activations that the earliest spike stands for, for a layer of the ANN
            without an upper bound. Default: see `fit_range`.
        batch_size: images that run at once.
        seed: seed of the drawn activations that clips and initial potentials are fitted to.
    Returns:
        The network, in evaluation mode, on the images' device: a `TTFSNetwork` if a specification describes the model,
        else a module of our layers that `network_graph` accepts. And a report of the losses.
    Raises:
        ConversionError: an operation cannot be converted, which is checked before any work; or the encoder does not fit
            the first layer.
    Example:
        >>> ann = nn.Sequential(
        ...     nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)
        ... )
        >>> images = torch.rand(16, 1, 8, 8)
        >>> network, report = convert_ann(ann, images)
        >>> network.config.specification, [layer.name for layer in report.layers]
        ('4C3-P2', ['conv1'])
        >>> torch.allclose(network(images), ann(images), atol=1e-5)
        True
    """
    if problem := not_finite(model.state_dict()):
        raise ConversionError(f"convert_ann: model must have finite weights; got {problem}. Its training diverged.")
    ann, shape = trace_ann(model, images), tuple(images.shape[1:])
    network = build_network(
        ann,
        shape,
        encoder=encoder,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        neuron=Neuron(psp_persistence=psp_persistence),
        readout=readout,
    ).to(images.device, next(model.parameters()).dtype)
    graph, bounds = network_graph(network, shape), [layer.bound for layer in ann[:-1]]
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    clips = fit_range(network, images, bounds, percentile=percentile, **options)
    measured = copied = _compare(model, ann, graph, images, clips, batch_size)
    if calibrate and psp_persistence > 0:
        calibrate_network(network, images, **options)
        measured = _compare(model, ann, graph, images, clips, batch_size)
    losses = [
        LayerLoss(
            *(name, layer.name, layer.folded, clip.mean().item()),
            clipped=measured[name][1],
            copied=copied[name][0],
            calibrated=measured[name][0],
        )
        for layer, (name, clip) in zip(ann, clips.items(), strict=False)
    ]
    logits, others = measured[_LOGITS]
    return network, ANNReport(tuple(losses), len(images), 1 - others, logits or 0.0)


_LOGITS = ""  # in the place of a layer's name


@torch.no_grad()
def _compare(
    model: nn.Module,
    ann: Sequence[ANNLayer],
    graph: NetworkGraph,
    images: Tensor,
    clips: Mapping[str, Tensor],
    batch_size: int,
) -> dict[str, tuple[float | None, float]]:
    """Errors and clipped shares of the hidden layers in `clips`, as in `LayerLoss`, by name.

    Under `_LOGITS` stand the error of the logits, and the share of images that get another class.
    """
    layers = dict(zip(clips, ann, strict=False))
    sums = dict.fromkeys((*clips, _LOGITS), torch.zeros(4, dtype=torch.float64))

    def add(name: str, ours: Tensor, theirs: Tensor, outside: Tensor) -> None:
        parts = ((ours.double() - theirs.double()).square().sum(), theirs.double().square().sum(), outside.sum())
        sums[name] = sums[name] + torch.tensor([*map(float, parts), outside.numel()], dtype=torch.float64)

    for batch in images.split(batch_size):
        encoder = graph.encoder.layer
        read = encoder.normalise(batch) if isinstance(encoder, AnalogEncoder) else batch
        logits, activations = run_ann(model, ann, read)

        def fire(stage: Stage, inputs: Tensor, skip: Tensor | None, activations=activations) -> Tensor:
            spikes = stage.activations(inputs, skip)
            if stage.name in clips:
                wanted = activations[layers[stage.name].name]
                clip = clips[stage.name].view(-1, *[1] * (spikes.dim() - 2))
                add(stage.name, spikes * clip, wanted, wanted > clip * (1 + ROUNDING))
            return spikes

        outputs = graph.run(batch, fire)
        add(_LOGITS, outputs, logits, outputs.argmax(1) != logits.argmax(1))
    return {
        name: ((difference / square) ** 0.5 if square > 0 else None, outside / count)
        for name, (difference, square, outside, count) in ((name, totals.tolist()) for name, totals in sums.items())
    }
