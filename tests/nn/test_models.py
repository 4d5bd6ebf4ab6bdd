import pytest
import torch
import torch.nn.functional as F

from tests.nn.common import activations, randomised
from ttfs_triton.nn import NetworkConfig, Neuron, TTFSNetwork, collect_statistics, record_statistics, reset_statistics
from ttfs_triton.nn.networks import cnn1, vgg11, vgg16

PLAIN, BLOCKS, AVERAGES = "4C3-P2-6C3p0-P2-8", "4C3-(4C3-6C3)-(6C3s2-8C3)", "4C3-A2-(6C3-8C3)-A-5"


def small(specification=PLAIN, **options):
    return TTFSNetwork(NetworkConfig(specification, image_size=(10, 12), **options))


@pytest.mark.parametrize("build", [cnn1, vgg11, vgg16])
def test_builders_take_any_size_and_class_count(build):
    model = build(image_size=(64, 32), in_channels=3, num_classes=7, width=1 / 16, backend="torch")
    assert model(torch.rand(2, 3, 64, 32)).shape == (2, 7)
    assert model.features.fc1.backend == "torch"
    assert model.config.mean == (None if build is cnn1 else (0.4914, 0.4822, 0.4465))
    assert build(width=1 / 16, in_channels=1).config.mean is None


def test_cnn1_is_the_papers_network():
    # 16C5-P2-32C5-P2-800-128-10: weights, then a bias and a gain per neuron or channel
    weights = 1 * 16 * 25 + 16 * 32 * 25 + 800 * 128 + 128 * 10
    assert sum(p.numel() for p in cnn1().parameters()) == weights + 2 * (16 + 32 + 128 + 10)


@pytest.mark.parametrize("specification", [PLAIN, BLOCKS, AVERAGES])
@pytest.mark.parametrize(
    ("readout", "encoder", "sigma"),
    [
        *(("potential_start", "latency", 0.0), ("potential_start", "analog", 1.0)),
        *(("potential_end", "latency", 0.5), ("first_spike", "analog", 0.5), ("first_spike", "latency", 1.0)),
    ],
)
def test_network_gradients_match_numeric_ones(specification, readout, encoder, sigma):
    options = {"classes": 3, "readout": readout, "encoder": encoder, "neuron": Neuron(sigma, derivative_clip=None)}
    model = randomised(small(specification, **options).double(), seed=1)
    x, target = activations(3, 1, 10, 12, seed=4), torch.tensor([0, 1, 2])
    options = {"eps": 1e-7, "rtol": 1e-5, "atol": 1e-7, "fast_mode": True}  # along random directions
    loss, parameters = (lambda *_: F.cross_entropy(model(x), target)), tuple(model.parameters())
    assert torch.autograd.gradcheck(loss, parameters, **options)


@pytest.mark.parametrize("specification", [PLAIN, BLOCKS, AVERAGES])
def test_state_dict_round_trip_and_folding(specification):
    model, x = randomised(small(specification, encoder="analog"), seed=1), torch.rand(2, 1, 10, 12)
    other, expected, weight = TTFSNetwork(model.config), model(x), model.features.conv1.weight
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    model.fold_standardisation()
    assert model.features.conv1.weight is weight  # which an optimiser holds
    assert model.config == other.config.replace(weight_standardisation=False)
    folded = TTFSNetwork(model.config)
    folded.load_state_dict(model.state_dict())  # strict: weight and bias only
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-6)


def test_options_reach_the_layers():
    model = small(readout="first_spike", neuron=Neuron(0.25, None), dropout=0.1, bias=False)
    layer = model.features.fc1
    assert (layer.neuron, layer.bias) == (model.readout.neuron, None) == (Neuron(0.25, None), None)
    assert model.readout.at == "first_spike"
    # Dropout removes spikes of fully connected layers: fc1's inputs come from a convolution, the readout's from fc1.
    assert (layer.spike_dropout, model.readout.spike_dropout) == (0.0, 0.1)
    assert small(batch_norm=True).features.conv2.batch_norm is not None


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("4C3-P2-(4C3-4C3)-8", {"neuron": Neuron(0.25, surrogate_width=0.5)}),
        pytest.param("4C3-A2-8C3-8", {"readout": "potential_end", "encoder": "analog"}, marks=pytest.mark.slow),
        pytest.param("4C3-P2-8-8", {"readout": "first_spike"}, marks=pytest.mark.slow),
        ("4C3-P2-8", {"batch_norm": True, "neuron": Neuron(1.0, surrogate_width=0.5, split_gradient=0.0)}),
        ("4C3-P2-8", {"batch_norm": True, "neuron": Neuron(0.0)}),
    ],
)
def test_a_compiled_network_computes_the_same(model, options):
    """The network is one graph. Spikes are counted, too."""
    torch.compiler.reset()
    torch.manual_seed(0)
    network, images = small(model, in_channels=2, **options), torch.rand(3, 2, 10, 12)

    def results(function):
        network.zero_grad()
        reset_statistics(network)
        with record_statistics(network):
            logits = function(images)
        logits.square().sum().backward()
        return [logits, *(parameter.grad for parameter in network.parameters())], collect_statistics(network)

    compiled, counted = results(torch.compile(network, fullgraph=True, backend="aot_eager"))
    expected, counts = results(network)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)
    assert counted == counts
    torch.compiler.reset()
