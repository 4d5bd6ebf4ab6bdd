"""The paper's training: `--preset paper` and its first stage, `--preset paper_ann`."""

import pytest
import torch
from accelerate import Accelerator

from ttfs_triton.command_line import recipe
from ttfs_triton.model.files import read_weights
from ttfs_triton.train import main
from ttfs_triton.train.build import build_network
from ttfs_triton.train.config import parse_config
from ttfs_triton.train.data import load_data

NEURON = {"psp_persistence": 1.0, "psp_persistence_rise": None, "surrogate_width": 0.0, "split_gradient": 1.0}
NEURON |= {"derivative_clip": 11.0}
PLAIN = {"batch_norm": False, "weight_standardisation": False, "bias": False, "width": 1.0, "dropout": 0.0}
PLAIN |= {"label_smoothing": 0.0, "lookahead": 0, "ema_decay": 0.0, "teacher": None, "gradient_clip": None, "shift": 0}
PLAIN |= {"readout": "potential_start", "readout_rate": 1.0, "validation_fraction": 0.0}
ADAM = {"optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0, "schedule": "milestones", "milestone_factor": 0.4}
ADAM |= {"milestones": [50, 150, 240]}
VGG = {"head": "4096-4096", "encoder": "signed", "identity_start": False, "batch_size": 256, "crop_padding": 4}
VGG |= {"crop_fill": 128, "flip": True, "auto_augment": True, "cutout": 16}
SPIKING = PLAIN | VGG | NEURON | ADAM | {"lr": 1e-4, "epochs": 300}
ANN = PLAIN | VGG | {"psp_persistence": 0.0, "psp_persistence_rise": None, "optimizer": "sgd", "momentum": 0.9}
ANN |= {"lr": 1e-2, "weight_decay": 5e-4, "schedule": "milestones", "milestones": [15, 30, 40], "milestone_factor": 0.1}
ANN |= {"epochs": 200}
# Wei et al., ICCV 2023, section 4.1; where it is silent, the authors' code.
TABLE = [
    ("cnn-mnist", "paper", PLAIN | NEURON | ADAM | {"model": "cnn1", "encoder": None, "lr": 1e-3, "epochs": 150}),
    ("vgg11-cifar10", "paper", SPIKING | {"model": "vgg11"}),
    ("vgg16-cifar10", "paper", SPIKING | {"model": "vgg16"}),
    ("vgg16-cifar100", "paper", SPIKING | {"model": "vgg16"}),
    *((name, "paper_ann", ANN) for name in ("vgg11-cifar10", "vgg16-cifar10", "vgg16-cifar100")),
]
TINY = "--dataset sample --image-size 32 --width 0.0625 --cpu --epochs 1 --max-train-samples 64 --max-test-samples 16 "
TINY += "--batch-size 32 --num-workers 0"


@pytest.mark.parametrize(
    ("name", "preset", "expected"), TABLE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_presets_have_the_papers_settings(name, preset, expected):
    keys = parse_config(recipe(name), "", ["--preset", preset]).model_dump(mode="json")
    assert {key: keys[key] for key in expected} == expected


def test_the_spiking_network_starts_with_the_weights_of_its_ann_as_they_are(tmp_path, capsys):
    words, ann = TINY.split(), tmp_path / "ann"
    main(recipe("vgg11-cifar10"), None, [*words, "--preset", "paper_ann", "--output-dir", str(ann)])
    config = parse_config(recipe("vgg11-cifar10"), "", [*words, "--preset", "paper", "--weights", str(ann)])
    network, start = build_network(config, load_data(config, Accelerator(cpu=True), print))
    assert start is not None
    assert start.calibration is None
    assert {layer.neuron.psp_persistence for layer in network.modules() if hasattr(layer, "neuron")} == {1.0}
    theirs, ours = read_weights(ann / "best" / "model.safetensors"), network.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    assert all(tensor.dim() > 1 for tensor in ours.values()), "weights alone, no initial potentials, no gains"
    assert "warning: the paper starts" not in capsys.readouterr().out


def test_a_start_from_random_weights_is_reported_with_the_two_commands(tmp_path, capsys, monkeypatch):
    for name, warned in (("vgg11-cifar10", True), ("cnn-mnist", False)):
        monkeypatch.setattr("sys.argv", [f"ttfs train {name}"])
        main(recipe(name), None, [*TINY.split(), "--preset", "paper", "--output-dir", str(tmp_path / name)])
        said = capsys.readouterr().out
        assert ("warning: the paper starts from the weights of an ANN" in said) == warned
        command = "ttfs train vgg11-cifar10 --preset paper"
        assert (f"{command}_ann --output-dir ANN, then {command} --weights ANN" in said) == warned
