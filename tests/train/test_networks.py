"""A run's network by its name and options, and how its weights start."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from tests.train.runs import change
from ttfs_triton.nn.networks import CNN1, RESNET18, VGG11, cifarnet_specification
from ttfs_triton.train.build import build_network
from ttfs_triton.train.data import load_data


def built(config, **values):
    """The network of a run on images of 32×32 pixels, and its training images in [0, 1]."""
    config = change(config, image_size=32, **values)
    data = load_data(config, Accelerator(cpu=True), print)
    return build_network(config, data)[0], data.train.images_at(data.train_indices) / 255


@pytest.mark.parametrize(
    ("values", "specification", "encoder"),
    [
        ({"model": "cnn1"}, CNN1, "latency"),
        ({"model": "vgg11"}, VGG11, "analog"),
        ({"model": "vgg11", "head": "none", "encoder": "signed"}, VGG11.removesuffix("-4096-4096"), "signed"),
        ({"model": "vgg11", "head": "512"}, VGG11.replace("4096-4096", "512"), "analog"),
        ({"model": "resnet18"}, RESNET18, "analog"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_named_networks_are_those_of_the_package(config, values, specification, encoder):
    network, images = built(config, width=1 / 32, dropout=0.0, **values)
    assert (network.config.specification, network.config.encoder) == (specification, encoder)
    assert network.config.width == 1 / 32
    assert network(images[:2]).shape == (2, 4)


def test_cifarnet_is_whitened_by_the_training_images_and_begins_with_identities(config):
    values = {"model": "cifarnet", "width": 0.25, "block_convolutions": 3, "batch_norm": True, "identity_start": True}
    network, images = built(config, dropout=0.0, weight_standardisation=False, **values)
    assert network.config.specification == cifarnet_specification(0.25, 3, 1)
    conv1, conv2 = network.features.conv1, network.features.conv2
    outputs = F.conv2d(conv1.normalise(images), conv1.weight[:4]).movedim(1, -1).flatten(0, 2)
    products = outputs.T @ outputs / len(outputs)
    assert (products - products.diag().diag()).abs().max() < 1e-3 * products.diag().min()
    x = torch.rand(2, 8, 6, 6)
    torch.testing.assert_close(F.conv2d(x, conv2.weight, padding=1)[:, :8], x)
