"""The command `ttfs evaluate`: scores, counts, simulates and prices a network, then prints and writes the figures."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from rich.progress import Progress

from ttfs_triton.chip import Simulation, simulate_at, simulated_run
from ttfs_triton.commands.evaluate import EvaluationOptions
from ttfs_triton.data.images import ImageData
from ttfs_triton.energy import Chip, Run, RunOptions, available_chips, compare, counting, estimate, fair_chip, load_chip
from ttfs_triton.energy.compare import FAIR_CHIP, STEPS
from ttfs_triton.evaluate import EvaluationBatches, evaluate, layer_table
from ttfs_triton.evaluate.deadline import deadline_curve, output_spikes
from ttfs_triton.evaluate.load import LoadedNetwork, load_network, load_test_images
from ttfs_triton.evaluate.output import (
    SCORES,
    check_output,
    facts,
    network_facts,
    sample_of,
    write_output,
)
from ttfs_triton.evaluate.page import headlines, page_decision
from ttfs_triton.evaluate.result import EvaluationResult, PageData
from ttfs_triton.evaluate.tables import deadline_table, print_chips, print_comparison, print_estimate, small_print
from ttfs_triton.table import print_whole
from ttfs_triton.wording import number

Result = TypeVar("Result")


def run(options: EvaluationOptions) -> EvaluationResult:
    """Evaluate a network as the options say, print tables and write files; returns the evaluation."""
    check_output(options)
    if options.faults and not options.simulation:
        raise ValueError(f"evaluate: faults must be simulated; got {options.faults.text()} with --no-simulation.")
    simulated, faulty, shown = options.simulation, bool(options.faults), options.report is not None
    needs = ("weight_bits", "a simulation", simulated), ("fault_seed", "faults", faulty), ("sample", "--report", shown)
    for name, needed, there in needs:
        value = getattr(options, name)
        if not there and value != EvaluationOptions.model_fields[name].default:
            raise ValueError(f"evaluate: {name} must go with {needed}; got {value} without. Leave it out.")
    loaded = load_network(options.model, options.network)
    every = (FAIR_CHIP, *available_chips())  # ANNs are compared on the first chip that prices them
    named = [each for name in options.chip for each in (every if name == "all" else [name])]
    chips = [load_chip(name) for name in dict.fromkeys(named)]
    accelerator = Accelerator(cpu=options.cpu or not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        raise ValueError("evaluate: must run in one process; got several. Start `ttfs evaluate` without a launcher.")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        where = {name: getattr(options, name) for name in ("dataset", "data_dir", "image_column", "label_column")}
        data = load_test_images(loaded, **where, max_samples=options.max_test_samples, progress=True)
    if options.sample >= len(data):
        raise ValueError(f"evaluate: sample must be below {len(data)}, the number of images; got {options.sample}.")
    for folder in (options.output_dir, options.report and options.report.parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)  # an unusable folder is noticed before the network runs
    failed: dict[str, str] = {}
    found = _find(options, loaded, data, chips, accelerator, failed)
    show(found)
    for path in write_output(options, found):
        print(f"written: {path}")
    if failed:
        lines = "\n".join(f"  {name}: {why}" for name, why in failed.items())
        raise RuntimeError(f"evaluate: every analysis must succeed; these failed, the others are done:\n{lines}")
    return found


def _find(
    options: EvaluationOptions,
    loaded: LoadedNetwork,
    data: ImageData,
    chips: list[Chip],
    accelerator: Accelerator,
    failed: dict[str, str],
) -> EvaluationResult:
    """All figures of the evaluation. If an analysis fails, its name and the reason go into `failed`."""

    def attempt(name: str, asked: bool, analysis: Callable[[], Result], otherwise: Result) -> Result:
        try:
            return analysis() if asked else otherwise
        except (ValueError, RuntimeError) as error:
            failed[name] = str(error)
            return otherwise

    network, name = loaded.network.to(accelerator.device), loaded.files.name
    batches = EvaluationBatches(data, None, options.batch_size)
    with Progress(transient=True) as bar, counting(network) as counter:
        task = bar.add_task("test images", total=len(data))
        evaluation = evaluate(network, batches, accelerator, on_batch=lambda images: bar.advance(task, images))
    # Shown now: simulations take minutes.
    title = f"{data.name}, {data.split}: {evaluation.images:,} images, {evaluation.accuracy:.2%} right"
    print_whole(layer_table(evaluation.layers, title))
    counts, grid = counter.counts(), network.graph.grid
    steps = options.steps
    if steps == "network":
        steps = 32 if grid is None else grid.time_steps
    wanted = [steps, *(STEPS if grid is None else ())]
    setting = {"gating": options.gating, "faults": options.faults, "seed": options.fault_seed}
    simulations = attempt(
        "simulation",
        options.simulation,
        lambda: simulate_at(network, batches, wanted, weight_bits=options.weight_bits, **setting),
        list[Simulation](),
    )
    same = ("gating", "step_us", "latency_us", "clock_mhz", "hops_per_spike")
    priced = RunOptions(steps, **{name: getattr(options, name) for name in same})
    own, *others = [simulated_run(each, priced) for each in simulations] or [Run(counts, priced)]
    fair = fair_chip(own.counts, chips, own.options)
    beside = others if simulations or grid is not None else None  # None: priced by the counts, a bound

    page = PageData(
        title=name,
        network=network_facts(loaded),
        dataset=data.dataset or "a local folder",
        **{name: getattr(evaluation, name) for name in SCORES},
        counts=counts,
        sample=attempt("sample", options.report is not None, lambda: sample_of(loaded, data, options.sample), None),
        energy=tuple(estimate(own.counts, chip, own.options, network=name) for chip in chips),
        chip=fair.name if "all" in options.chip else chips[0].name,
        comparison=compare(own.counts, fair, own.options, network=name, others=beside),
        simulation=simulations[0] if simulations else None,
        deadlines=attempt(
            "deadlines", options.deadlines, lambda: tuple(deadline_curve(output_spikes(network, batches))), ()
        ),
        facts=facts("evaluate", accelerator.device),
    )
    return EvaluationResult(loaded, data, page)


def show(found: EvaluationResult) -> None:
    """Print tables and figures on a terminal."""
    page = found.page
    if page.deadlines:
        print_whole(deadline_table(page.deadlines))
    print("\n".join([*_lines(found), *page_decision(page)]))
    assert page.headline_energy is not None, "at least one chip is always priced"
    assert page.comparison is not None, "`_find` always makes one"
    print_estimate(page.headline_energy)
    told = small_print(page.headline_energy)
    print_comparison(page.comparison, told=told)
    if len(page.energy) > 1:
        print_chips(page.energy, told=told)


def _lines(found: EvaluationResult) -> list[str]:
    """Lines with the grid, the page's headline figures and the counts."""
    page, grid = found.page, found.loaded.network.graph.grid
    samples, total, simulation = page.counts.samples, page.counts.total(), page.simulation
    operations, dense = (total[key] / samples for key in ("synaptic_operations", "dense_macs"))
    rows = [("grid", grid.text(), "")] if grid is not None else []
    rows += headlines(page)
    rows += [
        ("as the paper counts", f"{page.counts.sparsity_as_published:.4f}", "with outputs and neurons without input"),
        ("spikes", number(total["spikes"] / samples), f"{number(total['spikes_delivered'] / samples)} after pooling"),
        ("synaptic operations", number(operations), f"of {number(dense)} in the dense ANN"),
    ]
    if total["analog_macs"]:
        rows.append(("analog multiplications", number(total["analog_macs"] / samples), "in the first layer"))
    if simulation is not None:
        simulated = simulation.counts.total()["synaptic_operations"] / simulation.samples
        rows.append(("  as simulated", number(simulated), "priced in the energies below"))
    return [f"{name:<24} {value}" + (f"  ({note})" if note else "") for name, value, note in rows]
