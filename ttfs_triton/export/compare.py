"""What an exported file computes in another program, beside what the network computes here."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ttfs_triton.export.drive import FirstSpikes, decide, input_frames
from ttfs_triton.export.nir_clock import Clock
from ttfs_triton.export.nir_graph import node_name
from ttfs_triton.export.shared import require
from ttfs_triton.nn.decision import logits_and_decision
from ttfs_triton.nn.graph import NetworkGraph, Stage
from ttfs_triton.nn.readout import Readout
from ttfs_triton.nn.trace import network_graph

if TYPE_CHECKING:
    import nir


@dataclass(frozen=True)
class TimeDifference:
    """Spike times of one layer, there and here; times in windows.

    Attributes:
        layer: its name.
        spikes: neurons times images that fired in both.
        mean: mean absolute difference of their spike times.
        largest: the largest.
        one_sided: share of neurons that fired there or here, but not in both.
        repeated: neurons that fired more than once there.
    """

    layer: str
    spikes: int
    mean: float
    largest: float
    one_sided: float
    repeated: int = 0

    @classmethod
    def of(cls, layer: str, there: Tensor, here: Tensor, repeated: int = 0) -> TimeDifference:
        """From spike times of the same shape, inf for silent neurons."""
        both = torch.isfinite(there) & torch.isfinite(here)
        difference = (there[both] - here[both]).abs()
        mean, largest = (difference.mean().item(), difference.max().item()) if len(difference) else (0.0, 0.0)
        one_sided = (torch.isfinite(there) != torch.isfinite(here)).float().mean().item()
        return cls(layer, int(both.sum()), mean, largest, one_sided, repeated)


@dataclass(frozen=True)
class Comparison:
    """A file in another program, and the network here.

    Attributes:
        program: name and version of the other one.
        images: number of images.
        times: of each layer compared; the last is the output.
        logits: largest absolute difference of logits; None if the file has none.
        same_decisions: images that both give the same class.
        predictions: [N] int64, classes there; −1 for none.
        decided_here: [N] int64, classes here.
        ties: images whose earliest output spikes share a time there.
    """

    program: str
    images: int
    times: tuple[TimeDifference, ...]
    logits: float | None
    same_decisions: int
    predictions: Tensor
    decided_here: Tensor
    ties: int = 0


@torch.no_grad()
def compare_onnx(model: bytes, network: nn.Module, images: Tensor, *, batch_size: int = 250) -> Comparison:
    """Run a model in onnxruntime on the CPU.

    Args:
        model: as `to_onnx` gave it, serialised.
        network: on the CPU, in evaluation mode.
        images: [N, channels, height, width] float32.
        batch_size: images that run together.
    Raises:
        RuntimeError: onnxruntime is not installed.
    """
    runtime = require("compare_onnx", "onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    graph = network_graph(network, images.shape[1:])
    spiking = "spike_times" in names
    there: dict[str, list[Tensor]] = {"logits": [], "spike_times": []}
    here: dict[str, list[Tensor]] = {"logits": [], "spike_times": []}
    for part in images.split(batch_size):
        for name, values in zip(names, session.run(None, {"images": part.numpy()}), strict=True):
            if name in there:
                there[name].append(torch.from_numpy(values))
        computed, decision = logits_and_decision(network, graph.readout, part)
        here["logits"].append(computed)
        here["spike_times"].append(decision.spike_times)
    logits, expected = torch.cat(there["logits"]), torch.cat(here["logits"])
    times: tuple[TimeDifference, ...] = ()
    if spiking:
        times = (
            TimeDifference.of(graph.stages[-1].name, torch.cat(there["spike_times"]), torch.cat(here["spike_times"])),
        )
    predictions, decided = logits.argmax(1), expected.argmax(1)
    return Comparison(
        program=f"onnxruntime {runtime.__version__}",
        images=len(images),
        times=times,
        logits=(logits - expected).abs().max().item(),
        same_decisions=int((predictions == decided).sum()),
        predictions=predictions,
        decided_here=decided,
    )


@torch.no_grad()
def compare_nir(graph: nir.NIRGraph, network: nn.Module, images: Tensor, *, batch_size: int = 50) -> Comparison:
    """Run a graph in snnTorch as its own importer makes it, on the CPU.

    Args:
        graph: as `to_nir` gave it, or read from a file.
        network: on the CPU, in evaluation mode.
        images: [N, channels, height, width] float32.
        batch_size: images that run together.
    Raises:
        RuntimeError: snnTorch is not installed.
    """
    require("compare_nir", "nirtorch", "nir")
    snntorch = require("compare_nir", "snntorch", "nir")
    clock = Clock.from_metadata(graph.metadata)
    ours = network_graph(network, images.shape[1:])
    runs = [_run(graph, ours, part, clock) for part in images.split(batch_size)]
    differences = []
    for name in (stage.name for stage in ours.weighted):
        there, here = torch.cat([run[name][0] for run in runs]), torch.cat([run[name][1] for run in runs])
        differences.append(TimeDifference.of(name, there, here, sum(run[name][2] for run in runs)))
    decisions = torch.cat([run["decision"][0] for run in runs])
    decided = torch.cat([run["decision"][1] for run in runs])
    return Comparison(
        program=f"snnTorch {snntorch.__version__}",
        images=len(images),
        times=tuple(differences),
        logits=None,
        same_decisions=int((decisions == decided).sum()),
        predictions=decisions,
        decided_here=decided,
        ties=sum(run["decision"][2] for run in runs),
    )


def _run(
    graph: nir.NIRGraph, ours: NetworkGraph, images: Tensor, clock: Clock
) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Of each layer: spike times there, here, and repeated spikes; "decision": classes there, here, and ties."""
    module = import_into_snntorch(graph)
    first = {stage.name: FirstSpikes() for stage in ours.weighted}
    for name, recorder in first.items():
        module.get_submodule(f"{node_name(name)}_neuron").register_forward_hook(_recorder(recorder))
    output = (module(frame)[0] for frame in input_frames(images, ours.encoder.layer, clock))
    decision, here = decide(output, clock), dict[str, Tensor]()

    def fire(stage: Stage, arriving: Tensor, skip: Tensor | None) -> Tensor:
        if isinstance(stage.layer, Readout):
            here[stage.name] = stage.layer.decide(arriving).spike_times
            return stage.layer.decide(arriving).prediction
        activations = stage.activations(arriving, skip)
        here[stage.name] = torch.where(activations > 0, 1 - activations, torch.inf)
        return activations

    expected = ours.run(images, fire)
    found: dict[str, tuple[Tensor, Tensor, int]] = {
        "decision": (decision.prediction, expected, int(decision.tie.sum()))
    }
    for stage in ours.weighted:
        recorder = first[stage.name]
        assert recorder.count is not None, "the run is over"
        times = recorder.times(clock, clock.window_of(stage))
        found[stage.name] = times, here[stage.name], int((recorder.count > 1).sum())
    return found


def _recorder(first: FirstSpikes) -> Any:
    def record(module: nn.Module, inputs: Any, spikes: Tensor) -> None:
        first.update(spikes)

    return record


def import_into_snntorch(graph: nir.NIRGraph) -> nn.Module:
    """The graph as snnTorch's importer makes it; each call of the module is a step."""
    module = require("import_into_snntorch", "snntorch.import_nir", "nir")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it looks for
        return module.import_from_nir(graph).eval()
