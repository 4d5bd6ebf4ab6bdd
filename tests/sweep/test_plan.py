"""Points and their plan: what cannot be done is said before anything is trained."""

from pathlib import Path

import pytest
import yaml

from tests.sweep.conftest import FLAGS, sweep
from ttfs_triton import TTFSModel
from ttfs_triton.data.events import EventWindows
from ttfs_triton.evaluate.load import load_network
from ttfs_triton.model import ModelDescription, bundled_names
from ttfs_triton.model.files import write_model
from ttfs_triton.nn import Grid, NetworkConfig, TTFSNetwork
from ttfs_triton.sweep import FrontierOptions, folder_name, read_point
from ttfs_triton.sweep.plan import point_config, settings_of


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.15", "must read KEY=VALUE"),
        ("width=1+time_steps=4", "set keys among target_sparsity, .*; got width=1"),
        ("lr=1", "and one that comes before epochs; got lr=1"),
        ("time_steps=4+time_steps=8", "must set keys among .*, no key twice"),
    ],
)
def test_point_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        read_point(text)


def test_axes_give_points_each_once():
    asked = FrontierOptions(
        runs=("bundled:cnn1-mnist",),
        output_dir=Path("out"),
        target_energy=("lemaire45:int8:40", "chips/my chip.toml:4"),
        time_steps=(4, 8),
        weight_bits=(2,),
        lost_spikes=(0.1,),
        points=("weight-bits=2+time_steps=4", "target_energy=lemaire45:int8:40"),
    )
    assert asked.trained() == {
        "target_energy=lemaire45:int8:40": {"target_energy": "lemaire45:int8:40"},
        "target_energy=chips/my chip.toml:4": {"target_energy": "chips/my chip.toml:4"},
        "time_steps=4+weight_bits=2": {"time_steps": "4", "weight_bits": "2"},
    }
    assert folder_name("target_energy=chips/my chip.toml:4") == "target_energy=chips_my_chip.toml_4"
    assert [Grid(**keys) for keys in asked.grids()] == [Grid(4, 2), Grid(8, 2)]


def settings(source, **changes):
    options = FrontierOptions(runs=(source,), output_dir=Path("out"), **changes)
    return settings_of(source, load_network(source), options)


def test_bundled_network_goes_on_as_it_was_trained():
    found = settings("bundled:cnn1-mnist", data_dir="mnist", epochs=3)
    config = point_config(found, {"target_sparsity": "0.15"}, Path("out"))
    assert (config.model, config.weight_standardisation) == ("cnn1", False), "it is folded"
    assert (config.shift, config.label_smoothing, config.seed, config.validation_fraction) == (2, 0.1, 7, 0.05)
    assert (config.epochs, config.lr, config.weights) == (3, 1e-3, "bundled:cnn1-mnist")
    assert (config.dataset, str(config.data_dir), config.target_sparsity) == ("ylecun/mnist", "mnist", 0.15)
    for name in bundled_names():
        on_grid = point_config(settings(f"bundled:{name}"), {"time_steps": "4"}, Path("out"))
        assert (on_grid.time_steps, on_grid.batch_norm, on_grid.optimizer) == (4, False, "adamw"), name


def test_run_goes_on_as_its_configuration_says(run, tmp_path):
    path = run / "config.yaml"
    kept = {"optimizer": "muon", "schedule": "cosine", "lookahead": 5, "hub_repo_id": "you/it"}
    kept |= {"batch_norm": True, "sync_batch_norm": True, "psp_persistence_rise": [0.2, 0.6]}
    kept |= {"target_energy": "loihi:9", "target_steps": 8, "new_readout": True, "max_test_samples": 9}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | kept))
    found = settings(str(run))
    config = point_config(found, {"time_steps": "4"}, tmp_path)
    assert (config.optimizer, config.schedule, config.lookahead, config.hub_repo_id) == ("adamw", "one_cycle", 0, None)
    assert (config.lr, config.target_energy, config.target_steps, config.time_steps) == (3e-4, "loihi:9", 8, 4)
    assert (config.batch_norm, config.sync_batch_norm) == (False, False), "a grid has none"
    assert (config.weights, config.new_readout, config.max_test_samples) == (str(run.resolve()), False, None)
    config = point_config(found, {"target_operations": "0.2"}, tmp_path)
    assert (config.optimizer, config.schedule, config.lookahead, config.lr) == ("muon", "cosine", 5, 1e-2)
    assert (config.target_energy, config.target_operations, config.target_steps) == (None, 0.2, None)
    energy = {"target_energy": "loihi:7"}
    steps = [point_config(found, energy | keys, tmp_path, 16).target_steps for keys in ({}, {"time_steps": "4"})]
    assert steps == [16, None], "the sweep's, the grid's"
    (tmp_path / "more.yaml").write_text("label_smoothing: 0.5\nseed: 3\n")
    config = point_config(settings(str(run), config=tmp_path / "more.yaml", lr=0.5), {}, tmp_path)
    assert (config.label_smoothing, config.seed, config.lr) == (0.5, 3, 0.5), "more keys win"
    grid = Grid(8, 4, per_channel=False, state_bits=20)  # without a run's configuration
    TTFSModel(NetworkConfig("4C5-P4-16", grid=grid), dataset="sample").save_pretrained(tmp_path / "grid")
    assert point_config(settings(str(tmp_path / "grid")), {"target_sparsity": "0.15"}, tmp_path).grid == grid


EVENTS = {"event_windows": 2, "event_window_us": 50, "event_pool": 4, "event_sensor": (112, 112), "image_size": None}


@pytest.mark.parametrize(
    ("read", "keys"),
    [
        ({"fit": "crop"}, {"image_size": 28, "random_resized_crop": True, "event_windows": None}),
        ({"events": EventWindows(2, 50, 4, (112, 112))}, EVENTS),
    ],
    ids=["crop", "events"],
)
def test_network_without_a_run_reads_images_as_it_was_trained_on(tmp_path, read, keys):
    network = TTFSNetwork(NetworkConfig("4C5-P4-16", in_channels=4 if "events" in read else 1))
    write_model(tmp_path, network.state_dict(), ModelDescription.of(network.config, **read))
    config = point_config(settings(str(tmp_path), data_dir="images"), {}, tmp_path)
    assert {key: getattr(config, key) for key in keys} == keys


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--target-sparsity", "0.4", "7"], ["target_sparsity", "less than 1"]),
        (
            ["--points", "dead_neurons=0.6+stuck_neurons=0.6", "weight_bits=3"],
            ["at most 1 together", "needs time_steps"],
        ),
        (["--chip", "nowhere"], ["nowhere"]),
        (["--config", "none.yaml"], ["none.yaml does not exist"]),
    ],
)
def test_what_is_impossible_is_refused_before_training(trained, tmp_path, capsys, flags, messages):
    with pytest.raises(SystemExit, match="1"):
        sweep(trained, "--output-dir", tmp_path / "out", *FLAGS, *flags)
    said = capsys.readouterr().err
    assert all(message in said for message in messages), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("runs", "flags", "message"),
    [
        (2, (), "must differ in their names; got run twice"),
        (1, ("--epochs", "2", "--target-sparsity", "0.4"), "holds a run of other settings, epochs: 1 → 2"),
    ],
)
def test_sweep_does_not_mix_runs(swept, trained, capsys, runs, flags, message):
    with pytest.raises(SystemExit, match="1"):
        sweep(*[trained] * runs, "--output-dir", swept, *FLAGS, *flags)
    assert message in capsys.readouterr().err
