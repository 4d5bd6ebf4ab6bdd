"""Converted networks against their sources, and refusals; all cases share a table of sources."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.convert import sources
from tests.convert.sources import assert_same_logits, hidden, in_range, randomised, weights_of
from ttfs_triton.convert import ConversionError, WeightsError, calibrate_converted, convert, fit_range
from ttfs_triton.convert.ann_file import CIFAR10, CIFAR100, paper_config
from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import Grid, NetworkConfig, Neuron, TTFSNetwork

NARROW = "4C3-P2-6C3-P2-8C3-8C3-P2-8C3-8C3-P2-10C3-10C3-P2"
STATISTICS = {"mean": (0.49, 0.48, 0.45), "std": (0.2, 0.19, 0.21)}


def chain(specification: str = NARROW, **changes) -> NetworkConfig:
    """The network that an ANN of another project becomes; its mean and std are read from `sources.TIMM_CONFIG`."""
    values = {"in_channels": 3, "image_size": (32, 32), "encoder": "analog", "neuron": Neuron(0.0)}
    return NetworkConfig(specification, **(values | changes))


CHAINS = {
    sources.torchvision: chain(f"{NARROW}-12-12"),
    sources.one_layer_head: chain(),
    sources.Paper: None,
}


# ---- networks of other projects


@pytest.mark.parametrize(
    ("build", "config"),
    [
        *CHAINS.items(),
        (lambda: sources.torchvision(batch_norm=False), chain(f"{NARROW}-12-12")),
        (sources.torchvision, chain(f"{NARROW}-A-12-12", image_size=(64, 96))),
        (sources.Paper, chain(f"{NARROW}-12-9")),  # as an ANN to train on from
        (sources.convolutional_head, chain("5C3-P2-6C3-6C3-P2-12-9", image_size=(16, 16), classes=7)),
        (sources.normalised_head, chain("5C3-P2-12", image_size=(8, 8))),
    ],
)
def test_ann_is_matched_by_order_and_shape_and_converts_exactly(build, config):
    source = randomised(build())
    named = {"trained_as": "ann", "neuron": Neuron(0.0)} if config is None else {"config": config}
    tensors = source.state_dict()  # safetensors are sorted by name; not all files have counters
    bare = {key: tensors[key] for key in sorted(tensors) if not key.endswith("num_batches_tracked")}
    for each in (tensors, bare):
        converted = convert(weights_of(each, {} if config is None else None), **named)
        assert converted.bounded == isinstance(source, sources.Paper) != converted.needs_calibration
        assert_same_logits(converted, source, torch.rand(4, 3, *converted.network.config.image_size))


@settings(max_examples=30)
@given(
    channels=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    pools=st.lists(st.booleans(), min_size=5, max_size=5),
    images=st.sampled_from([1, 3]),
)
def test_paper_s_pools_are_in_the_gaps_of_its_numbers(channels, pools, images):
    tensors, place, tokens, inputs = {}, 0, [], images
    for last, (size, pool) in enumerate(zip(channels, pools, strict=False)):
        tensors[f"conv.{place}.cnn.weight"] = torch.ones(size, inputs, 3, 3)
        pooled = pool or last == len(channels) - 1
        tokens += [f"{size}C3" + ("p0" if images == 1 else ""), *(["P2"] if pooled else [])]
        place, inputs = place + 2 + pooled, size
    tensors["fc.0.linear.weight"] = torch.ones(7, inputs * 4)
    config = paper_config(tensors, "ann")
    assert (config.specification, config.classes) == ("-".join(tokens), 7)
    assert config.image_size == ((28, 28) if images == 1 else (2 * 2 ** tokens.count("P2"),) * 2)


def test_mean_and_std_come_from_the_caller_timm_or_the_paper():
    for source, statistics in [(sources.Paper(), CIFAR10), (sources.Paper(100), CIFAR100)]:
        config = convert(weights_of(source, {}), trained_as="ann").network.config
        assert (config.mean, config.std) == statistics
    given_values, timm_values = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}, {**sources.TIMM_CONFIG, "width": 3}
    for found, expected in (
        (convert(weights_of(sources.one_layer_head()), config=chain(), **given_values), given_values),
        (convert(weights_of(sources.one_layer_head(), timm_values), config=chain()), STATISTICS),
        (convert(weights_of(sources.one_layer_head(), {"pretrained_cfg": timm_values}), config=chain()), STATISTICS),
        (convert(weights_of(sources.one_layer_head(), {}), config=chain(**given_values)), given_values),
        (convert(weights_of(sources.one_layer_head(), {}), config=chain()), {"mean": None, "std": None}),
    ):
        assert {name: getattr(found.network.config, name) for name in expected} == expected
    assert "no mean and std: the ANN reads pixels in [0, 1]" in found.report.notes
    with pytest.raises(WeightsError, match=r"mean and std in the config\.json beside file\.pt must be numbers; "):
        convert(weights_of(sources.one_layer_head(), {"mean": 3, "std": [None]}), config=chain())
    with pytest.raises(ConversionError, match="mean must be left out for a network of ours, which has them"):
        convert(own_weights(ours()), mean=(0.5,) * 3)


# ---- what fits nowhere


@pytest.mark.parametrize("build", CHAINS, ids=lambda build: build.__name__)
def test_every_missing_and_extra_key_is_told(build):
    tensors, config = build().state_dict(), CHAINS[build]
    kind = {"trained_as": "ann"} if config is None else {"config": config}
    lone = {key for key in tensors if key.endswith((".bias", "num_batches_tracked")) and "running" not in key}
    last = {"conv.18.cnn.weight", "fc.4.linear.weight"}  # what comes behind the last layer cannot be missed
    norms = {key.replace("running_mean", "bias") for key in tensors if "running_mean" in key}
    for key in tensors.keys() - (lone - norms) - last:
        with pytest.raises(ConversionError, match="convert: "):
            convert(weights_of({name: tensor for name, tensor in tensors.items() if name != key}), **kind)
    for key in ("features.2.extra", "aux.weight", "classifier.9.bias", "conv.1.cnn.bias"):
        with pytest.raises(ConversionError, match=rf"{key}|weights must be those|weights must be of"):
            convert(weights_of(tensors | {key: torch.ones(4, 5)}), **kind)


@pytest.mark.parametrize(
    ("tensors", "options", "problem"),
    [
        ({"features.1.bias": None}, {}, r"features\.1\.bias must have the shape \[4\]; got none"),
        ({"classifier.weight": torch.ones(10, 11)}, {}, r"classifier\.weight must have .* \[10, 10\]; got \[10, 11\]"),
        ({"classifier.weight": None}, {}, r"those of 9 layers, as 4C3-.* has.*; got 8 and 8: features\.0, "),
        ({"features.1.running_var": -torch.ones(4)}, {}, r"features\.1\.running_var \+ epsilon must be positive; got"),
        ({}, {"config": None}, r"must be of a network of ttfs-triton or of the paper; got features.* and more"),
        ({}, {"trained_as": "proxy"}, "trained_as must be left out for weights not of the paper; got proxy"),
        ({}, {"config": chain("4C3-(4C3-4C3)-A")}, r"must be a chain of layers; got 4C3-\(4C3-4C3\)-A, encoder analog"),
        ({}, {"config": chain("54C3", encoder="whitened")}, "must be a chain of layers; got 54C3, encoder whitened"),
        ({}, {"bias": False}, "bias must be True for a source with biases or batch norm"),
    ],
)
def test_wrong_tensors_and_options_are_named(tensors, options, problem):
    found = sources.one_layer_head().state_dict() | tensors
    weights = weights_of({name: tensor for name, tensor in found.items() if tensor is not None})
    with pytest.raises(ConversionError, match=problem):
        convert(weights, **{"config": chain(), **options})


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
    tensors = source.state_dict() | {"features.conv3.weight": torch.ones(2)}
    del tensors["readout.weight"]
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
    weights, before = weights_of(randomised(sources.Paper())), torch.get_rng_state()
    with pytest.raises(ConversionError, match=r"classes must be 10, as file\.pt has; got 7.*replace_head=True"):
        convert(weights, classes=7, trained_as="ann")
    paper = {"trained_as": "ann", "bias": True}
    one, same, other = (convert(weights, classes=7, replace_head=True, seed=seed, **paper) for seed in (0, 0, 1))
    assert one.network.readout.weight.shape == (7, 9)
    assert torch.equal(one.network.readout.weight, same.network.readout.weight)
    assert not torch.equal(one.network.readout.weight, other.network.readout.weight)
    assert not one.network.readout.bias.any()
    assert torch.equal(one.network.features.fc2.weight, convert(weights, **paper).network.features.fc2.weight)
    assert (one.report.head_replaced, one.report.layers[-1].sources) == (True, ())
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are left alone
    network = convert(own_weights(ours()), classes=3, replace_head=True).network
    torch.testing.assert_close(network.readout.weight_gain, torch.full((3,), 0.5 * 2**0.5))


@pytest.mark.parametrize("build", [*CHAINS, None])
def test_report_names_every_tensor(build):
    weights = weights_of(randomised(build())) if build else own_weights(ours(STRIDES, batch_norm=True))
    config = CHAINS.get(build)
    report = convert(weights, config=config, trained_as="ann" if build is sources.Paper else None).report
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
    converted = convert(weights_of(randomised(sources.one_layer_head())), config=chain())
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
    network = convert(weights_of(source), config=chain()).network
    weight, bias = network.features.conv1.weight[0].clone(), network.features.conv2.bias.clone()
    clips = fit_range(network, PHOTOS, [None, 4.0, *[None] * 6])
    assert torch.equal(network.features.conv1.weight[0], weight)
    assert torch.equal(clips["conv2"], torch.full((6,), 4.0))
    torch.testing.assert_close(network.features.conv2.bias, bias / 4)
