"""Two real processes (gloo) do what one does."""

import json
from pathlib import Path

import pytest
import torch

from tests.train.runs import AUGMENTATION, best, last, make_images, metrics, run

# Five optimiser steps; 45 test and 37 validation images, which two processes do not divide evenly.
SETTINGS = f"\nepochs: 1\ndropout: 0.0\nema_decay: 0.0\nbatch_size: 24\n{AUGMENTATION}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_parquet) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("distributed")
    data = make_images(folder / "images", write_parquet, train=163)
    for processes, name in ((1, "one"), (2, "two")):
        result = run(folder, data, folder / name, settings=SETTINGS, processes=processes)
        assert result.returncode == 0, result.stderr
    return folder / "one", folder / "two"


def test_two_processes_reach_the_weights_of_one(runs):
    one, two = runs
    assert metrics(one)[0]["step"] == 5
    for read in (best, last):
        ours, theirs = read(one), read(two)
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0)


def test_two_processes_score_every_image_once(runs):
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in runs)
    assert one["test_images"] == two["test_images"] == 45
    assert two["processes"] == 2
    assert one["test_accuracy"] == two["test_accuracy"]
    assert [layer["samples"] for layer in two["counts"]["layers"]] == [45] * len(two["counts"]["layers"])
    assert metrics(runs[0])[0]["train_accuracy"] == metrics(runs[1])[0]["train_accuracy"]


def test_two_processes_accumulate_as_one_does(runs):
    """Gradients that live in buckets are added up over micro-batches before they are exchanged."""
    one, folder = runs[0], runs[0].parent
    settings = f"{SETTINGS}gradient_accumulation: 2\n"
    result = run(folder, folder / "images", folder / "accumulated", settings=settings, processes=2)
    assert result.returncode == 0, result.stderr
    theirs = best(folder / "accumulated")
    for name, value in best(one).items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0)


def test_two_processes_start_from_an_ann_as_one_does(runs):
    folder = runs[0].parent
    result = run(folder, folder / "images", folder / "ann", settings=f"{SETTINGS}neuron: ann\n")
    assert result.returncode == 0, result.stderr
    found = []
    for processes in (1, 2):
        output, weights = folder / f"from-ann-{processes}", f"{SETTINGS}weights: {folder / 'ann'}\n"
        result = run(folder, folder / "images", output, settings=weights, processes=processes)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("Calibrated on 130 images") == 1
        found.append(best(output))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-5, rtol=0)
