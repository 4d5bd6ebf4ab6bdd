"""The closed form in onnxruntime."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.common import images_for, small_network
from ttfs_triton.export import to_onnx
from ttfs_triton.nn import Grid, NetworkConfig, Neuron, TTFSNetwork

onnx = pytest.importorskip("onnx", reason="exporting to ONNX needs onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="running ONNX needs onnxruntime")


def run(network, images, **options):
    """Outputs by name."""
    session = onnxruntime.InferenceSession(to_onnx(network, **options).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


def assert_same(network, images):
    found, decision = run(network, images), network.decide(images)
    with torch.no_grad():
        # float64, so that the error is onnxruntime's and not the sum of both.
        expected = TTFSNetwork(network.config).double().eval()
        expected.load_state_dict(network.state_dict())
        np.testing.assert_allclose(found["logits"], expected(images.double()), rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(np.isinf(found["spike_times"]), decision.spike_times.isinf())
    np.testing.assert_allclose(found["spike_times"], decision.spike_times.detach(), rtol=1e-5, atol=1e-5)


READOUTS = ("potential_start", "potential_end", "first_spike")


@pytest.mark.parametrize(
    "config",
    [
        *({"readout": at, "neuron": Neuron(sigma)} for at in READOUTS for sigma in (0.0, 0.25, 1.0)),
        *({"encoder": name, "mean": mean, "std": mean} for name in ("analog", "signed") for mean in (None, (0.4, 0.5))),
    ],
)
def test_readouts_and_encoders_agree(config):
    network = small_network(**config)
    assert_same(network, images_for(network))


def test_network_on_a_device_is_written_the_same(device):
    network = small_network(weight_standardisation=False)  # whose sums devices round differently
    before = to_onnx(network).SerializeToString()
    assert to_onnx(network.to(device)).SerializeToString() == before


@given(
    specification=st.sampled_from(["3C3p0s2-P2p1s1-4", "2C2p0-3C3-P2", "5C2p1s3", "4C3-7-5"]),
    standardised=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
    samples=st.integers(1, 5),
)
@settings(max_examples=12)
def test_shapes_and_options_agree(specification, standardised, bias, seed, samples):
    # No 1×1 kernels: over two channels, standardised weights add up to zero, on the border of firing at all.
    network = small_network(seed, specification, weight_standardisation=standardised, bias=bias)
    assert_same(network, images_for(network, samples, seed))


@pytest.mark.parametrize("specification", ["3C3-(3C3-5C3s2)-A-4", "(2C3-4C3)-P2-A2-(3C3-4C3)-7-(5-9)"])
@pytest.mark.parametrize("sigma", [0.0, 0.25])
def test_blocks_and_averages_agree(specification, sigma):
    network = small_network(0, specification, neuron=Neuron(sigma), image_size=(8, 8))
    assert_same(network, images_for(network))
    normalised = small_network(0, specification, neuron=Neuron(sigma), batch_norm=True, image_size=(8, 8))
    found = run(normalised, images_for(normalised))
    np.testing.assert_allclose(found["logits"], normalised(images_for(normalised)).detach(), rtol=1e-5, atol=1e-5)


def test_borders_are_decided_as_here():
    # One input x = 1 or 0, weight w, initial potential b: A = w + b, W = w, on A = 1, A + W = 0 and around.
    weights = torch.tensor([[1.0, 0.5, 0.25, -0.5, -0.25, 0.0]]).T
    biases = torch.tensor([0.0, 0.5, -0.5, 1.0, 1.25, 0.0])
    config = {"in_channels": 1, "image_size": (1, 1), "weight_standardisation": False}
    network = small_network(specification="6", **config)
    with torch.no_grad():
        network.features.fc1.weight.copy_(weights)
        network.features.fc1.bias.copy_(biases)
    images = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    found = run(network, images, hidden=True)["fc1"]
    np.testing.assert_array_equal(found[0], [1, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(found, network.features(images).detach())


def test_model_is_standard_and_says_what_it_is():
    network = small_network(neuron=Neuron(0.25))
    model = to_onnx(network, class_names=["a", "b", "ç"], dataset="digits")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert NetworkConfig.from_dict(json.loads(metadata["network"])) == network.config
    assert json.loads(metadata["class_names"]) == ["a", "b", "ç"]
    assert (metadata["dataset"], metadata["psp_persistence"]) == ("digits", "0.25")
    assert metadata["format_version"] == "1"
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {"images": ["N", 2, 9, 8], "logits": ["N", 3], "spike_times": ["N", 3]}
    # Both contractions of a layer read one weight.
    users = [node for node in model.graph.node if "conv2.weight" in node.input]
    assert [node.op_type for node in users] == ["Conv", "Conv"]
    with pytest.raises(ValueError, match=r"class_names must have one name per class \(3\); got 2"):
        to_onnx(network, class_names=["a", "b"])


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(6, 8), Grid(8, 3, state_bits=24)])
def test_network_on_a_grid_fires_in_its_steps(grid, readout):
    network = small_network(readout=readout, neuron=Neuron(0.25), grid=grid)
    images = images_for(network, 20)
    found = run(network, images, hidden=True)
    with torch.no_grad():
        value = network.features.encoder(images)
        for name in ("conv1", "pool1", "conv2", "flatten", "fc1"):
            value = network.features.get_submodule(name)(value)
            if name in found:
                np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["logits"], network(images), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["spike_times"], network.decide(images).spike_times, rtol=0, atol=1e-6)
    metadata = {entry.key: entry.value for entry in to_onnx(network).metadata_props}
    assert json.loads(metadata["grid"]) == grid.to_dict()
