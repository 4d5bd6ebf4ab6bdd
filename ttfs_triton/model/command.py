"""`ttfs classify`: classes of image files by a trained network, with the time of the first output spike."""

from __future__ import annotations

import json
from typing import Any

from ttfs_triton.commands import ClassificationOptions
from ttfs_triton.model.classification import Classification
from ttfs_triton.model.model import TTFSModel
from ttfs_triton.table import Table, print_whole
from ttfs_triton.wording import small_percent


def run(options: ClassificationOptions) -> None:
    """Classify the images on the CPU, and print a table or JSON; an unreadable image is refused before any is run."""
    model = TTFSModel.from_pretrained(options.model, network=options.network)
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
