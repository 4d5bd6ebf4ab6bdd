"""`bench/train_step.py` from its command line, on a tiny network; and that it times nothing that is wrong."""

from itertools import product

import pytest

from tests.bench.modules import modules

(train_step,) = modules("train_step")

SMALL = ["--model", "cnn1", "--width", "0.25", "--batch-size", "2", "--repeats", "2", "--no-batch-norm"]


def test_writes_times_ratios_and_their_circumstances(run_script, capsys):
    rows, _ = run_script(train_step, *SMALL, "--model", "cnn1", "cifarnet", "--batch-norm")
    providers = ["ANN", "DFT σ=0", "DFT σ=1", "composition σ=1"]
    kinds = [(row["case"], row["dtype"], row["pass"], row["provider"]) for row in rows]
    cases, dtypes = ("cnn1-b2-w0.25", "cifarnet-b2-w0.25"), ("float32", "bfloat16")
    assert kinds == [(*case, "step", provider) for case in product(cases, dtypes) for provider in providers]
    for row in rows:
        assert float(row["ratio_to_ann"]) > 0
        assert float(row["ratio_to_ann"]) == 1 or row["provider"] != "ANN"
        assert (row["provider"] in providers[1:3]) == bool(row["gradient_error"])
        assert float(row["gradient_error"] or 0) < 1e-3
    assert "floor" in capsys.readouterr().out


def test_times_nothing_that_disagrees(run_script, monkeypatch, tmp_path):
    fire = train_step.fire_by_cases
    monkeypatch.setattr(train_step, "fire_by_cases", lambda A, W: 0.9 * fire(A, W))
    monkeypatch.setattr(train_step.bench, "time_in_turns", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(SystemExit, match=r"check: DFT σ=1 must agree with its twin in float64; got .*\. Nothing more"):
        run_script(train_step, *SMALL)
    assert not list(tmp_path.iterdir())
