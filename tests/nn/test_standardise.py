import pytest
import torch

from tests.nn.common import randomised
from ttfs_kernels import backends
from ttfs_triton.nn import (
    DFTLinear,
    cnn1,
    fold_weight_standardisation,
    models,
)
from ttfs_triton.nn.models import effective_weights


def test_folding_keeps_the_parameter_objects_of_an_optimiser():
    layer = DFTLinear(4, 3)
    weight = layer.weight
    fold_weight_standardisation(torch.nn.Sequential(layer))
    assert layer.weight is weight


def test_a_network_standardises_its_hidden_layers_in_one_call(monkeypatch):
    """Equal to each layer on its own, outputs and gradients; through the kernel, where Triton is asked for."""
    network = randomised(cnn1(image_size=16, width=0.25), seed=1)
    images = torch.rand(2, 1, 16, 16)

    def results(forward):
        logits = forward(images)
        return logits, *torch.autograd.grad(logits.square().sum(), list(network.parameters()))

    def layer_by_layer(images):
        x = images.contiguous(memory_format=torch.channels_last)
        for layer in network.features.children():
            x = layer(x)
        return network.readout(x)

    calls = []
    real = models.standardise_weights
    monkeypatch.setattr(models, "standardise_weights", lambda w, g, **o: calls.append(len(w)) or real(w, g, **o))
    expected = results(layer_by_layer)
    assert calls == []
    for ours, theirs in zip(results(network), expected, strict=True):
        assert torch.equal(ours, theirs)
    pytest.importorskip("triton")
    monkeypatch.setattr(backends, "_choice", "triton")
    for ours, theirs in zip(results(network), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert calls == [3, 3]


def test_effective_weights_of_modules_without_any():
    plain, standardised = DFTLinear(4, 3, weight_standardisation=False), DFTLinear(4, 3)
    pool = torch.nn.Flatten()
    assert effective_weights([plain, pool]) == [None, None]
    weights = effective_weights([plain, standardised, pool])
    assert [weight is None for weight in weights] == [True, False, True]
    assert torch.equal(weights[1], standardised.effective_weight())


def test_hidden_layers_run_without_memory():
    network = cnn1(image_size=16, width=0.25).to("meta")
    assert network.hidden(torch.rand(2, 1, 16, 16, device="meta")).shape == (2, 32)
