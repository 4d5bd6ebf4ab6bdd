"""What is fuzzed: for each kind of file, valid seeds, the function that reads it, and the errors that it may raise."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from tests.data.synthetic_events import write_aedat, write_bin
from ttfs_triton.command_line import OptionsError, parse_options
from ttfs_triton.convert.calibrate_grid import CalibrateOptions
from ttfs_triton.convert.command import ConvertOptions
from ttfs_triton.convert.source import ConversionError, open_weights
from ttfs_triton.data.events import EventWindows
from ttfs_triton.data.images import load_images
from ttfs_triton.data.recordings import recording_pixels
from ttfs_triton.export.command import ExportOptions
from ttfs_triton.hardware import count
from ttfs_triton.hardware.energy.chip import FOLDER, load_chip
from ttfs_triton.hub.card import render_card
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model import HubError, LoadError, ModelDescription, Preprocessing, TTFSModel, find_model
from ttfs_triton.model.classification import network_input
from ttfs_triton.model.files import CONFIG_CHECKSUM
from ttfs_triton.model.weights import weight_bytes
from ttfs_triton.nn import NetworkConfig, TTFSNetwork
from ttfs_triton.train.checkpoint import CheckpointError, checkpoint_bytes, load_checkpoint
from ttfs_triton.train.config import ConfigError, make_config, parse_config, read_yaml
from ttfs_triton.train.resume import Position, read_state

NETWORK = NetworkConfig("2C3-P2-4", image_size=(4, 4), classes=2)
CONFIG = json.dumps(ModelDescription.of(NETWORK).to_dict()).encode()
STATE = TTFSNetwork(NETWORK).state_dict()


def _weights_of(config: bytes) -> bytes:
    """Weights that know a config.json, so that what is fuzzed is reading it, not the checksum."""
    return weight_bytes(STATE, {CONFIG_CHECKSUM: hashlib.sha256(config).hexdigest()})


WEIGHTS = _weights_of(CONFIG)


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        seeds: valid content.
        read: takes a folder to write in, and content.
        errors: that say what is wrong with it; any other one is a defect.
        text: content is text, in which values are exchanged besides bytes.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]
    errors: tuple[type[BaseException], ...]
    text: bool = True


def _written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _configuration(folder: Path, content: bytes) -> object:
    return make_config(read_yaml(_written(folder, "a.yaml", content)), "a.yaml")


def _network(folder: Path, content: bytes) -> object:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return NetworkConfig.from_dict(values) if isinstance(values, dict) else None


def _model(folder: Path, content: bytes) -> object:
    _written(folder, "model.safetensors", _weights_of(content))
    _written(folder, "config.json", content)
    return TTFSModel.from_pretrained(folder)


def _weights(folder: Path, content: bytes) -> object:
    _written(folder, "config.json", CONFIG)
    _written(folder, "model.safetensors", content)
    return TTFSModel.from_pretrained(folder)


def _pickled(folder: Path, content: bytes) -> object:
    return open_weights(_written(folder, "a.pt", content))


def _image(folder: Path, content: bytes) -> object:
    return network_input([_written(folder, "a.png", content)], Preprocessing((4, 4), "L"), 1)


def _parquet(folder: Path, content: bytes) -> object:
    _written(folder, "train.parquet", content)
    return load_images(None, folder)


def _events(folder: Path, content: bytes) -> object:
    name = "a.aedat" if content.startswith(b"#") else "a.npz" if content.startswith(b"P") else "a.bin"
    return recording_pixels(_written(folder, name, content), EventWindows(2, sensor=(34, 34)))


def _gestures(folder: Path, content: bytes) -> object:
    """DVS-Gesture's list of files, or a file's table of labels; its other files are valid."""
    for name, whole in zip(("trials_to_train.txt", "a_labels.csv", "a.aedat"), _gesture_files(), strict=True):
        _written(folder, name, whole)
    _written(folder, "a_labels.csv" if b"," in content else "trials_to_train.txt", content)
    return load_images(None, folder, events=EventWindows(2))


def _chip(folder: Path, content: bytes) -> object:
    return load_chip(_written(folder, "a.toml", content))


def _run(name: str) -> Callable[[Path, bytes], object]:
    """Read a run, of which one file is fuzzed and all others are valid."""

    def read(folder: Path, content: bytes) -> object:
        (folder / "run" / "best").mkdir(parents=True, exist_ok=True)
        files = {"summary.json": SUMMARY, "config.yaml": _configuration_seeds()[0]}
        for each, whole in (files | {name: content}).items():
            _written(folder / "run", each, whole)
        _written(folder / "run" / "best", "config.json", CONFIG)
        _written(folder / "run" / "best", "model.safetensors", WEIGHTS)
        return render_card(read_facts(find_model(folder / "run")), "a/b")

    return read


def _checkpoint(folder: Path, content: bytes) -> object:
    """A checkpoint whose checksum fits its state."""
    whole = checkpoint_bytes(content.decode(errors="replace"), {"model": STATE})
    return read_state(load_checkpoint(_written(folder, "step-00000003.safetensors", whole)))


def _flags(folder: Path, content: bytes) -> object:
    """A command's name and its words, one a line."""
    command, *words = content.decode(errors="surrogateescape").split("\n")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if command == "train":
            return parse_config(_written(folder, "a.yaml", b"dataset: sample\n"), "", words)
        options = {"convert": ConvertOptions, "export": ExportOptions}.get(command, CalibrateOptions)
        return options(**parse_options(options, description="", arguments=words))


