"""Weights are read from files, folders and the Hub, or refused without running any of their code."""

import hashlib
import io
import itertools
import math
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.hub.conftest import hub  # noqa: F401
from tests.hub.server import Repository
from ttfs_triton.convert import WeightsError, open_weights, source
from ttfs_triton.convert.source import CONTAINERS, PREFIXES, load_state, plain_tensors
from ttfs_triton.model import BaseModel, TTFSModel
from ttfs_triton.nn import NetworkConfig
from ttfs_triton.train.build import load_weights

TENSORS = {"a.weight": torch.arange(600.0).view(20, 30), "a.bias": torch.ones(20)}


def same(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)


@pytest.fixture
def own(tmp_path):
    """Folder with a network as training writes it."""
    TTFSModel(NetworkConfig("3C3-P2-4", image_size=(6, 6))).save_pretrained(tmp_path / "ann")
    return tmp_path / "ann"


def bytes_of(content, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def write(file, archive: bool = True):
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(TENSORS, file)
    else:
        file.write_bytes(bytes_of(TENSORS, archive))
    return file


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_file_is_read(tmp_path, suffix):
    file = write(tmp_path / f"weights.{suffix}")
    weights = open_weights(file)
    assert same(weights.tensors)
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (weights.name, weights.file, weights.config) == (file.name, file, None)
    assert weights.base_model() == BaseModel(file.name, weights.sha256)
    assert same(open_weights(str(file), sha256=weights.sha256.upper()).tensors)
    if suffix == "pth":  # of PyTorch before it wrote zip archives
        assert same(open_weights(write(file, archive=False)).tensors)


def test_folder_is_read_as_a_run_first(tmp_path, own):
    write(tmp_path / "model.safetensors")
    assert same(open_weights(tmp_path).tensors)
    own.rename(tmp_path / "best")
    weights = open_weights(tmp_path)
    assert (weights.file, weights.name) == (tmp_path / "best" / "model.safetensors", tmp_path.name)
    assert weights.description().network.specification == "3C3-P2-4"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        *(
            (name, "source must be a file, a folder or a Hub repository")
            for name in ("nothing", "./no/thing", "a b/c", "org/name/vgg.pkl")
        ),
        ("{}", r"must hold best/model\.safetensors"),
        ("{}/weights.h5", "must be a whole file of tensors that torch.save wrote"),
    ],
)
def test_nothing_there_is_said(tmp_path, source, message):
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=message):
        open_weights(source.format(tmp_path))


# ---- damage


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pt"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, name, share):
    whole = write(tmp_path / name, archive=name == "w.pt").read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    # A cut through a name in an old pickle leaves a name of which nothing is known.
    with pytest.raises(WeightsError, match=r"must be a whole (safetensors )?file"):
        open_weights(tmp_path / name)


def flip(file, place: float = 0.6) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)


def test_flipped_byte_is_refused(tmp_path, own):
    for name in ("w.safetensors", "w.pt"):  # known by the digest alone
        digest = open_weights(write(tmp_path / name)).sha256
        flip(tmp_path / name)
        with pytest.raises(WeightsError, match=f"must have the SHA-256 {digest}, as given; got [0-9a-f]{{64}}"):
            open_weights(tmp_path / name, sha256=digest)
    flip(own / "model.safetensors", 0.98)
    with pytest.raises(WeightsError, match="its checksum differs"):
        open_weights(own)
    for wrong in ("", "abc", "g" * 64):
        with pytest.raises(WeightsError, match="sha256 must be 64 hexadecimal digits"):
            open_weights(tmp_path, sha256=wrong)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"{", "it is not JSON"),
        (b"[1]", "must hold a JSON object; got list"),
        (b'{"format_version": 99}', "Upgrade ttfs-triton"),
    ],
)
def test_damaged_configuration_is_refused(own, tmp_path, text, problem):
    for folder in (own, tmp_path):
        (folder / "config.json").write_bytes(text)
    with pytest.raises(WeightsError, match=r"config\.json must be as it was written with the weights"):
        open_weights(own)
    with pytest.raises(WeightsError, match=problem):  # a pickle has no checksum of config.json
        open_weights(write(tmp_path / "w.pt")).description()


# ---- code


