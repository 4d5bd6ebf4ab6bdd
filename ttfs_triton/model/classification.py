"""Classification: from Pillow images, files, arrays and tensors to classes and spike times; the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

import ttfs_triton
from ttfs_triton.commands import ClassificationOptions
from ttfs_triton.data.pixels import MAX_BYTES, centre_crop, image_pixels, open_image, to_float
from ttfs_triton.data.recordings import recording_pixels
from ttfs_triton.model.description import Preprocessing
from ttfs_triton.nn import FirstSpikeDecision, NetworkGraph
from ttfs_triton.nn.models import logits_and_decision
from ttfs_triton.table import Table, print_whole
from ttfs_triton.untrusted_files import read_regular
from ttfs_triton.wording import small_percent

ImageLike = Image.Image | np.ndarray | Tensor | str | Path


def split_images(images: Any) -> tuple[list[Any], bool]:
    """A list of single images, and whether `images` was a single one: neither a list nor of four dimensions."""
    if isinstance(images, np.ndarray | Tensor):
        return (list(images), False) if images.ndim == 4 else ([images], True)
    if isinstance(images, Sequence) and not isinstance(images, str):
        return list(images), False
    return [images], True


def network_input(images: Sequence[Any], preprocessing: Preprocessing, channels: int) -> Tensor:
    """Images as a network's input, [N, channels, height, width] float32.

    Each is a Pillow image, the path of a file, a uint8 array [height, width] or [height, width, C], or a tensor
    [height, width] or [C, height, width], uint8, or floating point in [0, 1]. C is 1 or 3, or, for tensors, `channels`.
    A float tensor of the network's size and channels goes in as it is, others are rounded to 8 bits. If the network
    reads recordings of an event camera, a file is a recording.
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
    if isinstance(image, Tensor):
        image = image[None] if image.ndim == 2 else image
        _check_shape(tuple(image.shape), 0, channels, "[C, height, width]")
        if image.is_floating_point():
            image = image.detach().to("cpu", torch.float32)
            low, high = (value.item() for value in image.aminmax())
            if not 0 <= low <= high <= 1:
                raise ValueError(f"must have values in [0, 1]; got {low:.4g} to {high:.4g}. Divide pixels by 255.")
            if image.shape == (channels, *preprocessing.size):
                return image
            image = (image * 255).round().byte()
        if image.dtype != torch.uint8:
            raise TypeError(f"must be uint8, or floating point in [0, 1]; got {image.dtype}. Convert it.")
        pixels = image.permute(1, 2, 0).cpu().numpy()
    elif isinstance(image, np.ndarray):
        pixels = image[:, :, None] if image.ndim == 2 else image
        _check_shape(pixels.shape, -1, channels, "[height, width] or [height, width, C]")
        if pixels.dtype != np.uint8:
            raise TypeError(
                f"must be uint8 as an array; got {pixels.dtype}. Give real values as a torch tensor [C, height, width]."
            )
    elif isinstance(image, str | Path):
        return _opened(Path(image), preprocessing)
    elif isinstance(image, Image.Image):
        return _pixels(image, preprocessing)
    else:
        raise TypeError(f"must be a Pillow image, a path, a uint8 array or a tensor; got {type(image).__name__}.")
    if preprocessing.mode is None:  # the channels are not colours: nothing is converted
        if pixels.shape[:2] != preprocessing.size:
            raise ValueError(f"must be {preprocessing.size} pixels, {channels} channels; got {pixels.shape[:2]}.")
        return _scaled(pixels)
    pixels = np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _pixels(Image.fromarray(pixels), preprocessing, fitted=pixels.shape[:2] == preprocessing.size)


def _check_shape(shape: tuple[int, ...], axis: int, channels: int, rule: str) -> None:
    """Raise ValueError unless a shape has three dimensions, of which `axis` is the channels."""
    allowed = (1, 3) if channels in (1, 3) else (channels,)
    if len(shape) != 3 or shape[axis] not in allowed or 0 in shape:
        raise ValueError(f"must have shape {rule} with C = {' or '.join(map(str, allowed))}; got {shape}.")


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


