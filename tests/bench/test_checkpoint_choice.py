"""`bench/checkpoint_choice.py`: rules that choose an epoch, and what each is worth."""

import json

import pytest
import torch

from tests.bench.modules import checkpoint_choice
from tests.data.fixtures import _own_cache, write_parquet  # noqa: F401


def test_each_rule_chooses_what_it_says():
    right, loss = torch.tensor([3.0, 5.0, 5.0, 5.0, 4.0]), torch.tensor([0.1, 0.4, 0.2, 0.3, 0.5])
    chosen = {rule: choose(right, loss) for rule, choose in checkpoint_choice.RULES.items()}
    assert chosen == {
        "accuracy, first of ties": 1,
        "accuracy, last of ties": 3,
        "accuracy, then loss": 2,
        "loss": 0,
        "last epoch": 4,
    }


def test_choice_is_scored_on_the_other_images():
    # The second epoch knows all images but ten, the first only those; validation images of all kinds choose the second.
    right = torch.tensor([[True] * 10 + [False] * 90, [False] * 10 + [True] * 90])
    found = checkpoint_choice.compare(right, 1 - right.double(), 50, draws=40)
    assert {epoch for _, epoch in found.values()} == {2.0}
    accuracy, _ = found["accuracy, then loss"]
    assert accuracy == pytest.approx(0.9, abs=0.02)
    assert 0.8 <= accuracy < 1


def test_every_epoch_is_scored_on_images_that_were_not_trained_on(monkeypatch, tmp_path, write_parquet):  # noqa: F811
    images = torch.randint(256, (60, 28, 28), dtype=torch.uint8).numpy()
    write_parquet(tmp_path / "train.parquet", images, [place % 10 for place in range(60)])
    write_parquet(tmp_path / "test.parquet", images[:10], list(range(10)))
    words = ["x", "train_cnn_mnist", "--data-dir", str(tmp_path), "--output", str(tmp_path), "--images", "40"]
    flags = "--flags=--epochs 2 --model 4C5-P4-8 --batch-size 20"
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "3", "--validation", "5", "--draws", "2", flags])
    seen = []
    monkeypatch.setattr(
        checkpoint_choice,
        "compare",
        lambda *given: seen.append(given) or dict.fromkeys(checkpoint_choice.RULES, (0.5, 1)),
    )
    checkpoint_choice.main()
    ((right, loss, *others),) = seen
    assert right.shape == loss.shape == (2, 20)
    assert others == [5, 2]
    rows = json.loads((tmp_path / "checkpoint_choice.json").read_text())["rows"]
    assert [row["rule"] for row in rows] == list(checkpoint_choice.RULES)
    assert {(row["recipe"], row["images"], row["seed"]) for row in rows} == {("train_cnn_mnist", 40, 3)}
