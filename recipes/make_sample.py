"""Make the bundled sample: 6,000 training and 1,000 test images of Fashion-MNIST, the same number of each class.

    python recipes/make_sample.py                      # from the Hugging Face Hub
    python recipes/make_sample.py --data-dir FOLDER    # from train*.parquet and test*.parquet

Run twice, it writes the same bytes. Images are PNGs without compression of their own: Parquet's zstd over many of
them is smaller than each one deflated.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict

from ttfs_triton.command_line import run_command
from ttfs_triton.data.images import load_images
from ttfs_triton.data.sources import SAMPLE_FOLDER

DATASET = "zalando-datasets/fashion_mnist"
CLASS_NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
SAMPLES = {"train": 6_000, "test": 1_000}


class SampleOptions(BaseModel):
    """Where from and where to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: Path | None = None
    """Local copy of Fashion-MNIST. Default: the Hub."""
    output_dir: Path = SAMPLE_FOLDER
    """Folder for train.parquet and test.parquet."""


def encode(pixels: np.ndarray) -> bytes:
    """PNG file of a grayscale image, [height, width] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def make_split(split: str, data_dir: Path | None, output_dir: Path) -> Path:
    """Choose and write one split; the rows stay in their original order."""
    data = load_images(DATASET, data_dir, split=split, max_samples=SAMPLES[split], max_bad_images=0)
    counts = torch.bincount(data.labels, minlength=len(CLASS_NAMES)).tolist()
    if counts != [SAMPLES[split] // len(CLASS_NAMES)] * len(CLASS_NAMES):
        raise ValueError(f"make_sample: the source must be Fashion-MNIST, balanced; got {counts}. Check --data-dir.")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASS_NAMES))
    rows = {
        "image": [{"bytes": encode(image[0].numpy()), "path": None} for image in data.images],
        "label": data.labels.tolist(),
    }
    path = output_dir / f"{split}.parquet"
    table = pa.Table.from_pydict(rows, schema=features.arrow_schema)
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=False)
    return path


def make(options: SampleOptions) -> None:
    """Write both splits and print their sizes."""
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for split in SAMPLES:
        path = make_split(split, options.data_dir, options.output_dir)
        print(f"{path}: {path.stat().st_size:,} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: parse, make, exit with a plain message where the user can mend what went wrong."""
    run_command(SampleOptions, make, prog="make_sample.py", description=__doc__, arguments=arguments)


if __name__ == "__main__":
    main()
