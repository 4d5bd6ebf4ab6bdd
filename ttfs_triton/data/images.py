"""Images and labels of one split of a data set: loaded, divided, drawn, and placed in memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ttfs_triton.data.decode import EncodedImages, InMemoryImages, crop_rows, decode_rows
from ttfs_triton.data.events import EventWindows
from ttfs_triton.data.pixels import image_pixels
from ttfs_triton.data.recordings import decode_recordings, find_recordings
from ttfs_triton.data.sources import encoded_images, find_labels, find_rows

logger = logging.getLogger(__name__)

DEVICE_SHARE = 0.5  # share of a device's free memory that images may take; the rest is for the network


@dataclass(frozen=True)
class ImageData:
    """One split of an image-classification data set.

    Attributes:
        store: the images, decoded or encoded.
        labels: [N], int64, in [0, number of classes).
        class_names: one name per class.
        name: Hub name or folder.
        split: name of the split in the data, such as "train" or "validation".
        fingerprint: hash of pixels, labels and class names; equal for equal data, wherever they were read. For cropped
            images, the lengths of files stand for the pixels.
        skipped: row numbers of images that could not be decoded.
        dataset: Hub name, or "sample"; None for local folders and tensors.
    """

    store: InMemoryImages | EncodedImages
    labels: Tensor
    class_names: list[str]
    name: str
    split: str
    fingerprint: str
    skipped: list[int] = field(default_factory=list)
    dataset: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, height, width)."""
        return self.store.shape

    @property
    def images(self) -> Tensor:
        """All images, decoded: [N, C, height, width], uint8."""
        return self.images_at(torch.arange(len(self)))

    @property
    def device(self) -> torch.device:
        """Device of labels and indices, and of the images if they are in memory."""
        return self.labels.device

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""
        return isinstance(self.store, InMemoryImages)

    def images_at(self, indices: Tensor) -> Tensor:
        """Images at `indices` ([b], int64): [b, C, height, width], uint8, channels last."""
        return self.store.images_at(indices)

    def in_epoch(self, seed: int, epoch: int) -> ImageData:
        """The images as an epoch shows them: with its random crops, if they were loaded cropped."""
        return self if isinstance(self.store, InMemoryImages) else replace(self, store=self.store.in_epoch(seed, epoch))


