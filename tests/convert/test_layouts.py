"""What is recognised, and how everything else is refused: by name, shape and reason."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.convert import sources
from tests.convert.sources import weights_of
from ttfs_triton.convert import ConversionError, convert
from ttfs_triton.convert.conversion import recognise
from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

PROJECTS = [sources.torchvision, sources.one_layer_head, sources.timm_pooled, sources.paper]


@given(
    channels=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    pools=st.lists(st.booleans(), min_size=5, max_size=5),
    batch_norm=st.booleans(),
    images=st.integers(1, 3),
)
def test_pools_are_found_in_the_gaps(channels, pools, batch_norm, images):
    plan = [item for size, pool in zip(channels, pools, strict=False) for item in ([size, "M"] if pool else [size])]
    plan = plan if plan[-1] == "M" else [*plan, "M"]
    layers = nn.Sequential(*sources.features(plan, batch_norm, images))
    model = sources.Named(features=layers, flatten=nn.Flatten(), classifier=nn.Linear(channels[-1] * 4, 3))
    statistics = ((0.5,) * images, (0.25,) * images)
    layout = recognise(weights_of(model, {}), statistics=statistics)
    expected = "-".join("P2" if item == "M" else f"{item}C3" for item in plan)
    assert layout.config.specification == expected
    assert layout.config.image_size == (2 * 2 ** plan.count("M"),) * 2
    assert layout.config.batch_norm == batch_norm


@pytest.mark.parametrize("build", PROJECTS, ids=lambda build: build.__name__)
def test_every_missing_key_is_found(build):
    tensors = build().state_dict()
    lone = {"classifier.bias", "head.fc.bias"}  # of the only linear layer, which may have none
    last = {"conv.18.cnn.weight", "fc.4.linear.weight"}  # what comes behind the last layer cannot be missed
    for key in [key for key in tensors if not key.endswith("num_batches_tracked") and key not in lone | last]:
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        with pytest.raises(ConversionError, match="convert: "):
            convert(weights_of(rest), trained_as="ann")


def test_missing_bias_is_named():
    tensors = sources.torchvision(batch_norm=False).state_dict()
    del tensors["features.3.bias"]
    with pytest.raises(ConversionError, match=r"must have a bias, or none; got none for features\.3\.weight"):
        convert(weights_of(tensors))
    tensors = sources.torchvision().state_dict()
    del tensors["features.1.bias"]
    with pytest.raises(ConversionError, match=r"features\.1\.bias: missing, conv1 needs \[4\]"):
        convert(weights_of(tensors))


def test_missing_layer_of_the_head_leaves_a_gap():
    tensors = {key: tensor for key, tensor in sources.torchvision().state_dict().items() if "classifier.3" not in key}
    with pytest.raises(ConversionError, match=r"behind classifier\.0\.weight .* got 5 places before classifier\.6"):
        convert(weights_of(tensors))


def test_other_depths_are_said():
    assert not any("none of VGG11" in note for note in recognise(weights_of(sources.one_layer_head())).assumptions)
    tensors = {key: tensor for key, tensor in sources.paper().state_dict().items() if key != "conv.18.cnn.weight"}
    notes = recognise(weights_of(tensors), trained_as="ann").assumptions
    assert "none of VGG11, 13, 16 and 19: [1, 1, 2, 2, 1] convolutions between pools" in notes


@pytest.mark.parametrize("shape", [(), (5,), (5, 10, 1)])
@pytest.mark.parametrize("key", ["classifier.weight", "head.fc.weight"])
def test_head_must_be_a_linear_layer(key, shape):
    tensors = {name: tensor for name, tensor in sources.one_layer_head().state_dict().items() if "class" not in name}
    with pytest.raises(ConversionError, match=rf"must have a classifier .* of linear layers; got {key}"):
        convert(weights_of(tensors | {key: torch.ones(shape)}))


def test_first_layer_must_be_a_convolution():
    with pytest.raises(ConversionError, match=r"must be of a network of ours.*got features\.0\.weight \[3, 3\]"):
        convert(weights_of({"features.0.weight": torch.ones(3, 3), "classifier.weight": torch.ones(3, 3)}))


@pytest.mark.parametrize("build", PROJECTS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("key", ["features.2.extra", "aux.weight", "classifier.9.bias", "conv.1.cnn.bias"])
def test_extra_key_is_named_with_its_shape(build, key):
    tensors = build().state_dict() | {key: torch.ones(4, 5)}
    with pytest.raises(ConversionError, match=rf"every tensor must belong to .*nothing takes {key} \[4, 5\]"):
        convert(weights_of(tensors), trained_as="ann")


@pytest.mark.parametrize(
    ("key", "shape", "problem"),
    [
        ("features.4.weight", (6, 5, 3, 3), r"features\.4\.weight: \[6, 5, 3, 3\], conv2 needs \[6, 4, 3, 3\]"),
        ("features.0.bias", (3,), r"features\.0\.bias: \[3\], conv1 needs \[4\]"),
        ("features.1.running_var", (3,), r"features\.1\.running_var: \[3\], conv1 needs \[4\]"),
        ("features.1.weight", (4, 1), r"features\.1\.weight: \[4, 1\], conv1 needs \[4\]"),
        ("classifier.3.weight", (12, 11), r"classifier\.3\.weight: \[12, 11\], fc2 needs \[12, 12\]"),
        ("classifier.6.bias", (9,), r"classifier\.6\.bias: \[9\], readout needs \[10\]"),
        ("classifier.0.weight", (12, 11), r"must read square maps .*got weights \[12, 11\], 1\.1 places"),
        ("features.0.weight", (4, 3, 5, 5), r"features\.0\.weight must be 3×3 \(padding 1\) or 1×1"),
    ],
)
def test_wrong_shape_is_named(key, shape, problem):
    tensors = sources.torchvision().state_dict() | {key: torch.ones(shape)}
    with pytest.raises(ConversionError, match=problem):
        convert(weights_of(tensors))


def test_dropout_between_layers_is_not_taken_for_a_pool():
    layers = sources.features(sources.SHORT)
    layers.insert(3, nn.Dropout())
    model = sources.Named(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=nn.Linear(6, 3))
    with pytest.raises(
        ConversionError, match=r"behind features\.0\.weight there must be .*got 3 places before features\.5"
    ):
        convert(weights_of(model))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(3, 3),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.Linear(3, 3)),
        sources.Named(layer1=nn.Conv2d(3, 3, 3), fc=nn.Linear(3, 3)),
    ],
    ids=["linear", "sequential", "resnet"],
)
def test_unknown_network_is_described(model):
    with pytest.raises(ConversionError, match=r"must be of a network of ours, a VGG with .*; got .*weight \[3, 3"):
        convert(weights_of(model))


def test_network_without_a_classifier_is_refused():
    model = sources.Named(features=nn.Sequential(*sources.features()))
    with pytest.raises(ConversionError, match="must have a classifier"):
        convert(weights_of(model))


def test_incomplete_timm_head_is_refused():
    tensors = sources.timm_pooled().state_dict() | {"pre_logits.fc1.weight": torch.ones(10, 10, 7, 7)}
    with pytest.raises(ConversionError, match=r"behind pre_logits\.fc1\.weight there must be .* 1 places before head"):
        convert(weights_of(tensors))


def test_other_image_sizes_need_an_average_pool():
    with pytest.raises(ConversionError, match=r"image_size must be 32 .*maps of 1×1; got \(96, 96\)"):
        convert(weights_of(sources.paper()), image_size=96, trained_as="ann")
    notes = convert(weights_of(sources.one_layer_head()), image_size=(64, 96)).report.notes
    assert "an average pool turns maps of 2×3 into 1×1" in notes


def test_images_must_outlast_the_pools():
    with pytest.raises(ConversionError, match="image_size must be at least 32 for 5 pools"):
        convert(weights_of(sources.torchvision()), image_size=16)


def test_own_network_must_be_whole():
    network = TTFSNetwork(NetworkConfig("3C3-P2-4", image_size=(6, 6), batch_norm=True))
    config = ModelDescription.of(network.config).to_dict()
    tensors = dict(network.state_dict())
    del tensors["readout.weight"]
    with pytest.raises(ConversionError, match=r"readout\.weight: missing"):
        convert(weights_of(tensors, config))
    tensors = network.state_dict() | {"features.conv2.weight": torch.ones(2)}
    with pytest.raises(ConversionError, match=r"nothing takes features\.conv2\.weight \[2\]"):
        convert(weights_of(tensors, config))
    tensors = network.state_dict() | {"features.fc1.weight": torch.ones(4, 9)}
    with pytest.raises(ConversionError, match=r"features\.fc1\.weight: \[4, 9\], fc1 needs \[4, 27\]"):
        convert(weights_of(tensors, config))
