"""The measurements of an evaluation: scores, counts, simulations and energies of a network on test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import Accelerator
from rich.progress import Progress

from ttfs_triton.chip import Simulation, simulate_at, simulated_run
from ttfs_triton.commands.evaluate import EvaluationOptions
from ttfs_triton.data.images import ImageData
from ttfs_triton.energy import Chip, Run, RunOptions, compare, counting, estimate, fair_chip
from ttfs_triton.energy.compare import STEPS
from ttfs_triton.evaluate import Evaluation, EvaluationBatches, evaluate
from ttfs_triton.evaluate.deadline import deadline_curve, output_spikes
from ttfs_triton.evaluate.load import LoadedNetwork
from ttfs_triton.evaluate.output import SCORES, facts, network_facts, sample_of
from ttfs_triton.evaluate.result import EvaluationResult, PageData

Result = TypeVar("Result")


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
    """All figures of an evaluation.

    Args:
        options: settings; `chip` and the images that the options name are ignored.
        loaded, data, chips: the network, the test images, and the chips to price on.
        accelerator: for the device.
        failed: if an analysis fails, gets its name and the reason.
        others: time steps at which a network without a grid is also simulated.
        on_scored: called with the scores before the simulations begin.
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
    same = ("gating", "step_us", "latency_us", "clock_mhz", "hops_per_spike")
    priced = RunOptions(steps, **{name: getattr(options, name) for name in same})
    own, *more = [simulated_run(each, priced) for each in simulations] or [Run(counts, priced)]
    fair = fair_chip(own.counts, chips, own.options)
    beside = more if simulations or grid is not None else None  # None: priced by the counts, a bound

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
