"""`bench/quickstart.py`: held-out images are none of the sample's."""

import pytest
import torch

from tests.bench.modules import quickstart
from tests.data.fixtures import _own_cache, write_parquet  # noqa: F401
from ttfs_triton.data.images import load_images


def test_held_out_images_are_not_in_the_sample(monkeypatch):
    everything, sample = load_images("sample", split="train"), load_images("sample", split="train", max_samples=500)
    monkeypatch.setattr(quickstart, "HELD_OUT", 1000)
    found = quickstart.outside(everything, sample)
    assert len(found) == 1000
    known = {image.numpy().tobytes() for image in sample.images}
    assert not known & {image.numpy().tobytes() for image in everything.images[found]}


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_rows_of_other_names_stay(monkeypatch, tmp_path, seeds, write_parquet):  # noqa: F811
    images = torch.randint(256, (30, 28, 28), dtype=torch.uint8).numpy()
    write_parquet(tmp_path / "train.parquet", images, [place % 10 for place in range(30)])
    write_parquet(tmp_path / "test.parquet", images[:10], list(range(10)))
    for name in ("one", "two"):
        flags = "--max-train-samples 100 --epochs 1 --model 4C5-P4-8"
        words = ["x", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out"), "--name", name, "--flags", flags]
        monkeypatch.setattr("sys.argv", [*words, "--seeds", *map(str, seeds)])
        quickstart.main()
    table = (tmp_path / "out" / "quickstart.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table[1:]] == ["one"] * len(seeds) + ["two"] * len(seeds)
