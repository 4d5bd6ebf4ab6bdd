"""Comparison of an exported file, run in another program ("there"), with its network in PyTorch ("here")."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ttfs_triton.chip.simulator import simulate
from ttfs_triton.data.pixels import to_float
from ttfs_triton.export.nir_clock import Clock, FirstSpikes, decide, input_frames
from ttfs_triton.export.nir_graph import node_name
from ttfs_triton.export.shared import require
from ttfs_triton.nn.graph import NetworkGraph, Stage, network_graph
from ttfs_triton.nn.models import logits_and_decision
from ttfs_triton.nn.readout import Readout

if TYPE_CHECKING:
    import nir


@dataclass(frozen=True)
class TimeDifference:
    """Differences between one layer's spike times in another program ("there") and in PyTorch ("here"), in windows.

    Attributes:
        layer: name of the layer.
        spikes: number of spikes, over all images, of neurons that fired both there and here.
        mean: mean absolute difference of these spikes' times.
        largest: largest absolute difference.
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
        """Differences of two tensors of spike times, of the same shape; inf for silent neurons."""
        both = torch.isfinite(there) & torch.isfinite(here)
        difference = (there[both] - here[both]).abs()
        mean, largest = (difference.mean().item(), difference.max().item()) if len(difference) else (0.0, 0.0)
        one_sided = (torch.isfinite(there) != torch.isfinite(here)).float().mean().item()
        return cls(layer, int(both.sum()), mean, largest, one_sided, repeated)


@dataclass(frozen=True)
class Comparison:
    """Results of an exported file in another program, compared with its network here.

    Attributes:
        program: name and version of the other program.
        times: differences of the compared layers; the last is the output.
        logits: largest absolute difference of logits; None if the file has none.
        predictions: [N] int64, classes there; −1 for none.
        decided_here: [N] int64, classes here.
        ties: number of images whose earliest output spikes share a time there.
        different: number of images whose class here is not among the classes that decide there.
        silent: number of images without an output spike there and here, where the highest potential decides.
    """

    program: str
    times: tuple[TimeDifference, ...]
    logits: float | None
    predictions: Tensor
    decided_here: Tensor
    different: int
    ties: int = 0
    silent: int = 0

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.predictions)

    @property
    def same_decisions(self) -> int:
        """Number of images that have the same class there and here."""
        return int((self.predictions == self.decided_here).sum())


