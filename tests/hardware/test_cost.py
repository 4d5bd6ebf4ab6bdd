"""Costs as sums over events: the same figures as counts and estimates, and their bounds."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ttfs_triton import TTFSModel
from ttfs_triton.hardware import LayerActivity, RunOptions, count, estimate
from ttfs_triton.hardware.cost import Cost, EventWeights, energy_cost, operations_cost, sparsity_cost
from ttfs_triton.nn import NetworkConfig, TTFSNetwork, network_graph


def counted(encoder="latency", specification="4C3-P2-6C3p0-P2-8", **options):
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig(specification, image_size=(14, 14), encoder=encoder, **options))
    images = torch.rand(6, 1, 14, 14) * (torch.rand(6, 1, 14, 14) < 0.5)
    return count(network, [images]), network_graph(network, (1, 14, 14))


@pytest.mark.parametrize("encoder", ["latency", "analog", "signed"])
def test_sparsity_is_that_of_the_counts_and_operations_those_of_layers_that_read_spikes(encoder):
    counts, graph = counted(encoder)
    cost = sparsity_cost(counts)
    assert cost.of(counts) == pytest.approx(counts.sparsity, rel=1e-12)
    assert cost.bounds(counts, graph) == pytest.approx((0, 1))
    for layer in counts.layers[:-1]:
        assert sparsity_cost(counts, layer.name).of(counts) == pytest.approx(layer.sparsity, rel=1e-12)
    layers = [layer for layer in counts.layers if layer.kind != "analog"]
    done, dense = (sum(getattr(layer, key) for layer in layers) for key in ("synaptic_operations", "dense_macs"))
    cost = operations_cost(counts)
    assert cost.of(counts) == pytest.approx(done / dense, rel=1e-12)
    least, most = cost.bounds(counts, graph)
    if encoder == "latency":  # the operations of the images stay, whatever fires
        fixed = counts.layers[0].synaptic_operations / dense
        assert (least, most) == pytest.approx((fixed, fixed + 1 - counts.layers[0].dense_macs / dense), rel=1e-12)
    else:
        assert (least, most) == pytest.approx((0, 1))
    for layer in layers:
        share = layer.synaptic_operations / layer.dense_macs
        assert operations_cost(counts, layer.name).of(counts) == pytest.approx(share, rel=1e-12)


@pytest.mark.parametrize("chip", ["lemaire45:int8", "horowitz45:fp32", "loihi", "loihi_board", "odin"])
@pytest.mark.parametrize("gating", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"encoder": "analog"},
        {"encoder": "signed"},
        {"readout": "first_spike"},
        {"specification": "8", "readout": "potential_end"},
    ],
    ids=lambda options: "-".join(options.values()) or "default",
)
def test_energy_is_the_estimates(chip, gating, options):
    (counts, graph), run = counted(**options), RunOptions(steps=16, gating=gating)
    if options.get("encoder", "latency") != "latency" and chip in ("loihi", "loihi_board", "odin"):
        with pytest.raises(ValueError, match=f"{chip} has no price for multiply-accumulates of conv1. Choose another"):
            energy_cost(counts, chip, run)
        return
    cost = energy_cost(counts, chip, run)
    done = tuple(LayerActivity(layer.name, 5, 4, 3) for layer in counts.layers)
    assert energy_cost(counts, chip, replace(run, activity=done)) == cost  # the work of other spikes
    awake = replace(counts, layers=tuple(replace(layer, driven_time=None) for layer in counts.layers))
    assert cost.of(counts) == pytest.approx(estimate(awake, chip, run).total.nominal * 1e-6, rel=1e-8)
    gated = estimate(counts, chip, run).total.nominal * 1e-6  # neurons wait for their first input
    assert cost.of(counts) >= gated * (1 - 1e-9)
    least, most = cost.bounds(counts, graph)
    assert least < cost.of(counts) < most


def test_layers_that_are_not_there_are_refused():
    counts, _ = counted()
    with pytest.raises(ValueError, match="sparsity_cost: layer must be one of conv1, conv2, fc1; got readout"):
        sparsity_cost(counts, "readout")
    with pytest.raises(ValueError, match="operations_cost: layer must be one of conv1, conv2, fc1, readout; got fc9"):
        operations_cost(counts, "fc9")
    with pytest.raises(ValueError, match="operations_cost: layer must be one of conv2, fc1, readout; got conv1"):
        operations_cost(counted("analog")[0], "conv1")


@pytest.mark.parametrize("saved", [0.5, 4.0, 9.0, 40.0])
def test_least_cost_counts_what_spikes_cause(saved):
    """Of each window of four neurons all fire, where that saves more than the window's one spike causes behind it."""
    counts, graph = counted()
    cost = Cost(
        1.0,
        {
            "conv1": EventWeights(spike=-saved, spike_time=0.5, delivered=2.0),
            "conv2": EventWeights(operation=0.5),
            "readout": EventWeights(spike=-1.0),
        },
    )
    maps = torch.zeros(1, 4, 7, 7, requires_grad=True)
    F.conv2d(maps, torch.ones(6, 4, 3, 3)).sum().backward()
    fan_out = maps.grad
    found = (-4 * saved + 2.0 + 0.5 * fan_out).clamp_max(0).sum().item()
    readout = counts.layers[-1].neurons
    assert cost.bounds(counts, graph)[0] == pytest.approx(1.0 + found - readout, rel=1e-6)


def test_neurons_that_pooling_leaves_out_cause_nothing():
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig("4C3p0-P2-8", image_size=(7, 7)))
    counts, graph = count(network, [torch.rand(2, 1, 7, 7)]), network_graph(network, (1, 7, 7))
    cost = Cost(0.0, {"conv1": EventWeights(spike=-1.0, delivered=50.0)})
    assert cost.bounds(counts, graph)[0] == -4 * 5 * 5


def test_goal_that_saved_updates_cannot_pay_for_is_refused():
    network = TTFSModel.from_pretrained("bundled:cnn1-mnist").network
    images = torch.rand(4, 1, 28, 28) * (torch.rand(4, 1, 28, 28) < 0.2)
    counts = count(network, [images])
    cost = energy_cost(counts, "lemaire45:int8", RunOptions(steps=32, gating=True))
    silent = cost.constant + cost.weights("conv1").operation * counts.layers[0].synaptic_operations / 4
    least, _ = cost.bounds(counts, network_graph(network, (1, 28, 28)))
    assert 0.9 * silent < least <= silent
