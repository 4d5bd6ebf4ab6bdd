"""Costs as sums over events: the same figures as counts and estimates, and their bounds."""

import pytest
import torch

from ttfs_triton.hardware import RunOptions, count, estimate
from ttfs_triton.hardware.cost import energy_cost, operations_cost, sparsity_cost
from ttfs_triton.nn import NetworkConfig, TTFSNetwork


def counted(encoder="latency", specification="4C3-P2-6C3p0-P2-8", **options):
    torch.manual_seed(0)
    network = TTFSNetwork(NetworkConfig(specification, image_size=(14, 14), encoder=encoder, **options))
    images = torch.rand(6, 1, 14, 14) * (torch.rand(6, 1, 14, 14) < 0.5)
    return count(network, [images])


@pytest.mark.parametrize("encoder", ["latency", "analog", "signed"])
def test_sparsity_is_that_of_the_counts(encoder):
    counts = counted(encoder)
    cost = sparsity_cost(counts)
    assert cost.of(counts) == pytest.approx(counts.sparsity, rel=1e-12)
    assert cost.bounds(counts) == pytest.approx((0, 1))
    for layer in counts.layers[:-1]:
        assert sparsity_cost(counts, layer.name).of(counts) == pytest.approx(layer.sparsity, rel=1e-12)


@pytest.mark.parametrize("encoder", ["latency", "analog", "signed"])
def test_operations_are_those_of_layers_that_read_spikes(encoder):
    counts = counted(encoder)
    layers = [layer for layer in counts.layers if layer.kind != "analog"]
    done, dense = (sum(getattr(layer, key) for layer in layers) for key in ("synaptic_operations", "dense_macs"))
    cost = operations_cost(counts)
    assert cost.of(counts) == pytest.approx(done / dense, rel=1e-12)
    least, most = cost.bounds(counts)
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
    counts, run = counted(**options), RunOptions(steps=16, gating=gating)
    if options.get("encoder", "latency") != "latency" and chip in ("loihi", "loihi_board", "odin"):
        with pytest.raises(ValueError, match=f"{chip} has no price for multiply-accumulates of conv1. Choose another"):
            energy_cost(counts, chip, run)
        return
    cost = energy_cost(counts, chip, run)
    total = estimate(counts, chip, run).total
    assert cost.of(counts) == pytest.approx(total.nominal * 1e-6, rel=1e-8)
    least, most = cost.bounds(counts)
    assert least < cost.of(counts) < most


def test_layers_that_are_not_there_are_refused():
    counts = counted()
    with pytest.raises(ValueError, match="sparsity_cost: layer must be one of conv1, conv2, fc1; got readout"):
        sparsity_cost(counts, "readout")
    with pytest.raises(ValueError, match="operations_cost: layer must be one of conv1, conv2, fc1, readout; got fc9"):
        operations_cost(counts, "fc9")
    with pytest.raises(ValueError, match="operations_cost: layer must be one of conv2, fc1, readout; got conv1"):
        operations_cost(counted("analog"), "conv1")