def load_images(
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    *,
    split: str = "train",
    like: ImageData | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    cropped: bool = False,
    max_samples: int | None = None,
    samples_seed: int = 0,
    max_bad_images: int = 10,
    streaming: bool = False,
    events: EventWindows | None = None,
    progress: bool = False,
) -> ImageData:
    """Load one split of a data set; every image is decoded once, unless images are cropped.

    Args:
        dataset: "sample" (bundled with the package) or a Hub name, `owner/name`. Ignored if `data_dir` is given.
        data_dir: local folder of parquet files (`train*.parquet`, also one folder down, or `train/*.parquet`), or
            of image files in class folders (`train/<class>/*.png`, or `<class>/*.png`, of which a fifth of every class
            are test images, see `ttfs_triton.data.sources.divide`).
        split: "train" or "test", or any other name. "test" falls back to "validation", and the log says so.
        like: the training split; the test split gets its classes, channels and image size.
        classes: names of all classes, in order, for a split that may lack images of some. Default: the split's.
        image_column: column of the images. Default: `image`, `img`, or the only column of type Image.
        label_column: column of the labels. Default: `label`, `fine_label`, or the only ClassLabel column.
        image_size: resize to this height and width in pixels. Default: images must have one size.
        cropped: crop to that size instead of stretching the whole image: at the centre, or, after `in_epoch`, at
            random. Images stay encoded and are not checked before: one that cannot be decoded is black.
        max_samples: use only this many rows, in class proportions. Default: all.
        samples_seed: seed of the choice of these rows.
        max_bad_images: number of images that may be undecodable; they are logged, and skipped or black.
        streaming: keep the images encoded, in a memory-mapped table, and decode them at every access.
        events: how recordings of an event camera become images; `data_dir` then holds N-MNIST or DVS-Gesture as
            published, or class folders of .bin or .npz files. Default: `data_dir` holds images.
        progress: show progress bars.
    Raises:
        ValueError: data, split, columns, labels or images are not as described.
        RuntimeError: no connection and no cached copy, unreadable files, or not enough memory.
    """
    options: dict[str, Any] = {"max_bad_images": max_bad_images, "progress": progress}
    if events is not None:
        beside = {"image_column": image_column, "label_column": label_column, "image_size": image_size}
        given = [name for name, value in (beside | {"cropped": cropped, "streaming": streaming}).items() if value]
        if data_dir is None or given:
            raise ValueError(
                "load_images: events must go with data_dir and without image_column, label_column, image_size, cropped "
                f"and streaming; got {', '.join(given) or 'no data_dir'}. Recordings lie in a folder; pool makes them "
                "smaller."
            )
        rows = find_recordings(Path(data_dir), split)
    else:
        rows = find_rows(dataset, data_dir, split, progress=progress)
    if rows.split.lower() != split.lower():
        logger.warning("%s has no %s split; using %s.", rows.origin, split, rows.split)
    names = None if like is None else like.class_names
    labels, class_names = find_labels(rows, label_column, names, classes)
    count = len(labels) if max_samples is None else min(max_samples, len(labels))
    row_numbers = _stratified_choice(labels, count, samples_seed)
    if events is not None:
        decoded = decode_recordings(rows, row_numbers, events, **options)
    else:
        encoded, size = encoded_images(rows, image_column), image_size
        if size is None and like is not None:
            size = like.shape[2:]
        elif isinstance(size, int):
            size = (size, size)
        options |= {"where": rows.where, "channels": None if like is None else like.shape[1]}
        if cropped:
            if size is None:
                raise ValueError(
                    "load_images: image_size must be given for cropped images; got None. Add --image-size."
                )
            decoded = crop_rows(encoded, row_numbers, size, **options)
        else:
            resize, keep = image_size is not None, not streaming
            decoded = decode_rows(encoded, row_numbers, keep=keep, size=size, resize=resize, **options)
    labels = labels[row_numbers[decoded.kept]]
    return ImageData(
        decoded.images,
        labels,
        class_names,
        name=rows.origin,
        split=rows.split,
        fingerprint=_fingerprint(decoded.digest, decoded.images.shape, class_names, labels),
        skipped=decoded.skipped,
        dataset=dataset if data_dir is None else None,
    )


def images_of_tensors(
    images: Tensor, labels: Tensor, *, split: str = "train", class_names: Sequence[str] | None = None
) -> ImageData:
    """One split from tensors in memory.

    Args:
        images: [N, C, height, width], uint8.
        labels: [N], int64, in [0, number of classes).
        split: name of the split.
        class_names: one name per class. Default: "0", "1", ... up to the largest label.
    Raises:
        TypeError, ValueError: tensors have another dtype or shape, there are no images, or a label has no name.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images_of_tensors: images must be uint8, pixels from 0 to 255; got {images.dtype}. For values in [0, 1], "
            "give (255 * images).round().byte()."
        )
    if images.dim() != 4 or 0 in images.shape or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            "images_of_tensors: images must be [N, C, height, width] and labels [N] int64; got "
            f"{list(images.shape)} and {list(labels.shape)} {labels.dtype}."
        )
    names = [str(number) for number in range(int(labels.max()) + 1)] if class_names is None else list(class_names)
    if not bool(((labels >= 0) & (labels < len(names))).all()):
        raise ValueError(
            f"images_of_tensors: labels must be in 0 to {len(names) - 1}; got {labels.min()} to {labels.max()}."
        )
    pixels = images.cpu().permute(0, 2, 3, 1).contiguous()
    digest = hashlib.sha256(pixels.numpy().data).hexdigest()
    fingerprint = _fingerprint(digest, tuple(images.shape), names, labels.cpu())
    return ImageData(InMemoryImages(pixels), labels.cpu(), names, "tensors", split, fingerprint)


def tensors_of_dataset(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Images [N, C, height, width] and labels [N], int64, of a map-style data set, whose items are read once.

    An item is a pair: an image of Pillow or a tensor [C, height, width], and a whole number.
    """
    rows: Any = dataset
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise TypeError(f"tensors_of_dataset: dataset must have a length and items; got {type(rows).__name__}.")
    images, labels = [], []
    for image, label in map(rows.__getitem__, range(len(rows))):
        if isinstance(image, Image.Image):
            image = torch.from_numpy(image_pixels(image).copy()).permute(2, 0, 1)
        images.append(image)
        labels.append(int(label))
    if len(shapes := {tuple(image.shape) for image in images}) != 1:
        raise ValueError(f"tensors_of_dataset: images must have one shape; got {sorted(shapes)[:3]}. Resize them.")
    return torch.stack(images), torch.tensor(labels)


