"""What is read, from where, and what is refused without running any of it."""

import hashlib
import io
import json
import os
import struct
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.hub.server import HubServer, Repository
from ttfs_triton.convert import WeightsError, open_weights
from ttfs_triton.model import BaseModel, ModelDescription
from ttfs_triton.model.files import read_model, write_model
from ttfs_triton.nn import NetworkConfig, TTFSNetwork

TENSORS = {"a.weight": torch.arange(600.0).view(20, 30), "a.bias": torch.ones(20)}


def same(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)


@pytest.fixture
def own(tmp_path):
    """Folder with a network as training writes it."""
    network = TTFSNetwork(NetworkConfig("3C3-P2-4", image_size=(6, 6)))
    folder = tmp_path / "ann"
    folder.mkdir()
    write_model(folder, network.state_dict(), ModelDescription.of(network.config))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "pth", "pkl", "pickle"])
def test_file_is_read(tmp_path, suffix):
    file = tmp_path / f"weights.{suffix}"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(TENSORS, file)
    weights = open_weights(file)
    assert same(weights.tensors)
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (weights.name, weights.file, weights.config) == (file.name, file, None)
    assert weights.format == ("safetensors" if suffix == "safetensors" else "pickle")
    assert weights.base_model() == BaseModel(file.name, weights.sha256)
    assert same(open_weights(str(file), sha256=weights.sha256.upper()).tensors)


def test_file_of_pytorch_before_zip_archives_is_read(tmp_path):
    torch.save(TENSORS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(open_weights(tmp_path / "old.pth").tensors)


def test_folders_prefer_a_run_and_safetensors(tmp_path, own):
    (tmp_path / "best").mkdir()
    torch.save({"x": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert open_weights(tmp_path).file.name == "pytorch_model.bin"
    for path in own.iterdir():
        path.rename(tmp_path / "best" / path.name)
    weights = open_weights(tmp_path)
    assert weights.file == tmp_path / "best" / "model.safetensors"
    assert weights.name == tmp_path.name
    description = weights.description()
    assert description is not None
    assert description.network.specification == "3C3-P2-4"


@pytest.mark.parametrize("source", ["", "nothing", "./no/thing", "/no/thing/at/all", "a b/c", "org/name/vgg.pkl"])
def test_nothing_there_is_said(source):
    with pytest.raises(WeightsError, match="source must be a file, a folder or a Hub repository"):
        open_weights(source)


def test_folder_without_usual_names_lists_what_it_has(tmp_path):
    with pytest.raises(WeightsError, match=r"must hold best/model\.safetensors \(a run\) or model\.safetensors"):
        open_weights(tmp_path)
    torch.save(TENSORS, tmp_path / "epoch3.pth")
    with pytest.raises(WeightsError, match=r"Name one of its files: epoch3\.pth"):
        open_weights(tmp_path)


def test_other_suffixes_are_refused(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"must end in \.safetensors.*got weights\.h5"):
        open_weights(tmp_path / "weights.h5")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pt"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path, name, share):
    if name == "w.safetensors":
        safetensors.torch.save_file(TENSORS, tmp_path / name)
    else:
        torch.save(TENSORS, tmp_path / name, _use_new_zipfile_serialization=name == "w.pt")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    # A cut through a name in an old pickle leaves a name of which nothing is known.
    with pytest.raises(WeightsError, match=r"must be a whole (safetensors )?file|must hold tensors only"):
        open_weights(tmp_path / name)


def flip(file, place: float = 0.6) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_flipped_byte_is_refused_by_its_hash(tmp_path, name):
    save = torch.save if name == "w.pt" else safetensors.torch.save_file
    save(TENSORS, tmp_path / name)
    digest = open_weights(tmp_path / name).sha256
    flip(tmp_path / name)
    with pytest.raises(WeightsError, match=f"must have the SHA-256 {digest}, as given; got [0-9a-f]{{64}}"):
        open_weights(tmp_path / name, sha256=digest)


def test_flipped_byte_of_our_own_file_is_refused_without_a_hash(own):
    flip(own / "model.safetensors", 0.98)
    with pytest.raises(WeightsError, match="its checksum differs"):
        open_weights(own)


def test_flipped_byte_of_an_archive_is_refused_without_a_hash(tmp_path):
    torch.save(TENSORS, tmp_path / "w.pt")
    flip(tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"must be as it was written; .* fails its checksum"):
        open_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64])
def test_hash_must_be_one(tmp_path, sha256):
    with pytest.raises(WeightsError, match="sha256 must be 64 hexadecimal digits"):
        open_weights(tmp_path, sha256=sha256)


class Code:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, archive):
    trace = tmp_path / "it_ran"
    tensors = TENSORS | {"code": Code(str(trace))}
    torch.save(tensors, tmp_path / "evil.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(
        WeightsError, match=r"must hold tensors only; it asks for posix\.mkdir, which was refused"
    ) as info:
        open_weights(tmp_path / "evil.pt")
    assert not trace.exists()
    assert "weights_only" not in str(info.value)


def test_programs_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # as torch.jit.save packs them
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/constants.pkl", b"")
    with pytest.raises(WeightsError, match="it is a TorchScript program, which was not loaded"):
        open_weights(tmp_path / "script.pt")


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"a": "text"}, {"state_dict": {"a": 1}}, {}, None])
def test_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"open_weights: w\.pt cannot be used: plain_tensors: weights must"):
        open_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "must be JSON"), ("[1]", "must hold a JSON object; got list"), ("\udcff", "must be JSON")],
)
def test_damaged_configuration_is_refused(own, tmp_path, text, problem):
    for folder in (own, tmp_path):
        (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"config\.json must be as it was written with the weights"):
        open_weights(own)
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")  # knows no config.json
    with pytest.raises(WeightsError, match=problem):
        open_weights(tmp_path)


