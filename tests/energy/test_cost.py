"""Costs as sums over events: the same figures as counts and estimates."""

from dataclasses import replace

import pytest
import torch

from ttfs_triton.energy import RunOptions, count, estimate
from ttfs_triton.energy.cost import energy_cost, operations_cost, sparsity_cost
from ttfs_triton.nn import NetworkConfig, TTFSNetwork


def counted(encoder="latency", specification="4C3-P2-6C3p0-P2-8", **options):
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig(specification, image_size=(14, 14), encoder=encoder, **options))
    images = torch.rand(6, 1, 14, 14) * (torch.rand(6, 1, 14, 14) < 0.5)
    return count(network, [images])


@pytest.mark.parametrize("encoder", ["latency", "analog", "signed"])
def test_sparsity_is_that_of_the_counts_and_operations_those_of_layers_that_read_spikes(encoder):
    counts = counted(encoder)
    cost = sparsity_cost(counts)
    assert cost.of(counts) == pytest.approx(counts.sparsity, rel=1e-12)
    assert cost.of_images(counts) == 0
    with pytest.raises(ValueError, match="sparsity_cost: counts must be of a network with hidden layers; got none"):
        sparsity_cost(replace(counts, layers=counts.layers[-1:]))
    layers = [layer for layer in counts.layers if layer.kind != "analog"]
    done, dense = (sum(getattr(layer, key) for layer in layers) for key in ("synaptic_operations", "dense_macs"))
    cost = operations_cost(counts)
    assert cost.of(counts) == pytest.approx(done / dense, rel=1e-12)
    fixed = counts.layers[0].synaptic_operations / dense if encoder == "latency" else 0  # whatever fires
    assert cost.of_images(counts) == pytest.approx(fixed, rel=1e-12)


@pytest.mark.parametrize("chip", ["lemaire45:int8", "loihi_board", "odin"])
@pytest.mark.parametrize("gating", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"encoder": "signed"}, {"readout": "first_spike"}, {"specification": "8", "readout": "potential_end"}],
    ids=lambda options: "-".join(options.values()),
)
def test_energy_is_the_estimates(chip, gating, options):
    counts, run = counted(**options), RunOptions(steps=16, gating=gating)
    if options.get("encoder", "latency") != "latency" and chip != "lemaire45:int8":
        with pytest.raises(ValueError, match=f"{chip}, which has no price for .* of conv1. Choose another"):
            energy_cost(counts, chip, run)
        return
    cost = energy_cost(counts, chip, run)
    awake = replace(counts, layers=tuple(replace(layer, driven_time=None) for layer in counts.layers))
    assert cost.of(counts) == pytest.approx(estimate(awake, chip, run).total.nominal * 1e-6, rel=1e-8)
    gated = estimate(counts, chip, run).total.nominal * 1e-6  # neurons wait for their first input
    assert cost.of(counts) >= gated * (1 - 1e-9)
    silent = estimate(awake.firing_more(0.0), chip, run).total.nominal * 1e-6
    assert cost.of_images(counts) == pytest.approx(silent, rel=1e-8)
