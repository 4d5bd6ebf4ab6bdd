"""Batches of one size, one by one and through a graph, give the scores of the images alone."""

import pytest
import torch
from accelerate import Accelerator

from tests.train.recorded import RecordedGraphs
from tests.virtual_cuda import recording
from ttfs_kernels import Neuron
from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData
from ttfs_triton.hardware import counting
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.scoring import EvaluationBatches, EvaluationStopped, PaddedScorer, evaluate
from ttfs_triton.scoring.graphs import GraphError

BATCH, IMAGES = 5, 23


@pytest.fixture
def network() -> TTFSNetwork:
    """Sums are exact, whatever their order: a batch's size changes no bit."""
    torch.manual_seed(3)
    neuron = Neuron(psp_persistence=0.0)
    config = NetworkConfig(
        "2C3-P2-4", image_size=(8, 8), classes=3, dropout=0.5, neuron=neuron, weight_standardisation=False
    )
    network = TTFSNetwork(config)
    round_weights(network)
    return network


@torch.no_grad()
def round_weights(network):
    for parameter in network.parameters():
        parameter.mul_(32).round_().div_(16)


@pytest.fixture
def images() -> ImageData:
    generator = torch.Generator().manual_seed(1)
    pixels = 255 * torch.randint(0, 2, (IMAGES, 8, 8, 1), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (IMAGES,), generator=generator)
    return ImageData(InMemoryImages(pixels), labels, ["a", "b", "c"], "a/b", "test", "0")


def score(network, images, scorer=None, accelerator=None, **options):
    accelerator = accelerator or Accelerator(cpu=True)
    return evaluate(network, EvaluationBatches(images, None, BATCH), accelerator, scorer=scorer, **options)


@pytest.mark.parametrize("batch_size", [BATCH, 6, IMAGES])
def test_padding_changes_no_bit(network, images, batch_size):
    seen = []
    scorer = PaddedScorer(network, Accelerator(cpu=True), batch_size)
    handle = network.features[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    found = score(network.train(), images, scorer)
    handle.remove()
    assert set(seen) == {batch_size}
    assert network.training
    expected = score(network, images)
    assert found == expected
    assert found.images == IMAGES
    assert [layer.samples for layer in found.layers] == [IMAGES] * 3
    assert 0 < found.correct < IMAGES
    assert score(network, images, scorer) == expected  # what lies in the padding from before does not matter


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_graph_serves_all_evaluations_of_a_run(network, images, precision):
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    graphs = RecordedGraphs()
    scorer = PaddedScorer(network, accelerator, BATCH, graphs=graphs)
    for passes in range(1, 4):
        assert score(network, images, scorer, accelerator) == score(network, images, None, accelerator)
        assert (graphs.asides, graphs.replays) == (1, 5 * passes - 1)
        with torch.no_grad():  # a step of training
            for parameter in network.parameters():
                parameter.mul_(-1).add_(0.0625)


def test_evaluation_goes_on_without_a_graph_that_fails(network, images):
    said = []
    graphs = RecordedGraphs("the stream is busy.\nSee the log.")
    scorer = PaddedScorer(network, Accelerator(cpu=True), BATCH, graphs=graphs, say=said.append)
    assert score(network, images, scorer) == score(network, images)
    assert said == ["no CUDA graph in evaluation: the stream is busy"]


def test_graph_that_is_required_must_not_fail(network, images):
    graphs = RecordedGraphs("the stream is busy")
    scorer = PaddedScorer(network, Accelerator(cpu=True), BATCH, graphs=graphs, required=True)
    with pytest.raises(GraphError, match="PaddedScorer: a batch must be capturable in a CUDA graph; got the stream is"):
        score(network, images, scorer)
    assert network.training


def test_evaluation_that_was_stopped_leaves_nothing_behind(network, images):
    graphs = RecordedGraphs()
    scorer = PaddedScorer(network, Accelerator(cpu=True), BATCH, graphs=graphs)
    scored = []
    with pytest.raises(EvaluationStopped):
        score(network, images, scorer, stop=lambda: len(scored) == 3, on_batch=scored.append)
    assert score(network, images, scorer) == score(network, images)


def test_padded_batches_never_wait_for_the_device(network, images, watched_device):
    accelerator, network, waits = Accelerator(), network.to(watched_device), []
    scorer = PaddedScorer(network, accelerator, BATCH)
    for count in (5, 5, IMAGES):  # the first pass makes the layers' counters
        batches = EvaluationBatches(images, torch.arange(count), BATCH)
        with recording() as record:
            evaluate(network, batches, accelerator, scorer=scorer)
        waits.append(record.synchronisations)
    assert waits[1] == waits[2]


def test_operations_are_counted_of_images_alone(network, images):
    scorer = PaddedScorer(network, Accelerator(cpu=True), BATCH)
    with (
        counting(network),
        pytest.raises(NotImplementedError, match="batches must not be padded; got one that is"),
    ):
        score(network, images, scorer)
