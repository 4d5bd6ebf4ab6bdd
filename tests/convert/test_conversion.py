"""Folded networks against the networks that they are of, and what is refused."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.convert import sources
from tests.convert.sources import assert_same_logits, randomised, weights_of
from ttfs_triton.convert import ConversionError, FoldedANN, convert
from ttfs_triton.convert.foreign import CIFAR10_PAPER, CIFAR100_PAPER, IMAGENET
from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork
from ttfs_triton.nn.networks import VGG11

NARROW = "4C3-P2-6C3-P2-8C3-8C3-P2-8C3-8C3-P2-10C3-10C3-P2"


@pytest.mark.parametrize(
    ("build", "layout", "specification", "size"),
    [
        (sources.torchvision, "torchvision VGG", f"{NARROW}-12-12", 32),
        (sources.one_layer_head, "torchvision VGG", NARROW, 32),
        (sources.timm_pooled, "timm VGG", NARROW, 32),
        (sources.paper, "Wei et al., ICCV 2023", f"{NARROW}-12-9", 32),
        (lambda: sources.torchvision(5, side=7), "torchvision VGG", f"{NARROW}-12-12", 224),
        (lambda: sources.torchvision(5, side=7, batch_norm=False), "torchvision VGG", f"{NARROW}-12-12", 224),
    ],
    ids=["small", "one layer", "timm", "paper", "torchvision_bn", "torchvision"],
)
def test_layout_is_recognised_and_folded_exactly(build, layout, specification, size):
    source = randomised(build())
    converted = convert(weights_of(source), trained_as="ann")
    assert converted.report.layout == layout
    assert converted.network.config.specification == specification
    assert converted.network.config.image_size == (size, size)
    assert converted.ann.bound == (1.0 if layout.startswith("Wei") else None)
    assert_same_logits(converted.ann, source, torch.rand(4, 3, size, size))


@pytest.mark.parametrize("size", [32, 64, 96, 288, (32, 96)])
def test_average_pool_of_other_image_sizes_folds_exactly(size):
    source = randomised(sources.torchvision(side=7))
    converted = convert(weights_of(source), image_size=size)
    shape = (size, size) if isinstance(size, int) else size
    assert_same_logits(converted.ann, source, torch.rand(3, 3, *shape))


@pytest.mark.parametrize("size", [32, 64])
def test_global_average_pool_folds_exactly(size):
    source = randomised(sources.timm_pooled())
    assert_same_logits(convert(weights_of(source), image_size=size).ann, source, torch.rand(3, 3, size, size))


@pytest.mark.parametrize("name", [pytest.param("vgg11", marks=pytest.mark.slow), "vgg11_bn"])
def test_torchvision_network_folds_exactly(name):
    source = randomised(getattr(torchvision.models, name)(num_classes=7, init_weights=False))
    converted = convert(weights_of(source, {}))
    assert converted.network.config.specification == VGG11
    assert (converted.network.config.mean, converted.network.config.std) == IMAGENET
    assert_same_logits(converted.ann, source, torch.rand(2, 3, 224, 224))


def test_timm_network_folds_exactly():
    source = randomised(timm.create_model("vgg11_bn", num_classes=7))
    converted = convert(weights_of(source), image_size=32)
    assert converted.report.layout == "timm VGG"
    assert converted.network.config.specification == VGG11
    assert_same_logits(converted.ann, source, torch.rand(2, 3, 32, 32))


@pytest.mark.parametrize("size", [64, 224])
def test_narrow_timm_network_folds_exactly(size):
    source = randomised(timm.models.vgg.VGG(list(sources.PLAN), num_classes=7, norm_layer=nn.BatchNorm2d))
    converted = convert(weights_of(source), image_size=size)
    assert_same_logits(converted.ann, source, torch.rand(3, 3, size, size))


def test_timm_head_at_several_places_is_refused():
    tensors = timm.models.vgg.VGG(list(sources.PLAN), num_classes=7).state_dict()
    with pytest.raises(ConversionError, match=r"image_size must leave maps of at most 7×7 .*got \(256, 256\)"):
        convert(weights_of(tensors), image_size=256)


def ours(**options) -> TTFSNetwork:
    values = {"specification": "6C3-P2-8C3p0-P2-12-9", "in_channels": 3, "image_size": (14, 14), "classes": 5}
    values |= {"encoder": "analog", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "neuron": Neuron(0.0)}
    network = TTFSNetwork(NetworkConfig(**(values | options)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.05 + 0.2 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith("weight_gain"):
                tensor.copy_(1 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(0.7 * torch.rand(tensor.shape, generator=generator) - 0.1)
    return network.eval()


def own_weights(network: TTFSNetwork):
    description = ModelDescription.of(
        network.config, class_names=list("abcde"[: network.config.classes]), dataset="letters"
    )
    return weights_of(network, description.to_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"batch_norm": True},
        {"batch_norm": True, "bias": False},
        {"batch_norm": False},
        {"batch_norm": False, "bias": False, "weight_standardisation": False},
        {"encoder": "latency", "mean": None, "std": None, "max_value": 0.8},
        {"specification": "14-9", "encoder": "latency", "mean": None, "std": None},
        {"width": 0.5},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items() if key not in ("mean", "std")),
)
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "folded"])
def test_own_network_becomes_the_same_spiking_network(options, keep):
    source = ours(**options)
    converted = convert(own_weights(source), keep_standardisation=keep, neuron=Neuron(0.0))
    network, images = converted.network, options.get("max_value", 1.0) * torch.rand(6, 3, 14, 14)
    with torch.no_grad():
        expected = source(images)
        assert expected.std(0).max() > 1e-3
        torch.testing.assert_close(converted.ann(images), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(network(images), expected, atol=1e-4, rtol=1e-4)
        hidden = converted.ann.hidden(images)
        torch.testing.assert_close(hidden["fc2"], source.hidden(images), atol=1e-4, rtol=1e-4)
    assert converted.ann.bound == 1.0
    standardised = source.config.weight_standardisation and not source.config.batch_norm
    assert network.config.weight_standardisation == (keep and standardised)
    assert not network.config.batch_norm
    assert not network.training


def test_hidden_activations_are_those_of_every_layer_before_pooling():
    source = ours(specification="6C3-P2-8C3", weight_standardisation=False)
    ann = convert(own_weights(source)).ann
    images = torch.rand(2, 3, 14, 14)
    hidden = ann.hidden(images)
    assert {name: tuple(value.shape[1:]) for name, value in hidden.items()} == {
        "conv1": (6, 14, 14),
        "conv2": (8, 7, 7),
    }
    assert list(ann.layers) == ["conv1", "conv2", "readout"]
    with torch.no_grad():
        torch.testing.assert_close(hidden["conv1"], source.features[0](images))
        assert torch.equal(ann.layers["readout"](hidden["conv2"].flatten(1)), ann(images))


def test_plain_relu_is_not_bounded():
    source = randomised(sources.torchvision())
    converted = convert(weights_of(source))
    assert converted.ann.hidden(torch.rand(2, 3, 32, 32))["conv1"].max() > 1
    assert any("activations of the source are not bounded" in note for note in converted.report.notes)


def test_folded_network_needs_every_tensor():
    ann = convert(weights_of(randomised(sources.one_layer_head()))).ann
    tensors = ann.layers.state_dict()
    assert torch.equal(FoldedANN(ann.config, tensors, None)(torch.ones(1, 3, 32, 32)), ann(torch.ones(1, 3, 32, 32)))
    del tensors["conv2.bias"]
    with pytest.raises(ValueError, match=r"FoldedANN: tensors must be those of .*\s.*conv2\.bias"):
        FoldedANN(ann.config, tensors)


def test_epsilon_of_batch_norm_can_be_given():
    source = randomised(sources.one_layer_head())
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2
    assert_same_logits(convert(weights_of(source), batch_norm_epsilon=1e-2).ann, source, torch.rand(3, 3, 32, 32))
    with pytest.raises(ConversionError, match="batch_norm_epsilon must be positive"):
        convert(weights_of(source), batch_norm_epsilon=0.0)


def test_batch_norm_without_affine_or_counter_folds():
    source = randomised(sources.one_layer_head())
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.affine, module.weight, module.bias = False, None, None
    tensors = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert_same_logits(convert(weights_of(tensors)).ann, source, torch.rand(3, 3, 32, 32))


def test_batch_norm_in_the_head_folds():
    source = sources.torchvision()
    layers = list(source.classifier)
    source.classifier = nn.Sequential(layers[0], nn.BatchNorm1d(12), nn.ReLU(), *layers[3:])
    source = randomised(source)
    assert_same_logits(convert(weights_of(source)).ann, source, torch.rand(3, 3, 32, 32))


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
    for source in (sources.torchvision(side=1), sources.timm_pooled()):
        weights = weights_of(source, {})
        for given in ({}, {"mean": (0.1, 0.2, 0.3)}):
            with pytest.raises(ConversionError, match=r"mean and std must be those .* got none\. Give both"):
                convert(weights, **given)
        found = convert(weights, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
        assert found.report.notes[0] == "mean and std as given"
        assert (found.network.config.mean, found.network.config.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
        fallback = NetworkConfig("4C3", in_channels=3, encoder="analog", mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
        assert convert(weights, config=fallback).network.config.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("nested", [True, False])
def test_timm_configuration_overrides_mean_std_and_size(nested):
    values = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64]}
    config = {"architecture": "vgg16_bn", "pretrained_cfg": values} if nested else values
    network = convert(weights_of(sources.timm_pooled(), config)).network.config
    assert (network.mean, network.std, network.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (64, 64))


def test_given_mean_and_std_override_all_others():
    network = convert(weights_of(sources.one_layer_head()), mean=(0.1, 0.2, 0.3), std=(1, 2, 3)).network
    assert (network.config.mean, network.config.std) == ((0.1, 0.2, 0.3), (1, 2, 3))
    with pytest.raises(ConversionError, match="mean and std must not be given for a source that reads pixels"):
        convert(own_weights(ours(encoder="latency", mean=None, std=None)), mean=(0, 0, 0))


def test_maps_need_not_be_square():
    layers = sources.features(sources.SHORT)
    source = randomised(
        sources.Named(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=nn.Linear(210, 3))
    )
    converted = convert(weights_of(source), image_size=(28, 20))
    assert converted.network.config.image_size == (28, 20)
    assert_same_logits(converted.ann, source, torch.rand(3, 3, 28, 20))
    with pytest.raises(ConversionError, match=r"must read square maps .*35 places a channel\. Give .*--image-size"):
        convert(weights_of(source))


def test_input_normalisation_folds_exactly_without_padding():
    source = ours(specification="6C3p0-P2-8C3-12")
    converted = convert(own_weights(source), input_normalisation="weights", encoder="latency", neuron=Neuron(0.0))
    config = converted.network.config
    assert (config.mean, config.std, config.encoder, config.weight_standardisation) == (None, None, "latency", False)
    images = torch.rand(4, 3, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(converted.network(images), source(images), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(converted.ann(images), source(images), atol=1e-4, rtol=1e-4)
    assert any("mean and std folded into conv1" in note for note in converted.report.notes)
    assert "standardised weights folded into plain ones" in converted.report.notes


def test_input_normalisation_of_a_padded_layer_needs_consent():
    source = ours(specification="6C3-12", weight_standardisation=False)
    with pytest.raises(ConversionError, match='input_normalisation must be "configuration" for a padded'):
        convert(own_weights(source), input_normalisation="weights")
    ann = convert(own_weights(source), input_normalisation="weights", inexact_borders=True).ann
    images = torch.rand(2, 3, 14, 14)
    with torch.no_grad():
        difference = (ann.hidden(images)["conv1"] - source.features[0](images)).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-5 < difference.max()


def test_latency_encoder_needs_folded_normalisation():
    with pytest.raises(ConversionError, match=r'encoder must be "analog" .*input_normalisation="weights"'):
        convert(weights_of(sources.one_layer_head()), encoder="latency")


def test_another_number_of_classes_is_refused_unless_the_head_may_be_replaced():
    weights = weights_of(randomised(sources.torchvision(hidden=10)))
    with pytest.raises(ConversionError, match=r"classes must be 10, as file\.pt has; got 7.*replace_head=True"):
        convert(weights, classes=7)
    one, same, other = (convert(weights, classes=7, replace_head=True, seed=seed) for seed in (0, 0, 1))
    assert one.network.readout.weight.shape == (7, 10)
    assert torch.equal(one.network.readout.weight, same.network.readout.weight)
    assert not torch.equal(one.network.readout.weight, other.network.readout.weight)
    assert not one.network.readout.bias.any()
    assert torch.equal(one.ann.layers["readout"].weight, one.network.readout.weight)
    assert torch.equal(one.network.features.fc2.weight, convert(weights).network.features.fc2.weight)
    origins = {entry.name: entry.origin for entry in other.report.targets}
    assert (origins["readout.weight"], origins["readout.bias"]) == ("drawn, seed 1", "zero")
    assert {entry.key for entry in one.report.sources if entry.status == "replaced"} == {
        "classifier.6.weight",
        "classifier.6.bias",
    }


def test_drawn_head_of_a_standardised_network_has_gains():
    network = convert(own_weights(ours()), classes=3, replace_head=True).network
    assert network.readout.weight_gain is not None
    torch.testing.assert_close(network.readout.weight_gain, torch.full((3,), 0.5 * 2**0.5))


def test_random_numbers_of_the_caller_are_left_alone():
    before = torch.get_rng_state()
    convert(weights_of(sources.one_layer_head().state_dict()), classes=3, replace_head=True)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    sources.one_layer_head()
    assert torch.equal(after, torch.get_rng_state())


def test_overrides_reach_the_network():
    values = {"neuron": Neuron(0.3, surrogate_width=0.1), "readout": "first_spike", "dropout": 0.2, "bias": True}
    config = convert(weights_of(sources.paper()), trained_as="ann", **values).network.config
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize("name", ["specification", "batch_norm", "weight_standardisation", "width", "sigma"])
def test_overrides_of_what_the_weights_say_are_refused(name):
    with pytest.raises(ConversionError, match=f"overrides must be among .*; got {name}"):
        convert(weights_of(sources.one_layer_head()), **{name: 1})


def test_biases_cannot_be_dropped():
    with pytest.raises(ConversionError, match="bias must be True for a source with biases or batch norm"):
        convert(weights_of(sources.one_layer_head()), bias=False)
    assert not convert(weights_of(sources.paper()), trained_as="ann").network.config.bias
    network = convert(weights_of(sources.paper()), trained_as="ann", bias=True).network
    assert network.readout.bias is not None
    assert not network.readout.bias.any()


def test_own_network_without_configuration_needs_one():
    source = ours(batch_norm=True)
    with pytest.raises(ConversionError, match=r"must have a config\.json beside it"):
        convert(weights_of(source))
    images = torch.rand(2, 3, 14, 14)
    with torch.no_grad():
        ann = convert(weights_of(source), config=source.config).ann
        torch.testing.assert_close(ann(images), source(images), atol=1e-4, rtol=1e-4)


def test_own_network_has_its_own_image_size():
    with pytest.raises(ConversionError, match=r"image_size must be \(14, 14\)"):
        convert(own_weights(ours()), image_size=28)


def test_spiking_source_is_copied_and_said():
    source = ours(neuron=Neuron(0.5))
    converted = convert(own_weights(source))
    assert converted.network.config == source.config
    for name, value in source.state_dict().items():
        assert torch.equal(value, converted.network.state_dict()[name])
    assert "the source is a spiking network; its weights are copied" in converted.report.notes