class _Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CODE = {"code": _Call(os.mkdir, "it_ran")}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (bytes_of(TENSORS | CODE), r"asks for posix\.mkdir, whose code did not run"),
        (bytes_of(CODE, archive=False), r"asks for posix\.mkdir, whose code did not run"),
        (bytes_of(nn.Linear(2, 2)), r"asks for torch\.nn\.modules\.linear\.Linear, whose code did not run"),
        (b"", "must be a whole file of tensors"),
        (bytes_of({"a": torch.zeros(5000)}), "must have at most 9,999 bytes; got"),
    ],
    ids=["code", "old", "model", "empty", "large"],
)
def test_files_of_other_things_are_refused_and_their_code_does_not_run(tmp_path, monkeypatch, content, problem):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(source, "MOST_BYTES", 9_999)
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=problem) as info:
        open_weights(tmp_path / "w.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]
    assert "weights_only" not in str(info.value)


# ---- containers, prefixes, and tensors that are no weights


def test_containers_and_prefixes_are_removed():
    for container, prefix in itertools.product(CONTAINERS, PREFIXES):
        named = {f"module.{prefix}{name}": tensor for name, tensor in TENSORS.items()}
        assert same(plain_tensors({"model": {container: named, "epoch": 3}}))
    averaged = {"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": {"a": torch.ones(1)}, "optimizer": {}}
    assert plain_tensors(averaged)["a"].item() == 1
    for names in (("module.a", "b"), ("model", "other")):  # names alone are no containers
        tensors = plain_tensors({name: nn.Parameter(torch.ones(2)) for name in names})
        assert list(tensors) == list(names)
        assert not any(tensor.requires_grad for tensor in tensors.values())


@pytest.mark.parametrize("prefix", ["", "net.", "module.", "module.net."])
def test_weights_load_into_a_module_that_keeps_all_of_it_in_one_attribute(prefix, tmp_path):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))

    torch.save({f"{prefix}{name}": tensor for name, tensor in Around().net.state_dict().items()}, tmp_path / "w.pt")
    first, second = Around(), Around()
    load_state(first, open_weights(tmp_path / "w.pt").tensors, "")
    load_weights(second, str(tmp_path / "w.pt"))
    for name, tensor in open_weights(tmp_path / "w.pt").tensors.items():
        assert torch.equal(first.net.state_dict()[name], tensor)
        assert torch.equal(second.net.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((content, "must be a mapping of names to tensors; got") for content in (None, [torch.ones(1)])),
        *(({"a": value}, "must be named tensors only; got") for value in (1.0, [torch.ones(1)], {"b": 1})),
        ({3: torch.ones(1)}, "must be named tensors only; got"),
        ({"state_dict": {}}, "must hold tensors; got none"),
        *(
            ({"a": tensor}, "a must be a dense tensor of real numbers; got")
            for tensor in (torch.eye(2).to_sparse(), torch.ones(2) * 1j, torch.ones(2, device="meta"), torch.ones(2, 0))
        ),
        *(
            ({"a": torch.tensor([0.0, x, 1.0])}, "must be finite; got 1 of 3 values of a")
            for x in (math.nan, -math.inf)
        ),
    ],
)
def test_something_else_than_finite_named_tensors_is_refused(content, message):
    with pytest.raises(WeightsError, match=message):
        plain_tensors(content)


# ---- the Hub

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("source", "file"),
    [(f"org/both@{COMMIT}", "model.safetensors"), ("org/many/a/vgg.safetensors", "a/vgg.safetensors")],
)
def test_repository_is_read(hub, tmp_path, monkeypatch, source, file):  # noqa: F811
    """Safetensors and their config.json alone are fetched; a damaged copy, or what is missing or private, is told."""
    config = f"{file.rpartition('/')[0]}/config.json".removeprefix("/")
    files = {file: safetensors.torch.save(TENSORS), "pytorch_model.bin": b"not read", config: b'{"a": 1}'}
    name = "/".join(source.partition("@")[0].split("/")[:2])
    hub.repositories |= {name: Repository(False, {COMMIT: files}), "org/private": Repository(True, {COMMIT: files})}
    hub.use_here(monkeypatch, tmp_path / "cache")
    hub.log.clear()
    weights = open_weights(source)
    assert same(weights.tensors)
    assert (weights.name, weights.file.name, weights.config) == (source, file.rpartition("/")[2], {"a": 1})
    assert weights.base_model() == BaseModel(weights.file.name, weights.sha256, name, COMMIT)
    fetched = {path.partition(f"{COMMIT}/")[2] for method, path in hub.log if method == "GET" and "/resolve/" in path}
    assert fetched == {file, config}
    flip(weights.file.resolve())
    for wrong, problem in (
        (source, rf"{source} must have the SHA-256 [0-9a-f]{{64}}, as the Hub says; got"),
        (f"{name}/other.safetensors", r"must hold other\.safetensors .*; it lacks other\.safetensors"),
        ("org/private", "org/private must be readable, .* There is no local folder org/private either"),
    ):
        with pytest.raises(WeightsError, match=problem):
            open_weights(wrong)
