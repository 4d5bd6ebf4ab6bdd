"""What cannot be done is said before anything is trained."""

import json
from pathlib import Path

import pytest
import yaml

from tests.frontier.conftest import FLAGS, sweep
from ttfs_triton.evaluation import load_network
from ttfs_triton.frontier import FrontierOptions, Point
from ttfs_triton.frontier.plan import point_config, settings_of


def settings(source, **changes):
    options = FrontierOptions(runs=(source,), output_dir=Path("out"), **changes)
    return settings_of(source, load_network(source), options)


def test_bundled_network_goes_on_as_it_was_trained():
    found = settings("bundled:cnn1-mnist", data_dir="mnist", epochs=3)
    config = point_config(found, Point.of(target_sparsity=0.15), Path("out"))
    assert (config.model, config.weight_standardisation) == ("cnn1", False), "it is folded"
    assert (config.shift, config.label_smoothing, config.seed, config.validation_fraction) == (2, 0.1, 7, 0.05)
    assert (config.epochs, config.lr, config.weights) == (3, 1e-3, "bundled:cnn1-mnist")
    assert (config.dataset, str(config.data_dir), config.target_sparsity) == ("ylecun/mnist", "mnist", 0.15)


def test_run_goes_on_as_its_configuration_says(run, tmp_path):
    path = run / "config.yaml"
    kept = {"schedule": "milestones", "milestones": [50], "target_sparsity": 0.5, "hub_repo_id": "you/it"}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | kept))
    found = settings(str(run))
    config = point_config(found, Point.of(time_steps=4), tmp_path)
    assert (config.schedule, config.milestones, config.hub_repo_id) == ("one_cycle", (), None)
    assert (config.lr, config.target_sparsity, config.time_steps) == (1e-2, 0.5, 4)
    assert config.weights == str(run.resolve())
    config = point_config(found, Point.of(target_operations=0.2), tmp_path)
    assert (config.target_sparsity, config.target_operations) == (None, 0.2)
    (tmp_path / "more.yaml").write_text("ema_decay: 0.5\nseed: 3\n")
    config = point_config(settings(str(run), config=tmp_path / "more.yaml", lr=0.5), None, tmp_path)
    assert (config.ema_decay, config.seed, config.lr) == (0.5, 3, 0.5), "more keys win"


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--target-sparsity", "0.4", "7"], ["target_sparsity=7", "between 0 and 1"]),
        (["--target-operations", "0.0001"], ["target_operations=0.0001", "must lie between"]),
        (["--target-energy", "loihi2:3"], ["target_energy=loihi2:3", "No public per-operation figure"]),
        (["--target-sparsity", "conv9=0.2"], ["conv9"]),
        (["--points", "dead_neurons=0.6+stuck_neurons=0.6"], ["must be at most 1 together"]),
        (["--points", "time_steps=4+state_bits=4", "weight_bits=3"], ["weight_bits and state_bits need time_steps"]),
        (["--chip", "nowhere"], ["nowhere"]),
        (["--config", "none.yaml"], ["none.yaml does not exist"]),
    ],
)
def test_bad_points_are_told_before_training(trained, tmp_path, capsys, flags, messages):
    with pytest.raises(SystemExit, match="1"):
        sweep(trained, "--output-dir", tmp_path / "out", *FLAGS, *flags)
    said = capsys.readouterr().err
    assert all(message in said for message in messages), said
    assert not (tmp_path / "out").exists()


def test_networks_of_one_name_are_refused(trained, run, tmp_path, capsys):
    path = run / "best" / "config.json"
    text = json.loads(path.read_text())
    text["network"]["neuron"] = "lif"
    path.write_text(json.dumps(text))
    for runs, message in (([trained, trained], "must differ in their names; got run twice"), ([run], "must")):
        with pytest.raises(SystemExit, match="1"):
            sweep(*runs, "--output-dir", tmp_path / "out", *FLAGS)
        assert message in capsys.readouterr().err


def test_other_settings_than_a_point_s_are_refused(swept, trained, capsys):
    with pytest.raises(SystemExit, match="1"):
        sweep(trained, "--output-dir", swept, "--cpu", "--epochs", "2", "--target-sparsity", "0.4")
    said = capsys.readouterr().err
    assert "holds a run of other settings, epochs: 1 → 2" in said
