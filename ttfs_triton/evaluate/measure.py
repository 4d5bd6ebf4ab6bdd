"""The measurements of an evaluation: scores, counts, simulations and energies of a network on test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from rich.progress import Progress

from ttfs_triton.chip import Simulation, simulate_at, simulated_run
from ttfs_triton.commands import EvaluationOptions
from ttfs_triton.data.images import ImageData
from ttfs_triton.data.pixels import to_float
from ttfs_triton.energy import Chip, Run, RunOptions, compare, counting, estimate, fair_chip
from ttfs_triton.energy.compare import STEPS
from ttfs_triton.evaluate import Evaluation, EvaluationBatches, evaluate
from ttfs_triton.evaluate.deadline import deadline_curve, output_spikes
from ttfs_triton.evaluate.load import LoadedNetwork
from ttfs_triton.evaluate.machine import facts
from ttfs_triton.evaluate.result import EvaluationResult, Sample, spikes_of
from ttfs_triton.model.own_network import OwnNetwork

Result = TypeVar("Result")
MAIN_FILE = "evaluation.json"
SCORES = ("images", "accuracy", "first_spike_accuracy", "ties", "no_spike")
"""Figures of an `Evaluation` that the page and `MAIN_FILE` have under the same names."""


def measure(
    options: EvaluationOptions,
    loaded: LoadedNetwork,
    data: ImageData,
    chips: Sequence[Chip],
    accelerator: Accelerator,
    failed: dict[str, str],
    *,
    others: Sequence[int] = STEPS,
    on_scored: Callable[[Evaluation], None] = lambda scores: None,
) -> EvaluationResult:
    """All figures of an evaluation. The options' chips and images do not count, those of `chips` and `data` do.

    `failed` gets the names of analyses that fail, and the reasons. A network without a grid is also simulated at
    `others`, time steps a window. `on_scored` is called with the scores before the simulations begin.
    """

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
    on_scored(evaluation)
    counts, grid = counter.counts(), network.graph.grid
    steps = options.steps
    if steps == "network":
        steps = 32 if grid is None else grid.time_steps
    wanted = [steps, *(others if grid is None else ())]
    setting = {"gating": options.gating, "faults": options.faults, "seed": options.fault_seed}
    simulations = attempt(
        "simulation",
        options.simulation,
        lambda: simulate_at(network, batches, wanted, weight_bits=options.weight_bits, **setting),
        list[Simulation](),
    )
    priced = RunOptions(steps, gating=options.gating, step_us=options.step_us)
    own, *more = [simulated_run(each, priced) for each in simulations] or [Run(counts, priced)]
    fair = fair_chip(own.counts, chips, own.options)
    beside = more if simulations or grid is not None else None  # None: priced by the counts, a bound

    return EvaluationResult(
        title=name,
        network=_network_facts(loaded),
        dataset=data.dataset or "a local folder",
        **{name: getattr(evaluation, name) for name in SCORES},
        counts=counts,
        sample=attempt("sample", options.report is not None, lambda: _sample_of(loaded, data, options.sample), None),
        energy=tuple(estimate(own.counts, chip, own.options, network=name) for chip in chips),
        chip=fair.name if "all" in options.chip else chips[0].name,
        comparison=compare(own.counts, fair, own.options, network=name, others=beside),
        simulation=simulations[0] if simulations else None,
        deadlines=attempt(
            "deadlines", options.deadlines, lambda: tuple(deadline_curve(output_spikes(network, batches))), ()
        ),
        facts=facts("evaluate", accelerator.device),
    )


def _sample_of(loaded: LoadedNetwork, data: ImageData, number: int) -> Sample:
    """Test image number `number` with its spikes and its predicted class, for the report."""
    network, names = loaded.network.eval(), tuple(loaded.network.class_names)
    image = to_float(data.images_at(torch.tensor([number])))[0]
    prediction = int(network(image[None].to(next(network.parameters()).device)).argmax())
    spikes = spikes_of(network, image)
    return Sample(image.cpu(), spikes, names[int(data.labels[number])], names[prediction], names)


def _network_facts(loaded: LoadedNetwork) -> dict[str, Any]:
    """The network's configuration; for a network from the user's own code also its encoder and readout."""
    network, graph = loaded.description.network, loaded.network.graph
    if isinstance(network, OwnNetwork):
        return network.to_dict() | {"encoder": graph.encoder.kind, "readout": graph.readout.at}
    return network.to_dict()


def figures(
    page: EvaluationResult, loaded: LoadedNetwork, data: ImageData, max_test_samples: int | None
) -> dict[str, Any]:
    """All figures of the evaluation as JSON values."""
    return {
        "weights_sha256": loaded.files.sha256,
        "network": page.network,
        "dataset": data.dataset,
        "fingerprint": data.fingerprint,
        "class_names": data.class_names,
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
