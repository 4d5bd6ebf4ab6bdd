"""What is recognised, and how everything else is refused: by name, shape and reason."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.convert import sources
from tests.convert.sources import weights_of
from ttfs_triton.convert import ConversionError, convert
from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

PROJECTS = [sources.torchvision, sources.one_layer_head, sources.timm_pooled, sources.paper]


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
    layers = nn.Sequential(*sources.features(plan, batch_norm, images))
    model = sources.Named(features=layers, flatten=nn.Flatten(), classifier=nn.Linear(channels[-1] * 4, 3))
    config = convert(weights_of(model, {}), mean=(0.5,) * images, std=(0.25,) * images).network.config
    assert config.specification == "-".join("P2" if item == "M" else f"{item}C3" for item in plan)
    assert config.image_size == (2 * 2 ** plan.count("M"),) * 2


@pytest.mark.parametrize("build", PROJECTS, ids=lambda build: build.__name__)
def test_every_missing_key_is_found(build):
    tensors = build().state_dict()
    lone = {"classifier.bias", "head.fc.bias"}  # of the only linear layer, which may have none
    last = {"conv.18.cnn.weight", "fc.4.linear.weight"}  # what comes behind the last layer cannot be missed
    for key in [key for key in tensors if not key.endswith("num_batches_tracked") and key not in lone | last]:
        rest = {name: tensor for name, tensor in tensors.items() if name != key}
        with pytest.raises(ConversionError, match="convert: "):
            convert(weights_of(rest), trained_as="ann")


@pytest.mark.parametrize("build", PROJECTS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("key", ["features.2.extra", "aux.weight", "classifier.9.bias", "conv.1.cnn.bias"])
def test_extra_key_is_named_with_its_shape(build, key):
    tensors = build().state_dict() | {key: torch.ones(4, 5)}
    with pytest.raises(ConversionError, match=rf"every tensor must belong to .*nothing takes {key} \[4, 5\]"):
        convert(weights_of(tensors), trained_as="ann")


def torchvision_with(key: str, *shape: int):
    return sources.torchvision().state_dict() | {key: torch.ones(shape)}


def without(tensors, text: str):
    return {key: tensor for key, tensor in tensors.items() if text not in key}


def dropout_in_features():
    layers = sources.features(sources.SHORT)
    layers.insert(3, nn.Dropout())
    model = sources.Named(features=nn.Sequential(*layers), flatten=nn.Flatten(), classifier=nn.Linear(6, 3))
    return model.state_dict()


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (
            torchvision_with("features.4.weight", 6, 5, 3, 3),
            r"features\.4\.weight: \[6, 5, 3, 3\], its layer needs",
        ),
        (torchvision_with("features.0.bias", 3), r"features\.0\.bias: \[3\], its layer needs \[4\]"),
        (torchvision_with("features.1.running_var", 3), r"features\.1\.running_var: \[3\], its layer needs \[4\]"),
        (torchvision_with("classifier.6.bias", 9), r"classifier\.6\.bias: \[9\], its layer needs \[10\]"),
        (
            torchvision_with("classifier.3.weight", 12, 11),
            r"classifier\.3\.weight: \[12, 11\], its layer needs",
        ),
        (torchvision_with("classifier.0.weight", 12, 11), r"must read square maps .*got weights \[12, 11\], 1\.1 pl"),
        (torchvision_with("features.0.weight", 4, 3, 5, 5), r"features\.0\.weight must be 3×3 \(padding 1\) or 1×1"),
        (without(sources.torchvision(batch_norm=False).state_dict(), "features.3.bias"), "must have a bias, or none"),
        (without(sources.torchvision().state_dict(), "features.1.bias"), r"features\.1\.bias: missing"),
        (without(sources.torchvision().state_dict(), "classifier.3"), r"behind classifier\.0\.weight .* got 5 places"),
        (dropout_in_features(), r"behind features\.0\.weight there must be .*got 3 places before features\.5"),
        (sources.Named(features=nn.Sequential(*sources.features())).state_dict(), "must have a classifier"),
        (torchvision_with("classifier.0.weight", 5), "every tensor must belong|must have a classifier|square maps"),
        (sources.timm_pooled().state_dict() | {"pre_logits.fc1.weight": torch.ones(10, 10, 7, 7)}, "1 places before"),
        (
            {"features.0.weight": torch.ones(3, 3), "classifier.weight": torch.ones(3, 3)},
            "must be of a network of ou",
        ),
        (nn.Linear(3, 3).state_dict(), r"a VGG with .*; got weight \[3, 3\].*convert_ann\(module, images\)"),
        ({"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}, r"Load them into their PyTorch module"),
    ],
)
def test_wrong_tensors_are_named(tensors, problem):
    with pytest.raises(ConversionError, match=problem):
        convert(weights_of(tensors))


def test_image_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConversionError, match=r"image_size must be 32 .*maps of 1×1; got \(96, 96\)"):
        convert(weights_of(sources.paper()), image_size=96, trained_as="ann")
    with pytest.raises(ConversionError, match="image_size must be at least 32 for 5 pools"):
        convert(weights_of(sources.torchvision()), image_size=16)
    notes = convert(weights_of(sources.one_layer_head()), image_size=(64, 96)).report.notes
    assert "an average pool turns maps of 2×3 into 1×1" in notes
    layers = nn.Sequential(*sources.features(sources.SHORT))
    source = sources.Named(features=layers, flatten=nn.Flatten(), classifier=nn.Linear(210, 3))
    assert convert(weights_of(source), image_size=(28, 20)).network.config.image_size == (28, 20)
    with pytest.raises(ConversionError, match=r"must read square maps .*35 places a channel\. Give .*--image-size"):
        convert(weights_of(source))


@pytest.mark.parametrize(
    ("key", "shape", "problem"),
    [
        ("readout.weight", None, r"readout\.weight: missing"),
        ("features.conv2.weight", (2,), r"nothing takes features\.conv2\.weight \[2\]"),
        ("features.fc1.weight", (4, 9), r"features\.fc1\.weight: \[4, 9\], fc1 needs \[4, 27\]"),
        ("features.fc2.skip_weight", (3,), r"features\.fc2\.skip_weight: \[3\], fc2 needs \[4\]"),
    ],
)
def test_own_network_must_be_whole(key, shape, problem):
    block = "fc2" in key
    specification = "3C3-P2-4-(4-4)" if block else "3C3-P2-4"
    network = TTFSNetwork(NetworkConfig(specification, image_size=(6, 6), batch_norm=True))
    tensors = dict(network.state_dict())
    key = key.replace("fc2", "fc3")
    tensors.pop(key) if shape is None else tensors.update({key: torch.ones(shape)})
    with pytest.raises(ConversionError, match=problem.replace("fc2", "fc3")):
        convert(weights_of(tensors, ModelDescription.of(network.config).to_dict()))