def train_validation_split(data: ImageData, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of training and of validation images, int64, ascending; the seed draws a `fraction` for validation.

    Both have the classes in the same proportions, to within one image per class.
    """
    count = round(fraction * len(data))
    if not 0 <= count < len(data):
        raise ValueError(
            f"train_validation_split: fraction must leave images to train on; got {fraction:g} of {len(data)} images. "
            "Lower --validation-fraction."
        )
    chosen = torch.zeros(len(data), dtype=torch.bool)
    chosen[_stratified_choice(data.labels, count, seed)] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def _fingerprint(digest: str, shape: tuple[int, ...], class_names: list[str], labels: Tensor) -> str:
    content = hashlib.sha256(f"{digest} {shape} {class_names}".encode())
    content.update(labels.numpy().astype("<i8").tobytes())
    return content.hexdigest()


def draw_images(data: ImageData, count: int, seed: int, among: Tensor | None = None) -> Tensor:
    """At most `count` images, [n, C, height, width], float32 in [0, 1], drawn from indices `among` (default: all)."""
    among = torch.arange(len(data)) if among is None else among
    return data.images_at(draw_indices(among, count, seed)).float() / 255


def draw_indices(among: Tensor, count: int, seed: int = 0) -> Tensor:
    """At most `count` of the indices `among`, [n], int64, at random, since data may be sorted by class."""
    return among[torch.randperm(len(among), generator=torch.Generator().manual_seed(seed))[:count]]


def _stratified_choice(labels: Tensor, count: int, seed: int) -> Tensor:
    """`count` positions, ascending, in class proportions (largest remainder)."""
    sizes = torch.bincount(labels)
    quota = sizes * count
    counts = quota // len(labels)
    remainder = quota % len(labels)
    counts[remainder.argsort(descending=True, stable=True)[: count - int(counts.sum())]] += 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class after class, shuffled within
    place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return order[place < counts.repeat_interleave(sizes)].sort().values


def place_images(
    splits: Sequence[ImageData], device: torch.device, wanted: Literal["auto", "device", "host"] = "auto"
) -> tuple[list[ImageData], str]:
    """The splits, on the `device` that trains or in the host's main memory, and a line that says where they are.

    "auto" takes the device if all splits need at most half of its free memory. Encoded images stay on disk.
    """
    stores = [split.store for split in splits]
    size = sum(store.pixels.nbytes for store in stores if isinstance(store, InMemoryImages))
    if size == 0:
        return list(splits), "images: encoded on disk, decoded batch by batch"
    if device.type == "cpu":
        return _placed(splits, device), f"images: {_gib(size)} in main memory"
    free = torch.cuda.mem_get_info(device)[0]
    why = "as asked for" if wanted == "host" else f"{_gib(free)} are free on the device"
    if wanted == "device" or (wanted == "auto" and size <= DEVICE_SHARE * free):
        try:
            return _placed(splits, device), f"images: {_gib(size)} on the device, {_gib(free)} were free"
        except torch.OutOfMemoryError as error:
            if wanted == "device":
                raise RuntimeError(
                    f"place_images: the images must fit into the device's memory; got {_gib(size)}, with "
                    f"{_gib(free)} free. Use --data-placement host, or auto."
                ) from error
    return _placed(splits, torch.device("cpu"), pinned=True), f"images: {_gib(size)} in main memory, {why}"


def _placed(splits: Sequence[ImageData], device: torch.device, pinned: bool = False) -> list[ImageData]:
    return [
        replace(split, store=InMemoryImages(split.store.pixels.to(device), pinned), labels=split.labels.to(device))
        if isinstance(split.store, InMemoryImages)
        else split
        for split in splits
    ]


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
