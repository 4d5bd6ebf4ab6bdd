"""Classification of Pillow images, files, arrays and tensors: classes and spike times; the command `ttfs classify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

import ttfs_triton
from ttfs_triton.commands import ClassificationOptions
from ttfs_triton.data.pixels import MAX_BYTES, centre_crop, image_pixels, open_image, to_float
from ttfs_triton.data.recordings import recording_pixels
from ttfs_triton.model.description import Preprocessing
from ttfs_triton.nn import NetworkGraph
from ttfs_triton.nn.coding import ROUNDING
from ttfs_triton.nn.models import logits_and_decision
from ttfs_triton.table import Table, print_whole
from ttfs_triton.untrusted_files import read_regular
from ttfs_triton.wording import small_percent


def split_images(images: Any) -> tuple[list[Any], bool]:
    """A list of single images, and whether `images` was one image: neither a list nor of four dimensions."""
    if isinstance(images, np.ndarray | Tensor):
        return (list(images), False) if images.ndim == 4 else ([images], True)
    if isinstance(images, Sequence) and not isinstance(images, str):
        return list(images), False
    return [images], True


def network_input(images: Sequence[Any], preprocessing: Preprocessing, channels: int) -> Tensor:
    """A network's input, [N, channels, height, width] float32, from images in any form that `classify` takes.

    Real values of the network's size and channels stay as they are, others are rounded to 8 bits. Files are recordings
    if the network reads those of an event camera.
    """
    rows = []
    for place, image in enumerate(images):
        try:
            rows.append(_as_tensor(image, preprocessing, channels))
        except (TypeError, ValueError) as error:
            raise type(error)(f"classify: image {place} {error}") from None
    return torch.stack(rows)


def _as_tensor(image: Any, preprocessing: Preprocessing, channels: int) -> Tensor:
    """One image, [channels, height, width] float32 in [0, 1]."""
    if isinstance(image, str | Path):
        return _opened(Path(image), preprocessing)
    if isinstance(image, Image.Image):
        return _pixels(image, preprocessing)
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"must be a Pillow image, a path, an array or a tensor; got {type(image).__name__}.")
    shape, allowed = tuple(image.shape), (1, 3) if channels in (1, 3) else (channels,)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image))
        image = image.movedim(2, 0) if image.ndim == 3 else image
    image = image.detach().cpu()
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or len(image) not in allowed or 0 in shape:
        rule = "[C, height, width] as a tensor, [height, width, C] as an array"
        raise ValueError(f"must have shape {rule}, C = {' or '.join(map(str, allowed))}; got {shape}.")
    if image.is_floating_point():
        low, high = (value.item() for value in image.aminmax())
        if not -ROUNDING <= low <= high <= 1 + ROUNDING:
            remedy = "Undo the normalisation." if low < 0 else "Divide pixels by 255."
            raise ValueError(f"must have values in [0, 1]; got {low:.4g} to {high:.4g}. {remedy}")
        image = image.float().clamp(0, 1)
        if image.shape == (channels, *preprocessing.size):
            return image
        image = (image * 255).round().byte()
    if image.dtype != torch.uint8:
        raise TypeError(f"must be uint8, or floating point in [0, 1]; got {image.dtype}. Convert it.")
    size = tuple(image.shape[1:])
    if preprocessing.mode is None:  # the channels are not colours: nothing is converted
        if size != preprocessing.size:
            raise ValueError(f"must be {preprocessing.size} pixels, {channels} channels; got {size}.")
        return to_float(image[None])[0]
    pixels = image[0] if len(image) == 1 else image.movedim(0, 2).contiguous()
    return _pixels(Image.fromarray(pixels.numpy()), preprocessing, fitted=size == preprocessing.size)


def _opened(path: Path, preprocessing: Preprocessing) -> Tensor:
    try:
        if preprocessing.events is not None:
            return _scaled(recording_pixels(path, preprocessing.events))
        with open_image(read_regular(path, MAX_BYTES)) as image:
            return _pixels(image, preprocessing)
    except FileNotFoundError:
        raise ValueError(f"must exist; there is no file {path}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"must be readable; {path} is not ({error}).") from None


def _pixels(image: Image.Image, preprocessing: Preprocessing, fitted: bool = False) -> Tensor:
    if preprocessing.mode is None:
        raise ValueError("must be a tensor: this network's channels are not colours, as an image file has.")
    crop = centre_crop if preprocessing.fit == "crop" and not fitted else None
    return _scaled(image_pixels(image, preprocessing.size, preprocessing.mode, crop))


def _scaled(pixels: np.ndarray) -> Tensor:
    return to_float(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])[0]


@dataclass(frozen=True)
class ClassScore:
    """One of the likeliest classes.

    Attributes:
        label, class_name: number and name of the class.
        probability: softmax of the logits; not calibrated.
    """

    label: int
    class_name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Classification:
    """A network's decision about one image. Times are counted from the image's start.

    Attributes:
        label, class_name: number and name of the chosen class.
        top: the likeliest classes, the chosen one first.
        logits: [classes], the values that the decision compares: potentials of the output neurons in threshold heights,
            or their negated spike times, in units of the time in which the readout's threshold falls by one.
        decision_time: time of the decision, in windows.
        spike_times: [classes], spike times of the output neurons, in windows, inf for a silent neuron.
        first_spike: class of the earliest output spike; None if no output neuron fired.
        tie: whether several output neurons fired first, at the same time.
    """

    label: int
    class_name: str
    top: tuple[ClassScore, ...]
    logits: Tensor
    decision_time: float
    spike_times: Tensor
    first_spike: int | None
    tie: bool

    def __repr__(self) -> str:
        scores = ", ".join(f"{score.class_name} {score.probability:.1%}" for score in self.top)
        earliest = "none" if self.first_spike is None else f"{self.spike_times.min().item():.2f} windows"
        text = f"Classification({scores}; decided after {self.decision_time:.2f} windows"
        return f"{text}; first output spike: {earliest}{', a tie' if self.tie else ''})"


@torch.no_grad()
def classify_batch(
    network: nn.Module, graph: NetworkGraph, images: Tensor, class_names: Sequence[str], top_k: int
) -> list[Classification]:
    """Classify a batch; arguments as in `TTFSModel.classify`, images as the network takes them."""
    readout, results = graph.readout, list[Classification]()
    logits, spikes = logits_and_decision(network, readout, images)
    values = logits.float().cpu(), graph.windows + spikes.spike_times.double().cpu()
    for row, times, tie in zip(*values, spikes.tie.tolist(), strict=True):
        silent, shares = bool(times.isinf().all()), row.double().softmax(0).tolist()
        order: list[int] = row.argsort(descending=True, stable=True)[:top_k].tolist()
        end = graph.windows + (readout.at != "potential_start")
        results.append(
            Classification(
                order[0],
                class_names[order[0]],
                tuple(ClassScore(label, class_names[label], shares[label]) for label in order),
                row,
                decision_time=times.min().item() if readout.at == "first_spike" and not silent else float(end),
                spike_times=times,
                first_spike=None if silent else int(times.argmin()),
                tie=tie,
            )
        )
    return results


# ---- the command


def run(options: ClassificationOptions) -> None:
    """`ttfs classify`, on the CPU: print a table or JSON. Unreadable images are refused before the network runs."""
    model = ttfs_triton.TTFSModel.from_pretrained(options.model, network=options.network)
    results = model.classify(options.images, top_k=options.top)
    windows = model.graph.windows + 1
    facts = [_facts(*pair, model.class_names, windows) for pair in zip(options.images, results, strict=True)]
    if options.json_lines:
        print("\n".join(map(json.dumps, facts)))
    else:
        headers = ("image", "class", "probability", "first spike", "after windows")
        rows = list(map(_cells, facts))
        print_whole(Table("", headers, rows, (1, 3), "probability: softmax, not calibrated"))


def _facts(image: str, result: Classification, class_names: tuple[str, ...], windows: int) -> dict[str, Any]:
    """One object of --json; times in windows from the image's start, None if no output neuron fired."""
    first = result.first_spike
    return {
        "image": image,
        "label": result.label,
        "class_name": result.class_name,
        "probability": result.top[0].probability,
        "first_spike": first,
        "first_spike_class_name": None if first is None else class_names[first],
        "first_spike_time": None if first is None else result.spike_times[first].item(),
        "windows": windows,
        "tie": result.tie,
        "top": [vars(score) for score in result.top],
    }


def _cells(facts: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table, with a line per likely class."""
    first, time = facts["first_spike_class_name"], facts["first_spike_time"]
    return (
        facts["image"],
        "\n".join(score["class_name"] for score in facts["top"]),
        "\n".join(small_percent(score["probability"]) for score in facts["top"]),
        "none" if first is None else first + ", a tie" * facts["tie"],
        "–" if first is None else f"{time:.2f} of {facts['windows']}",
    )
