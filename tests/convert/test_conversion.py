"""Converted networks against the networks that they are of; what is kept, replaced and refused."""

import io
import json

import pytest
import timm
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from tests.convert import sources
from tests.convert.sources import assert_same_logits, randomised, weights_of
from tests.model.earlier_ann import EarlierANN
from ttfs_triton.convert import ConversionError, convert
from ttfs_triton.convert.layouts import CIFAR10_PAPER, CIFAR100_PAPER, IMAGENET
from ttfs_triton.convert.own import fold_own
from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.nn.networks import VGG11

NARROW = "4C3-P2-6C3-P2-8C3-8C3-P2-8C3-8C3-P2-10C3-10C3-P2"
EXACT = {"neuron": Neuron(0.0), "trained_as": "ann"}


@pytest.mark.parametrize(
    ("build", "layout", "head", "size"),
    [
        (sources.torchvision, "torchvision VGG", "-12-12", 32),
        (sources.torchvision, "torchvision VGG", "-A-12-12", (32, 96)),
        (lambda: sources.torchvision(5, side=7), "torchvision VGG", "-12-12", 224),
        (lambda: sources.torchvision(5, side=7, batch_norm=False), "torchvision VGG", "-12-12", 288),
        (lambda: sources.torchvision(5, side=7), "torchvision VGG", "-12-12", 64),
        (sources.one_layer_head, "torchvision VGG", "", 32),
        (sources.timm_pooled, "timm VGG", "", 32),
        (sources.timm_pooled, "timm VGG", "-A", 64),
        (sources.paper, "Wei et al., ICCV 2023", "-12-9", 32),
    ],
)
def test_layout_is_recognised_and_converted_exactly(build, layout, head, size):
    source = randomised(build())
    converted = convert(weights_of(source), image_size=size, **EXACT)
    assert (converted.report.layout, converted.bounded) == (layout, layout.startswith("Wei"))
    assert converted.network.config.specification == converted.report.specification == f"{NARROW}{head}"
    assert converted.needs_calibration != converted.bounded
    shape = (size, size) if isinstance(size, int) else size
    assert converted.network.config.image_size == shape
    assert_same_logits(converted, source, torch.rand(4, 3, *shape))


@pytest.mark.parametrize("name", [pytest.param("vgg11", marks=pytest.mark.slow), "vgg11_bn"])
def test_torchvision_network_converts_exactly(name):
    source = randomised(getattr(torchvision.models, name)(num_classes=7, init_weights=False))
    converted = convert(weights_of(source, {}), **EXACT)
    assert converted.network.config.specification == VGG11
    assert (converted.network.config.mean, converted.network.config.std) == IMAGENET
    assert_same_logits(converted, source, torch.rand(2, 3, 224, 224))


@pytest.mark.parametrize("size", [32, 64, 224])
def test_timm_network_converts_exactly(size):
    source = randomised(timm.models.vgg.VGG(list(sources.PLAN), num_classes=7, norm_layer=nn.BatchNorm2d))
    assert_same_logits(convert(weights_of(source), image_size=size, **EXACT), source, torch.rand(3, 3, size, size))
    with pytest.raises(ConversionError, match=r"image_size must leave maps of at most 7×7 .*got \(256, 256\)"):
        convert(weights_of(source), image_size=256)


STRIDES = "4C3-(4C3-4C3)-(6C3s2-7C3)-(7C3-7C3-7C3)-A"  # every second position arrives, and new channels hear nothing
SPECIFICATIONS = (STRIDES, "4C3-(4C3-4C3)-A2-6C3-(6C3s2-6C3)-P2-12-(9-12)", "(3C3-5C3)x2-A-8", "6C3-P2-8C3p0-P2-12-9")


