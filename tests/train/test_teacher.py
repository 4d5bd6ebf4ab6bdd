"""Knowledge distillation: the loss, and runs that a trained network teaches."""

import pytest
import torch
import yaml
from accelerate import Accelerator

from tests.train.runs import change, metrics
from ttfs_triton import TTFSModel
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train import ConfigError, train
from ttfs_triton.train.build import build_network
from ttfs_triton.train.data import load_data
from ttfs_triton.train.step import load_teacher

SMALL = {"shift": 0, "dropout": 0.0, "ema_decay": 0.0, "epochs": 1}


def log_probabilities(network, images):
    logits = network.eval()(images).double()
    return logits - logits.exp().sum(1, keepdim=True).log()


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0])
def test_loss_is_the_labels_share_and_the_teachers(config, teacher, weight, monkeypatch):
    values = SMALL | {"batch_size": 128, "label_smoothing": 0.1, "teacher": teacher, "teacher_weight": weight}
    config = change(config, **values)
    monkeypatch.chdir(teacher.parent.parent)
    train(change(config, teacher=teacher.relative_to(teacher.parent.parent)))  # "folder/name", as a name on the Hub
    assert yaml.safe_load((config.output_dir / "config.yaml").read_text())["teacher"] == str(teacher)
    data = load_data(config, Accelerator(cpu=True), print)
    images = data.train.images_at(data.train_indices) / 255
    assert len(images) == 128, "one step"
    targets = torch.full((128, 4), 0.025, dtype=torch.float64)
    targets[torch.arange(128), data.train.labels[data.train_indices]] += 0.9
    with torch.no_grad():
        found = log_probabilities(build_network(config, data)[0], images)
        wanted = log_probabilities(TTFSModel.from_pretrained(teacher).network, images)
    expected = -(1 - weight) * (targets * found).sum(1) + weight * (wanted.exp() * (wanted - found)).sum(1)
    assert metrics(config.output_dir)[0]["train_loss"] == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "names", "message"),
    [
        ({"classes": 3}, None, r"classes a, b, c, d; got .*, trained on \(1, 8, 8\) in the classes 0, 1, 2\. Choose"),
        ({}, ["b", "a", "c", "d"], r"classes a, b, c, d; got .* in the classes b, a, c, d"),
        ({"image_size": (8, 9)}, None, r"images like these, \(1, 8, 8\) .*; got .*, trained on \(1, 8, 9\)"),
        (None, None, "teacher: load: .*teacher"),
    ],
    ids=["classes", "order", "size", "missing"],
)
def test_unfit_teacher_is_refused_before_the_run_begins(config, tmp_path, network, names, message):
    if network is not None:
        built = NetworkConfig("6C3", **{"image_size": (8, 8), "classes": 4} | network)
        TTFSModel(built, class_names=names).save_pretrained(tmp_path / "teacher")
    with pytest.raises(ConfigError, match=message):
        train(change(config, teacher=tmp_path / "teacher"))
    assert not config.output_dir.exists()
    with pytest.raises(ValueError, match="teacher_weight needs teacher"):
        change(config, teacher_weight=0.5)


def test_classes_that_have_only_numbers_are_told(config, tmp_path, caplog):
    built = NetworkConfig("6C3", image_size=(8, 8), classes=4)
    TTFSModel(built, dataset="org/digits").save_pretrained(tmp_path / "teacher")
    config, accelerator = change(config, teacher=tmp_path / "teacher"), Accelerator(cpu=True)
    load_teacher(config, load_data(config, accelerator, print), accelerator)
    assert "trained on org/digits, have only numbers; taken for a, b, c, d, in order." in caplog.text
