import copy
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.chip.networks import emitted
from tests.nn.common import activations
from ttfs_triton.nn import (
    DFTLinear,
    Faults,
    Grid,
    Neuron,
    SpikeCounter,
    cnn1,
    collect_statistics,
    record_statistics,
    reset_statistics,
    sparsity,
    train_for,
    vgg11,
)


def brute_force(batches):
    """Active, saturated and never-active counts of one layer, neuron by neuron."""
    samples = [sample.flatten().tolist() for batch in batches for sample in batch.contiguous()]
    active = sum(value > 0 for sample in samples for value in sample)
    saturated = sum(value == 1 for sample in samples for value in sample)
    never = sum(all(sample[i] == 0 for sample in samples) for i in range(len(samples[0])))
    return active, saturated, never


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (cnn1(image_size=12, width=0.25), (1, 12, 12)),
        (cnn1(image_size=12, width=0.25, neuron=Neuron(0.0), batch_norm=True), (1, 12, 12)),
        (vgg11(width=1 / 32), (3, 32, 32)),
    ],
    ids=["cnn1", "cnn1-two-phase", "vgg11"],
)
def test_counts_match_brute_force(model, shape, device):
    model = copy.deepcopy(model).eval().to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight_gain"):
                parameter.mul_(3)  # some saturated neurons
    batches = [activations(3, *shape, seed=seed).float().to(device) for seed in (1, 2)]
    outputs = [emitted(model, batch) for batch in batches]
    with record_statistics(model):
        for batch in batches:
            model(batch)
    statistics = collect_statistics(model)
    assert [layer.name for layer in statistics] == [*outputs[0], "readout"]
    for layer in statistics[:-1]:
        active, saturated, never = brute_force([spikes[layer.name] for spikes in outputs])
        assert (layer.spikes, layer.saturated, layer.never_active) == (active, saturated, never)
        assert layer.samples == 6
        assert layer.neurons == outputs[0][layer.name][0].numel()
        assert layer.silent == layer.neurons * 6 - active
        assert layer.kind != "readout"
    assert statistics[-1].kind == "readout"
    spikes, neurons = sum(s.spikes for s in statistics[:-1]), sum(s.neurons for s in statistics[:-1])
    assert sparsity(statistics) == spikes / (6 * neurons)


def counted(*batches: list[list[float]] | torch.Tensor) -> DFTLinear:
    """A layer that has counted these activations."""
    layer = DFTLinear(4, len(batches[0][0]), weight_standardisation=False)
    layer.statistics = SpikeCounter((layer.out_features,))
    layer.statistics.prepare(torch.device("cpu"))
    for batch in batches:
        layer.statistics.update(torch.as_tensor(batch))
    return layer


def test_shares_survive_low_precision_and_nan():
    [counts] = collect_statistics(counted([[0.0, 1.0, 0.5, math.nan], [0.0, 1.0, 1.0, 0.25]]))
    assert (counts.sparsity, counts.saturated_share, counts.never_active_share) == (5 / 8, 3 / 8, 1 / 4)
    [counts] = collect_statistics(counted(torch.ones(1000, 3, dtype=torch.bfloat16)))
    assert (counts.spikes, counts.samples) == (3000, 1000)


def test_nothing_is_counted_outside_the_block():
    """An exception ends counting, and copies do not count. Names leave out containers and wrappers."""
    model, x = nn.DataParallel(cnn1(width=0.25)), torch.rand(2, 1, 28, 28)
    twin = copy.deepcopy(model)
    model(x)
    assert collect_statistics(model) == []
    assert math.isnan(sparsity([]))
    with record_statistics(model):
        model(x)
        model(x)
    with pytest.raises(ValueError, match="images must have shape"), record_statistics(model):
        model(x[..., :3])
    model(x)
    assert [layer.name for layer in collect_statistics(model)] == ["conv1", "conv2", "fc1", "readout"]
    assert {layer.samples for layer in collect_statistics(model)} == {4}
    assert collect_statistics(twin) == []
    reset_statistics(model)
    assert {layer.spikes for layer in collect_statistics(model)} == {0}
    assert math.isnan(sparsity(collect_statistics(model)))


def test_never_active_is_reduced_over_processes():
    first, second = counted([[1.0, 0.0, 0.0]]), counted([[0.0, 0.5, 0.0], [0.0, 0.5, 0.0]])
    calls = []
    [counts] = collect_statistics(first, lambda counts: calls.append(counts.dtype) or counts + second.statistics.counts)
    assert calls == [torch.int64]
    assert (counts.samples, counts.spikes, counts.saturated, counts.never_active) == (3, 3, 1, 1)


@pytest.mark.parametrize("grid", [None, Grid(8, 4)])
@pytest.mark.parametrize("readout", ["potential_end", "first_spike"])
def test_counting_changes_neither_outputs_nor_gradients_nor_the_state_dict(grid, readout):
    """Counting draws no random numbers, so that dropout and weight noise stay the same."""
    model, x = cnn1(image_size=12, width=0.25, readout=readout, dropout=0.5, grid=grid), torch.rand(2, 1, 12, 12)
    train_for(model, Faults(weight_noise=0.1))
    keys, results = list(model.state_dict()), []
    for counting in (False, True):
        torch.manual_seed(0)
        with record_statistics(model) if counting else nullcontext():
            y = model(x)
        results.append((y, *torch.autograd.grad(y.sum(), list(model.parameters())), torch.get_rng_state()))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert list(model.state_dict()) == keys
    assert not any("statistics" in name for name, _ in model.named_buffers())
