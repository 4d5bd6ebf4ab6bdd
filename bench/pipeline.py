"""Images a second through each augmentation, ours and torchvision's, and the share of a training step that data take.

    OMP_NUM_THREADS=1 python bench/pipeline.py

Ours is the loader of a training run, which augments whole batches of uint8 images, on a CPU some batches ahead;
torchvision's transforms (v2, on tensors) go image by image, as its users have them. Both end in float32 batches, in a
process that keeps the memory it frees, as training does. They take turns, round by round, and are timed by the
processor's clock, so that other programs on the machine hit both alike; ratios are medians over the rounds' own ratios.
torchvision has no Cutout: RandomErasing of a square of the same area stands for it. MixUp and CutMix augment two images
for each one; torchvision mixes a batch with itself, once, with one share.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from _record import ROOT, environment, write
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ttfs_triton.augment import Augmentation
from ttfs_triton.data.decode import InMemoryImages
from ttfs_triton.data.images import ImageData
from ttfs_triton.memory import freed_memory_kept
from ttfs_triton.nn.models import vgg11
from ttfs_triton.train.batches import EpochBatches, train_loader

CLASSES = 10
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "crop and flip": {"crop_padding": 4, "flip": True},
    "AutoAugment cifar10": {"auto_augment": "cifar10"},
    "AutoAugment svhn": {"auto_augment": "svhn"},
    "AutoAugment imagenet": {"auto_augment": "imagenet"},
    "TrivialAugment": {"trivial_augment": True},
    "rotation": {"rotation": 15},
    "Cutout": {"cutout": 16},
    "AutoAugment, crop, flip, Cutout": {"crop_padding": 4, "flip": True, "auto_augment": "cifar10", "cutout": 16},
    "MixUp": {"mixup": 0.2},
    "CutMix": {"cutmix": 1.0},
}


@dataclasses.dataclass
class Options:
    """Time augmentation."""

    batch_size: int = 128
    image_size: int = 32
    rounds: int = 15
    """Rounds that count."""
    width: float = 0.5
    """Of VGG11, whose training step data are a share of."""
    seed: int = 0
    output: Path = ROOT / "bench" / "results"
    """Folder of the CSV and JSON files."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    with freed_memory_kept():
        rows = [measure(name, values, options) for name, values in track(AUGMENTATIONS.items(), "augmentations")]
        step_ms = training_step_ms(options)
    for row in rows:
        data_ms = options.batch_size / row["ours_images_per_s"] * 1e3
        row |= {"step_ms": f"{step_ms:.1f}", "data_share": f"{data_ms / (data_ms + step_ms):.4f}"}
    show(rows)
    about = environment(torch.device("cpu")) | {"options": dataclasses.asdict(options) | {"output": None}}
    for path in write(options.output, "pipeline-cpu", rows, about):
        print(f"wrote {path}")


def measure(name: str, values: dict[str, Any], options: Options) -> dict[str, Any]:
    """Images a second of both, and the ratio."""
    size, generator = options.image_size, torch.Generator().manual_seed(options.seed)
    pixels = torch.randint(0, 256, (4 * options.batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(pixels)) % CLASSES
    data = ImageData(InMemoryImages(pixels), labels, [str(i) for i in range(CLASSES)], "random", "train", "0")
    transform, mixing = torchvision_path(values, size)

    def our_epoch() -> None:
        batches = EpochBatches(
            data,
            torch.arange(len(data)),
            batch_size=options.batch_size,
            seed=options.seed,
            epoch=0,
            augmentation=Augmentation(**values),
            classes=CLASSES,
        )
        for _ in train_loader(batches):
            pass

    def their_epoch() -> None:
        for chosen in torch.randperm(len(data)).split(options.batch_size):
            batch = torch.stack([transform(image) for image in data.images_at(chosen)])
            mixing(batch, data.labels[chosen])

    ours, theirs = [], []
    for number in range(options.rounds + 1):
        ours.append(seconds(our_epoch))
        theirs.append(seconds(their_epoch))
        if number == 0:  # warm up
            ours, theirs = [], []
    return {
        "augmentation": name,
        "batch_size": options.batch_size,
        "image_size": size,
        "ours_images_per_s": round(len(data) / median(ours)),
        "torchvision_images_per_s": round(len(data) / median(theirs)),
        "ratio": f"{median(b / a for a, b in zip(ours, theirs, strict=True)):.2f}",
    }


def seconds(epoch: Callable[[], None]) -> float:
    """Time on the processor of an epoch."""
    start = time.process_time()
    epoch()
    return time.process_time() - start


def torchvision_path(values: dict[str, Any], size: int) -> tuple[Callable[[Tensor], Tensor], Callable[..., object]]:
    """The same augmentation by torchvision: of an image, and of a batch with its labels."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    if "crop_padding" in values:
        steps += [v2.RandomCrop(size, values["crop_padding"]), v2.RandomHorizontalFlip()]
    if "auto_augment" in values:
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(values["auto_augment"])))
    if "trivial_augment" in values:
        steps.append(v2.TrivialAugmentWide())
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if "rotation" in values:
        steps.append(v2.RandomRotation(values["rotation"], v2.InterpolationMode.BILINEAR))
    if "cutout" in values:
        area = values["cutout"] ** 2 / size**2
        steps.append(v2.RandomErasing(p=1, scale=(area, area), ratio=(1, 1)))
    mixing: Callable[..., object] = lambda images, labels: (images, labels)  # noqa: E731
    if "mixup" in values:
        mixing = v2.MixUp(alpha=values["mixup"], num_classes=CLASSES)
    if "cutmix" in values:
        mixing = v2.CutMix(alpha=values["cutmix"], num_classes=CLASSES)
    return v2.Compose(steps), mixing


def training_step_ms(options: Options) -> float:
    """Forward, loss, backward and update of VGG11 in float32, by the processor's clock: the median of three."""
    network = vgg11(classes=CLASSES, width=options.width)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    images = torch.rand(options.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels, times = torch.arange(options.batch_size) % CLASSES, []
    for _ in range(4):
        start = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
        times.append(1e3 * (time.process_time() - start))
    return median(times[1:])


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
