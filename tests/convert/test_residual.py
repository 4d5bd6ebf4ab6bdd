"""Skips and averages: an ANN with batch norm folds into the same network, and starts a spiking one."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.convert.sources import weights_of
from tests.model.earlier_ann import EarlierANN
from ttfs_triton.convert import ConversionError, convert, layer_correlations
from ttfs_triton.convert.fold import fold_layers
from ttfs_triton.convert.layouts import own_layout
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork

STRIDES = "4C3-(4C3-4C3)-(6C3s2-7C3)-(7C3-7C3-7C3)-A"  # every second position arrives, and new channels hear nothing
SPECIFICATIONS = (STRIDES, "4C3-(4C3-4C3)-A2-6C3-(6C3s2-6C3)-P2-12-(9-12)", "(3C3-5C3)x2-A-8")


def trained(specification: str = STRIDES, seed: int = 0, **options) -> EarlierANN:
    """An ANN whose norms, gains and skips all do something."""
    values = {"encoder": "analog", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    values = {} if specification.startswith("(") else values
    values |= {"in_channels": 3, "image_size": (8, 8), "classes": 4, "batch_norm": True, "neuron": Neuron(0.0)}
    return EarlierANN(NetworkConfig(specification, **(values | options)), seed)


def weights(ann: EarlierANN):
    return weights_of(ann.tensors, ann.description())


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Of another brightness each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 8, 8, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)


@settings(max_examples=24)
@given(st.sampled_from(SPECIFICATIONS), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_folded_layers_compute_the_ann_with_batch_norm(specification, standardised, kept, bias, seed):
    """In float64: logits are the same but for rounding."""
    source = trained(specification, seed, weight_standardisation=standardised, bias=bias)
    source.tensors = {name: value.double() for name, value in source.tensors.items()}
    tensors, kept = source.tensors, kept and standardised
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
    converted, x = convert(weights(source)), images(16)
    expected = source(x)
    for found in (converted.ann(x), converted.network(x)):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(found.argmax(1), expected.argmax(1))
    assert not converted.needs_calibration
    assert all(value == pytest.approx(1) for value in layer_correlations(converted.network, converted.ann, x).values())
    assert converted.network.config.weight_standardisation == standardised


def test_report_says_where_weights_of_skips_went():
    report = convert(weights(trained())).report
    key = "features.conv3.skip_weight"
    entry = {entry.key: entry for entry in report.sources}[key]
    assert (entry.status, entry.target, entry.shape) == ("used", (key,), (4,))
    assert {entry.name: entry.origin for entry in report.targets}[key] == key


def test_weights_of_skips_must_be_there_and_fit():
    source = trained()
    tensors = source.tensors
    for found, message in ((None, "missing"), (torch.ones(5), r"\[5\]")):
        changed = {name: tensor for name, tensor in tensors.items() if name != "features.conv5.skip_weight"}
        changed |= {} if found is None else {"features.conv5.skip_weight": found}
        with pytest.raises(ConversionError, match=rf"features\.conv5\.skip_weight: {message}, conv5 needs \[4\]"):
            convert(weights_of(changed), config=source.config)


@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "layers.0.0.conv1.weight", "stage1.0.conv1.weight"])
def test_residual_networks_of_other_projects_are_refused(key):
    with pytest.raises(ConversionError, match="Its shortcuts mix or move channels, where ours are one synapse"):
        convert(weights_of({"conv1.weight": torch.ones(4, 3, 3, 3), key: torch.ones(4, 4, 3, 3)}))
