"""Counts and energy beside SpikingJelly's counters and the model of Lemaire et al., difference by difference.

    pip install -e '.[peers]'
    python bench/cross_check.py bundled:cnn1-mnist --data-dir MNIST

The network is simulated at --steps; each image's spikes are replayed through SpikingJelly's layers. Its counter of
synaptic operations must find ours. Its implementation of the model of Lemaire et al. (bench/_lemaire.py cites it)
prices integrate-and-fire neurons with these spikes; that model, written down here, must give the same, and then turns
into ours one difference at a time: the last must be what `ttfs_triton.hardware` says. Exit status 1 otherwise. For
networks of unstrided convolutions and fully connected layers behind a latency encoder, with biases, without skips.
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _lemaire
import torch
import tyro
from _lemaire import COMPONENTS, DENSE_STEPS, STEPS, Layer
from _networks import Tested, load_tested
from _record import ROOT, environment, write
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ttfs_triton.hardware import Counts, Estimate, RateCode, RunOptions, dense_ann, estimate, rate_coded, simulate
from ttfs_triton.nn.graph import Stage
from ttfs_triton.nn.weighted import WeightedConv2d

CHIP = "lemaire45:int32"
COMPONENT = {
    "addressing": "addressing",
    "weight reads": "weights",
    "state reads": "states",
    "state writes": "states",
    "input reads": "inputs_outputs",
    "output writes": "inputs_outputs",
}
"""Of the terms of an estimate; all others are operations."""


@dataclasses.dataclass
class Options:
    """Compare counters and models."""

    network: tyro.conf.Positional[str]
    """Folder of a run, or bundled:NAME."""
    data_dir: Path | None = None
    """Local folder of its data set. Default: as it was trained."""
    samples: int = 20
    """Test images."""
    steps: int = 8
    """Time steps a window, and of the integrate-and-fire neurons."""
    output: Path = ROOT / "bench" / "results"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if find_spec("spikingjelly") is None:
        sys.exit("cross_check: must have SpikingJelly. Run: pip install -e '.[peers]'")
    folders = () if options.data_dir is None else (options.data_dir,)
    (tested,) = load_tested("cross_check", (options.network,), folders, options.samples)
    check_supported(tested)
    operations, bridge, missed = compare(tested, options.steps)
    show(operations, bridge)
    about = environment(torch.device("cpu")) | {"spikingjelly": version("spikingjelly"), "chip": CHIP}
    about |= {"network": tested.name, "samples": options.samples, "steps": options.steps}
    for name, rows in (("cross_check-operations", operations), ("cross_check-energy", bridge)):
        for path in write(options.output, name, rows, about):
            print(f"written: {path}")
    for line in missed:
        print(f"missed: {line}")
    sys.exit(int(bool(missed)))


def check_supported(tested: Tested) -> None:
    """Exit with a message unless the network is one that all sides define."""
    for stage in tested.network.graph.stages[1:]:
        layer = stage.weighted
        odd = isinstance(layer, WeightedConv2d) and {*layer.stride, *layer.dilation, layer.groups} != {1}
        if stage.kind not in ("spiking", "readout") or stage.skip is not None or odd or layer.bias is None:
            sys.exit(
                f"cross_check: layers must be plain convolutions or fully connected, with biases; got {stage.name}."
            )
    if tested.network.graph.encoder.kind != "latency":
        sys.exit(f"cross_check: network must have a latency encoder; got {tested.network.graph.encoder.kind}.")


@torch.no_grad()
def compare(tested: Tested, steps: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Rows of operations, rows of energies, and what does not agree."""
    found = simulate(tested.network, tested.batches, steps=steps, keep_spike_times=True)
    assert found.spike_steps is not None
    stages = tested.network.graph.stages[1:]
    remaining = {name: (steps - stamp).float() for name, stamp in found.spike_steps.items()}
    arriving = {stage.name: stage.input.deliver(remaining[stage.input.source or ""]) for stage in stages}
    fired = {name: int((left > 0).sum()) / found.samples for name, left in remaining.items()}
    layers = [layer_of(stage, found.counts, place, fired[stage.name]) for place, stage in enumerate(stages)]
    theirs, spiking_pj, dense_pj = spikingjelly(stages, arriving, remaining, steps)
    operations = [operation_row(layer, theirs[layer.name]) for layer in layers]
    missed = [f"{row['layer']}: synaptic operations" for row in operations if not row["agree"]]

    measured = RateCode(
        steps,
        synaptic_operations={layer.name: layer.operations for layer in layers},
        spikes={layer.name: layer.spikes_out for layer in layers},
    )
    run = RunOptions(steps=steps)
    awake = estimate(found.counts, CHIP, run)
    gated = estimate(found.counts, CHIP, run, gating=True, activity=found.activity)
    bridges = {
        "spiking": (
            [_lemaire.spiking(layers, steps, reading) for reading in _lemaire.readings(tuple(STEPS))],
            ["Lemaire et al., integrate-and-fire neurons with these spikes", *STEPS.values()],
            [
                ("ours, rate-coded: the same figure", rate_coded(found.counts, CHIP, measured, options=run)),
                ("a slope beside the potential, two windows of steps", awake),
                ("neurons sleep before their first input spike and behind their own", gated),
            ],
            spiking_pj,
        ),
        "dense ANN": (
            [_lemaire.dense(layers, reading) for reading in _lemaire.readings(tuple(DENSE_STEPS))],
            ["Lemaire et al., the ANN", *DENSE_STEPS.values()],
            [("ours, dense ANN: the same figure", dense_ann(found.counts, CHIP, options=run))],
            dense_pj,
        ),
    }
    rows: list[dict[str, Any]] = []
    for kind, (models, words, own, reference) in bridges.items():
        parts = [(f"SpikingJelly's {words[0]}", reference), *zip(words, models, strict=True)]
        parts += [(name, components(each)) for name, each in own]
        rows += bridge_rows(kind, parts)
        missed += [f"{kind}: SpikingJelly's {name}" for name in differing(reference, models[0])]
        missed += [f"{kind}: {name} of the library" for name in differing(models[-1], components(own[0][1]))]
    return operations, rows, missed


