"""A Python file that only config.yaml, config.json, a recipe or `--config` names is run by no command."""

import json
import sys

import pytest
from torch import nn

from ttfs_triton.model import ModelDescription
from ttfs_triton.model.files import write_model
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.nn import DFTLinear, LatencyEncoder, Readout, network_graph
from ttfs_triton.ttfs import main

FEW = "--max-train-samples 200 --epochs 1 --output-dir out"
TRAIN = f"--dataset sample {FEW} --max-test-samples 20"
SWEEP = f"sweep run {FEW} --chip lemaire45:int8 --steps 4 --target-sparsity 0.4"
REFUSED = {
    "resume": "train --output-dir run --resume",
    "recipe": f"train run/config.yaml {TRAIN}",
    "extended recipe": f"train extends.yaml {TRAIN}",
    "preset": f"train preset.yaml --preset theirs {TRAIN}",
    "config": f"train --config run/config.yaml {TRAIN}",
    "sweep with config": f"{SWEEP} --config run/config.yaml",
}
OTHERS = {
    "weights": f"train --model 4C5-P4-16 --weights run {TRAIN}",
    "teacher": f"train quickstart --teacher run {TRAIN}",
    "sweep": SWEEP,
    "evaluate": "evaluate run --max-test-samples 20",
    "calibrate": "calibrate run --time-steps 4 --images 20 --dataset sample --output-dir out",
    "export": "export run --format nir --output out",
    "publish": "publish run --repo-id a/b --dry-run",
}


@pytest.fixture
def attempt(run, tmp_path, monkeypatch, capsys):
    """Run a command beside a folder `run` whose files name theirs.py; returns what it said on standard error."""
    (tmp_path / "theirs.py").write_text("import pathlib\npathlib.Path('marker').touch()\ndef build(): ...\n")
    keys = "network: theirs.py:build\n"
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("network: null\n", keys))
    (tmp_path / "extends.yaml").write_text("extends: run/config.yaml\n")
    (tmp_path / "preset.yaml").write_text(f"presets:\n  theirs:\n    {keys}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ttfs"])  # `main` changes it

    def attempt(line):
        words, code = line.split(), 0
        try:
            main([*words, *(() if words[0] in ("export", "publish") else ("--cpu",))])
        except SystemExit as ended:
            code = ended.code
        assert not (tmp_path / "marker").exists()
        return code, capsys.readouterr().err

    return attempt


def describe_own(run):
    """Replace the run's weights by those of a network that config.json describes by its builder, theirs.py:build."""
    network = nn.Sequential(LatencyEncoder(), nn.Flatten(), DFTLinear(784, 6), Readout(6, 10))
    described = OwnNetwork.of(network_graph(network, (1, 28, 28)), "theirs.py:build")
    classes = ModelDescription.from_dict(json.loads((run / "best" / "config.json").read_text())).class_names
    description = ModelDescription.of(described, class_names=classes, dataset="sample")
    write_model(run / "best", network.state_dict(), description)


@pytest.mark.parametrize("command", REFUSED)
def test_file_that_only_keys_name_is_refused(attempt, command):
    code, said = attempt(REFUSED[command])
    assert code == 1
    assert "code that only a file names is not run; got 'theirs.py:build' in the file. Add --network FILE.py" in said


@pytest.mark.parametrize("described", [False, True], ids=["specified", "own"])
@pytest.mark.parametrize("command", OTHERS)
def test_no_command_runs_a_file_that_only_files_name(attempt, run, command, described):
    if described:
        describe_own(run)
    code, said = attempt(OTHERS[command])
    assert (code, "--network FILE.py:FUNCTION" in said) == ((1, True) if described else (0, False)), said
