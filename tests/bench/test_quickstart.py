"""`bench/quickstart.py`: held-out images are none of the sample's."""

import pytest
import torch

from tests.bench.modules import quickstart, record
from tests.data.fixtures import _own_cache, write_parquet  # noqa: F401
from ttfs_triton.data.images import load_images


def test_held_out_images_are_not_in_the_sample(monkeypatch):
    everything, sample = load_images("sample", split="train"), load_images("sample", split="train", max_samples=500)
    monkeypatch.setattr(quickstart, "HELD_OUT", 1000)
    found = quickstart.outside(everything, sample)
    assert len(found) == 1000
    known = {image.numpy().tobytes() for image in sample.images}
    assert not known & {image.numpy().tobytes() for image in everything.images[found]}


@pytest.mark.slow
def test_rows_of_other_names_stay(monkeypatch, tmp_path, write_parquet):  # noqa: F811
    images = torch.randint(256, (30, 28, 28), dtype=torch.uint8).numpy()
    write_parquet(tmp_path / "train.parquet", images, [place % 10 for place in range(30)])
    write_parquet(tmp_path / "test.parquet", images[:10], list(range(10)))
    row = dict.fromkeys(("name", "flags", "seed", "accuracy", "first_spike_accuracy", "sparsity", "epochs"), "")
    row |= dict.fromkeys(("best_epoch", "cpu_s", "device", "commit", "utc"), "")
    rows = [row | {"name": "one"}, row | {"name": "two", "seed": 9}]
    record.write(tmp_path, "quickstart", rows, {})
    words = ["x", "--data-dir", str(tmp_path), "--output", str(tmp_path), "--name", "two", "--seeds", "3"]
    monkeypatch.setattr("sys.argv", [*words, "--flags=--max-train-samples 100 --epochs 1 --model 4C5-P4-8"])
    quickstart.main()
    one, two = record.read(tmp_path / "quickstart.csv")[0]
    assert (one["name"], two["name"], two["seed"], two["epochs"]) == ("one", "two", "3", "1")
    assert 0 <= float(two["accuracy"]) <= 1
    assert float(two["cpu_s"]) > 0
