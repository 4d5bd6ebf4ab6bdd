"""Valid files with a few random changes are read, or refused with a sentence. Known bombs have tests of their own."""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.synthetic_events import write_aedat, write_bin
from ttfs_triton.convert.source import ConversionError, open_weights
from ttfs_triton.data.events import EventWindows
from ttfs_triton.data.images import load_images
from ttfs_triton.data.recordings import recording_pixels
from ttfs_triton.energy import count
from ttfs_triton.energy.chip import FOLDER, load_chip
from ttfs_triton.hub.card import render_card
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model import LoadError, ModelDescription, Preprocessing, TTFSModel, find_model
from ttfs_triton.model.classification import network_input
from ttfs_triton.model.files import CONFIG_CHECKSUM
from ttfs_triton.model.weights import weight_bytes
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.train.checkpoint import CheckpointError, checkpoint_bytes, load_checkpoint
from ttfs_triton.train.config import ConfigError, make_config, read_yaml
from ttfs_triton.train.resume import Position, read_state

NETWORK = NetworkConfig("2C3-P2-4", image_size=(4, 4), classes=2)
STATE = TTFSNetwork(NETWORK).state_dict()
CONFIG = json.dumps(ModelDescription.of(NETWORK).to_dict()).encode()


def weights_of(config: bytes) -> bytes:
    """Weights that hold the checksum of a config.json, so that its content is what is refused."""
    return weight_bytes(STATE, {CONFIG_CHECKSUM: hashlib.sha256(config).hexdigest()})


