"""Configuration: validation, YAML, command line; the paper's presets."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from ttfs_triton.command_line import recipe as bundled
from ttfs_triton.option_rules import broken_rules
from ttfs_triton.train import ConfigError, TrainConfig
from ttfs_triton.train.config import changed_keys, make_config, parse_config, read_recipe
from ttfs_triton.training_options import PROPERTIES
from ttfs_triton.ttfs import NEUTRAL

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "ttfs_triton" / "recipes").glob("*.yaml"))
# Keys that have no effect without another key.
IDLE = {"block_convolutions": 3, "weight_units": "tensor"}


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("dataset: sample\nepochs: 7\nlr: 3e-3\n")
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3, "seed": -1}, r"seed: [\s\S]*epoch: there is no such key, did you mean epochs"),
        ({"epochs": 0, "lr": "fast"}, r"epochs: .*equal to 1; got 0[\s\S]*lr: .*valid number.*; got 'fast'"),
        ({"weight_decay": float("inf"), "log_steps": 10**20}, r"weight_decay: .*finite[\s\S]*log_steps: .*less than"),
        ({"psp_persistence": 1.5}, r"Neuron: psp_persistence must lie in \[0, 1\]; got 1.5"),
        ({"batch_norm": True, "time_steps": 8}, "batch_norm and time_steps exclude each other"),
        ({"psp_persistence_rise": (0.6, 0.2)}, "psp_persistence_rise must be two rising shares"),
        ({"psp_persistence_rise": (0.2, 0.6), "psp_persistence": 0.0}, "needs psp_persistence: σ rises from 0 to this"),
        ({"schedule": "milestones"}, "schedule: milestones needs milestones, such as 50 150 240"),
        ({"milestones": (50, 50)}, "milestones must rise; got 50 50"),
        ({"streaming": True, "data_placement": "host"}, "streaming and data_placement exclude each other"),
        ({"event_windows": 2, "auto_augment": True}, "event_windows and auto_augment exclude each other: recordings"),
        ({"dead_neurons": 0.6, "stuck_neurons": 0.6}, "dead_neurons and stuck_neurons must be at most 1 together"),
        *[({key: value}, rf"{key} needs .*\. Give that, or leave {key} out") for key, value in IDLE.items()],
        ({"target_energy": "40"}, "target_energy must be CHIP:MICROJOULES with a positive number.*; got 40"),
        ({"target_energy": "loihi:9", "target_sparsity": 0.1}, "target_sparsity and target_energy exclude each other"),
    ],
)
def test_make_config_names_key_rule_and_value(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(values, "settings.yaml")
    assert str(caught.value).startswith("settings.yaml is not usable:")
    assert "http" not in str(caught.value)


def test_config_survives_its_own_yaml(recipe):
    words = "--psp-persistence-rise 0.25 0.5 --derivative-clip None --data-dir a/b --learning-rate 0.5"
    for flags, flip in (
        ("--flip True --crop-fill 128", True),
        ("--flip alternating --crop-fill reflect", "alternating"),
    ):
        config = parse_config(recipe, "", f"{words} --crop-padding 2 {flags}".split())
        assert make_config(yaml.safe_load(config.to_yaml()), "itself") == config
        assert (config.lr, config.psp_persistence_rise, config.flip) == (0.5, (0.25, 0.5), flip)
        assert config.crop_fill == ("reflect" if flip == "alternating" else 128)


def test_every_key_has_a_description_a_flag_and_its_group(recipe, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(recipe, "What it does.", ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    assert "(default: 7)" in text
    places = [text.index(word) for word in ("main options", "--dataset ", "--learning-rate", "--cpu", "data options")]
    assert places == sorted(places)
    for key in TrainConfig().model_dump():
        documented = key in PROPERTIES or TrainConfig.model_fields[key].description
        assert documented, key
        assert f"--{key.replace('_', '-')}" in text, key


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_script_a_valid_configuration_and_valid_presets(path):
    recipe = read_recipe(path)
    config = make_config(recipe.values(None), str(path))
    assert config.dataset is not None or config.events is not None or path.stem == NEUTRAL
    scripts = [script.read_text() for script in (ROOT / "recipes").glob("*.py")]
    assert sum(f'main(["train", "{path.stem}", *sys.argv[1:]])' in script for script in scripts) == 1
    for name in recipe.presets:
        assert make_config(recipe.values(name), str(path)).preset == name
        assert recipe.about[name], "for --help"


def test_a_run_is_made_longer_only_if_nothing_depends_on_its_length():
    config = TrainConfig(epochs=7, schedule="milestones", milestones=(3, 8))
    assert changed_keys(config, config.model_copy(update={"epochs": 6})) == {"epochs": (7, 6)}
    assert changed_keys(config, config.model_copy(update={"epochs": 8, "num_workers": 3, "resume": True})) == {}
    by_share = {"schedule": "one_cycle", "psp_persistence_rise": (0.2, 0.6), "lookahead": 3, "target_sparsity": 0.2}
    for key, value in by_share.items():
        config = TrainConfig(**{"epochs": 7, "schedule": "constant", key: value})
        assert changed_keys(config, config.model_copy(update={"epochs": 8})) == {"epochs": (7, 8)}


def test_resume_takes_the_saved_configuration(recipe, tmp_path):
    (run := tmp_path / "run").mkdir()
    (run / "config.yaml").write_text(parse_config(recipe, "", ["--lr", "0.5"]).to_yaml())
    assert parse_config(recipe, "", ["--output_dir", str(run), "--resume"]).lr == 0.5
    (tmp_path / "mine.yaml").write_text(f"log_steps: 3\noutput_dir: {run}")
    again = parse_config(recipe, "", ["--resume", "--config", str(tmp_path / "mine.yaml")])
    assert (again.lr, again.log_steps) == (0.5, 3)


def test_rules_about_several_keys_hold_for_file_and_flags_together(recipe, tmp_path):
    (mine := tmp_path / "mine.yaml").write_text("teacher_weight: 0.5\nweight_bits: 4\n")
    config = parse_config(recipe, "", [*(flags := ["--config", str(mine), "--time-steps", "8"]), "--teacher", "it"])
    assert (config.teacher_weight, config.weight_bits) == (0.5, 4)
    with pytest.raises(ConfigError, match=r"mine.yaml with the command line is not usable:\n  teacher_weight needs"):
        parse_config(recipe, "", flags)


def test_flags_without_effect_are_refused(recipe, tmp_path):
    without: list[tuple[dict, str]] = [
        ({"warmup": 0.1, "schedule": "constant"}, "warmup needs schedule: one_cycle or cosine or linear. Give that"),
        ({"milestone_factor": 0.4}, "milestone_factor needs schedule: milestones"),
        ({"split_gradient": 0, "psp_persistence": 0}, "split_gradient needs psp_persistence or network"),
        ({"dropout": 0.1, "model": "cifarnet"}, "dropout and model exclude each other: dropout needs dense hidden"),
    ]
    for values, message in without:
        assert next(broken_rules(TrainConfig(**values), values.keys()), "").startswith(message)
    assert not list(broken_rules(TrainConfig(auto_augment=True, crop_fill=3), {"crop_fill"}))
    with pytest.raises(ConfigError, match=r"crop_fill needs crop_padding or auto_augment\. Give that, or leave "):
        parse_config(recipe, "", ["--crop-fill", "3"])
    with pytest.raises(ConfigError, match="width and network exclude each other"):
        parse_config(recipe, "", ["--network", "mine.py:build", "--width", "1"])  # the default, but typed
    (mine := tmp_path / "mine.yaml").write_text("crop_fill: 3")
    parse_config(recipe, "", ["--config", str(mine), "--crop-fill", "3"])  # a file may serve several runs


@pytest.fixture
def presets(tmp_path) -> Path:
    (tmp_path / "shared.yaml").write_text(
        "lr: 0.5\nflip: true\nabout: any.\npresets: {fast: {about: little., epochs: 2, lr: 0.25}, slow: {epochs: 90}}\n"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: shared.yaml\nabout: one.\nepochs: 7\nlr: 0.75\npresets: {fast: {lr: 0.125}}\n")
    return path


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--preset fast", ("fast", 2, 0.125)),
        ("--config other.yaml", ("fast", 2, 0.0625)),
        ("--config other.yaml --preset slow --lr 1", ("slow", 90, 1.0)),
    ],
)
def test_flags_override_files_which_override_presets_and_recipes(presets, tmp_path, monkeypatch, flags, expected):
    monkeypatch.chdir(tmp_path)
    Path("other.yaml").write_text("preset: fast\nlr: 0.0625\n")
    config = parse_config(presets, "", flags.split())
    assert (config.preset, config.epochs, config.lr) == expected
    assert config.flip is True, "as in what it extends"
    with pytest.raises(ConfigError, match="preset must be one of fast, slow; got quick"):
        parse_config(presets, "", ["--preset", "quick"])
    with pytest.raises(ConfigError, match=r"configuration file none\.yaml does not exist"):
        parse_config(presets, "", ["--config", "none.yaml"])


def test_help_says_what_a_recipe_and_its_presets_train(presets):
    fast, slow = "--preset fast: little. It sets epochs: 2, lr: 0.125.", "--preset slow sets epochs: 90."
    assert read_recipe(presets).help().split("\n")[:-1] == ["Without a preset: one.", fast, slow]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("presets: [1]", r"presets must hold `key: value` lines under every name; got \[1\]"),
        ("extends: recipe.yaml", "extends must end after 8 files"),
        ("extends: nothing.yaml", r"nothing\.yaml does not exist"),
        ("- 1", r"recipe\.yaml must hold `key: value` lines; got list"),
    ],
)
def test_malformed_recipes_are_refused(tmp_path, content, message):
    (path := tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


PLAIN = {"batch_norm": False, "weight_standardisation": False, "bias": False, "width": 1.0, "dropout": 0.0, "shift": 0}
PLAIN |= {"label_smoothing": 0.0, "lookahead": 0, "ema_decay": 0.0, "teacher": None, "gradient_clip": None}
PLAIN |= {"psp_persistence_rise": None, "readout": "potential_start", "readout_rate": 1.0, "validation_fraction": 0.0}
PLAIN |= {"schedule": "milestones", "momentum": 0.9}
ADAM = PLAIN | {"psp_persistence": 1.0, "surrogate_width": 0.0, "split_gradient": 1.0, "derivative_clip": 11.0}
ADAM |= {"optimizer": "adam", "weight_decay": 0.0, "milestone_factor": 0.4, "milestones": [50, 150, 240]}
VGG = {"head": "4096-4096", "encoder": "signed", "identity_start": False, "batch_size": 256, "crop_padding": 4}
VGG |= {"crop_fill": 128, "flip": True, "auto_augment": True, "cutout": 16}
SPIKING = ADAM | VGG | {"lr": 1e-4, "epochs": 300}
ANN = PLAIN | VGG | {"psp_persistence": 0.0, "optimizer": "sgd", "lr": 1e-2, "weight_decay": 5e-4, "epochs": 200}
ANN |= {"milestones": [15, 30, 40], "milestone_factor": 0.1}
# Wei et al., ICCV 2023, section 4.1; where it is silent, the authors' code.
TABLE = [
    ("cnn-mnist", "paper", ADAM | {"model": "cnn1", "encoder": None, "lr": 1e-3, "epochs": 150}),
    *((f"{name}-cifar10", "paper", SPIKING | {"model": name}) for name in ("vgg11", "vgg16")),
    ("vgg16-cifar100", "paper_ann", ANN),
]


@pytest.mark.parametrize(
    ("name", "preset", "expected"), TABLE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_presets_have_the_papers_settings(name, preset, expected):
    keys = make_config(read_recipe(bundled(name)).values(preset), name).model_dump(mode="json")
    assert {key: keys[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["cpu", "single_gpu", "multi_gpu", "multi_node"])
def test_accelerate_reads_every_configuration(name):
    config = load_config_from_file(str(ROOT / "recipes" / "accelerate" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.use_cpu == (name == "cpu")
    assert (config.distributed_type == DistributedType.MULTI_GPU) == name.startswith("multi")
    assert (config.num_machines > 1) == (name == "multi_node") == (config.main_process_ip is not None)