def _name(folder: Path, content: bytes) -> object:
    """What a network is called on a command line."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    return find_model(content.decode(errors="surrogateescape"), cache_dir=folder)


def _state_seeds() -> list[bytes]:
    position = Position(epoch=1, step=3, metrics=[EPOCH]).model_dump()
    known = {"configuration": {"epochs": 3}, "precision": "no", "processes": 1, "data": "ab", "test_data": "cd"}
    parts = {"optimizer": {"state": {"0": {}}, "param_groups": []}, "schedule": {"last_epoch": 3}, "scaler": None}
    return [json.dumps(known | parts | {"layers": None, "position": position, "changes": []}).encode()]


def _flag_seeds() -> list[bytes]:
    train = "train --epochs 3 --lr 0.1 --ema-decay 0.9 --time-steps 8 --surrogate-width 0.5"
    convert = 'convert a.pth --output-dir "b" --image-size 28 20 --mean 0.5 --std 0.2 --psp-persistence 0.25'
    export = 'export "a" --format nir --output "b" --steps 8 --check-images 20'
    calibrate = 'calibrate "a" --output-dir "b" --time-steps 8 --weight-bits 4 --images 20 --dataset "c"'
    return [words.replace(" ", "\n").encode() for words in (train, convert, export, calibrate)]


def _configuration_seeds() -> list[bytes]:
    return [make_config({"dataset": "sample"}, "").to_yaml().encode()]


def _image_seeds() -> list[bytes]:
    found = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"):
        buffer = io.BytesIO()
        Image.new("L", (5, 6), 128).save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def _parquet_seeds() -> list[bytes]:
    images = [{"bytes": content, "path": None} for content in _image_seeds()[:1] * 4]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1, 0, 1]}), buffer)
    return [buffer.getvalue()]


def _gesture_files() -> list[bytes]:
    return [b"a.aedat\n\n", b"class,startTime_usec,endTime_usec\n1,5,9\n11,9,80\n2,70,71\n", _event_seeds()[-1]]


@cache
def _event_seeds() -> list[bytes]:
    events = dict.fromkeys("xyp", np.array([0, 1, 1, 0])) | {"t": np.array([5, 9, 9, 70])}
    buffer = io.BytesIO()
    np.savez(buffer, **events)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("a.bin", "a.aedat")]
        write_bin(files[0], events)
        write_aedat(files[1], events, packet=3)
        return [buffer.getvalue(), *(file.read_bytes() for file in files)]


def _pickle_seeds() -> list[bytes]:
    found = []
    for archive in (True, False):
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(2, 3)}, buffer, _use_new_zipfile_serialization=archive)
        found.append(buffer.getvalue())
    return found


def _chip_seeds() -> list[bytes]:
    files = [path.read_bytes() for path in sorted(FOLDER.glob("*.toml"))]
    return [content for content in files if "precisions" not in tomllib.loads(content.decode())][:4]


COUNTED = count(TTFSNetwork(NETWORK), [torch.rand(4, 1, 4, 4)]).to_dict()
TESTED = {"test_accuracy": 0.5, "test_first_spike_accuracy": 0.5, "test_images": 4, "ties": 1, "no_spike": 0}
TESTED |= {"sparsity": 0.25, "counts": COUNTED, "weights_sha256": hashlib.sha256(WEIGHTS).hexdigest()}
TRAINED = {"val_accuracy": 0.5, "best_epoch": 2, "epochs": 3, "seconds_per_epoch": 1.5, "images_per_second": 9.5}
TRAINED |= {"test_fingerprint": "ab", "skipped_images": {}, "versions": {"torch": "2"}}
TRAINED |= {"device": "CPU", "seed": 0, "processes": 1, "mixed_precision": "no"}
SUMMARY = json.dumps(TESTED | TRAINED).encode()
EPOCH = {"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 2.5, "train_accuracy": 0.5, "layer_sparsity": {"conv1": 0.25}}
EPOCH |= {"seconds": 1.5, "images_per_second": 8.0}
TARGETS = {
    "summary.json": Target(lambda: [SUMMARY], _run("summary.json"), (LoadError,)),
    "checkpoint": Target(_state_seeds, _checkpoint, (CheckpointError,)),
    "flags": Target(_flag_seeds, _flags, (ConfigError, OptionsError, SystemExit)),
    "name": Target(lambda: [b"bundled:cnn1-mnist"], _name, (LoadError, HubError)),
    "configuration": Target(_configuration_seeds, _configuration, (ConfigError,)),
    "network": Target(lambda: [json.dumps(NETWORK.to_dict()).encode()], _network, (ValueError,)),
    "config.json": Target(lambda: [CONFIG], _model, (LoadError,)),
    "safetensors": Target(lambda: [WEIGHTS], _weights, (LoadError,), text=False),
    "pickle": Target(_pickle_seeds, _pickled, (ConversionError,), text=False),
    "chip": Target(_chip_seeds, _chip, (ValueError,)),
    "image": Target(_image_seeds, _image, (ValueError,), text=False),
    "events": Target(_event_seeds, _events, (ValueError, TypeError), text=False),
    "gestures": Target(lambda: _gesture_files()[:2], _gestures, (ValueError,)),
    "parquet": Target(_parquet_seeds, _parquet, (ValueError, RuntimeError), text=False),
}
