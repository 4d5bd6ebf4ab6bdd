"""Figures of an evaluation against what one pass in float64 says."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from tests.virtual_cuda import recording
from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.scoring import (
    EvaluationBatches,
    EvaluationStopped,
    device_name,
    evaluate,
    layer_table,
    sum_over_processes,
    versions,
)


@pytest.fixture
def network() -> TTFSNetwork:
    torch.manual_seed(3)
    return TTFSNetwork(NetworkConfig("2C3-P2-4", image_size=(8, 8), classes=3, dropout=0.5))


@pytest.fixture
def images() -> ImageData:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (23, 8, 8, 1), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (23,), generator=generator)
    return ImageData(InMemoryImages(pixels), labels, ["a", "b", "c"], "a/b", "test", "0")


@pytest.mark.parametrize("batch_size", [5, 23, 99])
def test_evaluate_equals_one_pass_in_float64(network, images, batch_size):
    scored = []
    found = evaluate(
        network.train(), EvaluationBatches(images, None, batch_size), Accelerator(cpu=True), on_batch=scored.append
    )
    assert network.training
    assert sum(scored) == found.images == 23
    x = images.images.double() / 255
    exact = network.double().eval()
    with torch.no_grad():
        hidden = exact.hidden(x)
        logits, decision = exact.readout(hidden), exact.readout.decide(hidden)
    assert found.correct == (logits.argmax(1) == images.labels).sum()
    assert found.accuracy == found.correct / 23
    assert found.loss == pytest.approx(F.cross_entropy(logits, images.labels).item(), rel=1e-5)
    assert found.first_spike_correct == (decision.prediction == images.labels).sum()
    assert found.first_spike_accuracy == found.first_spike_correct / 23
    assert (found.ties, found.no_spike) == (decision.tie.sum(), decision.no_spike.sum())
    last = found.layers[-2]
    assert last.spikes == (hidden > 0).sum()
    hidden_layers = [layer for layer in found.layers if layer.kind != "readout"]
    expected = sum(layer.spikes for layer in hidden_layers) / sum(layer.neurons * 23 for layer in hidden_layers)
    assert found.sparsity == pytest.approx(expected)
    assert found.sparsity_with_outputs != found.sparsity


def test_evaluate_stops_when_asked(network, images):
    scored = []
    with pytest.raises(EvaluationStopped):
        evaluate(
            network,
            EvaluationBatches(images, None, 5),
            Accelerator(cpu=True),
            stop=lambda: len(scored) == 2,
            on_batch=scored.append,
        )
    assert scored == [5, 5]


def test_batches_never_wait_for_the_device(network, images, watched_device):
    network, waits = network.to(watched_device), []
    for batch_size in (9, 23, 3):  # the first pass makes the layers' counters
        with recording() as record:
            evaluate(network, EvaluationBatches(images, None, batch_size), Accelerator())
        waits.append(record.synchronisations)
    assert waits[1] == waits[2]


def test_layers_have_a_row_each(network, images):
    layers = evaluate(network, EvaluationBatches(images, None, 9), Accelerator(cpu=True)).layers
    assert len(layer_table(layers).rows) == len(layers) == 3
    assert [layer.kind for layer in layers] == ["spiking", "spiking", "readout"]


def test_sum_over_processes_leaves_its_argument_alone():
    values = torch.arange(3.0)
    total = sum_over_processes(Accelerator(cpu=True), values)
    assert torch.equal(total, values)
    assert total.data_ptr() != values.data_ptr()


def test_machine_is_named():
    assert versions()["torch"] == torch.__version__
    assert {"python", "accelerate", "safetensors"} <= versions().keys()
    name = device_name(torch.device("cpu"))
    assert name.startswith("CPU ")
    assert name.endswith(f", {torch.get_num_threads()} threads")
