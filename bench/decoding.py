"""What it costs to decode photographs, a core; and whether threads or worker processes share the work better.

    python bench/decoding.py

Photographs are noise whose spectrum falls as that of natural images does, saved as JPEG with the quality that comes
closest to ImageNet's 0.6 bytes a pixel. "check" is the one pass before training, "train" a random part resized to 224
pixels, "evaluate" the middle. Figures a core are of time on the processor, which counts what the work took however busy
the machine was; those of threads and workers are by the clock, too, and mean something on an idle machine only.
"""

import dataclasses
import io
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np
import torch
import tyro
from _record import ROOT, environment, write
from PIL import Image, features
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ttfs_triton.data.checked import read_checked
from ttfs_triton.data.crops import centre_crop, random_crop
from ttfs_triton.data.decode import EncodedImages
from ttfs_triton.data.reading import decode_image

BYTES_A_PIXEL = 0.6
SIZES = {"32x32": (32, 32), "250x188": (188, 250), "500x375": (375, 500), "1000x750": (750, 1000)}
SIZES |= {"2000x1500": (1500, 2000)}


@dataclasses.dataclass
class Options:
    """Time the decoding of photographs."""

    images: int = 32
    """Different photographs of each size."""
    image_size: int = 224
    rounds: int = 5
    parallel: tuple[int, ...] = (1, 2)
    """Threads and worker processes to try."""
    batch_size: int = 64
    batches: int = 8
    """Batches of a round with threads and workers."""
    output: Path = ROOT / "bench" / "results"


class Batches(Dataset[Tensor]):
    """Batches of random parts, uint8, as training asks for them."""

    def __init__(self, images: EncodedImages, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __getitem__(self, index: int) -> Tensor:
        numbers = (torch.arange(self.batch_size) + index * self.batch_size) % self.images.shape[0]
        return self.images.in_epoch(0, index).images_at(numbers)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    for name in ("images", "image_size", "rounds", "batch_size", "batches"):
        if getattr(options, name) < 1:
            sys.exit(f"decoding: --{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}.")
    about = environment(torch.device("cpu")) | {"pillow": Image.__version__}
    about["jpeg"] = f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
    rows = [row for name in SIZES for row in a_core(options, name)] + together(options)
    show(rows, f"{about['device']}, Pillow {about['pillow']}, {about['jpeg']}, {about['utc']} UTC")
    about["options"] = {key: value for key, value in dataclasses.asdict(options).items() if key != "output"}
    shared = {key: about[key] for key in ("device", "pillow", "jpeg", "torch", "commit", "utc")}
    for path in write(options.output, "decoding-cpu", [row | shared for row in rows], about):
        print(f"written: {path}")


def photographs(size: tuple[int, int], count: int) -> list[dict[str, Any]]:
    """Encoded images of (height, width) pixels."""
    generator = np.random.default_rng(0)
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    encoded, quality = [], None
    for _ in range(count):
        noise = np.fft.rfft2(generator.standard_normal((3, height, width)))
        planes = np.fft.irfft2(noise / frequency, s=size)
        planes = planes[:1] + 0.3 * planes  # colours of one place are alike
        pixels = (128 + 55 * planes / planes.std()).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        if quality is None:
            target = BYTES_A_PIXEL * height * width
            quality = min(range(40, 97, 2), key=lambda value: abs(len(_jpeg(image, value)) - target))
        encoded.append({"bytes": _jpeg(image, quality), "path": None})
    return encoded


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def a_core(options: Options, name: str) -> list[dict[str, Any]]:
    """Rows of one size: each kind of work on one core."""
    encoded, size = photographs(SIZES[name], options.images), (options.image_size, options.image_size)
    works: dict[str, Callable[[int], object]] = {
        "check": lambda i: read_checked(encoded[i]),
        "decode": lambda i: decode_image(encoded[i]),
        "train": lambda i: decode_image(encoded[i], size, "RGB", random_crop(0, 0, i)),
        "evaluate": lambda i: decode_image(encoded[i], size, "RGB", centre_crop),
    }
    kilobytes = round(sum(len(image["bytes"]) for image in encoded) / len(encoded) / 1e3, 1)
    times: dict[str, list[float]] = {work: [] for work in works}
    for number in range(options.rounds + 1):
        for work, do in works.items():
            start = time.process_time()
            for i in range(options.images):
                do(i)
            if number:  # the first round warms up
                times[work].append((time.process_time() - start) / options.images)
    about = {"size": name, "kilobytes": kilobytes}
    return [about | _row(work, "one core", median(seconds), None) for work, seconds in times.items()]


def together(options: Options) -> list[dict[str, Any]]:
    """Rows of several threads of one process, and of several worker processes, at ImageNet's usual size."""
    name = "500x375"
    encoded = photographs(SIZES[name], options.images)
    table = datasets.Dataset.from_dict(
        {"image": encoded}, features=datasets.Features(image=datasets.Image(decode=False))
    )
    size = (options.image_size, options.image_size)
    shape = (options.images, 3, *size)
    images = EncodedImages(table, torch.arange(options.images), shape, size, cropped=True)
    batches, total = Batches(images, options.batch_size), options.batch_size * options.batches
    rows = []
    for kind in ("threads", "workers"):
        for number in options.parallel:
            found = []
            for _ in range(options.rounds):
                start = time.perf_counter(), _processor_seconds()
                with patch("ttfs_triton.data.decode.decoding_threads", return_value=number):
                    workers = number if kind == "workers" else 0
                    # Counted and let go, so that the workers have ended when their time is read.
                    loader = DataLoader(batches, None, sampler=range(options.batches), num_workers=workers)
                    counted = sum(map(len, loader))
                assert counted == total
                found.append(((time.perf_counter() - start[0]) / total, (_processor_seconds() - start[1]) / total))
            clock, processor = (median(values) for values in zip(*found, strict=True))
            about = {"size": name, "kilobytes": round(sum(len(i["bytes"]) for i in encoded) / len(encoded) / 1e3, 1)}
            rows.append(about | _row("train", f"{number} {kind}", processor, clock))
    return rows


def _processor_seconds() -> float:
    """Of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _row(work: str, by: str, processor: float, clock: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"work": work, "by": by, "cpu_ms_p50": round(1e3 * processor, 3)}
    row["images_per_core_second"] = round(1 / processor, 1)
    return row | {"images_per_second": None if clock is None else round(1 / clock, 1)}


def show(rows: list[dict[str, Any]], note: str) -> None:
    """The rows as a table."""
    table = Table("photograph", "kB", "work", "by", "CPU ms", "images / core s", "images / s", title=note)
    for row in rows:
        values = ("size", "kilobytes", "work", "by", "cpu_ms_p50", "images_per_core_second", "images_per_second")
        table.add_row(*("" if row[key] is None else str(row[key]) for key in values))
    Console().print(table)


if __name__ == "__main__":
    main()
