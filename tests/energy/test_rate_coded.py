"""Counts and prices of rate-coded networks: a replay of every step in float64, counts by hand, and NeuroBench's."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.data.fixtures import random_images, write_parquet
from tests.energy.energy_cases import counted
from ttfs_triton.commands import energy as main
from ttfs_triton.energy import count_rate_coded, estimate_rate_coded

# A library's base class of neurons, which is recognised by name.
SpikingNeuron = type("SpikingNeuron", (nn.Module,), {"__module__": "snntorch._neurons.neurons"})
BaseNode = type("BaseNode", (nn.Module,), {"__module__": "spikingjelly.activation_based.neuron.base_node"})


class Leaky(SpikingNeuron):
    """Neurons of one step: (spikes, potential) from current and potential."""

    beta = 0.5

    def forward(self, current, potential=0.0):
        potential = self.beta * potential + current
        spikes = (potential > 1).to(current.dtype)
        return spikes, potential - spikes


class IFNode(BaseNode):
    """Neurons of all steps: spikes [T, ...] from currents [T, ...]."""

    step_mode = "m"

    def forward(self, currents):
        potential, found = torch.zeros_like(currents[0]), []
        for current in currents:
            potential = potential + current
            found.append((potential > 1).to(current.dtype))
            potential = potential - found[-1]
        return torch.stack(found)


class Network(nn.Module):
    """Convolutions with stride, padding and groups, a pool, and a readout without neurons; three steps."""

    def __init__(self, neuron):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False)
        self.linear, self.one, self.two = nn.Linear(6 * 2 * 2, 5), neuron(), neuron()
        for layer in (self.conv1, self.conv2):
            nn.init.uniform_(layer.weight, -0.3, 0.8)

    def forward(self, images):
        if isinstance(self.one, IFNode):  # all steps at once, and the first layer once for all of them
            current = self.conv1(images)
            spikes = self.one(current.expand(3, *current.shape)).flatten(0, 1)  # as SpikingJelly's containers do
            spikes = self.two(self.conv2(F.max_pool2d(spikes, 2)).unflatten(0, (3, -1)))
            return self.linear(spikes.flatten(2)).mean(0)
        one = two = total = torch.zeros((), device=images.device)
        for _ in range(3):
            spikes, one = self.one(self.conv1(images), one)
            spikes, two = self.two(self.conv2(F.max_pool2d(spikes, 2)), two)
            total = total + self.linear(spikes.flatten(1))
        return total


def products(layer, inputs):
    """Products of a layer with inputs of 0 and 1: its sums with weights of 1, float64."""
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return int(F.linear(inputs.double(), ones).sum())
    return int(F.conv2d(inputs.double(), ones, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum())


@pytest.mark.parametrize(("neuron", "library"), [(Leaky, "snntorch"), (IFNode, "spikingjelly")])
def test_counts_equal_a_replay_of_every_step(neuron, library, device):
    network, images = Network(neuron).to(device), torch.rand(5, 2, 8, 8).mul(2).sub(1).relu()
    ran = {module: [] for module in network.children()}
    for module in ran:
        module.register_forward_hook(lambda module, inputs, out: ran[module].append((inputs[0], out)))
    labels = torch.arange(5)
    found = count_rate_coded(network, [(images[:3], labels[:3]), (images[3:], labels[3:])], library)
    assert (found.steps, found.counts.samples) == (3, 5)
    assert found.leaky == dict.fromkeys(("conv1", "conv2"), neuron is Leaky)
    layers = {layer.name: layer for layer in found.counts.layers}
    assert {name: (layer.kind, layer.neurons) for name, layer in layers.items()} == {
        "conv1": ("analog", 4 * 8 * 8),
        "conv2": ("spiking", 6 * 2 * 2),
        "linear": ("spiking", 5),
    }
    for name, layer in layers.items():
        module = getattr(network, name)
        read = [inputs for inputs, _ in ran[module]]
        done = sum(products(module, inputs != 0) for inputs in read)
        dense = sum(products(module, torch.ones_like(inputs)) for inputs in read)
        assert (layer.nonzero_macs, layer.dense_macs) == (done, dense)
        assert layer.active_inputs == sum(int((inputs != 0).sum()) for inputs in read)
        macs = (layer.synaptic_operations, layer.analog_macs)
        assert macs == ((done, 0) if layer.kind == "spiking" else (0, dense))
    for name, neurons in (("conv1", "one"), ("conv2", "two")):
        fired = [out[0] if neuron is Leaky else out for _, out in ran[getattr(network, neurons)]]
        assert layers[name].spikes == sum(int(spikes.sum()) for spikes in fired) > 0
    assert all(len(module._forward_hooks) == 1 for module in network.children())
    assert found.correct == int((network(images.to(device)).argmax(1).cpu() == labels).sum())


@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
def test_counts_equal_those_of_neurobench(library):
    workload = pytest.importorskip("neurobench.metrics.workload", reason="NeuroBench is not installed")
    models = pytest.importorskip("neurobench.models")
    kinds = pytest.importorskip("snntorch" if library == "snntorch" else "spikingjelly.activation_based.neuron")
    neuron = kinds.SpikingNeuron if library == "snntorch" else kinds.BaseNode
    network = Network(lambda: kinds.Leaky(beta=0.5) if library == "snntorch" else kinds.IFNode())
    if library == "spikingjelly":  # whose neurons keep their potential
        network.forward = lambda images: sum(
            network.linear(network.two(network.conv2(F.max_pool2d(network.one(network.conv1(images)), 2))).flatten(1))
            for _ in range(3)
        )
    images = torch.rand(5, 2, 8, 8).mul(2).sub(1).relu()
    found = count_rate_coded(network, [images], library)
    model = models.TorchModel(network)
    model.add_activation_module(neuron)
    model.register_hooks()
    for module in (network.one, network.two):
        (module.reset_mem if library == "snntorch" else module.reset)()
    with torch.no_grad():
        model(images)
    theirs, total = workload.SynapticOperations()(model, None, (images, None)), found.counts.total()
    real = sum(layer.nonzero_macs for layer in found.counts.layers if layer.kind == "analog")
    assert theirs == {
        "Effective_MACs": real / 5,
        "Effective_ACs": total["synaptic_operations"] / 5,
        "Dense": total["dense_macs"] / 5,
    }
    updates = 5 * 3 * sum(layer.neurons for layer in found.counts.layers if layer.name in found.leaky)
    assert workload.ActivationSparsity()(model, None, None) == pytest.approx(1 - total["spikes"] / updates)


class Steps(nn.Module):
    """Two steps of the body."""

    def __init__(self, step, **modules):
        super().__init__()
        self.neurons, self.linear = Leaky(), nn.Linear(4, 2)
        for name, module in modules.items():
            setattr(self, name, module)
        self.step = step

    def forward(self, images):
        return sum(self.step(self, images.flatten(1)) for _ in range(2))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda own, x: own.neurons(x @ own.linear.weight.T)[0], r"multiply by weights of modules alone, .*matmul"),
        (lambda own, x: own.neurons(own.linear(x) + own.linear(x))[0], "once a time step; got linear, 4 times in 2"),
        (lambda own, x: own.more(own.neurons(own.neurons(own.linear(x))[0])[0])[0], "got linear 4 times, more 2 times"),
        (lambda own, x: own.neurons(own.linear(x))[0][:, :, None], r"return \[3, classes\]; got .*\[3, 2, 1\]"),
        (lambda own, x: own.linear(x), "update spiking neurons of the library.*got no neurons"),
        (nn.GRU(4, 2), r"have weights in Linear and Conv.*got GRU \(step\)"),
    ],
)
def test_networks_whose_counts_would_be_wrong_are_refused(step, message):
    with pytest.raises(ValueError, match=f"count_rate_coded: model must .*{message}"):
        count_rate_coded(Steps(step, more=Leaky()), [torch.rand(3, 1, 2, 2)], "snntorch")


def test_energy_is_counts_by_hand():
    more = {"last": nn.Linear(2, 3, bias=False), "more": type("Integrate", (Leaky,), {"beta": 1.0})()}
    network = Steps(lambda own, x: own.more(own.last(own.neurons(own.linear(x))[0]))[0], **more)
    nn.init.constant_(network.linear.weight, 1.0)
    nn.init.constant_(network.linear.bias, 0.0)
    images = torch.tensor([[[[0.5, 0.5], [0.5, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])  # two spikes a step, and none
    found = count_rate_coded(network, [images], "snntorch")
    report = estimate_rate_coded(found, "lemaire45:int8", network="two layers")
    assert counted(report, "linear") == {
        "multiply-accumulates": 16,  # 4 · 2 synapses in 2 steps, zeros too
        "weight reads": 16 + 4,  # weights, biases of each run
        "input reads": 8,
        "output writes": 4,
        "addressing": 2 * (4 + 2 + 8),
        "state writes": 2 + 4,  # reset, updates
        "state reads": 4,
        "neuron additions": 4,
        "threshold comparisons": 4,
        "leaks": 4,
    }
    assert counted(report, "last") == {
        "synaptic operations": 2 * 2 * 3 / 2,  # spikes · fan-out, mean of two images
        "weight reads": 6,
        "state reads": 6 + 6,
        "state writes": 6 + 3 + 6,
        "addressing": 6,
        "neuron additions": 6,
        "threshold comparisons": 6,
    }
    assert {term.name for term in report.unpriced} == {"leakage"}
    chip = estimate_rate_coded(found, "loihi", step_us=1.0)
    assert chip.latency_us == 2.0
    assert {term.name for term in chip.unpriced} == {"multiply-accumulates", "leakage", "hops"}
    assert counted(chip)["messages"] == 2  # two spikes in each step of one of two images


def build(in_channels, image_size, classes):
    """The command's network."""
    linear = nn.Linear(in_channels * math.prod(image_size), classes)
    return Steps(lambda own, x: own.neurons(own.linear(x))[0], linear=linear)


