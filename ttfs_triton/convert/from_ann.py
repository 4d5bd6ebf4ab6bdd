"""Conversion of any ANN made of convolutions, linear layers and operations that fold into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic_core import to_jsonable_python
from torch import Tensor, nn

from ttfs_kernels import Neuron
from ttfs_triton.convert.ann import TracedANN, trace_ann
from ttfs_triton.convert.build import ReadoutTime, build_network
from ttfs_triton.convert.calibration import Calibration, calibrate_network, fit_range
from ttfs_triton.convert.source import ConversionError
from ttfs_triton.model.files import not_finite
from ttfs_triton.nn.graph import Stage, network_graph
from ttfs_triton.table import Table

ROUNDING = 1e-4
"""An activation counts as clipped if it exceeds its clip by more than this share."""


@dataclass(frozen=True)
class LayerLoss:
    """Conversion of one hidden layer: folded operations, clipped activations and errors.

    Attributes:
        name: name of the layer in the spiking network.
        source: name of its call in the ANN.
        folded: operations that became part of its weights, in words.
        clip: activation of the ANN that the earliest spike stands for, mean over channels.
        clipped: share of the ANN's activations above their channel's clip.
        copied, calibrated: root mean square of the difference of both activations, relative to the ANN's, before
            and after calibration; None for a layer that is never active.
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
        logits: root mean square of the difference of the logits, relative to the ANN's.
        calibration: result of calibration; None without calibration.
    """

    layers: tuple[LayerLoss, ...]
    images: int
    same_decisions: float
    logits: float
    calibration: Calibration | None

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
                *(each.name, each.source, ", ".join(each.folded), f"{each.clip:.4g}"),
                *(share(each.clipped), share(each.copied), share(each.calibrated)),
            )
            for each in self.layers
        ]
        caption = f"same class for {self.same_decisions:.1%} of {self.images} images, logits off by {self.logits:.2%}"
        return Table("Losses of the conversion", headers, rows, caption=caption)


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
            from 0. Batch norm, pools, flattening and dropout may stand in between, and activations may be concatenated
            and added, behind 1×1 convolutions too. A layer without an activation function becomes part of the next one
            where that is exact. The logits are outputs of a Linear layer or means of activations. Not changed.
        images: [N, channels, height, width], as the spiking network reads them, on the device to compute on; 256 are
            enough. If `mean` and `std` are given, the model reads (images − mean) / std.
        psp_persistence: σ of all neurons. At 0 the network computes the same as the ANN, up to the clip; above, it
            needs training to be as accurate.
        encoder: "analog": the first convolution multiplies pixels by real numbers, and its clipped activations are
            spikes; "latency": pixels, in [0, 1], are spike times. Default: "analog" if the first layer is a
            convolution without groups and dilation.
        mean, std: mean and standard deviation of each channel, in units of the images; for an analog encoder.
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
        ConversionError: an operation cannot be converted, which is found before any work; or the encoder does not fit
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
    if len(images) == 0:
        raise ConversionError("convert_ann: images must hold at least one image; got none.")
    if problem := not_finite(model.state_dict()):
        raise ConversionError(f"convert_ann: model must have finite weights; got {problem}. Its training diverged.")
    read = images if mean is None and std is None else _normalised(images, mean, std)
    traced = trace_ann(model, read)
    network = build_network(
        traced.layers,
        traced.image_shape,
        encoder=encoder,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        neuron=Neuron(psp_persistence=psp_persistence),
        readout=readout,
    ).to(images.device, next(model.parameters()).dtype)
    bounds = [layer.bound for layer in traced.layers[:-1]]
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    clips = list(fit_range(network, images, bounds, percentile=percentile, **options).values())
    copied, same = _compare(traced, read, network, images, clips, batch_size)
    found, calibration = copied, None
    if calibrate and psp_persistence > 0:
        calibration = calibrate_network(network, images, **options)
        found, same = _compare(traced, read, network, images, clips, batch_size)
    stages = network_graph(network, traced.image_shape).weighted
    layers = [
        LayerLoss(
            stage.name,
            layer.name,
            tuple(layer.folded),
            clip=clip.mean().item(),
            clipped=found[layer.name][1],
            copied=copied[layer.name][0],
            calibrated=found[layer.name][0],
        )
        for stage, layer, clip in zip(stages, traced.layers, clips, strict=False)
    ]
    return network, ANNReport(tuple(layers), len(images), same, found[""][0] or 0.0, calibration)


def _normalised(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    channels = images.shape[1]
    values = (mean or [0.0] * channels, std or [1.0] * channels)
    if any(len(each) != channels for each in values):
        raise ConversionError(f"convert_ann: mean and std must have one entry per channel ({channels}); got {values}.")
    centre, spread = (torch.tensor(each, dtype=images.dtype, device=images.device).view(-1, 1, 1) for each in values)
    return (images - centre) / spread


@torch.no_grad()
def _compare(
    traced: TracedANN, read: Tensor, network: nn.Module, images: Tensor, clips: Sequence[Tensor], batch_size: int
) -> tuple[dict[str, tuple[float | None, float]], float]:
    """Error and clipped share, as in `LayerLoss`, by name of each hidden layer and by "" for the logits; and the share
    of images with the same decision. `read`: images as the ANN reads them; `clips`: clips of its layers.
    """
    graph, same = network_graph(network, traced.image_shape), 0
    hidden = dict(zip((stage.name for stage in graph.weighted), traced.layers[:-1], strict=False))
    scales = {layer.name: clip for layer, clip in zip(traced.layers, clips, strict=False)}
    sums: dict[str, Tensor] = {}

    def add(name: str, ours: Tensor, theirs: Tensor, clipped: Tensor) -> None:
        parts = ((ours.double() - theirs.double()).square().sum(), theirs.double().square().sum(), clipped.sum())
        found = torch.tensor([*map(float, parts), theirs.numel()], dtype=torch.float64)
        sums[name] = sums.get(name, torch.zeros_like(found)) + found

    for batch, theirs in zip(images.split(batch_size), read.split(batch_size), strict=True):
        logits, activations = traced.run(theirs)

        def fire(stage: Stage, inputs: Tensor, skip: Tensor | None, activations=activations) -> Tensor:
            spikes = stage.activations(inputs, skip)
            if (layer := hidden.get(stage.name)) is not None:
                wanted, clip = activations[layer.name], scales[layer.name].view(-1, *[1] * (spikes.dim() - 2))
                add(layer.name, spikes * clip, wanted, wanted > clip * (1 + ROUNDING))
            return spikes

        found = graph.run(batch, fire)
        same += int((found.argmax(1) == logits.argmax(1)).sum())
        add("", found, logits, torch.zeros(0))
    shares = {
        name: ((difference / square) ** 0.5 if square > 0 else None, clipped / count)
        for name, (difference, square, clipped, count) in ((name, found.tolist()) for name, found in sums.items())
    }
    return shares, same / len(images)
