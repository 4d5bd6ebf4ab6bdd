"""Valid files with a few random changes are read, or refused with a sentence. Known bombs have tests of their own."""

import hashlib
import warnings

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from tests.data.synthetic_events import write_aedat, write_bin
from ttfs_triton.convert.source import ConversionError, open_weights
from ttfs_triton.data.events import EventWindows
from ttfs_triton.data.images import load_images
from ttfs_triton.data.recordings import recording_pixels
from ttfs_triton.energy.chip import FOLDER, load_chip
from ttfs_triton.hub.card import render_card
from ttfs_triton.hub.facts import read_facts
from ttfs_triton.model import LoadError, Preprocessing, TTFSModel, find_model
from ttfs_triton.model.classification import network_input
from ttfs_triton.model.files import CONFIG_CHECKSUM, weight_bytes
from ttfs_triton.train.checkpoint import CheckpointError, checkpoint_bytes, latest_checkpoint, load_checkpoint
from ttfs_triton.train.config import ConfigError, make_config, read_yaml

# What has broken readers: too large, too long, of another type, not finite, nested, aliases.
VALUES = (
    *("-1", "0", "1e308", "1e309", "NaN", ".nan", "inf", "null", "true", '""', "[]", "{}", "[1, 2, 3]", "10.0"),
    *(str(2**64), str(10**400), "9" * 5000, '"99999999C3"', "2001-99-99", "&a [*a]", "*a", "!!python/name:os.system"),
    *('"\\ud800"', '"\\u0000"', "\x00", "[" * 2000, f'"{"../" * 9}x"'),
)


@pytest.fixture
def folder(run):
    """A run's folder, with a valid file for each of the other readers."""
    (run / "state.json").write_text(latest_checkpoint(run / "checkpoints").state.model_dump_json())
    torch.save({"a": torch.ones(2, 3)}, run / "weights.pt")
    for name in ("loihi", "odin"):
        (run / f"{name}.toml").write_bytes((FOLDER / f"{name}.toml").read_bytes())
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"):
        Image.new("L", (5, 6), 128).save(run / f"image.{kind}", kind)
    images = [{"bytes": (run / "image.PNG").read_bytes(), "path": None}] * 4
    (run / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": [0, 1, 0, 1]}), run / "data" / "train.parquet")
    events = dict.fromkeys("xyp", np.array([0, 1, 1, 0])) | {"t": np.array([5, 9, 9, 70])}
    write_bin(run / "events.bin", events)
    write_aedat(run / "events.aedat", events, packet=3)
    np.savez(run / "events.npz", **events)
    return run


def read_description(path):
    """Weights that hold the checksum of this config.json, so that its content is what is refused."""
    weights, checksum = path.with_name("model.safetensors"), hashlib.sha256(path.read_bytes()).hexdigest()
    weights.write_bytes(weight_bytes(load_file(weights), {CONFIG_CHECKSUM: checksum}))
    TTFSModel.from_pretrained(path.parent)


def read_checkpoint(path):
    whole = path.with_name("step-00000003.safetensors")
    whole.write_bytes(checkpoint_bytes(path.read_text(errors="replace"), {"model": {"weight": torch.ones(2)}}))
    load_checkpoint(whole)


# Files of `folder`: what reads one of them, and the errors that say what is wrong with it.
READERS = {
    "summary.json": (lambda path: render_card(read_facts(find_model(path.parent)), "a/b"), LoadError),
    "state.json": (read_checkpoint, CheckpointError),
    "config.yaml": (lambda path: make_config(read_yaml(path), "a.yaml"), ConfigError),
    "best/config.json": (read_description, LoadError),
    "best/model.safetensors": (lambda path: TTFSModel.from_pretrained(path.parent), LoadError),
    "weights.pt": (open_weights, ConversionError),
    "*.toml": (load_chip, ValueError),
    "image.*": (lambda path: network_input([path], Preprocessing((4, 4), "L"), 1), ValueError),
    "data/*": (lambda path: load_images(None, path.parent), (ValueError, RuntimeError)),
}
EVENTS = lambda path: recording_pixels(path, EventWindows(2, sensor=(34, 34))), (ValueError, TypeError)
READERS |= {f"events.{kind}": EVENTS for kind in ("bin", "aedat", "npz")}


@st.composite
def changed(draw, contents: list[bytes]) -> bytes:
    """One of the contents with one to three changes: a bit, a cut, or another value in text."""
    content = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("bit", "cut", "value")))
        if kind == "bit" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        else:
            end = content.find(b",", place)
            content[content.rfind(b" ", 0, place) + 1 : max(place, end)] = draw(st.sampled_from(VALUES)).encode()
    return bytes(content)


@pytest.mark.parametrize("name", READERS)
def test_changed_file_is_read_or_refused_with_a_sentence(folder, name):
    (read, errors), files = READERS[name], sorted(folder.glob(name))
    read(files[0])

    @settings(max_examples=20)
    @given(content=changed([path.read_bytes() for path in files]))
    def check(content):
        files[0].write_bytes(content)
        with warnings.catch_warnings(action="ignore"):
            try:
                read(files[0])
            except UnicodeError:  # a ValueError, but nobody's sentence
                raise
            except errors:
                pass

    check()
