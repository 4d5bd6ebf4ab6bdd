"""`bench/kernels.py`: options, layers, and `--tune` with made-up times."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.bench.modules import BENCH, modules
from ttfs_kernels.triton_backend import choice
from ttfs_kernels.triton_backend.choice import choose, read_table
from ttfs_kernels.triton_backend.launch import device_of

gpu_work, kernels, kernels_layers, kernels_plan, measure = modules(
    "_gpu_work", "kernels", "_kernels_layers", "_kernels_plan", "_kernels_measure"
)

LAYER = {"name": "c", "height": 4, "width": 3, "in_channels": 3, "out_channels": 5, "kernel": [3, 2]}


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: a GPU, or the CPU under Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def _no_tables(monkeypatch, tmp_path):
    """Whoever runs the tests."""
    monkeypatch.setattr(choice, "SHIPPED", tmp_path / "shipped")
    choice.forget()
    yield
    choice.forget()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --tune, --compile-only and --plan must be given"),
        (["--tune", "--compile-only"], "one of --tune, --compile-only and --plan must be given"),
        (["--plan", "--sigma", "0", "1"], "--plan must have one of --dtypes, bf16 or fp16, and one of --sigma"),
        (["--plan", "--dtypes", "fp32"], "--plan must have one of --dtypes, bf16 or fp16"),
    ],
)
def test_refuses_nonsense(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["kernels.py", *arguments])
    with pytest.raises(SystemExit, match=f"kernels: {message}"):
        kernels.main()


def test_refuses_to_tune_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda must have a GPU that PyTorch can use; found none"):
        kernels.tune(kernels.Options())


@pytest.mark.parametrize("content", ["not JSON", '[{"height": 3}]', json.dumps([LAYER | {"filters": 3}])])
def test_files_that_hold_no_layers_are_refused(tmp_path, content):
    (tmp_path / "layers.json").write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, KeyError, TypeError)):
        kernels_layers.load(tmp_path / "layers.json")


def test_shapes_are_those_of_the_networks():
    """Every layer of CNN1, VGG11 and VGG16 by its name, and no other; "latency" where it takes that encoder."""
    expected, pooled = {}, set()
    for model in ("cnn1", "vgg11", "vgg16"):
        network = kernels_plan.read(model, 1, "fp32", 1.0)
        expected |= {f"{model}.{name}": problem.unpooled for name, problem in network.spiking}
        expected |= {f"{model}.{name} latency": replace(problem, with_slope=True) for name, problem in network.analog}
        pooled |= {f"{model}.{name}" for name, problem in network.spiking if problem.pool > 1}
    layers = kernels_layers.load(kernels.SHAPES)
    found = {name: layer.problem(1, "fp32", 1.0) for layer in layers for name in layer.networks}
    assert found == expected
    assert len(found) == sum(len(layer.networks) for layer in layers)
    assert len({layer.name for layer in layers}) == len(layers) == len(set(found.values()))
    assert all(layer.pooled == bool(pooled.intersection(layer.networks)) for layer in layers)


@pytest.mark.usefixtures("_no_tables")
@pytest.mark.parametrize("to_folder", [False, True])
def test_tuned_layers_are_found_again(device, monkeypatch, tmp_path, capsys, to_folder):
    """`--tune` writes into the package's folder, or the one that --output names."""
    this = device_of(device)
    if to_folder:
        monkeypatch.setattr(choice, "SHIPPED", tmp_path / "tuning")
    monkeypatch.setattr(measure, "gpu_ms", lambda run: float(run() is not None))
    monkeypatch.setattr(kernels, "compile_candidates", lambda *given: None)
    shapes = tmp_path / "shapes.json"
    shapes.write_text(json.dumps([LAYER]), encoding="utf-8")
    output = tmp_path / "tuning" if to_folder else None
    options = kernels.Options(shapes=shapes, device=device.type, batch_size=2, dtypes=("fp32",), output=output)
    problem = kernels_layers.load(shapes)[0].problem(2, "fp32", 1.0)
    assert choose("forward", problem, this, "ieee", "auto").reason == "default"
    assert kernels.tune(options) == 0
    (path,) = (tmp_path / ("tuning" if to_folder else "shipped")).glob("*.json")
    assert path == choice.table_path(this)
    assert len(read_table(path)) == 4  # three passes, and grad_x with the surrogate derivative
    assert choose("forward", problem, this, "ieee", "auto").reason == "measured"
    assert f"{path.name} holds 4 measurements; ours is the faster in 4" in capsys.readouterr().out


def test_tuning_that_fails_says_so(device, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "unavailable", lambda device, dtype: "it is made of wood")
    monkeypatch.setattr(kernels, "compile_candidates", lambda *given: None)
    with pytest.raises(SystemExit, match=r"kernels: tune: device must be able to run .*; it is made of wood"):
        kernels.tune(kernels.Options(device=device.type, dtypes=("fp32",), output=tmp_path))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.gpu
def test_candidates_compile_on_a_gpu():
    problem = kernels_layers.Layer("f", (), {"height": 1, "width": 1, "in_channels": 64, "out_channels": 64})
    assert kernels.compile_pass((problem.problem(16, "bf16", 1.0), "forward", "bf16")) == 0


def test_make_gpu_tunes_into_the_package():
    """The folder where the package looks, and which its wheel holds."""
    assert gpu_work.TABLES == Path(choice.__file__).with_name("tuning")
    assert '"triton_backend/tuning/*.json"' in (BENCH.parent / "pyproject.toml").read_text(encoding="utf-8")