Decision = Literal["readout", "first_spike"]


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
            or minus their spike times, in units of the time in which the readout's threshold falls by one.
        decision: "readout", as the network was trained, or "first_spike", by the earliest output spike.
        decision_time: time of the decision, in windows.
        spike_times: [classes], spike times of the output neurons, in windows, inf for a silent neuron.
        first_spike: class of the earliest output spike; None if none fired.
        tie: several output neurons fired first, at the same time.
    """

    label: int
    class_name: str
    top: tuple[ClassScore, ...]
    logits: Tensor
    decision: Decision
    decision_time: float
    spike_times: Tensor
    first_spike: int | None
    tie: bool

    def __repr__(self) -> str:
        scores = ", ".join(f"{score.class_name} {score.probability:.1%}" for score in self.top)
        text = f"Classification({self.class_name} by {self.decision.replace('_', ' ')}; {scores}"
        earliest = "none" if self.first_spike is None else f"{self.spike_times.min().item():.2f} windows"
        text += f"; decided after {self.decision_time:.2f} windows; first output spike: {earliest}"
        return f"{text}{', a tie' if self.tie else ''})"


@torch.no_grad()
def classify_batch(
    network: nn.Module, graph: NetworkGraph, images: Tensor, class_names: Sequence[str], top_k: int, decision: Decision
) -> list[Classification]:
    """Classify a batch; arguments as in `TTFSModel.classify`, images as the network takes them."""
    readout, start, first_spike = graph.readout, graph.windows, decision == "first_spike"
    logits, decided = logits_and_decision(network, readout, images)
    logits = logits.float()
    spikes = FirstSpikeDecision(*(value.cpu() for value in decided))
    if first_spike:
        logits = spikes.spike_times.clamp(max=1.0) * -readout.threshold
    results = []
    for place, row in enumerate(logits.cpu()):
        times, silent = spikes.spike_times[place].double(), bool(spikes.no_spike[place])
        if first_spike or graph.readout.at == "first_spike":
            after = 1.0 if silent else times.min().item()
        else:
            after = 0.0 if graph.readout.at == "potential_start" else 1.0
        order: list[int] = row.argsort(descending=True, stable=True).tolist()
        label = int(spikes.prediction[place]) if first_spike else order[0]
        likeliest = [label, *(other for other in order if other != label)][:top_k]
        shares = row.double().softmax(0).tolist()
        results.append(
            Classification(
                label,
                class_names[label],
                tuple(ClassScore(each, class_names[each], shares[each]) for each in likeliest),
                row,
                decision,
                decision_time=start + after,
                spike_times=start + times,
                first_spike=None if silent else int(times.argmin()),
                tie=bool(spikes.tie[place]),
            )
        )
    return results


# ---- the command


def run(options: ClassificationOptions) -> None:
    """`ttfs classify`, on the CPU: print a table or JSON; an unreadable image is refused before any is run."""
    model = ttfs_triton.TTFSModel.from_pretrained(options.model, network=options.network)
    results = model.classify(options.images, top_k=options.top)
    windows = model.graph.windows + 1
    facts = [_facts(*pair, model.class_names, windows) for pair in zip(options.images, results, strict=True)]
    if options.json_lines:
        print("\n".join(map(json.dumps, facts)))
    else:
        headers = ("image", "class", "probability", "first spike", "after windows")
        rows = [_cells(each) for each in facts]
        print_whole(Table("", headers, rows, (1, 3), "probability: softmax, not calibrated"))


def _facts(image: str, result: Classification, class_names: tuple[str, ...], windows: int) -> dict[str, Any]:
    """One object of --json; times in windows from the image's start, null if no output neuron fired."""
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
    """One row of the table; a line for each of the likeliest classes."""
    first, time = facts["first_spike_class_name"], facts["first_spike_time"]
    return (
        facts["image"],
        "\n".join(score["class_name"] for score in facts["top"]),
        "\n".join(small_percent(score["probability"]) for score in facts["top"]),
        "none" if first is None else first + ", a tie" * facts["tie"],
        "–" if first is None else f"{time:.2f} of {facts['windows']}",
    )
