"""Data of a run that do not fit: the next place, or an error."""

import re
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from ttfs_triton.data import decode
from ttfs_triton.train import TrainConfig
from ttfs_triton.train.build import load_data


@pytest.fixture
def outgrown(monkeypatch, tmp_path, random_images, write_parquet):
    """A data set whose first image in colour comes late, when there is no memory for the rest of them."""
    grey, colour = random_images(20, 1), random_images(20, 3)
    write_parquet(tmp_path / "train.parquet", [*grey, *colour], [i % 2 for i in range(40)])
    write_parquet(tmp_path / "test.parquet", colour[:4], [0, 1, 0, 1])
    require, calls = decode.require_memory, []

    def refuse(size, what):
        calls.append(size)
        if len(calls) == 2:
            monkeypatch.setattr(decode.psutil, "virtual_memory", lambda: SimpleNamespace(available=1))
        require(size, what)

    monkeypatch.setattr(decode, "require_memory", refuse)
    return tmp_path


@pytest.mark.parametrize("placement", ["auto", "host"])
def test_data_set_that_outgrows_memory_in_the_middle_is_streamed_unless_memory_was_asked_for(outgrown, placement):
    said, config = [], TrainConfig(data_dir=outgrown, validation_fraction=0, data_placement=placement)
    if placement == "host":
        with pytest.raises(RuntimeError, match="load_images: the decoded images must fit into memory; got 40 images"):
            load_data(config, Accelerator(cpu=True), said.append)
        return
    data = load_data(config, Accelerator(cpu=True), said.append)
    assert (len(data.train), data.train.in_memory) == (40, False)
    assert data.train.images_at(torch.arange(40)).shape[1] == 3
    assert re.match(r"train images are streamed: got 40 images of .* GiB available$", said[0]), said
