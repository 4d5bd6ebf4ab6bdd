"""Converted networks against their sources, and refusals; all cases share a table of sources."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.convert import sources
from tests.convert.sources import assert_same_logits, hidden, in_range, randomised, weights_of
from ttfs_triton.convert import ConversionError, calibrate_converted, convert, fit_range
from ttfs_triton.convert.layouts import CIFAR10_PAPER, CIFAR100_PAPER, IMAGENET
from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import Grid, NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.nn.networks import VGG11

NARROW = "4C3-P2-6C3-P2-8C3-8C3-P2-8C3-8C3-P2-10C3-10C3-P2"
EXACT = {"neuron": Neuron(0.0), "trained_as": "ann"}
PROJECTS = [sources.torchvision, sources.one_layer_head, sources.timm_pooled, sources.Paper]


# ---- networks of other projects


@pytest.mark.parametrize(
    ("build", "layout", "head", "size"),
    [
        (sources.torchvision, "torchvision VGG", "-12-12", 32),
        (sources.torchvision, "torchvision VGG", "-A-12-12", (32, 96)),
        (lambda: sources.torchvision(5, side=7), "torchvision VGG", "-12-12", 64),  # 2×2 maps are flattened
        (lambda: sources.torchvision(5, side=7, batch_norm=False), "torchvision VGG", "-12-12", 288),
        (sources.one_layer_head, "torchvision VGG", "", 32),
        (sources.timm_pooled, "timm VGG", "-A", 64),
        (sources.Paper, "Wei et al., ICCV 2023", "-12-9", 32),
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


def test_torchvision_network_converts_exactly():
    source = randomised(torchvision.models.vgg11_bn(num_classes=7, init_weights=False))
    converted = convert(weights_of(source, {}), **EXACT)
    assert converted.network.config.specification == VGG11
    assert (converted.network.config.mean, converted.network.config.std) == IMAGENET
    assert_same_logits(converted, source, torch.rand(2, 3, 224, 224))


@pytest.mark.parametrize("size", [32, 224])
def test_timm_network_converts_exactly(size):
    source = randomised(timm.models.vgg.VGG(list(sources.PLAN), num_classes=7, norm_layer=nn.BatchNorm2d))
    assert_same_logits(convert(weights_of(source), image_size=size, **EXACT), source, torch.rand(3, 3, size, size))
    with pytest.raises(ConversionError, match=r"image_size must leave maps of at most 7×7 .*got \(256, 256\)"):
        convert(weights_of(source), image_size=256)


@settings(max_examples=30)
@given(
    channels=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    pools=st.lists(st.booleans(), min_size=5, max_size=5),
    batch_norm=st.booleans(),
    images=st.integers(1, 3),
)
def test_pools_are_found_in_the_gaps(channels, pools, batch_norm, images):
    plan = [item for size, pool in zip(channels, pools, strict=False) for item in ([size, "M"] if pool else [size])]
    plan = plan if plan[-1] == "M" else [*plan, "M"]
    model = sources.vgg(channels[-1] * 4, 3, plan=plan, batch_norm=batch_norm, channels=images)
    config = convert(weights_of(model, {}), mean=(0.5,) * images, std=(0.25,) * images).network.config
    assert config.specification == "-".join("P2" if item == "M" else f"{item}C3" for item in plan)
    assert config.image_size == (2 * 2 ** plan.count("M"),) * 2


def test_batch_norm_folds_whatever_it_has():
    """No γ and β, no counter; and one in the head."""
    source = randomised(sources.one_layer_head())
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.affine, module.weight, module.bias = False, None, None
    tensors = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert_same_logits(convert(weights_of(tensors), **EXACT), source, torch.rand(3, 3, 32, 32))
    head = sources.torchvision()
    layers = list(head.classifier)
    head.classifier = nn.Sequential(layers[0], nn.BatchNorm1d(12), nn.ReLU(), *layers[3:])
    assert_same_logits(convert(weights_of(randomised(head)), **EXACT), head, torch.rand(3, 3, 32, 32))
    tensors["features.1.running_var"] = torch.tensor([1.0, -0.5, 1, 1])
    with pytest.raises(ConversionError, match=r"running_var \+ epsilon must be positive; got -0\.49999"):
        convert(weights_of(tensors))


def test_mean_and_std_are_those_of_the_project():
    paper = [(sources.Paper(), CIFAR10_PAPER), (sources.Paper(100), CIFAR100_PAPER)]
    for source, statistics in [*paper, (sources.torchvision(side=7), IMAGENET)]:
        converted = convert(weights_of(source, {}), trained_as="ann")
        assert (converted.network.config.mean, converted.network.config.std) == statistics
        assert any(str(statistics[0]) in note for note in converted.report.notes)


def test_mean_and_std_must_be_said_where_nothing_says_them():
    weights = weights_of(sources.timm_pooled(), {})
    for given_values in ({}, {"mean": (0.1, 0.2, 0.3)}):
        with pytest.raises(ConversionError, match=r"mean and std must be given .* got none\. Give both"):
            convert(weights, **given_values)
    for each in (weights, weights_of(sources.one_layer_head())):  # also in place of those that are known
        found = convert(each, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
        assert found.report.notes[0] == "mean and std as given"
        assert (found.network.config.mean, found.network.config.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    fallback = NetworkConfig("4C3", in_channels=3, encoder="analog", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    assert convert(weights, config=fallback).network.config.mean == (0.5, 0.5, 0.5)
    mnist = {"conv.0.cnn.weight": torch.ones(4, 1, 3, 3), "fc.0.linear.weight": torch.ones(10, 4 * 13 * 13)}
    for each, kind in ((own_weights(ours(encoder="latency")), None), (weights_of(mnist), "ann")):
        with pytest.raises(ConversionError, match="mean and std must not be given for a source that reads pixels"):
            convert(each, mean=(0.5,) * 3, trained_as=kind)
    values = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64]}
    for config in ({"architecture": "vgg16_bn", "pretrained_cfg": values}, values):  # as timm writes it
        network = convert(weights_of(sources.timm_pooled(), config)).network.config
        assert (network.mean, network.std, network.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (64, 64))
    with pytest.raises(ConversionError, match=r"config\.json beside the weights must hold numbers; int"):
        convert(weights_of(sources.timm_pooled(), {"input_size": [3, None, None]}))


# ---- what fits nowhere


@pytest.mark.parametrize("build", PROJECTS, ids=lambda build: build.__name__)
def test_every_missing_and_extra_key_is_found(build):
    tensors = build().state_dict()
    lone = {"classifier.bias", "head.fc.bias"}  # of the only linear layer, which may have none
    last = {"conv.18.cnn.weight", "fc.4.linear.weight"}  # what comes behind the last layer cannot be missed
    for key in [key for key in tensors if not key.endswith("num_batches_tracked") and key not in lone | last]:
        with pytest.raises(ConversionError, match="convert: "):
            convert(weights_of({name: tensor for name, tensor in tensors.items() if name != key}), trained_as="ann")
    for key in ("features.2.extra", "aux.weight", "classifier.9.bias", "conv.1.cnn.bias"):
        with pytest.raises(ConversionError, match=rf"(?s)must be those of .*Unexpected key.*{key}"):
            convert(weights_of(tensors | {key: torch.ones(4, 5)}), trained_as="ann")


def torchvision_with(key: str, *shape: int):
    return sources.torchvision().state_dict() | {key: torch.ones(shape)}


def without(tensors, text: str):
    return {key: tensor for key, tensor in tensors.items() if text not in key}


def dropout_in_features():
    layers = sources.features(sources.SHORT)
    layers.insert(3, nn.Dropout())
    return sources.named(features=nn.Sequential(*layers), classifier=nn.Linear(6, 3)).state_dict()


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (torchvision_with("features.4.weight", 6, 5, 3, 3), r"size mismatch for features\.4\.weight"),
        (torchvision_with("classifier.0.weight", 12, 11), r"must read square maps .*got weights \[12, 11\], 1\.1 pl"),
        (torchvision_with("features.0.weight", 4, 3, 5, 5), r"features\.0\.weight must be 3×3 \(padding 1\) or 1×1"),
        (without(sources.torchvision(batch_norm=False).state_dict(), "features.3.bias"), "must have a bias, or none"),
        (without(sources.torchvision().state_dict(), "features.1.bias"), r"Missing key.*features\.1\.bias"),
        (without(sources.torchvision().state_dict(), "classifier.3"), r"behind classifier\.0\.weight .* got 5 places"),
        (dropout_in_features(), r"behind features\.0\.weight there must be .*got 3 places before features\.5"),
        (sources.named(features=nn.Sequential(*sources.features())).state_dict(), "a VGG with a classifier"),
        (sources.timm_pooled().state_dict() | {"pre_logits.fc1.weight": torch.ones(10, 10, 7, 7)}, "1 places before"),
        ({"features.0.weight": torch.ones(3, 3), "classifier.weight": torch.ones(3, 3)}, "must be a network of ttfs-t"),
        (nn.Linear(3, 3).state_dict(), r"got weight \[3, 3\].*convert_ann\(module, images\)"),
        ({"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}, r"--network FILE\.py:FUNCTION"),
    ],
)
def test_wrong_tensors_are_named(tensors, problem):
    with pytest.raises(ConversionError, match=f"(?s){problem}"):
        convert(weights_of(tensors))


def test_image_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConversionError, match=r"image_size must be 32 .*maps of 1×1; got \(96, 96\)"):
        convert(weights_of(sources.Paper()), image_size=96, trained_as="ann")
    with pytest.raises(ConversionError, match="image_size must be at least 32 for 5 pools"):
        convert(weights_of(sources.torchvision()), image_size=16)
    notes = convert(weights_of(sources.one_layer_head()), image_size=(64, 96)).report.notes
    assert "an average pool turns maps of 2×3 into 1×1" in notes
    source = sources.vgg(210, 3, plan=sources.SHORT)
    assert convert(weights_of(source), image_size=(28, 20)).network.config.image_size == (28, 20)
    with pytest.raises(ConversionError, match=r"must read square maps .*35 places a channel\. Give .*--image-size"):
        convert(weights_of(source))


# ---- networks of ours

STRIDES = "4C3-(4C3-4C3)-(6C3s2-7C3)-(7C3-7C3-7C3)-A"  # every second position arrives, and new channels hear nothing


def ours(specification: str = "6C3-P2-8C3p0-P2-12-9", seed: int = 1, **options) -> TTFSNetwork:
    """A network whose norms, gains, skips and biases all do something, in evaluation mode."""
    values = {"encoder": "analog", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    values = {} if options.get("encoder") == "latency" else values
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


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": True, "weight_standardisation": False},
        {"batch_norm": True, "bias": False},
        {"bias": False, "weight_standardisation": False},
        {"encoder": "latency"},
        {"specification": "14-9", "encoder": "latency"},
        {"specification": STRIDES, "batch_norm": True, "width": 0.5},
    ],
)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "folded"])
@torch.no_grad()
def test_own_network_becomes_the_same_spiking_network(options, keep):
    source = ours(**options)
    converted = convert(own_weights(source), keep_standardisation=keep, neuron=Neuron(0.0))
    network, x = converted.network, images()
    expected = source(x)
    assert expected.std(0).max() > 1e-3
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
    assert not converted.needs_calibration
    standardised = source.config.weight_standardisation and not source.config.batch_norm
    assert network.config.weight_standardisation == (keep and standardised)
    assert (network.config.batch_norm, network.training) == (False, False)


@torch.no_grad()
def test_own_network_needs_its_configuration_size_and_whole_tensors():
    source = ours(batch_norm=True)
    with pytest.raises(ConversionError, match=r"must have a config\.json beside it"):
        convert(weights_of(source))
    network = convert(weights_of(source), config=source.config, neuron=Neuron(0.0)).network
    torch.testing.assert_close(network(images()), source(images()), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConversionError, match=r"image_size must be \(16, 16\)"):
        convert(own_weights(ours()), image_size=28)
    tensors = without(source.state_dict(), "readout.weight") | {"features.conv3.weight": torch.ones(2)}
    problem = r"(?s)Missing key.*readout\.weight.*Unexpected key.*features\.conv3\.weight"
    with pytest.raises(ConversionError, match=problem):
        convert(weights_of(tensors), config=source.config)


def test_spiking_source_is_copied_and_the_report_says_so():
    source = ours(neuron=Neuron(0.5))
    converted = convert(own_weights(source))
    assert (converted.network.config, converted.needs_calibration) == (source.config, False)
    for name, value in source.state_dict().items():
        assert torch.equal(value, converted.network.state_dict()[name])
    assert "the source is a spiking network; its weights are copied" in converted.report.notes
    source.put_on_grid(Grid(8, 4))
    again = convert(own_weights(source))
    assert again.network.config == converted.network.config
    assert again.report.notes[-1].startswith(f"left without its grid, {Grid(8, 4).text()}: ")


# ---- what can be asked for


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
    assert (one.report.head_replaced, one.report.layers[-1].sources) == (True, ())
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are left alone
    network = convert(own_weights(ours()), classes=3, replace_head=True).network
    torch.testing.assert_close(network.readout.weight_gain, torch.full((3,), 0.5 * 2**0.5))


def test_overrides_reach_the_network():
    values = {"neuron": Neuron(0.3, surrogate_width=0.1), "readout": "first_spike", "dropout": 0.2, "bias": True}
    network = convert(weights_of(sources.Paper()), trained_as="ann", **values).network
    assert {name: getattr(network.config, name) for name in values} == values
    assert not network.readout.bias.any()
    assert not convert(weights_of(sources.Paper()), trained_as="ann").network.config.bias
    with pytest.raises(ConversionError, match=r"overrides must be among .*; got sigma, specification"):
        convert(weights_of(sources.Paper()), specification="8", sigma=1)
    with pytest.raises(ConversionError, match="bias must be True for a source with biases or batch norm"):
        convert(weights_of(sources.one_layer_head()), bias=False)
    with pytest.raises(ConversionError, match=r'encoder must be "analog" for a source with mean .* Leave it out'):
        convert(weights_of(sources.one_layer_head()), encoder="latency")


@pytest.mark.parametrize("build", [*PROJECTS, None])
def test_report_names_every_tensor(build):
    weights = weights_of(randomised(build())) if build else own_weights(ours(STRIDES, batch_norm=True))
    report = convert(weights, trained_as="ann" if build else None).report
    named = [name for layer in report.layers for name in layer.sources]
    assert len(named) == len(set(named))
    for key in weights.tensors:
        assert key in named or any(key.startswith(name[:-1]) for name in named if name.endswith("*")), key
    values = json.loads(json.dumps(report.to_dict()))
    assert values["layers"][0]["name"] == "conv1"
    assert any("batch norm" in layer.folded for layer in report.layers) == (build is not sources.Paper)


# ---- activations within [0, 1]

PHOTOS = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_every_active_channel_reaches_one():
    converted = convert(weights_of(randomised(sources.one_layer_head())), neuron=Neuron(0.0))
    for name, activations in hidden(in_range(converted, PHOTOS), PHOTOS).items():
        highest = activations.transpose(0, 1).flatten(1).amax(1)
        assert (highest > 0).any(), name
        torch.testing.assert_close(highest[highest > 0], torch.ones(int((highest > 0).sum())), atol=1e-5, rtol=0)
    for percentile in (0.0, 100.1, float("nan")):
        with pytest.raises(ConversionError, match="percentile must be in"):
            calibrate_converted(replace(converted, bounded=False), PHOTOS, percentile=percentile)
    with pytest.raises(ConversionError, match="must have plain weights, no batch norm or gains"):
        fit_range(ours(), images())


def test_bounds_are_clips_and_silent_channels_keep_their_scale():
    source = randomised(sources.one_layer_head())
    with torch.no_grad():
        source.features[1].weight[0], source.features[1].bias[0] = 0.0, -1.0
    network = convert(weights_of(source), neuron=Neuron(0.0)).network
    weight, bias = network.features.conv1.weight[0].clone(), network.features.conv2.bias.clone()
    clips = fit_range(network, PHOTOS, [None, 4.0, *[None] * 6])
    assert torch.equal(network.features.conv1.weight[0], weight)
    assert torch.equal(clips["conv2"], torch.full((6,), 4.0))
    torch.testing.assert_close(network.features.conv2.bias, bias / 4)
