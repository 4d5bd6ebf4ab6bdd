"""Data sets on a model card: known ones with their licences, and the one that a run was trained on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttfs_triton.model.hub import REPOSITORY
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.nn import NetworkConfig

SAMPLE = "sample"
_FASHION = "Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017"
_NO_LICENCE = "none that is formal; published for research, cite the source"
_CIFAR = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"


@dataclass(frozen=True)
class TrainingData:
    """A data set as a card names it.

    Attributes:
        id: on the Hub, or None.
        name: for readers.
        licence: in words, or None if not known.
        source: whom to cite, or "".
        test_images: in the whole test set, or None if not known.
        local: read from a local folder: then the name is what the publisher states, and nothing was compared.
        classes: of the original, or None if not known.
    """

    id: str | None
    name: str
    licence: str | None = None
    source: str = ""
    test_images: int | None = None
    local: bool = False
    classes: int | None = None

    @property
    def seen(self) -> str | None:
        """The Hub data set that was read, for metadata and leaderboards; None for a local folder."""
        return None if self.local else self.id

    @property
    def recorded(self) -> str | None:
        """Its name in a published config.json: enough to load it again."""
        return self.seen or (SAMPLE if self.name == KNOWN[SAMPLE].name and not self.local else None)


UNNAMED = TrainingData(None, "a data set that is not named")
_SAMPLE = TrainingData(
    None, "the sample of Fashion-MNIST that comes with ttfs-triton", "MIT", _FASHION, 1000, classes=10
)
_DIGITS = "CC BY-SA 3.0 as its authors state it", "LeCun, Cortes and Burges, The MNIST Database of Handwritten Digits"
KNOWN = {
    data.id or SAMPLE: data
    for data in (
        _SAMPLE,
        TrainingData("ylecun/mnist", "MNIST", *_DIGITS, 10_000, classes=10),
        TrainingData("zalando-datasets/fashion_mnist", "Fashion-MNIST", "MIT", _FASHION, 10_000, classes=10),
        TrainingData("uoft-cs/cifar10", "CIFAR-10", _NO_LICENCE, _CIFAR, 10_000, classes=10),
        TrainingData("uoft-cs/cifar100", "CIFAR-100", _NO_LICENCE, _CIFAR, 10_000, classes=100),
    )
}


def training_data(
    settings: Mapping[str, Any], recorded: str | None, network: NetworkConfig | OwnNetwork, stated: str | None = None
) -> TrainingData:
    """The data set of a run, without the name or path of any local folder.

    A local folder stays unnamed, whatever the recipe's default is: nothing compared its content with a data set. A
    run's data set counts only if config.json, whose hash the weights hold, names it too. A known data set must have the
    network's number of classes.

    Args:
        settings: the run's configuration; empty for bare weights.
        recorded: what config.json says.
        network: for which images it is.
        stated: what the user says it is, which decides.
    Raises:
        ValueError: `stated` is no name on the Hub.
    """
    if stated is not None and stated != SAMPLE and not REPOSITORY.fullmatch(stated):
        raise ValueError(f'publish: dataset must be "{SAMPLE}" or owner/name on the Hub; got {stated!r}.')
    local = settings.get("data_dir") is not None
    name = stated or (recorded if settings.get("dataset", recorded) == recorded else None)
    known = KNOWN.get(str(name))
    if known is not None and known.classes != network.classes:
        name, known = None, None
    if stated is None and local:
        return TrainingData(None, "a local data set", local=True)
    if known is not None:
        return dataclasses.replace(known, local=local)
    if name is not None and REPOSITORY.fullmatch(str(name)):
        return TrainingData(str(name), str(name), local=local)
    return UNNAMED


def without_paths(value: Any) -> Any:
    """A setting as it may be published: a path becomes the name of its file."""
    if isinstance(value, str) and (re.match(r"[/~\\]|[A-Za-z]:[/\\]|\.\.?/", value)):
        return Path(value.replace("\\", "/")).name
    return value
