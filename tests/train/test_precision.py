"""Who trains in bfloat16 on a CPU that only emulates it is told."""

from types import SimpleNamespace

import pytest
import torch

from ttfs_triton.train import TrainConfig, precision, train
from ttfs_triton.train.precision import SLOW, product_seconds, warn_of_emulation


@pytest.fixture
def emulated(monkeypatch):
    """A CPU whose products of matrices take 50 times as long in bfloat16."""
    monkeypatch.setattr(precision, "product_seconds", {torch.float32: 0.5, torch.bfloat16: 25.0}.__getitem__)


def accelerator(device="cpu", mixed_precision="bf16"):
    return SimpleNamespace(device=torch.device(device), mixed_precision=mixed_precision)


def test_emulation_is_told_with_what_it_costs(emulated):
    lines = []
    warn_of_emulation(accelerator(), lines.append)
    (line,) = lines
    assert "50 times" in line
    assert "--mixed-precision no" in line


def test_nothing_is_said_where_nothing_is_emulated(monkeypatch, emulated):
    lines = []
    warn_of_emulation(accelerator(mixed_precision="no"), lines.append)
    warn_of_emulation(accelerator("cuda"), lines.append)
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: SLOW)
    warn_of_emulation(accelerator(), lines.append)
    assert lines == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_takes_time(dtype):
    assert 0 < product_seconds(dtype) < 60


def test_run_says_so_before_it_trains(tmp_path, emulated, capsys):
    settings = {
        "dataset": "sample",
        "model": "4C3-P4-8",
        "epochs": 1,
        "max_test_samples": 32,
        "max_train_samples": 64,
        "batch_size": 16,
    }
    train(TrainConfig(**settings, cpu=True, mixed_precision="bf16", output_dir=tmp_path / "run"))
    said = " ".join(capsys.readouterr().out.split())
    assert "this CPU emulates bf16, where a product of matrices takes 50 times as long" in said
    assert said.index("emulates") < said.index("epoch 1")
