"""Skips and averages: an ANN with batch norm folds into the same network, and starts a spiking one."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.convert.sources import weights_of
from tests.convert.test_conversion import own_weights
from ttfs_triton.convert import ConversionError, calibrate_converted, convert, layer_correlations
from ttfs_triton.convert.fold import fold_layers
from ttfs_triton.convert.layouts import own_layout
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork

STRIDES = "4C3-(4C3-4C3)-(6C3s2-7C3)-(7C3-7C3-7C3)-A"  # every second position arrives, and new channels hear nothing
SPECIFICATIONS = (STRIDES, "4C3-(4C3-4C3)-A2-6C3-(6C3s2-6C3)-P2-12-(9-12)", "(3C3-5C3)x2-A-8")


def trained(specification: str = STRIDES, seed: int = 0, **options) -> TTFSNetwork:
    """An ANN whose norms, gains and skips all do something, in evaluation mode."""
    latent = specification.startswith("(") or options.get("encoder") == "latency"
    values = (
        {"encoder": "latency"} if latent else {"encoder": "analog", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    )
    values |= {"in_channels": 3, "image_size": (8, 8), "classes": 4, "analog": True, "batch_norm": True}
    network = TTFSNetwork(NetworkConfig(specification, **(values | options))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("batch_norm.running_var", "batch_norm.weight", "weight_gain")):
                tensor.copy_(0.4 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(0.9 * torch.rand(tensor.shape, generator=generator) - 0.2)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return network


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Of another brightness each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 8, 8, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)


@settings(max_examples=24)
@given(st.sampled_from(SPECIFICATIONS), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_folded_layers_compute_the_ann_with_batch_norm(specification, standardised, kept, bias, seed):
    """In float64: logits are the same but for rounding."""
    source = trained(specification, seed, weight_standardisation=standardised, bias=bias).double()
    tensors, kept = source.state_dict(), kept and standardised
    options = {"keep_standardisation": kept, "epsilon": 1e-5, "statistics": None, "head": None}
    layers = fold_layers(own_layout(tensors, source.config), tensors, **options)
    plain = TTFSNetwork(source.config.replace(batch_norm=False, weight_standardisation=kept, bias=True)).double()
    state = plain.state_dict()
    for layer in layers:
        prefix = layer.name if layer.name == "readout" else f"features.{layer.name}"
        found = {"weight": layer.raw_weight if kept else layer.weight, "weight_gain": layer.weight_gain}
        found |= {"bias": layer.bias, "skip_weight": layer.skip_weight}
        for name, tensor in found.items():
            assert (tensor is None) == (f"{prefix}.{name}" not in state) or (name, tensor) == ("bias", None)
            if tensor is not None:
                assert tensor.dtype == torch.float64
                state[f"{prefix}.{name}"].copy_(tensor)
    x = images(5, seed).double()
    with torch.no_grad():
        expected = source(x)
        assume(expected.std(0).max() > 1e-6)  # where a layer is silent, any weights before it would do
        torch.testing.assert_close(plain.eval()(x), expected, atol=1e-12, rtol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("specification", SPECIFICATIONS)
@pytest.mark.parametrize("standardised", [False, True])
def test_converted_network_without_a_slope_computes_the_ann(specification, standardised):
    source = trained(specification, weight_standardisation=standardised)
    converted, x = convert(own_weights(source), neuron=Neuron(0.0)), images(16)
    expected = source(x)
    for found in (converted.ann(x), converted.network(x)):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.argmax(1), expected.argmax(1))
    assert not converted.needs_calibration
    assert all(value == pytest.approx(1) for value in layer_correlations(converted.network, converted.ann, x).values())
    assert converted.network.config.weight_standardisation == standardised


@torch.no_grad()
def test_calibration_brings_a_residual_network_to_its_ann():
    source, x = trained(), images(48)
    copied = convert(own_weights(source), neuron=Neuron(0.25))
    before = (copied.network(x) - source(x)).square().mean()
    converted, found = calibrate_converted(copied, x)
    assert [layer.name for layer in found.layers] == [f"conv{number}" for number in range(1, 9)]
    assert found.layers[0].shift <= 0  # the encoder's margin
    assert sum(layer.after for layer in found.layers) > sum(layer.before for layer in found.layers)
    assert (converted.network(x) - source(x)).square().mean() < before
    correlations = layer_correlations(converted.network, converted.ann, x)
    assert {layer.name: pytest.approx(layer.after) for layer in found.layers} == correlations


def test_report_says_where_weights_of_skips_went():
    report = convert(own_weights(trained())).report
    key = "features.conv3.skip_weight"
    entry = {entry.key: entry for entry in report.sources}[key]
    assert (entry.status, entry.target, entry.shape) == ("used", (key,), (4,))
    assert {entry.name: entry.origin for entry in report.targets}[key] == key


def test_weights_of_skips_must_be_there_and_fit():
    source = trained()
    tensors = source.state_dict()
    for found, message in ((None, "missing"), (torch.ones(5), r"\[5\]")):
        changed = {name: tensor for name, tensor in tensors.items() if name != "features.conv5.skip_weight"}
        changed |= {} if found is None else {"features.conv5.skip_weight": found}
        with pytest.raises(ConversionError, match=rf"features\.conv5\.skip_weight: {message}, conv5 needs \[4\]"):
            convert(weights_of(changed), config=source.config)


@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "layers.0.0.conv1.weight", "stage1.0.conv1.weight"])
def test_residual_networks_of_other_projects_are_refused(key):
    with pytest.raises(ConversionError, match="Its shortcuts mix or move channels, where ours are one synapse"):
        convert(weights_of({"conv1.weight": torch.ones(4, 3, 3, 3), key: torch.ones(4, 4, 3, 3)}))
