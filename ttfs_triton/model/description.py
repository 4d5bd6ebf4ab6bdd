"""config.json: all that is needed to build a network again and to feed it with images. Defined here only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import ttfs_triton
from ttfs_triton.data.events import EventWindows
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.model.weights import LoadError
from ttfs_triton.nn import NetworkConfig

CONFIG = "config.json"
SPECIFIED, OWN = 3, 4  # from 3 on, the weights know their config.json; the keys are those of 2
FORMAT_VERSION = 4  # of networks of the user's; all others are written as 3, so that older versions read on
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
        events: what becomes of recordings of an event camera, where images are made of such. None: they are images.
    Raises:
        ValueError: another mode, filter or fit, or a size or divisor that is not positive.
    """

    size: tuple[int, int]
    mode: str | None
    divisor: float = 255.0
    resize: str = "bilinear"
    fit: Literal["stretch", "crop"] = "stretch"
    events: EventWindows | None = None

    def __post_init__(self) -> None:
        if isinstance(self.size, list):  # JSON has no tuples
            object.__setattr__(self, "size", tuple(self.size))
        if isinstance(self.events, Mapping):
            object.__setattr__(self, "events", EventWindows(**self.events))
        sides = self.size if isinstance(self.size, tuple) else ()
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(f"Preprocessing: size must be two positive sizes, height and width; got {self.size}.")
        if self.mode not in ("L", "RGB", None):
            raise ValueError(f'Preprocessing: mode must be "L", "RGB" or None; got {self.mode!r}.')
        if self.resize != "bilinear":
            raise ValueError(f'Preprocessing: resize must be "bilinear"; got {self.resize!r}.')
        if self.fit not in ("stretch", "crop"):
            raise ValueError(f'Preprocessing: fit must be "stretch" or "crop"; got {self.fit!r}.')
        if not isinstance(self.events, EventWindows | None):
            raise ValueError(f"Preprocessing: events must be EventWindows or None; got {self.events!r:.80}.")
        number = isinstance(self.divisor, int | float) and not isinstance(self.divisor, bool)
        if not number or not 0 < self.divisor < math.inf:
            raise ValueError(f"Preprocessing: divisor must be positive and finite; got {self.divisor!r:.80}.")

    @classmethod
    def of(
        cls,
        network: NetworkConfig | OwnNetwork,
        fit: Literal["stretch", "crop"] = "stretch",
        events: EventWindows | None = None,
    ) -> Preprocessing:
        """What training does for this network: the darkest pixel is 0, the brightest its `max_value`."""
        mode = _MODES.get(network.in_channels)
        return cls(network.image_size, mode, 255.0 / network.max_value, fit=fit, events=events)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; `fit` and `events` only where needed, so that older versions, which have none, read on."""
        values = dataclasses.asdict(self) | {"size": list(self.size)}
        usual = {"fit": "stretch", "events": None}
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


@dataclass(frozen=True)
class BaseModel:
    """The weights that training or conversion started from.

    Attributes:
        file: name of the file.
        sha256: of the file, hexadecimal.
        name: repository on the Hub, or None for a local file.
        revision: commit of the repository, or None.
    Raises:
        ValueError: something else.
    """

    file: str
    sha256: str
    name: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not (value is None and field.default is None):
                raise ValueError(f"BaseModel: {field.name} must be text; got {value!r:.80}.")


def _library() -> dict[str, str]:
    return {"name": LIBRARY, "version": ttfs_triton.__version__}


@dataclass(frozen=True)
class ModelDescription:
    """The content of a config.json.

    Attributes:
        network: the network; of one that code of the user's builds, what is known of it.
        class_names: one a class.
        preprocessing: of its images.
        dataset: that it was trained on: a Hub name or "sample"; None if it was read from a folder, or not known.
            Older versions wrote a folder's name.
        base_model: that it was made from, or None.
        library: name and version of the package that wrote it; `to_dict` writes those of this one.
    Raises:
        ValueError: as many class names as classes are needed, and texts; preprocessing must give what the network
            takes.

    Example:
        >>> network = NetworkConfig("4C3-P2-16", image_size=(8, 8), classes=2)
        >>> description = ModelDescription.of(network, class_names=["cat", "dog"])
        >>> description.preprocessing
        Preprocessing(size=(8, 8), mode='L', divisor=255.0, resize='bilinear', fit='stretch', events=None)
        >>> ModelDescription.from_dict(description.to_dict()) == description
        True
    """

    network: NetworkConfig | OwnNetwork
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    dataset: str | None = None
    base_model: BaseModel | None = None
    library: Mapping[str, str] = dataclasses.field(default_factory=_library)

    def __post_init__(self) -> None:
        if isinstance(self.class_names, list):
            object.__setattr__(self, "class_names", tuple(self.class_names))
        names = self.class_names if isinstance(self.class_names, tuple) else ()
        if len(names) != self.network.classes or not all(isinstance(name, str) for name in names):
            raise ValueError(
                f"ModelDescription: class_names must be {self.network.classes} strings, one a class; "
                f"got {self.class_names!r:.400}."
            )
        if not isinstance(self.dataset, str | None):
            raise ValueError(f"ModelDescription: dataset must be text or None; got {self.dataset!r:.80}.")
        texts = (*self.library, *self.library.values()) if isinstance(self.library, Mapping) else (None,)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"ModelDescription: library must hold texts; got {self.library!r:.80}.")
        wanted = (self.network.image_size, _MODES.get(self.network.in_channels))
        if (self.preprocessing.size, self.preprocessing.mode) != wanted:
            raise ValueError(
                f"ModelDescription: preprocessing must give the network's {wanted[0]} in mode {wanted[1]}; "
                f"got {self.preprocessing}."
            )
        events = self.preprocessing.events
        if events is not None and 2 * events.count != self.network.in_channels:
            raise ValueError(
                f"ModelDescription: events must have half as many windows as the network has channels, "
                f"{self.network.in_channels}; got {events.count}."
            )

    @classmethod
    def of(
        cls,
        network: NetworkConfig | OwnNetwork,
        *,
        class_names: Sequence[str] | None = None,
        dataset: str | None = None,
        base_model: BaseModel | None = None,
        fit: Literal["stretch", "crop"] = "stretch",
        events: EventWindows | None = None,
    ) -> ModelDescription:
        """A description of a network, preprocessed as in training.

        Args:
            network, dataset, base_model: as above.
            class_names: Default: "0", "1", ...
            fit, events: of images, see `Preprocessing`.
        """
        names = [str(number) for number in range(network.classes)] if class_names is None else class_names
        return cls(network, tuple(names), Preprocessing.of(network, fit, events), dataset, base_model)

    def replace(self, **changes: Any) -> ModelDescription:
        """A copy with some attributes changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON values."""
        return {
            "format_version": OWN if isinstance(self.network, OwnNetwork) else SPECIFIED,
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
        version = values.get("format_version") if isinstance(values, Mapping) else None
        if not isinstance(version, int) or isinstance(version, bool):
            _refuse("values", "be an object with a format_version", f"{type(values).__name__} {values!r:.80}")
        if not 1 <= version <= FORMAT_VERSION:
            _refuse("format_version", f"be 1 to {FORMAT_VERSION}", version, "Upgrade ttfs-triton.")
        known = {"format_version", "network", "class_names", "dataset"}
        if version >= 2:
            known |= {"library", "preprocessing", "base_model"}
        if unknown := sorted(set(values) - known):
            _refuse("keys", f"be among {', '.join(sorted(known))}", ", ".join(unknown))
        if not isinstance(values.get("network", {}), Mapping):
            _refuse("network", "be an object", f"{values['network']!r:.80}")
        try:
            network = _network(values["network"], version)
            names = values.get("class_names") or None
            if not isinstance(names, list | None):
                _refuse("class_names", f"be {network.classes} strings, one a class", f"{names!r:.80}")
            description = cls.of(network, class_names=names, dataset=values.get("dataset"))
            if version == 1:
                return description.replace(library={"name": LIBRARY})
            base = values.get("base_model")
            return description.replace(
                preprocessing=Preprocessing(**values["preprocessing"]),
                base_model=None if base is None else BaseModel(**base),
                library=values["library"],
            )
        except KeyError as error:
            _refuse("values", f"have the key {error}", f"only {', '.join(values)}")
        except (TypeError, ValueError) as error:
            raise LoadError(f"ModelDescription.from_dict: values must describe a network; {error}") from error


def _network(values: Mapping[str, Any], version: int) -> NetworkConfig | OwnNetwork:
    if version >= OWN and "builder" in values:
        return OwnNetwork.from_dict(values)
    return NetworkConfig.from_dict(values)


def _refuse(name: str, rule: str, value: object, remedy: str = "") -> NoReturn:
    raise LoadError(f"ModelDescription.from_dict: {name} must {rule}; got {value}. {remedy}".rstrip())
