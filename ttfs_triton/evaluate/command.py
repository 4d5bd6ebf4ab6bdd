"""The command `ttfs evaluate`: scores, counts, simulates and prices a network, then prints and writes the figures."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from rich.text import Text

from ttfs_triton.atomic import write_json
from ttfs_triton.commands import EvaluationOptions
from ttfs_triton.energy.chip import load_chips
from ttfs_triton.energy.compare import FAIR_CHIP
from ttfs_triton.evaluate import Evaluation, layer_table
from ttfs_triton.evaluate.figures import require_matplotlib
from ttfs_triton.evaluate.load import LoadedNetwork, load_network, load_test_images
from ttfs_triton.evaluate.measure import MAIN_FILE, EvaluationResult, figures, measure
from ttfs_triton.evaluate.page import headline_energy, headlines, page_decision, write_page
from ttfs_triton.evaluate.tables import (
    deadline_table,
    operations_counted,
    operations_table,
    print_chips,
    print_comparison,
    print_estimate,
    small_print,
)
from ttfs_triton.table import print_whole
from ttfs_triton.wording import number, percent


def run(options: EvaluationOptions) -> EvaluationResult:
    """Evaluate a network as the options say, print tables and write files; returns all figures."""
    _check_output(options)
    if options.faults and not options.simulation:
        raise ValueError(f"evaluate: faults must be simulated; got {options.faults.text()} with --no-simulation.")
    loaded = load_network(options.model, options.network)
    chips = load_chips(options.chip, first=[FAIR_CHIP])  # ANNs are compared on the first chip that prices them
    accelerator = Accelerator(cpu=options.cpu or not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise ValueError("evaluate: must run in one process; got several. Start `ttfs evaluate` without a launcher.")
    data = load_test_images(loaded, **options.images_named(), max_samples=options.max_test_samples, progress=True)
    if options.sample >= len(data):
        raise ValueError(f"evaluate: sample must be below {len(data)}, the number of images; got {options.sample}.")
    for folder in (options.output_dir, options.report and options.report.parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)  # an unusable folder is noticed before the network runs

    def show_layers(scores: Evaluation) -> None:  # before the simulations, which take minutes
        title = f"{data.name}, {data.split}: {scores.images:,} images, {scores.accuracy:.2%} right"
        print_whole(layer_table(scores.layers, title))

    page = measure(options, loaded, data, chips, accelerator, on_scored=show_layers)
    show(page, loaded)
    if options.output_dir is not None:
        write_json(options.output_dir / MAIN_FILE, figures(page, loaded, data, options.max_test_samples))
        print(f"written: {options.output_dir / MAIN_FILE}")
    if options.report is not None:
        print(f"written: {write_page(options.report, page)}")
    return page


def _check_output(options: EvaluationOptions) -> None:
    """ValueError, before any work, if the output would overwrite files; RuntimeError if matplotlib is missing."""
    for path in (options.output_dir and options.output_dir / MAIN_FILE, options.report):
        if path is not None and path.exists() and not options.overwrite:
            raise ValueError(f"evaluate: output must be new; got {path}. Replace it by --overwrite, or name another.")
    if options.report is not None:
        if options.report.suffix != ".html":
            raise ValueError(f"evaluate: --report must end in .html; got {options.report}.")
        require_matplotlib("evaluate --report")


def show(page: EvaluationResult, loaded: LoadedNetwork) -> None:
    """Print tables and figures on a terminal."""
    how = operations_counted(page.network)
    for table in (operations_table(page.counts, how), *([deadline_table(page.deadlines)] if page.deadlines else [])):
        print_whole(Text(), table)
    print()
    grid, counts = loaded.network.graph.grid, page.counts
    spikes, delivered = (counts.total()[key] / counts.samples for key in ("spikes", "spikes_delivered"))
    rows = [] if grid is None else [("grid", grid.text(), "")]
    accuracy, *others = headlines(page)
    by_class = zip(page.scores.class_accuracy, loaded.network.class_names, strict=True)
    weakest = sorted((share, name) for share, name in by_class if share is not None)[:3]
    rows += [
        accuracy,
        ("top-5 accuracy", percent(page.scores.top5_accuracy), "the class is among the five highest logits"),
        ("weakest classes", ", ".join(f"{name} {percent(share)}" for share, name in weakest), ""),
        *others,
        ("as the paper counts", f"{counts.sparsity_as_published:.4f}", "with outputs and neurons without input"),
        ("spikes", number(spikes), f"{number(delivered)} after pooling"),
    ]
    lines = [f"{name:<24} {value}" + (f"  ({note})" if note else "") for name, value, note in rows]
    print("\n".join([*lines, *page_decision(page)]))
    print_estimate(priced := headline_energy(page))
    told = small_print(priced)
    print_comparison(page.comparison, told=told)
    if len(page.energy) > 1:
        print_chips(page.energy, told=told)
