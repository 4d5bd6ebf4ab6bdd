"""`bench/kernels.py`: what agrees with float64 is timed, by every provider in every pass, and nothing else."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.modules import modules
from ttfs_kernels.checks import Geometry
from ttfs_kernels.triton.problem import Problem, problem_of
from ttfs_triton.nn import Stage, network_graph, networks

bench, kernels, kernels_layers, providers = modules("_bench", "kernels", "_kernels_layers", "_kernels_providers")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FIELDS = {"height": 5, "width": 4, "in_channels": 16, "out_channels": 8, "kernel": [3, 2], "padding": [1, 0]}
SPIKING = ["triton", "torch", "composed"]


def case(network: str, number: str, sigma: float = 1.0) -> Any:
    return kernels.Case(kernels_layers.Layer("c", (network,), FIELDS), number, sigma, 6, DEVICE)


@pytest.mark.parametrize(("network", "number"), [("vgg16.conv2", "fp32"), ("cifarnet.c", "fp16")])
def test_every_provider_is_checked_and_timed_in_every_pass(monkeypatch, network, number):
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "ROUNDS", dict.fromkeys(kernels.ROUNDS, 2))
    names = [*SPIKING, "ann"]
    with kernels_layers.products(number):
        rows = list(case(network, number).rows(names, peak=0.5))
    passes = providers.NORM if network.startswith("cifarnet") else providers.PLAIN
    assert [(row["pass"], row["provider"]) for row in rows] == [(which, name) for which in passes for name in names]
    for row in rows:
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["peak_mib"] > 0
        assert row["share_of_peak"] == pytest.approx(row["tflops"] / 0.5, abs=1e-3)
        assert row["provider"] != "ann" or row["ratio_to_ann"] == 1


def test_command_writes_rows_and_a_picture(run_script, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = "--model cnn1 --op linear --batch-size 2 --providers torch --dtypes fp32"
    rows, about = run_script(kernels, *words.split())
    assert [(row["op"], row["case"], row["provider"]) for row in rows] == 3 * [
        ("linear", "f-800-128-b2", "torch"),
        ("linear", "f-800-128-b2", "ann"),
    ]
    assert "TFLOP/s, " in next(value for key, value in about.items() if key.startswith("peak_"))
    assert (tmp_path / f"kernels-{DEVICE.type}.svg").stat().st_size > 1000
    assert "f-800-128-b2, " in capsys.readouterr().out


def test_times_nothing_that_disagrees(monkeypatch):
    fire, wrong = providers.fire_by_cases, case("vgg16.conv2", "fp32")
    exact = wrong.expected("forward", False)
    monkeypatch.setattr(wrong, "expected", lambda *_: exact)
    monkeypatch.setattr(providers, "fire_by_cases", lambda A, W: 0.99 * fire(A, W))
    with pytest.raises(bench.DisagreementError, match="composed must compute forward of c in fp32 as float64 does"):
        list(wrong.contenders("forward", ["composed"]))


def test_useful_operations_are_those_on_the_map():
    """A convolution of ones counts them."""
    fields = FIELDS | {"stride": [2, 1], "groups": 4, "dilation": [1, 2]}
    problem = kernels_layers.Layer("c", (), fields).problem(2, "fp32", 1.0)
    x = torch.ones(2, problem.in_channels, problem.height, problem.width)
    weight = torch.ones(problem.out_channels, problem.group_inputs, *problem.kernel)
    assert kernels.useful_flops(problem) == 2 * F.conv2d(x, weight, None, *problem.geometry).sum()


def network_layers(model: str) -> dict[str, list[tuple[str, Problem]]]:
    """Names and problems of a network's spiking layers at σ = 1, and of its analog encoder; one image, no memory."""
    with torch.device("meta"):
        network = getattr(networks, model)()
    found: dict[str, list[tuple[str, Problem]]] = {"spiking": [], "analog": []}

    def fire(stage: Stage, x: Tensor, skip: Tensor | None) -> Tensor:
        if stage.kind in found:
            layer, spiking = stage.weighted, stage.kind == "spiking"
            geometry = Geometry(**layer.geometry) if layer.geometry else None
            shapes = tuple(x.shape), tuple(layer.weight.shape)
            found[stage.kind].append((stage.name, problem_of(*shapes, geometry, x.dtype, spiking, False, False)))
        return torch.empty(1, *stage.shape, device="meta")

    network_graph(network).run(torch.empty(1, *network.image_shape, device="meta"), fire)
    return found


def test_shapes_are_those_of_the_networks():
    """Every layer of the networks by its name, and no other; "latency" where it takes that encoder."""
    expected = {}
    for model in ("cnn1", "vgg11", "vgg16", "cifarnet"):
        layers = network_layers(model)
        expected |= {f"{model}.{name}": problem for name, problem in layers["spiking"]}
        expected |= {f"{model}.{name} latency": replace(problem, with_slope=True) for name, problem in layers["analog"]}
    layers = kernels_layers.load(kernels.SHAPES)
    shapes = [(name, layer.problem(1, "fp32", 1.0)) for layer in layers for name in layer.networks]
    assert sorted(shapes, key=repr) == sorted(expected.items(), key=repr)
    assert len({layer.name for layer in layers}) == len(layers) == len(set(expected.values()))
    assert set(kernels.ON_CPU) <= {layer.name for layer in layers}
