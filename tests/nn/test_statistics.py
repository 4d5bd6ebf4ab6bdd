import copy
import math

import pytest
import torch
from torch import nn

from tests.nn.common import activations
from ttfs_triton.nn import (
    DFTLinear,
    Neuron,
    SpikeCounter,
    cnn1,
    collect_statistics,
    record_statistics,
    reset_statistics,
    sparsity,
    vgg11,
)


def brute_force(batches):
    """Active, saturated and never-active counts of one layer, neuron by neuron."""
    samples = [sample.flatten().tolist() for batch in batches for sample in batch.contiguous()]
    active = sum(value > 0 for sample in samples for value in sample)
    saturated = sum(value == 1 for sample in samples for value in sample)
    never = sum(all(sample[i] == 0 for sample in samples) for i in range(len(samples[0])))
    return active, saturated, never


def hidden_outputs(model, batches):
    """Outputs of every hidden layer with spikes, by name, one entry per batch."""
    outputs: dict[str, list] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: outputs.setdefault(name, []).append(y))
        for name, module in model.features.named_children()
        if name.startswith(("conv", "fc"))
    ]
    for batch in batches:
        model(batch)
    for hook in hooks:
        hook.remove()
    return outputs


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
    outputs = hidden_outputs(model, batches)
    with record_statistics(model):
        for batch in batches:
            model(batch)
    statistics = collect_statistics(model)
    assert [layer.name for layer in statistics] == [*outputs, "readout"]
    for layer in statistics[:-1]:
        active, saturated, never = brute_force(outputs[layer.name])
        assert (layer.spikes, layer.saturated, layer.never_active) == (active, saturated, never)
        assert layer.samples == 6
        assert layer.neurons == outputs[layer.name][0][0].numel()
        assert layer.silent == layer.neurons * 6 - active
        assert layer.kind != "readout"
    assert statistics[-1].kind == "readout"
    spikes, neurons = sum(s.spikes for s in statistics[:-1]), sum(s.neurons for s in statistics[:-1])
    assert sparsity(statistics) == spikes / (6 * neurons)
    assert sparsity(statistics, with_outputs=True) == (spikes + statistics[-1].spikes) / (6 * (neurons + 10))


def test_fractions():
    layer = DFTLinear(4, 4, weight_standardisation=False)
    layer.statistics = SpikeCounter((4,))
    layer.statistics.prepare(torch.device("cpu"))
    layer.statistics.update(torch.tensor([[0.0, 1.0, 0.5, 0.0], [0.0, 1.0, 1.0, 0.25]]))
    [counts] = collect_statistics(layer)
    assert (counts.sparsity, counts.saturated_share) == (5 / 8, 3 / 8)
    assert (counts.silent_share, counts.never_active_share) == (3 / 8, 1 / 4)


def test_nothing_is_counted_outside_the_block():
    model, x = cnn1(width=0.25), torch.rand(2, 1, 28, 28)
    model(x)
    assert collect_statistics(model) == []
    assert math.isnan(sparsity([]))
    with record_statistics(model):
        model(x)
        with record_statistics(model, enabled=False):
            model(x)
        model(x)
    model(x)
    assert {layer.samples for layer in collect_statistics(model)} == {4}
    reset_statistics(model)
    assert {layer.spikes for layer in collect_statistics(model)} == {0}
    assert math.isnan(sparsity(collect_statistics(model)))


def test_recording_stops_when_the_block_raises():
    model = cnn1(width=0.25)

    def fail():
        with record_statistics(model):
            model(torch.rand(2, 1, 3, 3))

    with pytest.raises(ValueError, match="images must have shape"):
        fail()
    model(torch.rand(2, 1, 28, 28))
    assert {layer.samples for layer in collect_statistics(model)} == {0}


def test_never_active_is_reduced_over_processes():
    first, second = DFTLinear(2, 3), DFTLinear(2, 3)
    for layer, values in ((first, [[1.0, 0.0, 0.0]]), (second, [[0.0, 0.5, 0.0], [0.0, 0.5, 0.0]])):
        layer.statistics = SpikeCounter((3,))
        layer.statistics.prepare(torch.device("cpu"))
        layer.statistics.update(torch.tensor(values))
    assert second.statistics is not None
    others = second.statistics.flat()
    calls = []

    def reduce(counts):
        calls.append(counts.dtype)
        return counts + others

    [counts] = collect_statistics(first, reduce)
    assert calls == [torch.int64]
    assert (counts.samples, counts.spikes, counts.saturated, counts.never_active) == (3, 3, 1, 1)


def test_counting_changes_neither_outputs_nor_gradients_nor_the_state_dict():
    model, x = cnn1(width=0.25), torch.rand(2, 1, 28, 28)
    keys = list(model.state_dict())
    plain = model(x)
    expected = torch.autograd.grad(plain.sum(), list(model.parameters()))
    with record_statistics(model):
        counted = model(x)
        gradients = torch.autograd.grad(counted.sum(), list(model.parameters()))
    torch.testing.assert_close(counted, plain, rtol=0, atol=0)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=0)
    assert list(model.state_dict()) == keys
    assert not any("statistics" in name for name, _ in model.named_buffers())


@pytest.mark.usefixtures("fresh_compiler")
def test_counting_works_in_a_compiled_graph():
    model, x = cnn1(width=0.25), torch.rand(2, 1, 28, 28)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with record_statistics(compiled):
        for _ in range(3):
            compiled(x)
    compiled(x)
    counted = collect_statistics(compiled)
    assert [layer.name for layer in counted] == ["conv1", "conv2", "fc1", "readout"]
    reset_statistics(model)
    with record_statistics(model):
        for _ in range(3):
            model(x)
    assert counted == collect_statistics(model)


def test_counting_survives_low_precision_and_nan():
    layer = DFTLinear(2, 3)
    layer.statistics = SpikeCounter((3,))
    layer.statistics.prepare(torch.device("cpu"))
    layer.statistics.update(torch.ones(1000, 3, dtype=torch.bfloat16))
    layer.statistics.update(torch.tensor([[math.nan, 1.0, 0.5]]))
    [counts] = collect_statistics(layer)
    assert (counts.spikes, counts.samples) == (3002, 1001)


def test_names_ignore_wrappers():
    model = nn.DataParallel(cnn1(width=0.25))
    with record_statistics(model):
        model(torch.rand(2, 1, 28, 28))
    assert [layer.name for layer in collect_statistics(model)] == ["conv1", "conv2", "fc1", "readout"]


def test_copies_of_a_model_count_for_themselves():
    model, x = cnn1(width=0.25), torch.rand(2, 1, 28, 28)
    twin = copy.deepcopy(model)
    with record_statistics(model):
        model(x)
    assert collect_statistics(twin) == []


def test_samples_that_do_not_count_change_nothing(device):
    model = cnn1(image_size=12, width=0.25).eval().to(device)
    images = activations(5, 1, 12, 12, seed=1).float().to(device)
    with torch.no_grad():
        model(images)  # the encoder refuses a first batch with nan
    images[3:] = float("nan")
    counted = torch.arange(5, device=device) < 3
    with torch.no_grad(), record_statistics(model, counted=counted):
        model(images)
    padded = collect_statistics(model)
    reset_statistics(model)
    with torch.no_grad(), record_statistics(model):
        with record_statistics(model, counted=counted):
            pass
        model(images[:3])
    assert padded == collect_statistics(model)
    assert [layer.samples for layer in padded] == [3] * 4