def ours(specification: str = SPECIFICATIONS[-1], seed: int = 1, **options) -> TTFSNetwork:
    """A network whose norms, gains, skips and biases all do something, in evaluation mode."""
    latent = specification.startswith("(") or options.get("encoder") == "latency"
    values = {"encoder": "analog", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    values = {"encoder": "latency"} if latent else values
    values |= {"in_channels": 3, "image_size": (16, 16), "classes": 5, "neuron": Neuron(0.0)}
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


def own_weights(network: TTFSNetwork):
    names = list("abcde"[: network.config.classes])
    return weights_of(network, ModelDescription.of(network.config, class_names=names, dataset="letters").to_dict())


def images(count: int = 6, seed: int = 0) -> torch.Tensor:
    """Of another brightness each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 16, 16, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)


@settings(max_examples=24)
@given(st.sampled_from(SPECIFICATIONS), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99))
def test_folded_layers_compute_the_ann_with_batch_norm(specification, standardised, kept, bias, seed):
    """In float64: logits are the same but for rounding, also where a layer has both, as ANNs of older versions did."""
    config = ours(specification).config.replace(batch_norm=True, weight_standardisation=standardised, bias=bias)
    source, kept = EarlierANN(config, seed), kept and standardised
    source.tensors = {name: value.double() for name, value in source.tensors.items()}
    state, _ = fold_own(source.tensors, config, keep_standardisation=kept, epsilon=1e-5)
    plain = TTFSNetwork(config.replace(batch_norm=False, weight_standardisation=kept, bias=True)).double()
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([] if bias else ["readout.bias"], [])
    x = images(5, seed).double()
    with torch.no_grad():
        expected = source(x)
        assume(expected.std(0).max() > 1e-6)  # where a layer is silent, any weights before it would do
        torch.testing.assert_close(plain.eval()(x), expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": True, "weight_standardisation": False},
        {"batch_norm": True, "bias": False},
        {"bias": False, "weight_standardisation": False},
        {"encoder": "latency", "max_value": 0.8},
        {"specification": "14-9", "encoder": "latency"},
        {"specification": STRIDES, "batch_norm": True, "width": 0.5},
    ],
)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "folded"])
@torch.no_grad()
def test_own_network_becomes_the_same_spiking_network(options, keep):
    source = ours(**options)
    converted = convert(own_weights(source), keep_standardisation=keep, neuron=Neuron(0.0))
    network, x = converted.network, options.get("max_value", 1.0) * images()
    expected = source(x)
    assert expected.std(0).max() > 1e-3
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
    assert not converted.needs_calibration
    standardised = source.config.weight_standardisation and not source.config.batch_norm
    assert network.config.weight_standardisation == (keep and standardised)
    assert not network.config.batch_norm
    assert not network.training


def test_batch_norm_folds_whatever_it_has():
    """Another epsilon, no γ and β, no counter; and one in the head."""
    source = randomised(sources.one_layer_head())
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.affine, module.weight, module.bias = 1e-2, False, None, None
    tensors = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert_same_logits(convert(weights_of(tensors), batch_norm_epsilon=1e-2, **EXACT), source, torch.rand(3, 3, 32, 32))
    head = sources.torchvision()
    layers = list(head.classifier)
    head.classifier = nn.Sequential(layers[0], nn.BatchNorm1d(12), nn.ReLU(), *layers[3:])
    assert_same_logits(convert(weights_of(randomised(head)), **EXACT), head, torch.rand(3, 3, 32, 32))
    with pytest.raises(ConversionError, match="batch_norm_epsilon must be positive"):
        convert(weights_of(source), batch_norm_epsilon=0.0)
    tensors["features.1.running_var"] = torch.tensor([1.0, -0.5, 1, 1])
    with pytest.raises(ConversionError, match=r"running_var must not be negative; got -0\.5"):
        convert(weights_of(tensors))


@pytest.mark.parametrize(
    ("build", "classes", "statistics"),
    [
        (sources.paper, 10, CIFAR10_PAPER),
        (sources.paper, 100, CIFAR100_PAPER),
        (lambda classes: sources.torchvision(classes, side=7), 10, IMAGENET),
    ],
)
def test_mean_and_std_are_those_of_the_project(build, classes, statistics):
    converted = convert(weights_of(build(classes), {}), trained_as="ann")
    assert (converted.network.config.mean, converted.network.config.std) == statistics
    assert any(str(statistics[0]) in note for note in converted.report.notes)


def test_mean_and_std_must_be_said_where_nothing_says_them():
    weights = weights_of(sources.timm_pooled(), {})
    for given_values in ({}, {"mean": (0.1, 0.2, 0.3)}):
        with pytest.raises(ConversionError, match=r"mean and std must be those .* got none\. Give both"):
            convert(weights, **given_values)
    for each in (weights, weights_of(sources.one_layer_head())):  # also in place of those that are known
        found = convert(each, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
        assert found.report.notes[0] == "mean and std as given"
        assert (found.network.config.mean, found.network.config.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    fallback = NetworkConfig("4C3", in_channels=3, encoder="analog", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert convert(weights_of(sources.timm_pooled(), {}), config=fallback).network.config.mean == (0.5, 0.5, 0.5)
    with pytest.raises(ConversionError, match="mean and std must not be given for a source that reads pixels"):
        convert(own_weights(ours(encoder="latency")), mean=(0, 0, 0))


@pytest.mark.parametrize("nested", [True, False])
def test_timm_configuration_overrides_mean_std_and_size(nested):
    values = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64]}
    config = {"architecture": "vgg16_bn", "pretrained_cfg": values} if nested else values
    network = convert(weights_of(sources.timm_pooled(), config)).network.config
    assert (network.mean, network.std, network.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (64, 64))


def test_input_normalisation_folds_exactly_without_padding():
    source = ours("6C3p0-P2-8C3-12")
    converted = convert(own_weights(source), input_normalisation="weights", encoder="latency", neuron=Neuron(0.0))
    config = converted.network.config
    assert (config.mean, config.std, config.encoder, config.weight_standardisation) == (None, None, "latency", False)
    with torch.no_grad():
        torch.testing.assert_close(converted.network(images()), source(images()), atol=1e-4, rtol=1e-4)
    assert any("mean and std folded into conv1" in note for note in converted.report.notes)
    padded = own_weights(ours("6C3-12", weight_standardisation=False))
    with pytest.raises(ConversionError, match='input_normalisation must be "configuration" for a padded'):
        convert(padded, input_normalisation="weights")
    network = convert(padded, input_normalisation="weights", inexact_borders=True).network
    with torch.no_grad():
        exact = ours("6C3-12", weight_standardisation=False).features[0](images())
        difference = (network.features[0](images()) - exact).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-5 < difference.max()
    with pytest.raises(ConversionError, match=r'encoder must be "analog" .*input_normalisation="weights"'):
        convert(weights_of(sources.one_layer_head()), encoder="latency")


def test_another_number_of_classes_needs_a_new_head():
    weights, before = weights_of(randomised(sources.torchvision(hidden=10))), torch.get_rng_state()
    with pytest.raises(ConversionError, match=r"classes must be 10, as file\.pt has; got 7.*replace_head=True"):
        convert(weights, classes=7)
    one, same, other = (convert(weights, classes=7, replace_head=True, seed=seed) for seed in (0, 0, 1))
    assert one.network.readout.weight.shape == (7, 10)
    assert torch.equal(one.network.readout.weight, same.network.readout.weight)
    assert not torch.equal(one.network.readout.weight, other.network.readout.weight)
    assert not one.network.readout.bias.any()
    assert torch.equal(one.network.features.fc2.weight, convert(weights).network.features.fc2.weight)
    assert one.report.head_replaced
    assert one.report.layers[-1].sources == ()
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are left alone
    network = convert(own_weights(ours()), classes=3, replace_head=True).network
    torch.testing.assert_close(network.readout.weight_gain, torch.full((3,), 0.5 * 2**0.5))


def test_overrides_reach_the_network():
    values = {"neuron": Neuron(0.3, surrogate_width=0.1), "readout": "first_spike", "dropout": 0.2, "bias": True}
    network = convert(weights_of(sources.paper()), trained_as="ann", **values).network
    assert {name: getattr(network.config, name) for name in values} == values
    assert not network.readout.bias.any()
    assert not convert(weights_of(sources.paper()), trained_as="ann").network.config.bias
    with pytest.raises(ConversionError, match=r"overrides must be among .*; got sigma, specification"):
        convert(weights_of(sources.paper()), specification="8", sigma=1)
    with pytest.raises(ConversionError, match="bias must be True for a source with biases or batch norm"):
        convert(weights_of(sources.one_layer_head()), bias=False)


def test_own_network_needs_its_configuration_and_size():
    source = ours(batch_norm=True)
    with pytest.raises(ConversionError, match=r"must have a config\.json beside it"):
        convert(weights_of(source))
    network = convert(weights_of(source), config=source.config, neuron=Neuron(0.0)).network
    with torch.no_grad():
        torch.testing.assert_close(network(images()), source(images()), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConversionError, match=r"image_size must be \(16, 16\)"):
        convert(own_weights(ours()), image_size=28)


def test_spiking_source_is_copied_and_said():
    source = ours(neuron=Neuron(0.5))
    converted = convert(own_weights(source))
    assert (converted.network.config, converted.needs_calibration) == (source.config, False)
    for name, value in source.state_dict().items():
        assert torch.equal(value, converted.network.state_dict()[name])
    assert "the source is a spiking network; its weights are copied" in converted.report.notes


@pytest.mark.parametrize("build", [sources.torchvision, sources.timm_pooled, sources.paper, None])
def test_report_names_every_tensor(build):
    weights = weights_of(randomised(build())) if build else own_weights(ours(STRIDES, batch_norm=True))
    report = convert(weights, trained_as="ann" if build else None).report
    named = [name for layer in report.layers for name in layer.sources]
    assert len(named) == len(set(named))
    for key in weights.tensors:
        assert key in named or any(key.startswith(name[:-1]) for name in named if name.endswith("*")), key
    values = json.loads(json.dumps(report.to_dict()))
    assert values["layers"][0]["name"] == "conv1"
    console = Console(width=160, file=io.StringIO())
    console.print(report.table())
    shown = "".join(console.file.getvalue().split())
    assert all("".join(part.split()) in shown for part in (report.layout, "0" * 64, *report.notes))
    assert ("batchnorm" in shown) == (build is not sources.paper)