def layer_of(stage: Stage, counts: Counts, place: int, spikes_out: float) -> Layer:
    """What the model of Lemaire et al. asks of a layer, the place-th with synapses; its spikes are of one sample."""
    found, samples = counts.layers[place], counts.samples
    arriving = counts.input.spikes if place == 0 else counts.layers[place - 1].spikes_delivered
    weight = stage.synapses()[0]
    return Layer(
        name=stage.name,
        convolution=weight.dim() == 4,
        hidden=stage.kind != "readout",
        neurons=found.neurons,
        inputs=found.inputs,
        weights=found.weights,
        biases=found.biases,
        reach=weight[:, 0].numel(),
        taps=weight[0].numel(),
        kernel_channels=weight[:, 0].numel() if weight.dim() == 4 else 0,
        spikes_in=arriving / samples,
        spikes_out=spikes_out,
        operations=found.synaptic_operations / samples,
        synapses=found.synapses,
    )


def spikingjelly(
    stages: Sequence[Stage], arriving: dict[str, Tensor], remaining: dict[str, Tensor], steps: int
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Synaptic operations a sample by layer; pJ by `COMPONENTS` of neurons with these spikes, and of the ANN."""
    from _twin import Twin, train
    from spikingjelly.activation_based.op_counter import (  # pyright: ignore[reportMissingImports]
        DispatchCounterMode,
        SynOpCounter,
        estimate_lemaire_energy,
    )

    samples = len(next(iter(arriving.values())))
    operations = dict.fromkeys(arriving, 0.0)
    spiking_pj = dict.fromkeys(COMPONENTS, 0.0)
    twin = Twin(stages, spiking=True)
    for image in range(samples):
        inputs = [train(arriving[stage.name][image : image + 1], steps) for stage in stages]
        outputs = [train(remaining[stage.name][image : image + 1], steps) for stage in stages]
        add(spiking_pj, estimate_lemaire_energy(twin, (inputs, outputs)).breakdown_pj, samples)
        for stage, weighted, spikes in zip(stages, twin.layers, inputs, strict=True):
            counter = SynOpCounter()
            with DispatchCounterMode([counter]):
                weighted(spikes)
            operations[stage.name] += counter.get_total() / samples
    dense_pj = dict.fromkeys(COMPONENTS, 0.0)
    values = [torch.rand_like(arriving[stage.name][:1]) for stage in stages]  # an ANN's work depends on shapes only
    add(dense_pj, estimate_lemaire_energy(Twin(stages, spiking=False), (values,)).breakdown_pj, 1)
    return operations, spiking_pj, dense_pj


def add(total: dict[str, float], breakdown: dict[str, float], samples: int) -> None:
    names = {"operations": "ops_pj", "addressing": "addressing_pj", "weights": "params_pj"}
    names |= {"states": "potential_pj", "inputs_outputs": "inout_pj"}
    for component, name in names.items():
        total[component] += breakdown[name] / samples


def components(found: Estimate) -> dict[str, float]:
    """Nominal pJ of our estimate by `COMPONENTS`."""
    total = dict.fromkeys(COMPONENTS, 0.0)
    for term in found.terms:
        if term.energy is not None:
            total[COMPONENT.get(term.name, "operations")] += term.energy.nominal
    return total


def differing(one: dict[str, float], other: dict[str, float]) -> list[str]:
    """Components that are not the same, up to rounding."""
    return [name for name in COMPONENTS if not math.isclose(one[name], other[name], rel_tol=1e-9, abs_tol=1e-6)]


def operation_row(layer: Layer, theirs: float) -> dict[str, Any]:
    blind = layer.spikes_in * layer.reach
    return {
        "layer": layer.name,
        "spikes_in": round(layer.spikes_in, 2),
        "ours": round(layer.operations, 2),
        "spikingjelly": round(theirs, 2),
        "agree": math.isclose(layer.operations, theirs, rel_tol=1e-9),
        "kernel_area_a_spike": round(blind, 2),
        "not_there_at_borders": f"{1 - layer.operations / blind:.2%}" if blind else "",
    }


def bridge_rows(kind: str, parts: Sequence[tuple[str, dict[str, float]]]) -> list[dict[str, Any]]:
    """One row a model, with what it changes."""
    rows, before = [], None
    for name, values in parts:
        total = sum(values.values())
        figures = {f"{component}_nj": round(values[component] / 1e3, 3) for component in COMPONENTS}
        change = "" if before is None else round((total - before) / 1e3, 3)
        rows.append({"network": kind, "model": name, **figures, "total_nj": round(total / 1e3, 3), "change_nj": change})
        before = total
    return rows


def show(operations: list[dict[str, Any]], bridge: list[dict[str, Any]]) -> None:
    console = Console(width=160)
    for rows in (operations, bridge):
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*map(str, row.values()))
        console.print(table)


if __name__ == "__main__":
    main()
