"""Make the bundled sample: 6,000 training and 1,000 test images of Fashion-MNIST, the same number of each class.

    python recipes/make_sample.py                      # from the Hugging Face Hub
    python recipes/make_sample.py --data-dir FOLDER    # from train*.parquet and test*.parquet

Run twice, it writes the same bytes. Images are PNGs without compression of their own: Parquet's zstd over many of
them is smaller than each one deflated.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

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


def encode(pixels: np.ndarray) -> bytes:
    """PNG file of a grayscale image, [height, width] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def make_split(split: str, data_dir: str | None, output_dir: Path) -> Path:
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


def main() -> None:
    """Write both splits and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="local copy of Fashion-MNIST; default: the Hub")
    parser.add_argument("--output-dir", type=Path, default=SAMPLE_FOLDER)
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for split in SAMPLES:
        path = make_split(split, arguments.data_dir, arguments.output_dir)
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
