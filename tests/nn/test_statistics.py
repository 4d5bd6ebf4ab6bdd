import copy
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.chip.networks import emitted
from tests.nn.common import activations
from ttfs_triton.nn import DFTLinear, Faults, Grid, Neuron, SpikeCounter, cnn1, train_for, vgg11
from ttfs_triton.nn.statistics import collect_statistics, record_statistics, reset_statistics, sparsity


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (cnn1(image_size=12, width=0.25, neuron=Neuron(0.0), batch_norm=True), (1, 12, 12)),
        (vgg11(width=1 / 32), (3, 32, 32)),
    ],
    ids=["cnn1-two-phase", "vgg11"],
)
def test_counts_are_those_of_the_activations(model, shape, device):
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
    *hidden, readout = collect_statistics(model)
    assert [layer.name for layer in (*hidden, readout)] == [*outputs[0], "readout"]
    assert readout.kind == "readout"
    for layer in hidden:
        spikes = torch.cat([output[layer.name] for output in outputs])
        active, saturated, never = spikes > 0, (spikes == 1).sum(), (spikes == 0).all(0).sum()
        assert (layer.spikes, layer.saturated, layer.never_active) == (active.sum(), saturated, never)
        assert (layer.samples, layer.neurons, layer.silent) == (6, spikes[0].numel(), (~active).sum())
        assert layer.kind != "readout"
    spikes, neurons = sum(layer.spikes for layer in hidden), sum(layer.neurons for layer in hidden)
    assert sparsity([*hidden, readout]) == spikes / (6 * neurons)


def counted(*batches: list[list[float]] | torch.Tensor) -> DFTLinear:
    """A layer that has counted these activations."""
    layer = DFTLinear(4, len(batches[0][0]), weight_standardisation=False)
    layer.statistics = SpikeCounter((layer.out_features,))
    layer.statistics.prepare(torch.device("cpu"))
    for batch in batches:
        layer.statistics.update(torch.as_tensor(batch))
    return layer


def test_counts_survive_low_precision_and_nan_and_are_reduced_over_processes():
    [counts] = collect_statistics(counted([[0.0, 1.0, 0.5, math.nan], [0.0, 1.0, 1.0, 0.25]]))
    assert (counts.sparsity, counts.saturated_share, counts.never_active_share) == (5 / 8, 3 / 8, 1 / 4)
    [counts] = collect_statistics(counted(torch.ones(1000, 3, dtype=torch.bfloat16)))
    assert (counts.spikes, counts.samples) == (3000, 1000)
    first, second = counted([[1.0, 0.0, 0.0]]), counted([[0.0, 0.5, 0.0], [0.0, 0.5, 0.0]])
    calls = []
    [counts] = collect_statistics(first, lambda counts: calls.append(counts.dtype) or counts + second.statistics.counts)
    assert calls == [torch.int64]
    assert (counts.samples, counts.spikes, counts.saturated, counts.never_active) == (3, 3, 1, 1)


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


@pytest.mark.parametrize("grid", [None, Grid(8, 4)])
@pytest.mark.parametrize("readout", ["potential_end", "first_spike"])
def test_counting_changes_neither_outputs_nor_gradients_nor_the_state_dict(grid, readout):
    """Counting draws no random numbers, so that dropout and weight noise stay the same."""
    model, x = cnn1(image_size=12, width=0.25, readout=readout, dropout=0.5, grid=grid), torch.rand(2, 1, 12, 12)
    train_for(model, Faults(weight_noise=0.1))
    keys, results = list(model.state_dict()), []
    for context in (nullcontext(), record_statistics(model)):
        torch.manual_seed(0)
        with context:
            y = model(x)
        results.append((y, *torch.autograd.grad(y.sum(), list(model.parameters())), torch.get_rng_state()))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert list(model.state_dict()) == keys
