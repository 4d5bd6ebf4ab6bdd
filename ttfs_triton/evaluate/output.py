"""Output files of an evaluation: figures as JSON, and one HTML page."""

from __future__ import annotations

import re
import shlex
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ttfs_triton.atomic import write_json
from ttfs_triton.commands.evaluate import EvaluationOptions
from ttfs_triton.data.images import ImageData
from ttfs_triton.data.pixels import to_float
from ttfs_triton.evaluate import device_name, versions
from ttfs_triton.evaluate.load import LoadedNetwork
from ttfs_triton.evaluate.page import write_page
from ttfs_triton.evaluate.result import EvaluationResult, Sample, spikes_of
from ttfs_triton.model.own_network import OwnNetwork

MAIN_FILE = "evaluation.json"
SCORES = ("images", "accuracy", "first_spike_accuracy", "ties", "no_spike")
"""Figures of an `Evaluation` that the page and `MAIN_FILE` have under the same names."""


def check_output(options: EvaluationOptions) -> None:
    """Check before any work that the output can be written without overwriting files."""
    for path in (options.output_dir and options.output_dir / MAIN_FILE, options.report):
        if path is not None and path.exists() and not options.overwrite:
            raise ValueError(f"evaluate: {path} must not exist; it does. Replace it by --overwrite, or name another.")
    if options.report is not None:
        if options.report.suffix != ".html":
            raise ValueError(f"evaluate: --report must end in .html; got {options.report}.")
        if find_spec("matplotlib") is None:
            raise ValueError("evaluate: --report must have matplotlib; found none. Run: pip install matplotlib.")


def write_output(options: EvaluationOptions, found: EvaluationResult) -> list[Path]:
    """Write the files that the options ask for into their folders, which exist; returns the paths written."""
    paths = list[Path]()
    if options.output_dir is not None:
        paths.append(options.output_dir / MAIN_FILE)
        write_json(paths[0], figures(found, options.max_test_samples))
    if options.report is not None:
        paths.append(write_page(options.report, found.page))
    return paths


def sample_of(loaded: LoadedNetwork, data: ImageData, number: int) -> Sample:
    """Test image number `number` with its spikes and its predicted class, for the report."""
    network, names = loaded.network.eval(), tuple(loaded.network.class_names)
    image = to_float(data.images_at(torch.tensor([number])))[0]
    prediction = int(network(image[None].to(next(network.parameters()).device)).argmax())
    spikes = spikes_of(network, image)
    return Sample(image.cpu(), spikes, names[int(data.labels[number])], names[prediction], names)


def network_facts(loaded: LoadedNetwork) -> dict[str, Any]:
    """The network's configuration; for a network from the user's own code also its encoder and readout."""
    network, graph = loaded.description.network, loaded.network.graph
    if isinstance(network, OwnNetwork):
        return network.to_dict() | {"encoder": graph.encoder.kind, "readout": graph.readout.at}
    return network.to_dict()


def facts(command: str, device: torch.device) -> dict[str, str]:
    """How the figures of a command were made: date, device, versions and command line."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(device),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "command": command_line(command),
    }


def figures(found: EvaluationResult, max_test_samples: int | None) -> dict[str, Any]:
    """All figures of the evaluation as JSON values."""
    page = found.page
    return {
        "weights_sha256": found.loaded.files.sha256,
        "network": page.network,
        "dataset": found.data.dataset,
        "fingerprint": found.data.fingerprint,
        "class_names": found.data.class_names,
        "max_test_samples": max_test_samples,
        **{name: getattr(page, name) for name in SCORES},
        "sparsity": page.counts.sparsity,
        "counts": page.counts.to_dict(),
        "simulation": None if page.simulation is None else page.simulation.to_dict(),
        "energy": [each.to_dict() for each in page.energy],
        "comparison": [each.to_dict() for each in page.comparison.estimates] if page.comparison else None,
        "deadlines": {"rows": [asdict(row) for row in page.deadlines]} if page.deadlines else None,
        "about": page.facts,
    }


def command_line(command: str) -> str:
    """The command line of this run of `ttfs COMMAND`; absolute paths are cut to their last part, also behind "="."""
    words = (re.sub(r"(^|=)/.*?([^/]*)/*$", r"\1\2", word) for word in sys.argv[1:])
    return shlex.join(["ttfs", command, *words])
