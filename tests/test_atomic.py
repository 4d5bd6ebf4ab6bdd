"""A failed write leaves the old file, and tensors are read as they were written."""

import errno
import json
import os
import resource

import pytest
import torch
from safetensors.torch import load

from ttfs_triton.atomic import tensor_bytes, write_bytes, write_json


def test_writers_replace_the_whole_file_in_the_umasks_mode(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"long content")
        write_bytes(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    values = {"accuracy": 0.1 + 0.2, "none": None, "unit": "spike × time"}
    write_json(tmp_path / "b", values)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "b", {"weight": torch.zeros(2)})
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert json.loads((tmp_path / "b").read_text(encoding="utf-8")) == values
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensor_bytes_keep_values_of_any_layout_and_dtype_and_of_tied_weights(dtype):
    base = (9 * torch.rand(4, 3, 5, 6)).to(dtype)
    weight = torch.nn.Parameter(base, requires_grad=False)
    tensors = {"channels_last": base.to(memory_format=torch.channels_last), "transposed": base.transpose(0, 3)}
    tensors |= {"strided": base[:, :, ::2, 1:], "expanded": base[:, :1].expand(4, 7, 5, 6), "": base[:0]}
    tensors |= {"weight": weight, "tied": weight, "row": weight[1], "number": base[0, 0, 0, 0]}
    tensors["not a number"] = torch.tensor([float("nan"), float("-inf"), -0.0])
    loaded = load(tensor_bytes(tensors))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0, equal_nan=True)
