"""Counts and prices of rate-coded networks: a replay of every step in float64, counts by hand, and NeuroBench's."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
    """Convolutions with stride, padding and groups, a pool, and a readout without neurons; records what layers read."""

    def __init__(self, neuron, steps=3):
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.read, self.fired = steps, [], []
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False)
        self.linear, self.one, self.two = nn.Linear(6 * 2 * 2, 5), neuron(), neuron()
        for layer in (self.conv1, self.conv2):
            nn.init.uniform_(layer.weight, -0.3, 0.8)

    def apply_to(self, name, inputs):
        self.read.append((name, inputs))
        layer = getattr(self, name)
        if inputs.dim() < 5 or name == "linear":
            return layer(inputs)
        return layer(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])  # as SpikingJelly's containers do

    def forward(self, images):
        return (self.loop if isinstance(self.one, Leaky) else self.at_once)(images)

    def loop(self, images):
        one = two = total = torch.zeros((), device=images.device)
        for _ in range(self.steps):
            spikes, one = self.one(self.apply_to("conv1", images), one)
            self.fired.append(("conv1", spikes))
            spikes, two = self.two(self.apply_to("conv2", F.max_pool2d(spikes, 2)), two)
            self.fired.append(("conv2", spikes))
            total = total + self.apply_to("linear", spikes.flatten(1))
        return total

    def at_once(self, images):
        current = self.apply_to("conv1", images)  # once for all steps
        spikes = self.one(current.expand(self.steps, *current.shape))
        self.fired.append(("conv1", spikes))
        pooled = F.max_pool2d(spikes.flatten(0, 1), 2).unflatten(0, spikes.shape[:2])
        spikes = self.two(self.apply_to("conv2", pooled))
        self.fired.append(("conv2", spikes))
        return self.apply_to("linear", spikes.flatten(2)).mean(0)


def products(layer, inputs):
    """Products of a layer with inputs of 0 and 1: its sums with weights of 1, float64."""
    ones = torch.ones_like(layer.weight, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return int(F.linear(inputs.double(), ones).sum())
    flat = inputs.reshape(-1, *inputs.shape[-3:]).double()
    return int(F.conv2d(flat, ones, None, layer.stride, layer.padding, layer.dilation, layer.groups).sum())


@pytest.mark.parametrize(("neuron", "library"), [(Leaky, "snntorch"), (IFNode, "spikingjelly")])
def test_counts_equal_a_replay_of_every_step(neuron, library, device):
    network, images = Network(neuron).to(device), torch.rand(5, 2, 8, 8).mul(2).sub(1).relu()
    labels = torch.arange(5)
    found = count_rate_coded(network, [(images[:3], labels[:3]), (images[3:], labels[3:])], library)
    assert (found.steps, found.counts.samples) == (3, 5)
    assert found.leaky == dict.fromkeys(("conv1", "conv2"), neuron is Leaky)
    layers = {layer.name: layer for layer in found.counts.layers}
    assert [(name, layer.kind, layer.neurons) for name, layer in layers.items()] == [
        ("conv1", "analog", 4 * 8 * 8),
        ("conv2", "spiking", 6 * 2 * 2),
        ("linear", "spiking", 5),
    ]
    for name, layer in layers.items():
        read = [(inputs != 0, getattr(network, name)) for key, inputs in network.read if key == name]
        assert layer.nonzero_macs == sum(products(module, active) for active, module in read)
        assert layer.dense_macs == sum(products(module, torch.ones_like(active)) for active, module in read)
        assert layer.active_inputs == sum(int(active.sum()) for active, _ in read)
        assert layer.spikes == sum(int(spikes.sum()) for key, spikes in network.fired if key == name)
        spiking = layer.kind == "spiking"
        assert (layer.synaptic_operations, layer.analog_macs) == (
            (layer.nonzero_macs, 0) if spiking else (0, layer.dense_macs)
        )
    assert all(layers[name].spikes > 0 for name in ("conv1", "conv2"))
    outputs = Network(neuron).to(device)(images.to(device)).argmax(1).cpu()
    assert found.correct == int((outputs == labels).sum())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Steps(nn.Module):
    """Two steps of the body; what `build` adds runs behind it."""

    def __init__(self, step, **modules):
        super().__init__()
        self.neurons, self.linear = Leaky(), nn.Linear(4, 2)
        for name, module in modules.items():
            setattr(self, name, module)
        self.step = step

    def forward(self, images):
        return sum(self.step(self, images.flatten(1)) for _ in range(2))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "update spiking neurons of the library.*got no neurons"),
        (Steps(None, recurrent=nn.GRU(4, 2)), r"weights in Linear and Conv.*got GRU \(recurrent\)"),
        (
            Steps(lambda own, x: own.neurons(F.linear(x, 2 * own.linear.weight))[0]),
            r"multiply by weights of modules alone, .*got linear\(\)",
        ),
        (
            Steps(lambda own, x: own.neurons(x @ own.linear.weight.T)[0]),
            r"multiply by weights of modules alone, .*got (matmul|__matmul__)\(\)",
        ),
        (
            Steps(lambda own, x: own.neurons(own.linear(x) + own.linear(x))[0]),
            "run each layer once, or once a time step; got linear, 4 times in 2 steps",
        ),
        (
            Steps(lambda own, x: own.more(own.neurons(own.neurons(own.linear(x))[0])[0])[0], more=Leaky()),
            "once a time step; got linear 4 times, more 2 times",
        ),
        (
            Steps(lambda own, x: own.neurons(own.linear(x))[0][:, :, None]),
            r"return \[3, classes\]; got torch.Size\(\[3, 2, 1\]\)",
        ),
    ],
)
def test_networks_whose_counts_would_be_wrong_are_refused(network, message):
    with pytest.raises(ValueError, match=f"count_rate_coded: model must .*{message}"):
        count_rate_coded(network, [torch.rand(3, 1, 2, 2)], "snntorch")


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
        "weight reads": 16 + 4 + 4,  # weights, biases of each run, biases of each update
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


@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
def test_counts_equal_those_of_neurobench(library):
    workload = pytest.importorskip("neurobench.metrics.workload", reason="NeuroBench is not installed")
    models = pytest.importorskip("neurobench.models")
    kinds = pytest.importorskip("snntorch" if library == "snntorch" else "spikingjelly.activation_based.neuron")
    neuron = kinds.SpikingNeuron if library == "snntorch" else kinds.BaseNode
    network = Network(lambda: kinds.Leaky(beta=0.5) if library == "snntorch" else kinds.IFNode())
    if library == "snntorch":
        network.forward = network.loop
    else:  # whose neurons keep their potential
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
    theirs = workload.SynapticOperations()(model, None, (images, None))
    total = found.counts.total()
    updates = 5 * 3 * sum(layer.neurons for layer in found.counts.layers if layer.name in found.leaky)
    real = sum(layer.nonzero_macs for layer in found.counts.layers if layer.kind == "analog")
    assert theirs == {
        "Effective_MACs": real / 5,
        "Effective_ACs": total["synaptic_operations"] / 5,
        "Dense": total["dense_macs"] / 5,
    }
    assert workload.ActivationSparsity()(model, None, None) == pytest.approx(1 - total["spikes"] / updates)


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "images must be named; got none. Add --data-dir or --dataset."),
        (["--dataset", "sample", "--steps", "4"], "steps needs ttfs. Give that, or leave steps out"),
        (["--dataset", "sample", "--network", "a.py:b"], "network needs ttfs. Give that, or leave network out"),
        (["--dataset", "sample", "--module", "rate.py"], "network: must be FILE.py:FUNCTION; got rate.py."),
    ],
)
def test_command_refuses_options_before_it_runs_code(words, message, tmp_path, capsys):
    (tmp_path / "rate.py").write_text("raise SystemError('code ran')")
    with pytest.raises(SystemExit):
        main("Energy.", [*FEW, *words, *([] if "--module" in words else ["--module", f"{tmp_path}/rate.py:build"])])
    assert message in capsys.readouterr().err
