import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file

from ttfs_triton.atomic import tensor_bytes, write_bytes, write_json, write_text

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool or not dtype.is_floating_point:
        return torch.randint(0, 2 if dtype == torch.bool else 200, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def test_writers_replace_the_whole_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"long content")
    write_bytes(tmp_path / "a", b"new")
    write_text(tmp_path / "b", "spike × time")
    write_json(tmp_path / "c", {"accuracy": 0.1 + 0.2, "none": None})
    write_bytes(tmp_path / "d", tensor_bytes({"weight": torch.arange(3)}, {"format": "pt"}))
    assert (tmp_path / "a").read_bytes() == b"new"
    assert (tmp_path / "b").read_text(encoding="utf-8") == "spike × time"
    assert json.loads((tmp_path / "c").read_text()) == {"accuracy": 0.1 + 0.2, "none": None}
    assert torch.equal(load_file(tmp_path / "d")["weight"], torch.arange(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_write_bytes_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_write_bytes_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write_bytes(tmp_path / "a", b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_write_bytes_stopped_in_the_middle_keeps_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_bytes(tmp_path / "a", bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_write_json_rejects_before_touching_the_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "a", {"weight": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=4).map(tuple), st.sampled_from(DTYPES), st.integers(0, 2**32)),
        max_size=4,
    )
)
def test_tensor_bytes_round_trip(specification: dict[str, tuple[tuple[int, ...], torch.dtype, int]]) -> None:
    tensors = {name: random_tensor(*values) for name, values in specification.items()}
    loaded = load(tensor_bytes(tensors))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor)


def test_tensor_bytes_keeps_values_of_any_layout() -> None:
    base = random_tensor((4, 3, 5, 6), torch.float32, 0)
    tensors = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 3),
        "strided": base[:, :, ::2, 1:],
        "expanded": base[:, :1].expand(4, 7, 5, 6),
        "parameter": torch.nn.Parameter(base),
        "not a number": torch.tensor([float("nan"), float("-inf"), -0.0]),
    }
    loaded = load(tensor_bytes(tensors))
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name].view(torch.int32), tensor.detach().contiguous().view(torch.int32))


def test_tensor_bytes_writes_tied_weights_once_per_name() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    loaded = load(tensor_bytes({"a": weight, "b": weight, "row": weight[1], "transposed": weight.t()}))
    assert torch.equal(loaded["a"], weight)
    assert torch.equal(loaded["b"], weight)
    assert torch.equal(loaded["row"], weight[1])
    assert torch.equal(loaded["transposed"], weight.t())


def test_tensor_bytes_rejects_reserved_name() -> None:
    with pytest.raises(ValueError, match="tensor_bytes: names must differ from '__metadata__'"):
        tensor_bytes({"__metadata__": torch.zeros(1)})


@pytest.mark.parametrize(
    ("tensor", "got"),
    [(torch.eye(2).to_sparse(), "torch.sparse_coo on cpu"), (torch.zeros(2, device="meta"), "on meta")],
    ids=["sparse", "meta"],
)
def test_tensor_bytes_rejects_tensors_without_dense_data(tensor: torch.Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=f"weight must be a dense tensor with data; got layout .*{got}"):
        tensor_bytes({"weight": tensor})
