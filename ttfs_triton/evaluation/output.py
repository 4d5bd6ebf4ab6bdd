"""What an evaluation writes: figures as JSON and CSV, pictures, one page for readers."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ttfs_triton import report
from ttfs_triton.atomic import write_json, write_text
from ttfs_triton.data.pixels import to_float
from ttfs_triton.evaluation.options import EvaluationOptions, Found
from ttfs_triton.hardware import available_chips, sensitivity
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.report.frontier_table import FREE, FrontierRow, with_costs
from ttfs_triton.report.tables import csv_text
from ttfs_triton.scoring import device_name, versions

MAIN_FILE = "evaluation.json"


def check_output(options: EvaluationOptions) -> None:
    """Refuse what would be lost or cannot be written, before any work.

    Raises:
        ValueError: an evaluation is there already, or matplotlib is missing for a page.
    """
    for path in (options.output_dir and options.output_dir / MAIN_FILE, options.report):
        if path is not None and path.exists() and not options.overwrite:
            raise ValueError(f"evaluate: {path} must not exist; it does. Replace it by --overwrite, or name another.")
    if options.report is not None:
        if options.report.suffix != ".html":
            raise ValueError(f"evaluate: --report must end in .html; got {options.report}.")
        if find_spec("matplotlib") is None:
            raise ValueError("evaluate: --report must have matplotlib; found none. Run: pip install matplotlib.")
    if options.frontier is not None and options.report is None:
        raise ValueError("evaluate: --frontier must go with a page to be drawn on; got none. Add --report PAGE.html.")


def write_output(options: EvaluationOptions, found: Found) -> list[Path]:
    """Write the folder, if asked for: evaluation.json, energy.csv, sweep.csv, and figures where matplotlib is there."""
    folder = options.output_dir
    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / MAIN_FILE, report.write_csv(folder / "energy.csv", *found.estimates)]
    if found.sweep is not None:
        found.sweep.to_csv(folder / "sweep.csv")
        paths.append(folder / "sweep.csv")
    if found.deadlines:
        paths.append(folder / "deadlines.csv")
        write_text(paths[-1], csv_text([asdict(row) for row in found.deadlines]))
    if find_spec("matplotlib") is not None:
        first = found.headline
        if first.total is not None:
            paths.append(report.draw_layers(first, folder / "energy-layers.svg"))
            if swings := sensitivity(first):  # none if every price is a single figure
                paths.append(report.draw_sensitivity(swings, folder / "energy-sensitivity.svg"))
        if any(each.total is not None for each in found.estimates):
            paths.append(report.draw_chips(found.estimates, folder / "energy-chips.svg"))
        if found.sweep is not None:
            paths.append(report.draw_sweep(found.sweep, folder / "sweep.svg"))
    write_json(folder / MAIN_FILE, figures(found))
    return paths


def write_page(options: EvaluationOptions, found: Found) -> list[Path]:
    """Write the page, if asked for."""
    if options.report is None:
        return []
    network, evaluation = found.loaded.network, found.evaluation
    image, label = (
        to_float(found.data.images_at(torch.tensor([options.sample])))[0],
        int(found.data.labels[options.sample]),
    )
    device, names = next(network.parameters()).device, found.loaded.network.class_names
    prediction = int(network.eval()(image[None].to(device)).argmax())
    data = report.PageData(
        title=found.loaded.files.name,
        network=network_facts(found),
        dataset=found.data.dataset or "a local folder",
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        first_spike_accuracy=evaluation.first_spike_accuracy,
        ties=evaluation.ties,
        no_spike=evaluation.no_spike,
        counts=found.counts,
        sample=report.Sample(
            image=image.cpu(),
            spikes=report.spikes_of(network, image),
            label=names[label],
            prediction=names[prediction],
            class_names=tuple(names),
        ),
        energy=found.estimates,
        chip=found.headline.chip.name,
        comparison=found.comparison,
        simulation=found.simulation,
        sweep=found.sweep,
        deadlines=found.deadlines,
        frontier=found.frontier,
        here=_on_frontier(options, found) if found.frontier else None,
        facts=facts(found),
    )
    options.report.parent.mkdir(parents=True, exist_ok=True)
    return [report.write_page(options.report, data)]


def _on_frontier(options: EvaluationOptions, found: Found) -> FrontierRow:
    """The network among the points of a frontier: priced as they were, on the chips that are known here."""
    evaluation, grid = found.evaluation, found.loaded.network.graph.grid
    row = FrontierRow.of(
        found.loaded.files.name,
        FREE,
        grid,
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        first_spike_accuracy=evaluation.first_spike_accuracy,
    )
    theirs = next((each.steps for each in found.frontier if each.time_steps is None and each.steps), None)
    steps = row.time_steps or theirs or int(options.steps)
    known = [each.chip.name for each in found.estimates] + list(available_chips())
    chips = [each.chip for each in found.frontier[0].energy if each.chip in known]
    return with_costs(row, found.counts, chips, steps)


def network_facts(found: Found) -> dict[str, Any]:
    """What config.json says of the network, and of one without a specification when it is read."""
    network, graph = found.loaded.description.network, found.loaded.network.graph
    if isinstance(network, OwnNetwork):
        return network.to_dict() | {"encoder": graph.encoder.kind, "readout": graph.readout_time}
    return network.to_dict()


def facts(found: Found) -> dict[str, str]:
    """Where, when and how."""
    device = next(found.loaded.network.parameters()).device
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(device),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "command": command_line("recipes/evaluate.py"),
    }


def figures(found: Found) -> dict[str, Any]:
    """All figures as JSON values."""
    evaluation, simulation = found.evaluation, found.simulation
    return {
        "weights_sha256": found.loaded.files.sha256,
        "network": network_facts(found),
        "dataset": found.data.dataset,
        "fingerprint": found.data.fingerprint,
        "class_names": found.data.class_names,
        "max_test_samples": found.max_test_samples,
        "images": evaluation.images,
        "accuracy": evaluation.accuracy,
        "first_spike_accuracy": evaluation.first_spike_accuracy,
        "ties": evaluation.ties,
        "no_spike": evaluation.no_spike,
        "sparsity": evaluation.sparsity,
        "sparsity_with_outputs": evaluation.sparsity_with_outputs,
        "counts": found.counts.to_dict(),
        "simulation": None if simulation is None else simulation.to_dict(),
        "energy": [each.to_dict() for each in found.estimates],
        "comparison": [each.to_dict() for each in found.comparison.estimates],
        "deadlines": {"rows": [asdict(row) for row in found.deadlines]} if found.deadlines else None,
        "sweep": None if found.sweep is None else found.sweep.to_dict(),
        "about": facts(found),
    }


def command_line(script: str) -> str:
    """The command as others may give it: folders of this machine say nothing to readers."""
    words = (Path(word).name if word.startswith("/") else word for word in sys.argv[1:])
    return shlex.join(["python", script, *words])
