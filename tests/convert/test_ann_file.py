"""Weights in files as spiking networks: exactly what their sources compute, or refused by name."""

import pytest
import torch

from tests.convert import sources
from tests.convert.sources import NARROW, assert_same_logits, chain, hidden, in_range, randomised, weights_of
from tests.export.common import images_for, small_network
from ttfs_triton.convert import ConversionError, WeightsError, convert, fit_range
from ttfs_triton.model import ModelDescription
from ttfs_triton.nn import Grid, Neuron, TTFSNetwork

# ---- networks of other projects


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (sources.torchvision, chain(f"{NARROW}-12-12")),
        (sources.one_layer_head, chain()),
        (sources.Paper, None),
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


def test_mean_and_std_come_from_the_caller_or_timm():
    given, timm = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}, {**sources.TIMM_CONFIG, "width": 3}
    for values, config, changes, expected in (
        (timm, chain(), given, given),
        (timm, chain(**given), {}, timm),
        ({"pretrained_cfg": timm}, chain(), {}, timm),
        ({}, chain(**given), {}, given),
    ):
        found = convert(weights_of(sources.one_layer_head(), values), config=config, **changes).network.config
        assert (found.mean, found.std) == (tuple(expected["mean"]), tuple(expected["std"]))
    with pytest.raises(WeightsError, match=r"mean and std in the config\.json beside file\.pt must be numbers; "):
        convert(weights_of(sources.one_layer_head(), {"mean": 3, "std": [None]}), config=chain())


@pytest.mark.parametrize(
    ("tensors", "options", "problem"),
    [
        ({"features.1.bias": None}, {}, r"features\.1\.bias must have the shape \[4\]; got none"),
        ({"classifier.weight": torch.ones(10, 11)}, {}, r"classifier\.weight must have .* \[10, 10\]; got \[10, 11\]"),
        ({"features.2.extra": torch.ones(4)}, {}, r"every tensor must belong to a layer; left are features\.2\.extra"),
        ({"aux.weight": torch.ones(4, 5)}, {}, r"those of 9 layers, .*; got 10 and 8: features\.0, "),
        ({"features.1.running_mean": None}, {}, r"batch norms of none, of its convolutions or .*; got 9 and 7: "),
        ({"classifier.weight": None}, {}, r"those of 9 layers, as 4C3-.* has.*; got 8 and 8: features\.0, "),
        ({"features.1.running_var": -torch.ones(4)}, {}, r"features\.1\.running_var \+ epsilon must be positive; got"),
        ({}, {"config": None}, r"must be of a network of ttfs-triton or of the paper; got features.*, \.\.\."),
        ({}, {"config": chain("4C3-(4C3-4C3)-A")}, r"must be a chain of layers; got 4C3-\(4C3-4C3\)-A, encoder analog"),
        ({}, {"config": chain("54C3", encoder="whitened")}, "must be a chain of layers; got 54C3, encoder whitened"),
        ({}, {"bias": False}, r"(?s)those of 4C3-.*Unexpected key.*features\.conv1\.bias"),
    ],
)
def test_wrong_tensors_and_options_are_named(tensors, options, problem):
    found = sources.one_layer_head().state_dict() | tensors
    weights = weights_of({name: tensor for name, tensor in found.items() if tensor is not None})
    with pytest.raises(ConversionError, match=problem):
        convert(weights, **{"config": chain(), **options})


# ---- networks of ours

STRIDES = "4C3-(4C3-4C3)-(6C3s2-7C3)-(7C3-7C3-7C3)-A"  # every second position arrives, and new channels hear nothing


def ours(encoder: str = "analog", **options) -> TTFSNetwork:
    """A network at σ = 0 whose norms, gains, skips, biases and statistics of images all do something."""
    values = {"mean": (0.4, 0.5), "std": (0.2, 0.3)} if encoder == "analog" else {}
    return small_network(**{"encoder": encoder, "neuron": Neuron(0.0), **values, **options})


def own_weights(network: TTFSNetwork):
    return weights_of(network, ModelDescription.of(network.config).to_dict())


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
    source, before = ours(**options), torch.get_rng_state()
    converted = convert(own_weights(source), keep_standardisation=keep)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are left alone
    network, x = converted.network, images_for(source)
    expected = source(x)
    assert expected.std(0).max() > 1e-3
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
    assert not converted.needs_calibration
    standardised = source.config.weight_standardisation and not source.config.batch_norm
    assert network.config.weight_standardisation == (keep and standardised)
    assert (network.config.batch_norm, network.training) == (False, False)


def test_spiking_source_is_copied_without_its_grid_by_its_configuration():
    source = ours(neuron=Neuron(0.5))
    plain = source.config
    for grid in (None, Grid(8, 4)):
        source.put_on_grid(grid)
        converted = convert(own_weights(source))
        assert (converted.network.config, converted.needs_calibration) == (plain, False)
        for name, value in converted.network.state_dict().items():
            assert torch.equal(value, source.state_dict()[name])
    with pytest.raises(ConversionError, match=r"must have config\.json beside it"):
        convert(weights_of(source))


# ---- activations within [0, 1]


@torch.no_grad()
def test_every_active_channel_reaches_one_and_silent_ones_keep_their_scale():
    source, photos = randomised(sources.one_layer_head()), torch.rand(16, 3, 32, 32)
    source.features[1].weight[0], source.features[1].bias[0] = 0.0, -1.0
    converted = convert(weights_of(source), config=chain())
    weight = converted.network.features.conv1.weight[0].clone()
    for name, activations in hidden(in_range(converted, photos), photos).items():
        highest = activations.transpose(0, 1).flatten(1).amax(1)
        assert (highest > 0).any(), name
        torch.testing.assert_close(highest[highest > 0], torch.ones(int((highest > 0).sum())), atol=1e-5, rtol=0)
    assert torch.equal(converted.network.features.conv1.weight[0], weight)
    with pytest.raises(ConversionError, match="must have plain weights, no batch norm or gains"):
        fit_range(ours(), torch.rand(2, 2, 9, 8))
    with pytest.raises(ConversionError, match="must have no grid; got"):
        fit_range(
            TTFSNetwork(ours().config.replace(batch_norm=False, weight_standardisation=False, grid=Grid(4, 4))),
            torch.rand(2, 2, 9, 8),
        )
