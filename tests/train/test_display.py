"""What a run says of itself: nothing is missed, and nothing said twice."""

import dataclasses

import pytest

from tests.train.runs import make_images
from ttfs_triton.nn import LayerStatistics
from ttfs_triton.train import TrainConfig, train
from ttfs_triton.train.display import Display, is_blind

LINE = {"epoch": 1, "train_loss": 2.3, "train_accuracy": 0.1, "images_per_second": 1.0, "seconds": 1.0}
# Of 4 neurons over 10 samples.
ALIVE = LayerStatistics(name="conv1", kind="spiking", samples=10, neurons=4, spikes=20, saturated=5, never_active=1)
SILENT = dataclasses.replace(ALIVE, spikes=0, saturated=0, never_active=4)
SATURATED = dataclasses.replace(ALIVE, spikes=40, saturated=40, never_active=0)
MIXED = dataclasses.replace(ALIVE, spikes=30, saturated=30, never_active=1)


def test_layer_is_blind_if_each_neuron_does_the_same_for_all_samples():
    assert all(map(is_blind, (SILENT, SATURATED, MIXED)))
    for values in (
        {"saturated": 29},  # a spike has a time
        {"spikes": 29, "saturated": 29},  # a neuron was silent once
        {"never_active": 0},  # so it was another one, which was silent more often
        {"kind": "readout"},
        {"samples": 1, "spikes": 3, "saturated": 3},  # one image tells nothing
    ):
        assert not is_blind(dataclasses.replace(MIXED, **values)), values
    assert not is_blind(ALIVE)


def test_blind_layer_is_told_once_until_it_recovers(capsys):
    display = Display(True)
    counts = []
    for layers in ([ALIVE], [ALIVE, SILENT], [SILENT], [ALIVE], [SATURATED], []):
        display.epoch(LINE, 9, False, layers)
        counts.append(capsys.readouterr().out.count("warning: conv1 does the same for every image"))
    assert counts == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("rate", [0.02, 100.0])
def test_run_that_has_died_says_so_with_a_remedy(tmp_path, write_parquet, capsys, rate):
    images = make_images(tmp_path / "images", write_parquet)
    values = {"model": "4C3-P2-8", "epochs": 3, "batch_size": 16, "evaluation_batch_size": 13, "cpu": True}
    train(TrainConfig(**values, data_dir=images, lr=rate, output_dir=tmp_path / "run"))
    shown = capsys.readouterr().out
    assert shown.count("so no image is told from another. Start again with a lower --lr") == (rate > 1)
