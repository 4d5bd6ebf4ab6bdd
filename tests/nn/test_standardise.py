import pytest
import torch

from tests.nn.common import activations, randomised
from ttfs_kernels import backends
from ttfs_triton.nn import (
    AnalogEncoder,
    DFTConv2d,
    DFTLinear,
    PotentialReadout,
    cnn1,
    fold_weight_standardisation,
    models,
    standardise_weight,
)
from ttfs_triton.nn.models import effective_weights


def by_definition(weight, gain):
    flat = weight.double().flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (gain.double()[:, None] * centred / centred.norm(dim=1, keepdim=True)).view(weight.shape)


@pytest.mark.parametrize("shape", [(3, 2), (8, 100), (5, 3, 3, 3), (7, 4, 1, 1), (4, 1, 5, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_standardise_weight_matches_definition(shape, channels_last):
    torch.manual_seed(0)
    weight, gain = torch.randn(shape) + 0.3, torch.randn(shape[0])
    if channels_last and len(shape) == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    result = standardise_weight(weight, gain)
    torch.testing.assert_close(result.double(), by_definition(weight, gain), rtol=1e-5, atol=1e-6)
    assert result.stride() == weight.stride()


def test_standardise_weight_gradients_match_numeric_ones():
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardise_weight, (weight, gain))
    channels_last = weight.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(standardise_weight, (channels_last, gain))


def test_standardise_weight_of_a_constant_channel_is_zero():
    weight = torch.full((2, 8), 0.25, requires_grad=True)
    result = standardise_weight(weight, torch.ones(2))
    result.sum().backward()
    assert torch.all(result == 0)
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_standardise_weight_is_independent_of_the_scale():
    torch.manual_seed(0)
    weight, gain = torch.randn(4, 50), torch.rand(4)
    expected = standardise_weight(weight, gain)
    for scale in (1e-3, 1e3):
        torch.testing.assert_close(standardise_weight(weight * scale, gain), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DFTConv2d(3, 4, 3), (2, 3, 6, 6)),
        (DFTLinear(12, 5), (3, 12)),
        (AnalogEncoder(3, 4, 3, mean=[0.5] * 3, std=[0.2] * 3), (2, 3, 6, 6)),
        (PotentialReadout(12, 5, at="end"), (3, 12)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_folding_keeps_outputs(layer, shape):
    randomised(layer, seed=1)
    x = activations(*shape, seed=2).float()
    before = layer(x)
    assert fold_weight_standardisation(layer) is layer
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)
    assert layer.weight_gain is None
    assert not any("gain" in name for name in layer.state_dict())
    fold_weight_standardisation(layer)  # nothing left to fold
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-6)


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
