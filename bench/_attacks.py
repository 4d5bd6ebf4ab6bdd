"""Mistakes and hostile files, as commands: what each has to say, and that it harms nothing. For `bench/reliability.py`.

Each is a recipe with its arguments in a folder that holds `run`, a run that has ended, `data`, the images that it was
trained on, and what the attack prepares.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ttfs_triton.model.files import CONFIG_CHECKSUM
from ttfs_triton.model.weights import weight_bytes

TRAIN = "quickstart.py --cpu --model 4C3-P2-8 --epochs 1 --batch-size 16 --data-dir data "
NEW = TRAIN + "--output-dir new "
RESUME = "quickstart.py --cpu --output-dir run --resume "
EVALUATE = "evaluate.py run --cpu --no-simulation "
CONVERT = "convert.py a.pt --output-dir new --no-calibrate "
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n"


@dataclass(frozen=True)
class Attack:
    """A command that must be refused, or at least do no harm.

    Attributes:
        name: of the example.
        command: recipe and arguments.
        says: a pattern that is found in what it shows.
        prepare: what is wrong with the files, made in the working folder.
        code: it ends with.
        environment: variables.
    """

    name: str
    command: str
    says: str
    prepare: Callable[[], object] = lambda: None
    code: int = 1
    environment: dict[str, str] = field(default_factory=dict)


def png(size: int = 8, value: int = 128) -> bytes:
    """A square grey image."""
    buffer = io.BytesIO()
    Image.new("L", (size, size), value).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(
    path: Path, images: Sequence[bytes | None], labels: Sequence[int], names: Sequence[str | None] = ()
) -> None:
    """A parquet file of encoded images, or of names of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = names or [None] * len(images)
    rows = [{"bytes": content, "path": name} for content, name in zip(images, named, strict=True)]
    images_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({"image": pyarrow.array(rows, images_type), "label": pyarrow.array(labels, pyarrow.int64())})
    pyarrow.parquet.write_table(table, path)


def write_data(folder: Path, offset: int = 0, test_offset: int = 0) -> None:
    """Two classes, dark and bright: 160 images to train on and 40 to test."""
    for split, count, more in (("train", 160, offset), ("test", 40, test_offset)):
        images = [png(value=100 * (number % 2) + number % 50 + more) for number in range(count)]
        write_images(folder / f"{split}.parquet", images, [number % 2 for number in range(count)])


def _train(images: Sequence[bytes | None], labels: Sequence[int] | None = None, **names: Sequence[str]) -> None:
    write_images(Path("data/train.parquet"), images, labels or [i % 2 for i in range(len(images))], **names)


def _flip(pattern: str) -> None:
    for path in Path().glob(pattern):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def _set(path: str, **values: object) -> None:
    file = Path(path)
    if file.suffix == ".json":
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    else:
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | values))


def _network(**values: object) -> None:
    """Another config.json, which the weights know, so that its content is read."""
    path, weights = Path("run/best/config.json"), Path("run/best/model.safetensors")
    config = json.loads(path.read_text())
    content = json.dumps(config | {"network": config["network"] | values}).encode()
    path.write_bytes(content)
    weights.write_bytes(weight_bytes(load_file(weights), {CONFIG_CHECKSUM: sha256(content).hexdigest()}))


def _unfinished() -> None:
    Path("run/summary.json").unlink()


def _unfinished_and(change: Callable[..., object], *arguments: object, **values: object) -> Callable[[], None]:
    def prepare() -> None:
        _unfinished()
        change(*arguments, **values)

    return prepare


def _yaml_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    Path("a.yaml").write_text("\n".join(lines))


def _pickle(tensor: torch.Tensor | None, compression: int | None = None) -> None:
    buffer = io.BytesIO()
    if tensor is not None:
        torch.save({"a": tensor}, buffer)
    if compression is not None:
        packed = io.BytesIO()
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(packed, "w", compression) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        buffer = packed
    Path("a.pt").write_bytes(buffer.getvalue())


