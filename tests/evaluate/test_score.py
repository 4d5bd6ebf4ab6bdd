"""Figures of an evaluation against one pass in float64."""

import re

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from tests.virtual_cuda import recording
from ttfs_kernels import Neuron
from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData
from ttfs_triton.evaluate import EvaluationBatches, EvaluationStopped, device_name, evaluate, layer_table, versions
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

BATCH, IMAGES = 5, 23


@pytest.fixture
def network() -> TTFSNetwork:
    """Sums are exact, whatever their order: a batch's size changes no bit."""
    torch.manual_seed(3)
    options = {"dropout": 0.5, "neuron": Neuron(psp_persistence=0.0), "weight_standardisation": False}
    network = TTFSNetwork(NetworkConfig("2C3-P2-4", image_size=(8, 8), classes=3, **options))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(32).round_().div_(16)
    return network


@pytest.fixture
def images() -> ImageData:
    generator = torch.Generator().manual_seed(1)
    pixels = 255 * torch.randint(0, 2, (IMAGES, 8, 8, 1), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (IMAGES,), generator=generator)
    return ImageData(InMemoryImages(pixels), labels, ["a", "b", "c"], "a/b", "test", "0")


def score(network, images, batch_size=BATCH, **options):
    return evaluate(network, EvaluationBatches(images, None, batch_size), Accelerator(cpu=True), **options)


@pytest.mark.parametrize("batch_size", [BATCH, IMAGES, 99])
def test_evaluate_equals_one_pass_in_float64(network, images, batch_size):
    scored = []
    found = score(network.train(), images, batch_size=batch_size, on_batch=scored.append)
    assert network.training
    assert sum(scored) == found.images == IMAGES
    exact = network.double().eval()
    with torch.no_grad():
        hidden = exact.hidden(images.images.double() / 255)
        logits, decision = exact.readout(hidden), exact.readout.decide(hidden)
    assert found.accuracy == int((logits.argmax(1) == images.labels).sum()) / IMAGES
    assert found.loss == pytest.approx(F.cross_entropy(logits, images.labels).item(), rel=1e-5)
    assert found.first_spike_accuracy == int((decision.prediction == images.labels).sum()) / IMAGES
    assert found.top5_accuracy == 1, "of three classes"
    for label, share in enumerate(found.class_accuracy):
        assert share == (logits.argmax(1) == label)[images.labels == label].double().mean()
    assert (found.ties, found.no_spike) == (decision.tie.sum(), decision.no_spike.sum())
    *hidden_layers, readout = found.layers
    assert hidden_layers[-1].spikes == (hidden > 0).sum()
    expected = sum(layer.spikes for layer in hidden_layers) / sum(layer.neurons * IMAGES for layer in hidden_layers)
    assert found.sparsity == pytest.approx(expected)
    assert (readout.kind, len(layer_table(found.layers).rows)) == ("readout", 3)


def test_evaluation_stops_when_asked_and_leaves_nothing_behind(network, images):
    scored, expected = [], score(network, images)
    with pytest.raises(EvaluationStopped):
        score(network, images, stop=lambda: len(scored) == 2, on_batch=scored.append)
    assert scored == [5, 5]
    assert score(network, images) == expected


def test_batches_never_wait_for_the_device(network, images, watched_device):
    accelerator, network, waits = Accelerator(), network.to(watched_device), []
    for number in (5, 5, IMAGES):  # the first pass makes the layers' counters
        batches = EvaluationBatches(images, torch.arange(number), BATCH)
        with recording() as record:
            evaluate(network, batches, accelerator)
        waits.append(record.synchronisations)
    assert waits[1] == waits[2]


def test_outputs_that_are_no_numbers_are_no_class(network, images):
    network.readout.register_forward_hook(lambda _, __, logits: logits * torch.nan)
    with pytest.raises(ValueError, match="evaluate: outputs of the network must be finite; got NaN or inf"):
        score(network, images)


def test_machine_is_named():
    assert versions()["torch"] == torch.__version__
    assert re.fullmatch(f"CPU .*, {torch.get_num_threads()} threads", device_name(torch.device("cpu")))
