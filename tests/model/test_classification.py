"""`classify`: classes, spike times of the output neurons and the decision's time, against the layers by hand."""

import re

import numpy as np
import pytest
import torch

from ttfs_triton import TTFSModel
from ttfs_triton.nn import NetworkConfig, Neuron


def make(readout="potential_end", **values):
    config = NetworkConfig("4C3-P2-8", image_size=(8, 8), classes=4, readout=readout, neuron=Neuron(0.5), **values)
    return TTFSModel(config, class_names=["a", "b", "c", "d"]).eval()


@pytest.mark.parametrize("encoder", ["latency", "analog"])
@pytest.mark.parametrize(("readout", "after"), [("potential_start", 0), ("potential_end", 1), ("first_spike", None)])
def test_decision_and_its_time(encoder, readout, after):
    model, images = make(readout, encoder=encoder), torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        logits, spikes = model(images), model.decide(images)
    windows = 3 if encoder == "latency" else 2  # input (latency only), conv1, fc1; then the output neurons
    for place, each in enumerate(model.classify(images)):
        assert torch.equal(each.logits, logits[place])
        assert (each.label, each.class_name) == (int(logits[place].argmax()), "abcd"[int(logits[place].argmax())])
        assert torch.allclose(each.spike_times, windows + spikes.spike_times[place].double())
        expected = windows + after if after is not None else each.spike_times.min().item()
        assert each.decision_time == pytest.approx(expected)
        assert (each.first_spike, each.tie) == (int(spikes.spike_times[place].argmin()), bool(spikes.tie[place]))


def test_first_spike_decides_when_asked_to():
    model, images = make(), torch.rand(5, 1, 8, 8)
    spikes = model.decide(images)
    for place, each in enumerate(model.classify(images, decision="first_spike")):
        assert each.label == int(spikes.prediction[place]) == each.top[0].label == each.first_spike
        assert each.decision_time == pytest.approx(3 + spikes.spike_times[place].min().item())
        scores = torch.softmax(-20 * spikes.spike_times[place], 0)
        assert each.top[0].probability == pytest.approx(scores.max().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("biases", "first", "words"),
    [([1.0, 3.0, 3.0, -5.0], 1, "a tie"), ([-30.0, -20.0, -25.0, -40.0], None, "first output spike: none")],
)
def test_ties_and_silence_are_told(biases, first, words):
    """Of output neurons that see nothing of the image but their initial potentials."""
    model = make()
    with torch.no_grad():
        model.fold_standardisation()
        model.readout.weight.fill_(0.0)
        model.readout.bias.copy_(torch.tensor(biases))
    found = model.classify(torch.rand(1, 8, 8), decision="first_spike")
    assert (found.label, found.first_spike, found.tie, found.top[0].label) == (1, first, first is not None, 1)
    assert words in repr(found)
    if first is None:
        assert torch.isinf(found.spike_times).all()
        assert found.decision_time == 4  # the end of the output neurons' window


def test_top_classes_are_sorted_shares_and_the_repr_reads_well():
    few, everything = (make().classify(torch.rand(1, 8, 8), top_k=count) for count in (2, 99))
    shares = [score.probability for score in everything.top]
    assert (len(few.top), sum(shares)) == (2, pytest.approx(1))
    assert shares == sorted(shares, reverse=True)
    assert sorted(score.class_name for score in everything.top) == ["a", "b", "c", "d"]
    assert re.match(r"Classification\(.*; decided after 4.00 windows; first output spike: 3\.", repr(few))


def test_batches_devices_and_precisions_do_not_matter_and_mode_comes_back(device):
    model, images = make(dropout=0.5).train(), torch.rand(7, 1, 8, 8)
    whole, parts = model.classify(images), model.classify(list(images), batch_size=3)
    assert model.training
    assert model.classify([]) == []
    assert len(model.classify(np.zeros((2, 8, 8, 1), np.uint8))) == 2
    for one, other, there in zip(whole, parts, model.to(device).classify(images), strict=True):
        torch.testing.assert_close(one.logits, other.logits)
        torch.testing.assert_close(one.logits, there.logits)
        torch.testing.assert_close(one.spike_times, there.spike_times)
        assert (there.logits.device.type, there.label) == ("cpu", one.label)
    double = make().double()
    expected = double(images[:1].double())[0].detach().float()
    torch.testing.assert_close(double.classify(images[0]).logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({name: 0}, f"classify: {name} must be at least 1; got 0") for name in ("top_k", "batch_size")),
        ({"decision": "vote"}, 'classify: decision must be "readout" or "first_spike"; got \'vote\''),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make().classify(torch.rand(1, 8, 8), **options)
