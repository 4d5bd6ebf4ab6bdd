"""config.json: all that is needed to build a network again and to feed it with images. Defined here only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import ttfs_triton
from ttfs_triton.atomic import write_json
from ttfs_triton.model.weights import LoadError
from ttfs_triton.nn import NetworkConfig

CONFIG = "config.json"
FORMAT_VERSION = 2
LIBRARY = "ttfs-triton"
TAGS = ["spiking-neural-network", "time-to-first-spike", "neuromorphic", "image-classification"]
PAPER = (
    "https://openaccess.thecvf.com/content/ICCV2023/html/Wei_Temporal-Coded_Spiking_Neural_Networks_with_Dynamic_"
    "Firing_Threshold_Learning_with_ICCV_2023_paper.html"
)
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input: converted to a mode, resized, divided.

    Attributes:
        size: (height, width) of the input.
        mode: "L" or "RGB", Pillow's name; None for another number of channels, where only tensors will do.
        divisor: 8-bit pixels are divided by it.
        resize: filter, for images of another size; "bilinear" as Pillow means it, over the area of a pixel.
        fit: how an image of another shape becomes one of that size: "stretch" it, or "crop": the shorter side is
            resized to 8/7 of what is wanted and the middle cut out. Pixels in tensors are taken to be fitted already if
            they have the size.
    Raises:
        ValueError: another mode, filter or fit, or a size or divisor that is not positive.
    """

    size: tuple[int, int]
    mode: str | None
    divisor: float = 255.0
    resize: str = "bilinear"
    fit: Literal["stretch", "crop"] = "stretch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))  # JSON has no tuples
        if len(self.size) != 2 or not all(isinstance(side, int) and side > 0 for side in self.size):
            raise ValueError(f"Preprocessing: size must be two positive sizes, height and width; got {self.size}.")
        if self.mode not in ("L", "RGB", None):
            raise ValueError(f'Preprocessing: mode must be "L", "RGB" or None; got {self.mode!r}.')
        if self.resize != "bilinear":
            raise ValueError(f'Preprocessing: resize must be "bilinear"; got {self.resize!r}.')
        if self.fit not in ("stretch", "crop"):
            raise ValueError(f'Preprocessing: fit must be "stretch" or "crop"; got {self.fit!r}.')
        if not self.divisor > 0:
            raise ValueError(f"Preprocessing: divisor must be positive; got {self.divisor}.")

    @classmethod
    def of(cls, network: NetworkConfig, fit: Literal["stretch", "crop"] = "stretch") -> Preprocessing:
        """What training does for this network: the darkest pixel is 0, the brightest its `max_value`."""
        return cls(network.image_size, _MODES.get(network.in_channels), 255.0 / network.max_value, fit=fit)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `fit` only if it is not "stretch", so that older versions, which can do no other, read on."""
        values = dataclasses.asdict(self) | {"size": list(self.size)}
        return {name: value for name, value in values.items() if (name, value) != ("fit", "stretch")}


@dataclass(frozen=True)
class BaseModel:
    """The weights that training or conversion started from.

    Attributes:
        file: name of the file.
        sha256: of the file, hexadecimal.
        name: repository on the Hub, or None for a local file.
        revision: commit of the repository, or None.
    """

    file: str
    sha256: str
    name: str | None = None
    revision: str | None = None


def _library() -> dict[str, str]:
    return {"name": LIBRARY, "version": ttfs_triton.__version__}


@dataclass(frozen=True)
class ModelDescription:
    """The content of a config.json.

    Attributes:
        network: the network.
        class_names: one a class.
        preprocessing: of its images.
        dataset: that it was trained on: a Hub name, "sample", or the name of a local folder; None if not known.
        base_model: that it was made from, or None.
        library: name and version of the package that wrote it; `to_dict` writes those of this one.
    Raises:
        ValueError: as many class names as classes are needed; preprocessing must give what the network takes.

    Example:
        >>> network = NetworkConfig("4C3-P2-16", image_size=(8, 8), classes=2)
        >>> description = ModelDescription.of(network, class_names=["cat", "dog"])
        >>> description.preprocessing
        Preprocessing(size=(8, 8), mode='L', divisor=255.0, resize='bilinear', fit='stretch')
        >>> ModelDescription.from_dict(description.to_dict()) == description
        True
    """

    network: NetworkConfig
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    dataset: str | None = None
    base_model: BaseModel | None = None
    library: Mapping[str, str] = dataclasses.field(default_factory=_library)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if len(self.class_names) != self.network.classes or not all(isinstance(n, str) for n in self.class_names):
            raise ValueError(
                f"ModelDescription: class_names must be {self.network.classes} strings, one a class; "
                f"got {list(self.class_names)}."
            )
        wanted = (self.network.image_size, _MODES.get(self.network.in_channels))
        if (self.preprocessing.size, self.preprocessing.mode) != wanted:
            raise ValueError(
                f"ModelDescription: preprocessing must give the network's {wanted[0]} in mode {wanted[1]}; "
                f"got {self.preprocessing}."
            )

    @classmethod
    def of(
        cls,
        network: NetworkConfig,
        *,
        class_names: Sequence[str] | None = None,
        dataset: str | None = None,
        base_model: BaseModel | None = None,
        fit: Literal["stretch", "crop"] = "stretch",
    ) -> ModelDescription:
        """A description of a network, preprocessed as in training.

        Args:
            network, dataset, base_model: as above.
            class_names: Default: "0", "1", ...
            fit: of images, see `Preprocessing`.
        """
        names = [str(number) for number in range(network.classes)] if class_names is None else class_names
        return cls(network, tuple(names), Preprocessing.of(network, fit), dataset, base_model)

    def replace(self, **changes: Any) -> ModelDescription:
        """A copy with some attributes changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON values."""
        return {
            "format_version": FORMAT_VERSION,
            "library": _library(),
            "network": self.network.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "class_names": list(self.class_names),
            "dataset": self.dataset,
            "base_model": None if self.base_model is None else dataclasses.asdict(self.base_model),
        }

    @classmethod
    def from_dict(cls, values: Any) -> ModelDescription:
        """The description that `to_dict` gave, or that an older version of this package did.

        Raises:
            LoadError: a newer format, unknown or missing keys, or values that are not a network's.
        """
        if not isinstance(values, Mapping) or not isinstance(values.get("format_version"), int):
            _refuse("values", "be an object with a format_version", f"{type(values).__name__} {values!r:.80}")
        version = values["format_version"]
        if not 1 <= version <= FORMAT_VERSION:
            _refuse("format_version", f"be 1 to {FORMAT_VERSION}", version, "Upgrade ttfs-triton.")
        known = {"format_version", "network", "class_names", "dataset"}
        if version >= 2:
            known |= {"library", "preprocessing", "base_model"}
        if unknown := sorted(set(values) - known):
            _refuse("keys", f"be among {', '.join(sorted(known))}", ", ".join(unknown))
        try:
            network = NetworkConfig.from_dict(values["network"])
            description = cls.of(network, class_names=values.get("class_names") or None, dataset=values.get("dataset"))
            if version == 1:
                return description.replace(library={"name": LIBRARY})
            base = values.get("base_model")
            return description.replace(
                preprocessing=Preprocessing(**values["preprocessing"]),
                base_model=None if base is None else BaseModel(**base),
                library=dict(values["library"]),
            )
        except KeyError as error:
            _refuse("values", f"have the key {error}", f"only {', '.join(values)}")
        except (TypeError, ValueError) as error:
            raise LoadError(f"ModelDescription.from_dict: values must describe a network; {error}") from error

    @classmethod
    def read(cls, path: Path) -> ModelDescription:
        """Read a config.json.

        Raises:
            LoadError: there is none, or as `from_dict`; names the file.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise LoadError(
                f"load: {path} must say what network the weights are of; there is none. "
                "Training writes one beside its weights; keep both together."
            ) from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise LoadError(f"load: {path} must be what training wrote; it is no JSON ({error}).") from error
        except LoadError as error:
            raise LoadError(f"load: {path} must be what training wrote; {error}") from error

    def write(self, path: Path) -> None:
        """Write a config.json, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(path, self.to_dict())


def _refuse(name: str, rule: str, value: object, remedy: str = "") -> NoReturn:
    raise LoadError(f"ModelDescription.from_dict: {name} must {rule}; got {value}. {remedy}".rstrip())