FEW = ("--library", "snntorch", "--max-test-samples", "20", "--cpu")


def test_command_shows_both_networks_in_one_table(capsys, caplog, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--module", f"{__file__}:build", *FEW, "--dataset", "sample", "--chip", "loihi", "lemaire45:int8"]
    main("Energy.", [*words, "--ttfs", "bundled:cnn1-mnist", "--steps", "4"])
    assert caplog.messages[-1].startswith("the network's classes are")
    shown = capsys.readouterr().out
    for text in ("an image +snntorch, rate-coded +cnn1-mnist", "time steps +2 +4 a window", "analog MACs +15,680 +0"):
        assert re.search(text, shown), shown
    assert shown.count("energy on") == 2
    assert "not in it" in shown


def test_command_takes_images_of_any_columns(capsys, tmp_path):
    write_parquet(tmp_path / "test.parquet", random_images(12, 1, 28, 28), [0, 1] * 6, label="digit")
    words = ["--module", f"{__file__}:build", *FEW, "--data-dir", str(tmp_path), "--label-column", "digit"]
    main("Energy.", [*words, "--ttfs", "bundled:cnn1-mnist", "--steps", "4"])
    assert "Means over 12 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "images must be named; got none. Add --data-dir or --dataset."),
        (["--dataset", "sample", "--steps", "4"], "steps needs ttfs. Give that, or leave steps out"),
    ],
)
def test_command_refuses_options_before_it_runs_code(words, message, tmp_path, capsys):
    (tmp_path / "rate.py").write_text("raise SystemError('code ran')")
    with pytest.raises(SystemExit):
        main("Energy.", [*FEW, *words, "--module", f"{tmp_path}/rate.py:build"])
    assert message in capsys.readouterr().err