def saved(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def image_bytes(kind: str) -> bytes:
    return saved(lambda file: Image.new("L", (5, 6), 128).save(file, kind))


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def read_model(folder: Path, config: bytes, weights: bytes) -> object:
    written(folder, "config.json", config)
    written(folder, "model.safetensors", weights)
    return TTFSModel.from_pretrained(folder)


def read_run(folder: Path, summary: bytes) -> object:
    """The model card of a run with this summary.json."""
    written(folder, "summary.json", summary)
    written(folder, "config.yaml", CONFIGURATION)
    written(folder, "best/config.json", CONFIG)
    written(folder, "best/model.safetensors", weights_of(CONFIG))
    return render_card(read_facts(find_model(folder)), "a/b")


def read_checkpoint(folder: Path, state: bytes) -> object:
    whole = checkpoint_bytes(state.decode(errors="replace"), {"model": STATE})
    return read_state(load_checkpoint(written(folder, "step-00000003.safetensors", whole)))


def event_files(tmp: Path) -> dict[str, bytes]:
    events = dict.fromkeys("xyp", np.array([0, 1, 1, 0])) | {"t": np.array([5, 9, 9, 70])}
    write_bin(tmp / "a.bin", events)
    write_aedat(tmp / "a.aedat", events, packet=3)
    np.savez(tmp / "a.npz", **events)
    return {path.name: path.read_bytes() for path in tmp.iterdir()}


TESTED = {"test_accuracy": 0.5, "test_first_spike_accuracy": 0.5, "test_images": 4, "ties": 1, "no_spike": 0}
TESTED |= {"counts": count(TTFSNetwork(NETWORK), [torch.rand(4, 1, 4, 4)]).to_dict(), "sparsity": 0.25}
TRAINED = {"val_accuracy": 0.5, "best_epoch": 2, "epochs": 3, "seconds_per_epoch": 1.5, "images_per_second": 9.5}
TRAINED |= {"test_fingerprint": "ab", "skipped_images": {}, "versions": {"torch": "2"}, "device": "CPU", "seed": 0}
TRAINED |= {"processes": 1, "mixed_precision": "no", "weights_sha256": hashlib.sha256(weights_of(CONFIG)).hexdigest()}
EPOCH = {"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 2.5, "train_accuracy": 0.5, "seconds": 1.5}
POSITION = Position(epoch=1, step=3, metrics=[EPOCH | {"images_per_second": 8.0}]).model_dump()
CHECKPOINT = {"configuration": {"epochs": 3}, "precision": "no", "processes": 1, "data": "ab", "test_data": "cd"}
CHECKPOINT |= {"optimizer": {"state": {"0": {}}, "param_groups": []}, "schedule": {"last_epoch": 3}, "scaler": None}
CHECKPOINT |= {"layers": None, "position": POSITION, "changes": []}
CONFIGURATION = make_config({"dataset": "sample"}, "").to_yaml().encode()
IMAGES = [{"bytes": image_bytes("PNG"), "path": None}] * 4
TABLE = pyarrow.table({"image": IMAGES, "label": [0, 1, 0, 1]})
# What has broken readers: too large, too long, of another type, not finite, nested, aliases.
VALUES = (
    *("-1", "0", "1e308", "1e309", "NaN", ".nan", "inf", "null", "true", '""', "[]", "{}", "[1, 2, 3]", "10.0"),
    *(str(2**64), str(10**400), "9" * 5000, '"99999999C3"', "2001-99-99", "&a [*a]", "*a", "!!python/name:os.system"),
    *('"\\ud800"', '"\\u0000"', "\x00", "[" * 2000, f'"{"../" * 9}x"'),
)
# A name, what reads the content, the errors that say what is wrong with it, and valid content.
READERS = {
    "summary.json": (read_run, LoadError, [json.dumps(TESTED | TRAINED).encode()]),
    "checkpoint": (read_checkpoint, CheckpointError, [json.dumps(CHECKPOINT).encode()]),
    "config.yaml": (
        lambda folder, content: make_config(read_yaml(written(folder, "a.yaml", content)), "a.yaml"),
        ConfigError,
        [CONFIGURATION],
    ),
    "config.json": (lambda folder, content: read_model(folder, content, weights_of(content)), LoadError, [CONFIG]),
    "model.safetensors": (
        lambda folder, content: read_model(folder, CONFIG, content),
        LoadError,
        [weights_of(CONFIG)],
    ),
    "pickle": (
        lambda folder, content: open_weights(written(folder, "a.pt", content)),
        ConversionError,
        [saved(lambda file: torch.save({"a": torch.ones(2, 3)}, file))],
    ),
    "chip": (
        lambda folder, content: load_chip(written(folder, "a.toml", content)),
        ValueError,
        [(FOLDER / f"{name}.toml").read_bytes() for name in ("loihi", "odin")],
    ),
    "image": (
        lambda folder, content: network_input([written(folder, "a.png", content)], Preprocessing((4, 4), "L"), 1),
        ValueError,
        [image_bytes(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM")],
    ),
    "parquet": (
        lambda folder, content: load_images(None, written(folder, "train.parquet", content).parent),
        (ValueError, RuntimeError),
        [saved(lambda file: pyarrow.parquet.write_table(TABLE, file))],
    ),
}


@st.composite
def changed(draw, contents: list[bytes]) -> bytes:
    """One of the contents with one to three changes: a bit, a cut, a repeat, or another value in text."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("bit", "cut", "repeat", "value")))
        if kind == "bit" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        elif kind == "repeat":
            content[place:place] = content[max(0, place - 32) : place]
        else:
            end = content.find(b",", place)
            content[content.rfind(b" ", 0, place) + 1 : max(place, end)] = draw(st.sampled_from(VALUES)).encode()
    return bytes(content)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_file_is_read_or_refused_with_a_sentence(name, tmp_path_factory, data):
    read, errors, contents = READERS[name]
    assert_read_or_refused(read, errors, tmp_path_factory.mktemp("file"), data.draw(changed(contents)))


@pytest.mark.parametrize("name", ["a.bin", "a.aedat", "a.npz"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_recording_is_read_or_refused_with_a_sentence(name, tmp_path_factory, data):
    folder, windows = tmp_path_factory.mktemp("events"), EventWindows(2, sensor=(34, 34))
    content = data.draw(changed([event_files(folder)[name]]))
    read = lambda folder, content: recording_pixels(written(folder, name, content), windows)  # noqa: E731
    assert_read_or_refused(read, (ValueError, TypeError), folder, content)


def assert_read_or_refused(read, errors, folder, content):
    with warnings.catch_warnings(action="ignore"):
        try:
            read(folder, content)
        except UnicodeError:  # a ValueError, but nobody's sentence
            raise
        except errors:
            pass
