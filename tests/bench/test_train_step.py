"""`bench/train_step.py` from its command line, on a tiny network; and that it times nothing that is wrong."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench.modules import record

SMALL = ["--model", "cnn1", "--width", "0.25", "--batch-size", "2", "--repeats", "2", "--threads", "1"]


@pytest.fixture
def train_step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import train_step

    return train_step


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments])
    module.main()


def test_writes_times_ratios_and_their_circumstances(train_step, monkeypatch, tmp_path, capsys):
    run(train_step, monkeypatch, *SMALL, "--statistics", "--output", str(tmp_path))
    rows, about = record.read(tmp_path / "train_step-cpu-cnn1.csv")
    providers = ["ANN", "DFT σ=0", "DFT σ=0.25", "DFT σ=1", "composition σ=1", "DFT σ=1 counting"]
    assert [(row["dtype"], row["pass"], row["provider"]) for row in rows] == [
        (dtype, passes, provider)
        for dtype in ("float32", "bfloat16")
        for passes in ("step", "forward_backward")
        for provider in providers
    ]
    for row in rows:
        assert 0 < float(row["ms_p20"]) <= float(row["ms_p50"]) <= float(row["ms_p80"])
        assert float(row["ratio_to_ann"]) > 0
        assert float(row["ratio_to_ann"]) == 1 or row["provider"] != "ANN"
        assert float(row["peak_mib"]) > 0
        assert bool(row["gradient_error"]) == (row["provider"] in providers[1:4])
    assert about["threads"] == "1"
    assert json.loads(about["options"])["model"] == "cnn1"
    assert about["command"].endswith("--statistics")  # without where the results went
    assert "floor" in capsys.readouterr().out


def test_times_nothing_that_disagrees(train_step, monkeypatch, tmp_path):
    import _contenders

    def wrong(*arguments, **options):
        return 0.9 * compose_linear(*arguments, **options)

    compose_linear = _contenders.compose_linear
    monkeypatch.setattr(_contenders, "compose_linear", wrong)
    monkeypatch.setattr(train_step.Step, "time", lambda step: pytest.fail("timed"))
    with pytest.raises(SystemExit, match=r"train_step: DFT σ=0.25 must agree with its twin in torch\.float32"):
        run(train_step, monkeypatch, *SMALL, "--output", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_refuses_a_gpu_that_is_not_there(train_step, monkeypatch):
    monkeypatch.setattr(train_step.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda must have a GPU that PyTorch can use; found none"):
        run(train_step, monkeypatch, "--device", "cuda")