def _chip(old: str, new: str) -> None:
    from ttfs_triton.hardware.energy.chip_files import FOLDER

    text = (FOLDER / "odin.toml").read_text(encoding="utf-8")
    assert old in text
    Path("a.toml").write_text(text.replace(old, new), encoding="utf-8")


def _named(name: str, make: Callable[[str], object]) -> Callable[[], None]:
    def prepare() -> None:
        make(name)
        _train([None] * 20, names=[str(Path(name).absolute())] * 20)

    return prepare


# By the row of the table of attacks that they belong to.
MISTAKES = [
    Attack("a folder that holds something else", TRAIN + "--output-dir data", "is not a run's folder"),
    Attack("a run is there already", TRAIN + "--output-dir run", "Go on with that run by --resume"),
    Attack("no run to resume", NEW + "--resume", "must hold a run"),
    Attack("all checkpoints damaged", RESUME, "all are damaged", _unfinished_and(_flip, "run/checkpoints/*/model*")),
    Attack("config.yaml edited", RESUME, r"lr: 0\.004 → 0\.1", _unfinished_and(_set, "run/config.yaml", lr=0.1)),
    Attack("other flags on --resume", RESUME + "--lr 0.1", r"lr: 0\.004 → 0\.1", _unfinished),
    Attack(
        "another precision on --resume",
        RESUME,
        "mixed precision must be no, as in .*; got bf16",
        _unfinished,
        environment={"ACCELERATE_MIXED_PRECISION": "bf16"},
    ),
    Attack(
        "other training images on --resume",
        RESUME,
        "the training images must be those",
        _unfinished_and(lambda: write_data(Path("data"), offset=1)),
    ),
    Attack(
        "other test images on --resume",
        RESUME,
        "the test images must be those",
        _unfinished_and(lambda: write_data(Path("data"), test_offset=1)),
    ),
    Attack(
        "another data set on --resume",
        RESUME + "--data-dir other",
        "the training images must be those",
        _unfinished_and(lambda: write_data(Path("other"), offset=1)),
    ),
    Attack("damaged best weights", RESUME, "must hold the best weights", _unfinished_and(_flip, "run/best/model*")),
    Attack(
        "missing best weights",
        RESUME,
        "must hold the best weights",
        _unfinished_and(lambda: Path("run/best/model.safetensors").unlink()),
    ),
    Attack("truncated summary.json", RESUME, "it is damaged", lambda: Path("run/summary.json").write_text('{"test_')),
    Attack("a folder that cannot be made", TRAIN + "--output-dir /proc/run", "must be a folder that can be"),
    Attack("a file for a folder", TRAIN + "--output-dir data/train.parquet", "must be a folder"),
    Attack("--batch-size 100000", NEW + "--batch-size 100000", "batch_size must be at most"),
    Attack("--max-train-samples 12", NEW + "--max-train-samples 12", "batch_size must be at most"),
    Attack("--backend triton", NEW + "--backend triton", "backend: triton must be able to run here"),
    Attack("--image-size 1000000", NEW + "--image-size 1000000", "image_size: .* less than or equal to 8192"),
    Attack("--crop-padding 1000000", NEW + "--crop-padding 1000000", "crop_padding: .* less than or equal to 8192"),
    Attack("--width 0", NEW + "--width 0", r"^  width: Input should be greater than 0; got 0\.0$"),
    Attack("--lr 1e9", NEW + "--lr 1e9", "lr: Input should be less than or equal to 100"),
    Attack("--seed 2**64", NEW + f"--seed {2**64}", "seed: Input should be less than"),
    Attack("--num-workers 100000", NEW + "--num-workers 100000", "num_workers: .* less than or equal to 256"),
    Attack("a flag that does not exist", NEW + "--epoch 3", "epoch", code=2),
    Attack("--config FOLDER", NEW + "--config data", "must be a file that can be read"),
    Attack("no such YAML file", NEW + "--config no.yaml", "does not exist"),
    Attack(
        "YAML that is not UTF-8",
        NEW + "--config a.yaml",
        "must be UTF-8 text",
        lambda: Path("a.yaml").write_bytes(b"\xff\xfel\x00"),
    ),
    Attack("--data-dir that is not there", NEW.replace("data ", "no "), "data_dir must be an existing folder"),
    Attack("a data set that cannot be had", NEW.replace("--data-dir data", "--dataset a/b"), "must be reachable|exist"),
    Attack("a folder named like a data set", "quickstart.py --cpu --dataset a/b --output-dir new",
           "which is also a folder here", lambda: write_data(Path("a/b"))),
    Attack("--repo-id ../x", "publish.py run --repo-id ../x --dry-run", "repo_id must be owner/name"),
    Attack("a run that has not ended", "publish.py run --repo-id a/b --dry-run", "go on with it", _unfinished),
    Attack("an empty .pt", CONVERT, "a.pt", lambda: _pickle(None)),
    Attack("an empty parquet", NEW, "must hold rows; got none", lambda: _train([])),
    Attack("a price of 1e308", EVALUATE + "--chip a.toml", "value", lambda: _chip("value = 8.43", "value = 1e308")),
    Attack("node_nm = nan", EVALUATE + "--chip a.toml", "node_nm", lambda: _chip("node_nm = 28", "node_nm = nan")),
    Attack(
        "publishing local images under the recipe's name",
        "publish.py run --repo-id a/b --dry-run",
        r"(?s)^(?!.*(ylecun|dataset_id|/sample)).*a local data set",
        code=0,
    ),
]  # fmt: skip
HOSTILE = [
    *(
        Attack(f"config.json: {name}", EVALUATE, "must be what training wrote|must hold the network", prepare)
        for name, prepare in {
            "classes 10**12": lambda: _network(classes=10**12),
            "99999999C3": lambda: _network(specification="99999999C3"),
            "specification 5": lambda: _network(specification=5),
            "classes 2.0": lambda: _network(classes=2.0),
            "width 1e308": lambda: _network(width=1e308),
        }.items()
    ),
    Attack("config.json: one bit", EVALUATE, "its checksum differs", lambda: _flip("run/best/config.json")),
    Attack("weights: one bit", EVALUATE, "model.safetensors", lambda: _flip("run/best/model.safetensors")),
    Attack("EPS in a parquet file", NEW, "cannot be decoded|could be decoded|undecodable", lambda: _train([EPS] * 20)),
    Attack("YAML aliases", NEW + "--config a.yaml", "must have no aliases", _yaml_bomb),
    Attack("a label of 10**9", NEW, "labels must be below", lambda: _train([png()] * 20, [10**9] * 20)),
    Attack("a deflated .pt", CONVERT, "compressed", lambda: _pickle(torch.zeros(10**8), zipfile.ZIP_DEFLATED)),
    Attack("a tensor of one element and 400 GB", CONVERT, "a.pt", lambda: _pickle(torch.zeros(1).expand(10**11))),
    Attack(
        "600 images of 9000² pixels",
        NEW + "--data-placement host",
        "must fit into memory|not enough memory|llocate",
        lambda: _train([png(9000)] * 600),
    ),
    Attack("a parquet file that names a FIFO", NEW, "not names of files", _named("fifo", os.mkfifo)),
    Attack(
        "a parquet file that names an image",
        NEW,
        "not names of files",
        _named("a.png", lambda name: Path(name).write_bytes(png())),
    ),
]


def harmless(attack: Attack, shown: str, code: int | None, before: dict[str, str], after: dict[str, str]) -> str:
    """What was wrong with the answer to an attack; empty if nothing was.

    Args:
        attack: that was made.
        shown: standard output and error.
        code: exit code, None if it had to be killed.
        before, after: hashes of the run's files.
    """
    if code is None:
        return "it hung"
    if code != attack.code:
        return f"it ended with {code}, not {attack.code}"
    if "Traceback" in shown:
        return "it showed a traceback"
    if not re.search(attack.says, shown, re.MULTILINE):
        return f"it did not say {attack.says!r}"
    return "the run was changed" if before != after else ""