def test_configuration_of_a_newer_version_is_refused(own, tmp_path):
    values = json.loads((own / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"format_version": 99}))
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    own = tmp_path
    with pytest.raises(WeightsError, match="Upgrade ttfs-triton"):
        open_weights(own).description()


def test_origin_of_converted_weights_is_handed_on(own):
    base = BaseModel("vgg.pt", "1" * 64, "org/vgg", "2" * 40)
    description, tensors = read_model(own / "config.json", own / "model.safetensors")
    write_model(own, tensors, description.replace(base_model=base))
    assert open_weights(own).base_model() == base


def bytes_of(content, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


COMMIT = "c" * 40


@pytest.fixture(scope="module")
def server():
    safe = safetensors.torch.save(TENSORS)
    repositories = {
        "org/both": {"model.safetensors": safe, "pytorch_model.bin": b"not read", "config.json": b'{"a": 1}'},
        "org/many": {"a/vgg.safetensors": safe, "a/config.json": b'{"b": 2}', "other.pt": b"no"},
    }
    server = HubServer()
    for name, files in repositories.items():
        server.repositories[name] = Repository(False, {COMMIT: files})
    server.repositories["org/private"] = Repository(True, {COMMIT: {"model.safetensors": safe}})
    yield server
    server.close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server, as the only Hub there is, and an empty cache."""
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in (
        ("ENDPOINT", server.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", template),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server.log.clear()
    return server


@pytest.mark.parametrize(
    ("source", "file", "config"),
    [
        ("org/both", "model.safetensors", {"a": 1}),
        (f"org/both@{COMMIT}", "model.safetensors", {"a": 1}),
        ("org/many/a/vgg.safetensors", "vgg.safetensors", {"b": 2}),
        ("org/many/a/vgg.safetensors@main", "vgg.safetensors", {"b": 2}),
    ],
)
def test_repository_is_read(hub, source, file, config):
    weights = open_weights(source)
    assert same(weights.tensors)
    repository = "/".join(source.partition("@")[0].split("/")[:2])
    assert (weights.name, weights.file.name, weights.config) == (source, file, config)
    assert (weights.repository, weights.revision) == (repository, COMMIT)
    assert weights.base_model() == BaseModel(file, weights.sha256, repository, COMMIT)
    fetched = {path.rpartition("/")[2] for method, path in hub.log if method == "GET" and "/resolve/" in path}
    assert fetched == {file, "config.json"}


def test_download_that_differs_from_the_hash_of_the_hub_is_refused(hub):
    flip(open_weights("org/both").file.resolve())
    with pytest.raises(WeightsError, match=r"org/both must have the SHA-256 [0-9a-f]{64}, as the Hub says; got"):
        open_weights("org/both")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("org/many", r"must hold model\.safetensors .*; it lacks model.* Name another file: owner/name/FILE\.safetens"),
        ("org/both/vgg.safetensors", r"must hold vgg\.safetensors .*; it lacks vgg\.safetensors"),
        ("org/private", r"no file or folder here; .*org/private must be open to you"),
    ],
)
def test_what_the_hub_does_not_give_is_said(hub, source, problem):
    with pytest.raises(WeightsError, match=problem):
        open_weights(source)


def test_token_is_in_no_message(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    assert same(open_weights("org/private").tensors)
    monkeypatch.setenv("HF_TOKEN", "hf_forged")
    with pytest.raises(WeightsError, match=r"org/many must be open to you and your token valid") as info:
        open_weights("org/many")
    assert "hf_" not in str(info.value)


class _Call:
    """Pickles as a call of something that PyTorch allows."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def deflated(content: bytes) -> bytes:
    """The same archive with its entries compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "must be a whole file of tensors; it is empty"),
        (deflated(bytes_of({"a": torch.zeros(10**6)})), "must hold its entries as they are.*compressed, 40"),
        (
            bytes_of({"a": torch.zeros(1).expand(10**11)}),
            r"a must hold each of its elements; got shape \[10{11}\]",
        ),
        (
            bytes_of({"a": _Call(torch.FloatTensor, 10**6)}),
            "take no more memory than their file; got 4000000 bytes",
        ),
        (bytes_of({"a": _Call(bytearray, 10**6)}), "it asks for bytearray, which was refused"),
        (bytes_of({"a": _Call(bytearray, 10**6)}, archive=False), "it asks for bytearray, which was refused"),
        (bytes_of(nn.Linear(2, 2)), r"asks for torch\.nn\.modules\.linear\.Linear"),
        (
            b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + b"PK\x05\x06" + bytes(18),
            "must be a whole file that torch.save",
        ),
    ],
    ids=["empty", "deflated", "expanded", "drawn up", "bytearray", "old", "model", "several disks"],
)
def test_bombs_are_refused_before_they_go_off(tmp_path, content, problem):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=problem):
        open_weights(tmp_path / "w.pt")


def test_tied_weights_and_views_are_read(tmp_path):
    weight = torch.rand(4, 6)
    torch.save({"a": weight, "b": weight, "c": weight.t(), "d": weight[1:]}, tmp_path / "w.pt")
    assert torch.equal(open_weights(tmp_path / "w.pt").tensors["c"], weight.t())
