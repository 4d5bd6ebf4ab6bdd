"""The measurements of an evaluation: scores, counts, simulations and energies of a network, and one image's spikes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import Progress
from torch import Tensor, nn

from ttfs_triton.chip import Simulation, simulate_at, simulated_run
from ttfs_triton.commands import EvaluationOptions
from ttfs_triton.data.images import ImageData
from ttfs_triton.data.pixels import to_float
from ttfs_triton.energy import (
    Chip,
    Comparison,
    Counts,
    Estimate,
    Run,
    RunOptions,
    compare,
    counting,
    estimate,
    fair_chip,
)
from ttfs_triton.energy.compare import STEPS
from ttfs_triton.evaluate import Evaluation, EvaluationBatches, evaluate
from ttfs_triton.evaluate.deadline import DeadlineRow, deadline_curve, output_spikes
from ttfs_triton.evaluate.load import LoadedNetwork
from ttfs_triton.evaluate.machine import facts
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.nn import Readout, Stage, network_graph
from ttfs_triton.nn.trace import evaluating

MAIN_FILE = "evaluation.json"


@dataclass(frozen=True)
class LayerSpikes:
    """Spikes of one layer for one image; tensors are on the CPU.

    Attributes:
        name: name of the layer; "input" for a latency encoder.
        window: number of the layer's window, from 0; layer l fires from time l on.
        neurons: number of neurons before pooling.
        index: [spikes] int64, indices of the neurons that fired, in memory order.
        time: [spikes] float32, spike times from the image's start, in windows.
    """

    name: str
    window: int
    neurons: int
    index: Tensor
    time: Tensor


@torch.no_grad()
def spikes_of(network: nn.Module, image: Tensor) -> tuple[LayerSpikes, ...]:
    """Spike times of all layers for one image.

    Args:
        network: a network for `network_graph`, on any device. It runs in evaluation mode; its mode is restored.
        image: [channels, height, width], in the form that the network takes.
    Returns:
        One entry per layer, in the order in which layers run; the readout's spikes are on the readout's ramp.
    Raises:
        NetworkError: as `network_graph` raises it.
    """
    graph = network_graph(network, image.shape)
    layers: list[LayerSpikes] = []

    def fire(stage: Stage, arriving: Tensor, skip: Tensor | None) -> Tensor:
        if isinstance(stage.layer, Readout):
            activations = times = stage.layer.decide(arriving).spike_times[0]
        else:
            activations = stage.activations(arriving, skip)
            flat = activations[0].flatten()
            times = torch.where(flat > 0, 1 - flat, torch.inf)
        times = times.float().cpu()
        index = times.isfinite().nonzero().flatten()
        name = "input" if stage.kind == "latency" else stage.name
        layers.append(LayerSpikes(name, stage.window, len(times), index, stage.window + times[index]))
        return activations

    with evaluating(network):
        graph.run(image[None].to(next(network.parameters()).device), fire)
    return tuple(layers)


@dataclass(frozen=True)
class Sample:
    """One image, its spikes and its decision.

    Attributes:
        image: [channels, height, width], in [0, 1].
        spikes: spikes of all layers, from `spikes_of`.
        label, prediction: names of the image's class and of the predicted class.
        class_names: class names of the output neurons, for the first output spike; if empty, numbers are shown.
    """

    image: Tensor
    spikes: tuple[LayerSpikes, ...]
    label: str
    prediction: str
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """All figures of one network on one data set; the page leaves out what is None or empty.

    Attributes:
        title, dataset: title of the page, and name of the data set.
        network: the network's configuration, `NetworkConfig.to_dict()`.
        scores: accuracies and ties.
        counts: counts of the network, from `count`.
        sample: an image for the spike raster.
        energy: one estimate per chip.
        chip: name of the chip whose energy is a headline figure, one of those in `energy`.
        comparison, simulation, deadlines: further analyses.
        facts: how the page was made (versions, device, date, command), in the order shown.
    """

    title: str
    network: Mapping[str, Any]
    dataset: str
    scores: Evaluation
    counts: Counts
    sample: Sample
    energy: tuple[Estimate, ...]
    chip: str
    comparison: Comparison
    facts: Mapping[str, str]
    simulation: Simulation | None = None
    deadlines: tuple[DeadlineRow, ...] = ()


def measure(
    options: EvaluationOptions,
    loaded: LoadedNetwork,
    data: ImageData,
    chips: Sequence[Chip],
    accelerator: Accelerator,
    *,
    others: Sequence[int] = STEPS,
    on_scored: Callable[[Evaluation], None] = lambda scores: None,
) -> EvaluationResult:
    """All figures of an evaluation; `chips` and `data` replace the chips and images that the options name.

    A network without a grid is also simulated at the numbers of time steps in `others`. `on_scored` is called with the
    scores before the simulations begin.
    """
    network, name = loaded.network.to(accelerator.device), loaded.files.name
    batches = EvaluationBatches(data, None, options.batch_size)
    with Progress(transient=True) as bar, counting(network) as counter:
        task = bar.add_task("test images", total=len(data))
        scores = evaluate(network, batches, accelerator, on_batch=lambda images: bar.advance(task, images))
    on_scored(scores)
    counts, grid = counter.counts(), network.graph.grid
    steps = options.steps if options.steps != "network" else 32 if grid is None else grid.time_steps
    wanted, simulations = [steps, *(others if grid is None else ())], list[Simulation]()
    if options.simulation:
        setting = {"gating": options.gating, "faults": options.faults, "seed": options.fault_seed}
        simulations = simulate_at(network, batches, wanted, weight_bits=options.weight_bits, **setting)
    priced = RunOptions(steps, gating=options.gating, step_us=options.step_us)
    run, *more = [simulated_run(simulation, priced) for simulation in simulations] or [Run(counts, priced)]
    fair = fair_chip(run.counts, chips, run.options)
    beside = more if simulations or grid is not None else None  # None: priced by the counts, a bound

    described, graph = loaded.description.network, loaded.network.graph
    told = {"encoder": graph.encoder.kind, "readout": graph.readout.at} if isinstance(described, OwnNetwork) else {}
    return EvaluationResult(
        title=name,
        network=described.to_dict() | told,
        dataset=data.dataset or "a local folder",
        scores=scores,
        counts=counts,
        sample=_sample_of(loaded, data, options.sample),
        energy=tuple(estimate(run.counts, chip, run.options, network=name) for chip in chips),
        chip=fair.name if "all" in options.chip else chips[0].name,
        comparison=compare(run.counts, fair, run.options, network=name, others=beside),
        facts=facts("evaluate", accelerator.device),
        simulation=simulations[0] if simulations else None,
        deadlines=tuple(deadline_curve(output_spikes(network, batches)) if options.deadlines else ()),
    )


def _sample_of(loaded: LoadedNetwork, data: ImageData, number: int) -> Sample:
    """Test image number `number`, with its spikes and its predicted class."""
    network, names = loaded.network.eval(), tuple(loaded.network.class_names)
    image = to_float(data.images_at(torch.tensor([number])))[0]
    with evaluating(network):
        prediction = int(network(image[None].to(next(network.parameters()).device)).argmax())
        spikes = spikes_of(network, image)
    return Sample(image.cpu(), spikes, names[int(data.labels[number])], names[prediction], names)


def figures(
    page: EvaluationResult, loaded: LoadedNetwork, data: ImageData, max_test_samples: int | None
) -> dict[str, Any]:
    """All figures of the evaluation as JSON values."""
    scores = ("images", "accuracy", "top5_accuracy", "first_spike_accuracy", "ties", "no_spike", "class_accuracy")
    return {
        "weights_sha256": loaded.files.sha256,
        "network": page.network,
        "dataset": data.dataset,
        "fingerprint": data.fingerprint,
        "class_names": data.class_names,
        "max_test_samples": max_test_samples,
        **{name: getattr(page.scores, name) for name in scores},
        "sparsity": page.counts.sparsity,
        "counts": page.counts.to_dict(),
        "simulation": None if page.simulation is None else page.simulation.to_dict(),
        "energy": [priced.to_dict() for priced in page.energy],
        "comparison": [priced.to_dict() for priced in page.comparison.estimates],
        "deadlines": {"rows": [asdict(row) for row in page.deadlines]} if page.deadlines else None,
        "about": page.facts,
    }