@torch.no_grad()
def compare_onnx(model: bytes, network: nn.Module, images: Tensor) -> Comparison:
    """Run an ONNX model in onnxruntime, on the CPU, and compare it with its network.

    Args:
        model: serialised result of `to_onnx`.
        network: the exported network, on the CPU, in evaluation mode.
        images: [N, channels, height, width] float32.
    """
    runtime = require("compare_onnx", "onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if output.name in ("logits", "spike_times")]
    graph, runs = network_graph(network, images.shape[1:]), []
    for part in images.split(250):
        logits, decision = logits_and_decision(network, graph.readout, part)
        there = map(torch.from_numpy, session.run(names, {"images": part.numpy()}))
        runs.append((logits, decision.spike_times, *there))
    logits, spike_times, logits_there, *times_there = map(torch.cat, zip(*runs, strict=True))
    layer, predictions, decided = graph.stages[-1].name, logits_there.argmax(1), logits.argmax(1)
    return Comparison(
        program=f"onnxruntime {runtime.__version__}",
        times=tuple(TimeDifference.of(layer, times, spike_times) for times in times_there),
        logits=(logits_there - logits).abs().max().item(),
        predictions=predictions,
        decided_here=decided,
        different=int((predictions != decided).sum()),
    )


def compile_c(source: str, folder: Path, *flags: str) -> Path:
    """Compile an exported C file into a program that reads images and prints classes, in a folder; returns its path."""
    file, program = folder / "net.c", folder / "net"
    file.write_text(source, encoding="ascii")
    if (compiler := shutil.which("cc")) is None:
        raise RuntimeError("compile_c: a C compiler must be installed as cc; got none. Install gcc or clang.")
    command = [compiler, "-std=c99", "-O3", "-DTTFS_MAIN", *flags, str(file), "-o", str(program)]
    if status := subprocess.run(command).returncode:
        raise RuntimeError(f"compile_c: cc must compile net.c; got exit status {status}. Read what cc says above.")
    return program


def raw_bytes(pixels: Tensor) -> bytes:
    """Images [N, C, height, width] uint8 as exported C files read them: height, width, channels."""
    return pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes()


def compare_c(source: str, network: nn.Module, images: Tensor, **grid: Any) -> Comparison:
    """Compile an exported C file by the machine's compiler, run it, and compare its classes with those of `simulate`.

    Args:
        source: result of `to_c`.
        network: the exported network, on the CPU.
        images: [N, channels, height, width] float32 in [0, 1]; rounded to 8 bits.
        grid: `steps` and `weight_bits` with which `source` was made.
    Raises:
        RuntimeError: there is no C compiler, or it fails, or its program does.
    """
    pixels = (images * 255).round().to(torch.uint8)
    with TemporaryDirectory() as folder:
        program = compile_c(source, Path(folder))
        done = subprocess.run([program], input=raw_bytes(pixels), capture_output=True)
    if done.returncode:
        rule = f"the compiled program must end with status 0; got {done.returncode}"
        raise RuntimeError(f"compare_c: {rule}. Try another C compiler as cc.")
    here = simulate(network, to_float(pixels).split(250), **grid).predictions
    there = torch.tensor([*map(int, done.stdout.split())])
    return Comparison("compiled C", (), None, there, here, different=int((there != here).sum()))


@torch.no_grad()
def compare_nir(graph: nir.NIRGraph, network: nn.Module, images: Tensor) -> Comparison:
    """Run a NIR graph in snnTorch, by snnTorch's importer, on the CPU, and compare it with its network.

    Args:
        graph: result of `to_nir`, also after it was written to a file and read again.
        network, images: see `compare_onnx`.
    """
    require("compare_nir", "nirtorch", "nir")
    snntorch = require("compare_nir", "snntorch", "nir")
    ours = network_graph(network, images.shape[1:])
    runs = [_run(graph, ours, part) for part in images.split(50)]
    decisions, *layers = (tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*runs, strict=True))
    predictions, decided, ties, earliest, silent = decisions
    times = (
        TimeDifference.of(stage.name, there, here, int((count > 1).sum()))
        for stage, (there, here, count) in zip(ours.weighted, layers, strict=True)
    )
    program, different = f"snnTorch {snntorch.__version__}", int((~(earliest | silent)).sum())
    return Comparison(program, tuple(times), None, predictions, decided, different, int(ties.sum()), int(silent.sum()))


def _run(graph: nir.NIRGraph, ours: NetworkGraph, images: Tensor) -> list[tuple[Tensor, ...]]:
    """Results for images that run together: a tuple of decisions, then one tuple per layer.

    Decisions are classes there, classes here, ties there, whether the class here is among the earliest there, and
    whether no output neuron fires there and here. A layer's tuple has its spike times there, its spike times here, and
    how often its neurons fired there.
    """
    module, clock = import_into_snntorch(graph), Clock.from_metadata(graph.metadata)
    first = {stage.name: FirstSpikes() for stage in ours.weighted}
    for name, seen in first.items():
        neurons = module.get_submodule(f"{node_name(name)}_neuron")
        neurons.register_forward_hook(lambda _, __, spikes, seen=seen: seen.update(spikes))
    output = (module(frame)[0] for frame in input_frames(images, ours.encoder.layer, clock))
    decision, here = decide(output, clock), dict[str, Tensor]()

    def fire(stage: Stage, arriving: Tensor, skip: Tensor | None) -> Tensor:
        if isinstance(stage.layer, Readout):
            decided = stage.layer.decide(arriving)
            here[stage.name] = decided.spike_times
            return decided.prediction
        activations = stage.activations(arriving, skip)
        here[stage.name] = torch.where(activations > 0, 1 - activations, torch.inf)
        return activations

    expected = ours.run(images, fire)
    layers = [
        (first[stage.name].times(clock, clock.window_of(stage)), here[stage.name], first[stage.name].count)
        for stage in ours.weighted
    ]
    times = decision.spike_times
    earliest = (times.gather(1, expected[:, None])[:, 0] == times.min(1).values) & ~decision.no_spike
    silent = decision.no_spike & layers[-1][1].isinf().all(1)
    return [(decision.prediction, expected, decision.tie, earliest, silent), *layers]


def import_into_snntorch(graph: nir.NIRGraph) -> nn.Module:
    """The graph as a module that snnTorch's importer makes; a call of the module is a step."""
    module = require("import_into_snntorch", "snntorch.import_nir", "nir")
    with contextlib.redirect_stdout(io.StringIO()):  # the importer prints messages
        return module.import_from_nir(graph).eval()
