"""A failed write leaves the old file, and tensors are read as they were written."""

import errno
import json
import os
import resource

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from ttfs_triton.atomic import tensor_bytes, write_bytes, write_json, write_text

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_writers_replace_the_whole_file_in_the_umasks_mode(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"long content")
        write_bytes(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    write_text(tmp_path / "b", "spike × time")
    write_json(tmp_path / "c", {"accuracy": 0.1 + 0.2, "none": None})
    write_bytes(tmp_path / "d", tensor_bytes({"weight": torch.arange(3)}, {"format": "pt"}))
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "e", {"weight": torch.zeros(2)})
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "b").read_text(encoding="utf-8") == "spike × time"
    assert json.loads((tmp_path / "c").read_text()) == {"accuracy": 0.1 + 0.2, "none": None}
    assert torch.equal(load_file(tmp_path / "d")["weight"], torch.arange(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("failure", ["fsync", "replace", "in the middle"])
def test_failure_keeps_the_old_file(tmp_path, monkeypatch, failure):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_bytes(tmp_path / "a", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if failure == "in the middle":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    else:
        monkeypatch.setattr(os, failure, fail)
    try:
        with pytest.raises(OSError, match=r"No space left|File too large"):
            write_bytes(tmp_path / "a", bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=4).map(tuple), st.sampled_from(DTYPES), st.integers(0, 2**32)),
        max_size=4,
    )
)
def test_tensor_bytes_round_trip(specification):
    tensors = {
        name: torch.randint(-200, 200, shape, generator=torch.Generator().manual_seed(seed)).div(7).to(dtype)
        for name, (shape, dtype, seed) in specification.items()
    }
    loaded = load(tensor_bytes(tensors))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor)


def test_tensor_bytes_keeps_values_of_any_layout_and_of_tied_weights():
    base = torch.rand(4, 3, 5, 6)
    weight = torch.nn.Parameter(base)
    tensors = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 3),
        "strided": base[:, :, ::2, 1:],
        "expanded": base[:, :1].expand(4, 7, 5, 6),
        "weight": weight,
        "tied": weight,
        "row": weight[1],
        "not a number": torch.tensor([float("nan"), float("-inf"), -0.0]),
    }
    loaded = load(tensor_bytes(tensors))
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name].view(torch.int32), tensor.detach().contiguous().view(torch.int32))
