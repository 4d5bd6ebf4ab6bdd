"""Recipes: shared keys, presets, and the ANN that a run starts from."""

from pathlib import Path

import pytest
import yaml

from ttfs_triton.train import ConfigError, TrainConfig
from ttfs_triton.train.cli import parse_config
from ttfs_triton.train.config import make_config
from ttfs_triton.train.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "ttfs_triton" / "recipes"
PRESETS = [(path, name) for path in sorted(RECIPES.glob("*.yaml")) for name in read_recipe(path).presets]


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "shared.yaml").write_text(
        "lr: 0.5\nflip: true\npresets: {fast: {epochs: 2, lr: 0.25}, slow: {epochs: 90}}\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: shared.yaml\ndataset: sample\nepochs: 7\nlr: 0.75\npresets: {fast: {lr: 0.125}}\n")
    return path


def test_recipe_wins_over_what_it_extends_and_a_preset_over_the_recipe(recipe):
    found = read_recipe(recipe)
    assert found.values(None) == {"dataset": "sample", "epochs": 7, "lr": 0.75, "flip": True}
    assert found.values("fast") == {"dataset": "sample", "epochs": 2, "lr": 0.125, "flip": True, "preset": "fast"}
    assert found.values("slow")["epochs"] == 90


def test_configuration_file_wins_over_a_preset_and_flags_over_both(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("preset: fast\nlr: 0.0625\n")
    config = parse_config(recipe, "", ["--config", str(other)])
    assert (config.preset, config.epochs, config.lr) == ("fast", 2, 0.0625)
    config = parse_config(recipe, "", ["--config", str(other), "--preset", "slow", "--lr", "1", "--epochs", "3"])
    assert (config.preset, config.epochs, config.lr) == ("slow", 3, 1.0)
    assert yaml.safe_load(config.to_yaml())["preset"] == "slow"


def test_help_says_what_a_preset_sets(recipe, capsys):
    with pytest.raises(SystemExit):
        parse_config(recipe, "What it does.", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--preset fast sets epochs: 2, lr: 0.125." in text
    assert "--preset slow sets epochs: 90." in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("presets: [1]", r"presets must hold `key: value` lines under each name; got \[1\]"),
        ("presets: {fast: 1}", "presets must hold `key: value` lines under each name"),
        ("extends: recipe.yaml", "extends must end after 8 files"),
        ("extends: nothing.yaml", r"nothing\.yaml does not exist"),
    ],
)
def test_recipes_that_are_none_are_refused(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_unknown_presets_are_refused(recipe, tmp_path):
    with pytest.raises(ConfigError, match="preset must be one of fast, slow; got quick"):
        parse_config(recipe, "", ["--preset", "quick"])
    (tmp_path / "plain.yaml").write_text("dataset: sample\n")
    with pytest.raises(ConfigError, match=r"preset must be left out: plain\.yaml has none; got fast"):
        parse_config(tmp_path / "plain.yaml", "", ["--preset", "fast"])


@pytest.mark.parametrize(("path", "name"), PRESETS, ids=lambda value: getattr(value, "stem", value))
def test_every_preset_of_a_recipe_is_a_valid_configuration(path, name):
    config = parse_config(path, "", ["--preset", name])
    assert config.preset == name
    assert {key for key, value in read_recipe(path).presets[name].items() if config.model_dump()[key] != value} == set()


def test_retired_keys_are_told_apart_from_wrong_ones():
    with pytest.raises(ConfigError, match=r"this key was retired: one training begins at σ = 0"):
        make_config({"pretrain": True}, "here")
    with pytest.raises(ConfigError, match="this key was retired: an ANN is a network with psp_persistence: 0"):
        make_config({"neuron": "ann"}, "here")
    assert make_config({"pretrain": False, "pretrain_lr": None, "neuron": "dft"}, "here") == TrainConfig()


def test_a_run_that_holds_retired_keys_goes_on(tmp_path):
    saved = yaml.safe_load(TrainConfig().to_yaml()) | {"pretrain": True, "pretrain_epochs": None, "pretrain_lr": 1e-3}
    for neuron in ("dft", "ann"):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved | {"neuron": neuron}))
        arguments = RECIPES / "quickstart.yaml", "", ["--output-dir", str(tmp_path), "--resume"]
        if neuron == "ann":
            with pytest.raises(ConfigError, match="start one from the weights of a run that has neuron: ann"):
                parse_config(*arguments)
        else:
            assert parse_config(*arguments) == TrainConfig(resume=True, output_dir=tmp_path)
