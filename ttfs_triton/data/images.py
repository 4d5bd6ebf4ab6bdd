"""Images and labels of one split of a data set, and the split of training images for validation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import pyarrow
import torch
from pyarrow import compute
from torch import Tensor

from ttfs_triton.data.decode import EncodedImages, InMemoryImages, check_rows, decode_rows
from ttfs_triton.data.events import EventWindows
from ttfs_triton.data.recordings import decode_recordings, find_recordings
from ttfs_triton.data.sources import Rows, find_column, find_rows

logger = logging.getLogger(__name__)

MANY_CLASSES = 1000
"""A column with larger numbers than this, and than the number of its rows, is refused: it numbers no classes."""


@dataclass(frozen=True)
class ImageData:
    """One split of an image-classification data set.

    Attributes:
        store: the images, decoded or encoded.
        labels: [N], int64, in [0, number of classes).
        class_names: one name for each class.
        name: Hub name or folder.
        split: name of the split as found, such as "train" or "validation".
        fingerprint: hash of pixels, labels and class names; equal for equal data, wherever it was read.
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
        """The images of an epoch: with its random crops, if they were loaded cropped."""
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
    """Load one split of a data set; every image is decoded once.

    Args:
        dataset: "sample" (bundled with the package) or a Hub name, `owner/name`. Ignored if `data_dir` is given.
        data_dir: local folder of parquet files (`train*.parquet`, also one folder down, or `train/*.parquet`), or
            of image files in class folders (`train/<class>/*.png`; in `<class>/*.png`, a fifth of each class are test
            images, see `ttfs_triton.data.sources.divide`).
        split: "train" or "test", or any other name. "test" falls back to "validation", and the log says so.
        like: the training split, for a test split, which gets its classes, channels and image size.
        classes: names of all classes, in order, for a split that may lack images of some. Default: the split's.
        image_column: column of the images. Default: `image`, `img`, or the only column of type Image.
        label_column: column of the labels. Default: `label`, `fine_label`, or the only ClassLabel column.
        image_size: resize to this height and width in pixels. Default: images must have one size.
        cropped: crop to that size instead of stretching the whole image: at the centre, or, after `in_epoch`, at
            random. Such images stay encoded; the check that all can be decoded is cached.
        max_samples: use only this many rows, in class proportions. Default: all.
        samples_seed: seed of the choice of these rows.
        max_bad_images: number of images that may be undecodable; each is logged and skipped.
        streaming: keep the images encoded, in a memory-mapped table, and decode them when they are needed.
        events: how recordings of an event camera become images; `data_dir` then holds N-MNIST or DVS-Gesture as
            published, or class folders of .bin or .npz files. Default: `data_dir` holds images.
        progress: show progress bars.
    Raises:
        ValueError: data, split, columns, labels or images are not as described.
        RuntimeError: no network and no cached copy, unreadable files, or not enough memory.
    """
    options = {"max_bad_images": max_bad_images, "progress": progress}
    if events is not None:
        beside = {"image_column": image_column, "label_column": label_column, "image_size": image_size}
        given = [name for name, value in (beside | {"cropped": cropped, "streaming": streaming}).items() if value]
        if data_dir is None or given:
            raise ValueError(
                "load_images: events must go with data_dir and without image_column, label_column, image_size, cropped "
                f"and streaming; got {', '.join(given) or 'no data_dir'}. Recordings lie in a folder; pool makes them "
                "smaller."
            )
        found = find_recordings(Path(data_dir), split)
        where = f"the {found.split} split of {found.origin}"
        labels = torch.tensor([item.label for item in found.items], dtype=torch.int64)
        labels, class_names = _as_training_numbers(labels, found.class_names, like, classes, where)
        row_numbers = _chosen(labels, max_samples, samples_seed)
        decoded = decode_recordings(found, row_numbers, events, **options)
    else:
        found = find_rows(dataset, data_dir, split, progress=progress)
        if found.split != split:
            logger.warning("%s has no %s split; using %s.", found.origin, split, found.split)
        where = f"the {found.split} split of {found.origin}"
        encoded = _encoded_images(found, image_column)
        labels, class_names = _labels(found, label_column, where, like, classes)
        row_numbers = _chosen(labels, max_samples, samples_seed)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        if like is not None and size is None:
            size = (like.shape[2], like.shape[3])
        limits = {"channels": None if like is None else like.shape[1], **options}
        if cropped:
            if size is None:
                raise ValueError(
                    "load_images: image_size must be given for cropped images; got None. Add --image-size."
                )
            decoded = check_rows(encoded, row_numbers, size, where=where, **limits)
        else:
            resize, keep = image_size is not None, not streaming
            decoded = decode_rows(encoded, row_numbers, keep=keep, where=where, size=size, resize=resize, **limits)
    labels = labels[row_numbers[decoded.kept]]
    fingerprint = _fingerprint(decoded.digest, decoded.images.shape, class_names, labels)
    hub_name = dataset if data_dir is None else None
    return ImageData(
        decoded.images, labels, class_names, found.origin, found.split, fingerprint, decoded.skipped, hub_name
    )


def _chosen(labels: Tensor, max_samples: int | None, seed: int) -> Tensor:
    """Row numbers of all images, or of `max_samples` images in class proportions."""
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"load_images: max_samples must be at least 1; got {max_samples}. None uses all.")
    count = len(labels) if max_samples is None else min(max_samples, len(labels))
    return _stratified_choice(labels, count, seed)


