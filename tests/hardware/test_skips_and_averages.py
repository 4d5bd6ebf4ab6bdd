"""Residual blocks and averages on the chip: the closed form, neuron by neuron, and counts by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.hardware.simulation.event_driven import event_driven
from tests.nn.common import activations, randomised
from ttfs_triton.hardware import count, simulate
from ttfs_triton.nn import (
    DFTConv2d,
    Grid,
    LatencyEncoder,
    NetworkConfig,
    NetworkError,
    Neuron,
    PotentialReadout,
    TTFSNetwork,
    network_graph,
)
from ttfs_triton.nn.integers import quantise_weight
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer

SPECIFICATION = "4C3-(4C3-6C3)-A2-(6C3-6C3s2-8C3)-A-7-(7-9)"
SIGMAS = pytest.mark.parametrize("sigma", [0.0, 0.25, 1.0])


def residual(sigma: float, **options) -> TTFSNetwork:
    config = NetworkConfig(SPECIFICATION, image_size=(8, 12), classes=3, neuron=Neuron(sigma), **options)
    return randomised(TTFSNetwork(config), seed=1).eval()


def emitted(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Activations of every hidden layer by its name, from the network itself."""
    found: dict[str, Tensor] = {}
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, WeightedLayer)]
    names = short_names([name for name, _ in named])
    hooks = [
        layer.register_forward_hook(lambda *args, name=name: found.__setitem__(name, args[-1]))
        for name, (_, layer) in zip(names, named, strict=True)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


@SIGMAS
@pytest.mark.parametrize("encoder", ["latency", "analog"])
@torch.no_grad()
def test_every_neuron_fires_when_the_events_say(sigma, encoder):
    model, images = residual(sigma, encoder=encoder).double(), activations(3, 1, 8, 12, seed=2)
    run, graph = event_driven(model, images), network_graph(model)
    for name, layer in emitted(model, images).items():
        if name != "readout":
            times = torch.where(layer > 0, graph[name].window + 1 - layer, torch.inf)
            torch.testing.assert_close(run.spike_times[name], times, rtol=0, atol=1e-9)
    torch.testing.assert_close(run.potential, model(images), rtol=0, atol=1e-9)


def test_blocks_wait_for_as_many_windows_as_they_have_layers_before_the_last():
    graph = network_graph(residual(1.0))
    waits = {stage.name: (stage.skip.source, graph.waits(stage)) for stage in graph.stages if stage.skip is not None}
    assert waits == {"conv3": ("conv1", 1), "conv6": ("conv3", 2), "fc3": ("fc1", 1)}
    assert graph.windows == 10  # a layer, a window: skips take none


@SIGMAS
@torch.no_grad()
def test_simulation_nears_the_closed_form_and_both_engines_agree(sigma):
    model, images = residual(sigma), activations(4, 1, 8, 12, seed=3).float()
    expected = emitted(model, images)
    for settings in ({"steps": 8, "weight_bits": 4}, {"steps": 64}):
        found = [
            simulate(model, [images], **settings, engine=engine, keep_spike_times=True)
            for engine in ("summed", "stepped")
        ]
        assert found[0].counts == found[1].counts
        assert found[0].activity == found[1].activity
        assert all(torch.equal(stamps, found[1].spike_steps[name]) for name, stamps in found[0].spike_steps.items())
    steps = 4096
    fine = simulate(model, [images], steps=steps, weight_bits=None, keep_spike_times=True)
    for name, layer in expected.items():
        if name != "readout":
            simulated = 1 - fine.spike_steps[name] / steps
            near = (simulated - layer).abs() < 0.02
            assert near.float().mean() > 0.99, name
    assert fine.potential_latency_steps == 10 * steps


@torch.no_grad()
def test_counts_by_hand():
    """A delayed spike meets one synapse; a spike of an averaged window all that its window has."""
    model, images = residual(1.0), activations(5, 1, 8, 12, seed=4).float()
    counts, spikes = count(model, [images]), emitted(model, images)
    layers = {layer.name: layer for layer in counts.layers}
    for name, source, skip, synapses, places in (
        ("conv3", "conv2", "conv1", (4, 3, 1, 1), (8, 12)),
        ("conv4", "conv3", None, (6, 6, 2, 2), (4, 6)),
        ("conv6", "conv5", "conv3", (8, 3, 1, 1), (2, 3)),
    ):
        layer, (_, kernel, stride, padding) = layers[name], synapses
        x = (spikes[source] > 0).float()
        outputs = getattr(model.features, name).out_channels
        ones = torch.ones(1, x.shape[1], kernel, kernel)
        operations = outputs * F.conv2d(x, ones, None, stride, padding).sum()
        exist = outputs * F.conv2d(torch.ones_like(x[:1]), ones, None, stride, padding).sum()
        arriving = torch.zeros(len(x), 0)
        if skip is not None:
            step = spikes[skip].shape[2] // places[0]
            arriving = spikes[skip][:, :, ::step, ::step]
            exist = exist + arriving[0].numel()
        assert layer.synaptic_operations == operations + torch.count_nonzero(arriving)
        assert layer.active_inputs == x.sum() + torch.count_nonzero(arriving)
        assert layer.synapses == exist
        assert layer.dense_macs == 5 * exist
        assert layer.weights == getattr(model.features, name).weight.numel() + (arriving.shape[1] if skip else 0)
    late = torch.count_nonzero(spikes["conv1"])
    assert layers["conv1"].spikes_delivered == 2 * late  # into the block, and past it
    assert (
        layers["conv3"].spikes_delivered
        == spikes["conv3"].count_nonzero() + spikes["conv3"][:, :, ::4, ::4].count_nonzero()
    )
    assert sum(counts.synaptic_operations_by_sample) == counts.total()["synaptic_operations"]
    # The simulator counts the same of the spikes that it finds.
    simulated = simulate(model, [images], steps=64, keep_spike_times=True)
    assert [layer.synapses for layer in simulated.counts.layers] == [layer.synapses for layer in counts.layers]
    stamps = simulated.spike_steps
    assert stamps is not None
    arrived = (stamps["conv1"] < 64).sum() + (
        F.conv2d((stamps["conv2"] < 64).float(), torch.ones(1, 4, 3, 3), None, 1, 1)
    ).sum() * 6
    assert {layer.name: layer for layer in simulated.counts.layers}["conv3"].synaptic_operations == arrived


@torch.no_grad()
def test_neurons_that_only_a_skip_reaches_have_an_input():
    network = nn.ModuleDict({"encoder": LatencyEncoder(), "first": DFTConv2d(1, 1, 1, weight_standardisation=False)})
    network["second"] = DFTConv2d(1, 2, 1, skip=1, weight_standardisation=False, bias=False)
    network["readout"] = PotentialReadout(8, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.layers["encoder"](x)
            spikes = self.layers["second"](self.layers["first"](spikes), skip=spikes)
            return self.layers["readout"](spikes.flatten(1))

    model = Net()
    nn.init.constant_(network["first"].weight, -1.0)  # silent: what the second layer hears has waited
    images = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    first, second = (count(model, [images]).layers[i] for i in (0, 1))
    assert (first.spikes, first.without_input) == (0, 2)
    assert (second.spikes, second.synaptic_operations) == (2, 2)
    assert second.without_input == 8 - 2


def test_weights_of_delayed_spikes_keep_their_own_grain():
    weight = quantise_weight(torch.tensor([[0.1, -0.05], [0.02, 0.01]]), 4)
    late = weight.late_weights(torch.tensor([1.0, 0.01]))
    assert late.tolist() == [4 * 16, 4]  # of 70 and 3.5 units
    assert weight.late_weights(None) is None
    with pytest.raises(ValueError, match="weights of delayed spikes must be finite"):
        weight.late_weights(torch.tensor([math.nan, 1.0]))


def test_networks_with_wrong_skips_are_refused():
    class Net(nn.Module):
        def __init__(self, skip: int, take: int) -> None:
            super().__init__()
            self.encoder, self.first = LatencyEncoder(), DFTConv2d(2, 4, 3, padding=1)
            self.second, self.readout, self.take = (
                DFTConv2d(4, 4, 3, padding=1, skip=skip),
                PotentialReadout(64, 2),
                take,
            )

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.encoder(x)
            late = (spikes + 1) if self.take == 3 else (None, spikes, x)[self.take]
            return self.readout(self.second(self.first(spikes), skip=late).flatten(1))

    assert network_graph(Net(2, 1), (2, 4, 4))["second"].skip.source == "encoder"
    for skip, take, match in (
        (2, 0, "second.: .*skip must be given if, and only if, .* got none and skip=2"),
        (0, 1, r"second.: .* got spikes \[3, 2, 4, 4\] and skip=0"),
        (3, 1, r"second.: .*skip must bring 3 channels .* got \[2, 4, 4\]"),
        (2, 2, "whose skip is of no earlier layer"),
        (2, 3, "A sum of spike times is no spike time"),
    ):
        with pytest.raises(NetworkError, match=match):
            network_graph(Net(skip, take), (2, 4, 4))


@torch.no_grad()
def test_network_on_a_grid_is_its_simulation():
    """Blocks and averages too: every neuron fires in the step of the simulator."""
    model = residual(0.25, grid=Grid(time_steps=8, weight_bits=5))
    images = activations(3, 1, 8, 12, seed=6).float()
    found = simulate(model, [images], steps=8, weight_bits=5, keep_spike_times=True)
    assert found.spike_steps is not None
    for name, layer in emitted(model, images).items():
        if name != "readout":
            assert torch.equal(layer, 1 - found.spike_steps[name] / 8), name