def images_of_tensors(
    images: Tensor, labels: Tensor, *, split: str = "train", class_names: Sequence[str] | None = None
) -> ImageData:
    """One split from tensors in memory.

    Args:
        images: [N, C, height, width], uint8.
        labels: [N], int64, in [0, number of classes).
        split: name of the split.
        class_names: one name for each class. Default: "0", "1", ... up to the largest label.
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


def train_validation_split(data: ImageData, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Choose validation images from the training split, in class proportions; the seed determines the choice.

    Args:
        data: the training split.
        fraction: share of the images for validation, in [0, 1).
        seed: seed of the choice.
    Returns:
        Indices of training and of validation images, int64, ascending. Class proportions are kept to within
        one image a class.
    Raises:
        ValueError: the split leaves nothing to train on.
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
    """Random images for calibration: at most `count` of those at the indices `among` ([n], int64; default: all).

    Returns:
        [count, C, height, width], float32 in [0, 1].
    """
    among = torch.arange(len(data)) if among is None else among
    return data.images_at(draw_indices(among, count, seed)).float() / 255


def draw_indices(among: Tensor, count: int, seed: int = 0) -> Tensor:
    """At most `count` of the indices `among`, [n], int64, at random: classes may come in order, or in turn."""
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


def _encoded_images(rows: Rows, name: str | None) -> datasets.Dataset:
    column = find_column(rows, "image_column", name)
    table = rows.table.select_columns(column)
    try:
        table = table.cast_column(column, datasets.Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise ValueError(
            f"load_images: image_column must hold encoded images; got {column!r} of type "
            f"{rows.table.features[column]} in {rows.origin}. Name another with --image-column."
        ) from error
    for chunk in table.data.column(column).chunks if rows.embedded else ():
        named = compute.and_(chunk.field("bytes").is_null(), chunk.field("path").is_valid())  # pyright: ignore
        if compute.any(named).as_py():  # pyright: ignore
            raise ValueError(
                f"load_images: image_column must hold images, not names of files; got names in {column!r} of "
                f"{rows.origin}. Put the files' bytes into the table."
            )
    return table


def _labels(
    rows: Rows, name: str | None, where: str, like: ImageData | None, classes: Sequence[str] | None
) -> tuple[Tensor, list[str]]:
    """Labels [N] int64 and class names; with `like` or `classes`, in their numbering."""
    column = find_column(rows, "label_column", name)
    feature = rows.table.features[column]
    table = cast(pyarrow.Table, rows.table.select_columns(column).with_format("arrow")[:])
    values = table.column(column).combine_chunks()
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"load_images: labels must be given; got none in row {row} of {where}. Remove the row.")
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    if pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type):
        strings = values.to_pylist()
        names = sorted(set(strings))
        positions = {text: i for i, text in enumerate(names)}
        labels = torch.tensor([positions[text] for text in strings], dtype=torch.int64)
    elif pyarrow.types.is_integer(values.type):
        labels = torch.from_numpy(values.to_numpy(zero_copy_only=False).astype(np.int64))
    else:
        raise ValueError(
            f"load_images: labels must be whole numbers or strings; got {values.type} in column {column!r} of "
            f"{where}. Name another column with --label-column."
        )
    if len(labels) == 0:
        raise ValueError(f"load_images: {where} must hold rows; got none. Check the data.")
    if names is None and like is not None:
        names = like.class_names
        if names != _numbers(len(names)):
            said = ", ".join(names)
            logger.warning("labels are numbers in %s; taken for the classes %.200s, in order.", where, said)
    elif names is None:
        names = _numbered_classes(labels, where)
    wrong = ((labels < 0) | (labels >= len(names))).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"load_images: labels must be in 0 to {len(names) - 1}; got {int(labels[row])} in row {row} of {where} "
            f"({len(wrong)} such rows). Splits without labels carry -1: choose another split."
        )
    return _as_training_numbers(labels, names, like, classes, where)


def _numbers(count: int) -> list[str]:
    """Names of classes that have only numbers: "0", "1", ..."""
    return [str(number) for number in range(count)]


def _numbered_classes(labels: Tensor, where: str) -> list[str]:
    """Names for classes that have only numbers: "0", "1", ..."""
    known = int(labels.max()) + 1
    if known > max(MANY_CLASSES, len(labels)):
        row = int(labels.argmax())
        raise ValueError(
            f"load_images: labels must number the classes from 0; got {known - 1} in row {row} of {where}, which "
            f"has {len(labels)} rows. Number the classes without gaps, or name them."
        )
    if (empty := known - len(labels.unique())) > 0:
        logger.warning("%d of %d classes have no image in %s.", empty, known, where)
    return _numbers(known)


def _as_training_numbers(
    labels: Tensor, names: list[str], like: ImageData | None, classes: Sequence[str] | None, where: str
) -> tuple[Tensor, list[str]]:
    """Labels and class names of a split; a test split is numbered like the training split, `like`, or by `classes`."""
    if like is None and classes is not None and len(names) < len(classes):
        known = list(classes)
        names = known[: len(names)] if names == _numbers(len(names)) else names
        if set(names) <= set(known):
            lacking = ", ".join(text for text in known if text not in names)
            logger.warning("%s has no images of %.200s.", where, lacking)
            return torch.tensor([known.index(text) for text in names])[labels], known
    if like is None or names == like.class_names:
        return labels, names
    unknown = [text for text in names if text not in like.class_names]
    if unknown:
        raise ValueError(
            f"load_images: classes of {where} must be those of the training split; got {', '.join(unknown[:5])}. "
            "Use the same data set for both."
        )
    numbering = torch.tensor([like.class_names.index(text) for text in names])
    return numbering[labels], like.class_names
