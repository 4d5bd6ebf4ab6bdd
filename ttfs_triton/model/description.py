"""The content of config.json: how a network is built and how its images are prepared. Only this file checks it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import nn

import ttfs_triton
from ttfs_triton.command_line import problem_lines
from ttfs_triton.data.events import EventWindows
from ttfs_triton.model.own_network import OwnNetwork
from ttfs_triton.nn import NetworkConfig, TTFSNetwork, network_graph

CONFIG = "config.json"
SPECIFIED, OWN = 3, 4  # formats: networks with a specification, networks that the user's code builds
LIBRARY = "ttfs-triton"
TAGS = ["spiking-neural-network", "time-to-first-spike", "neuromorphic", "image-classification"]
PAPER = (
    "https://openaccess.thecvf.com/content/ICCV2023/html/Wei_Temporal-Coded_Spiking_Neural_Networks_with_Dynamic_"
    "Firing_Threshold_Learning_with_ICCV_2023_paper.html"
)
_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
Fit = Literal["stretch", "crop"]
_STRICT = ConfigDict(strict=True, extra="forbid")


class LoadError(ValueError):
    """Files hold no network of this package; the message says what was looked for and where."""


@dataclass(frozen=True, config=_STRICT)
class Preprocessing:
    """How an image becomes the network's input: converted to a mode, resized, divided.

    Attributes:
        size: (height, width) of the input.
        mode: Pillow's mode, "L" or "RGB"; None for other numbers of channels, for which images must be tensors.
        divisor: number by which 8-bit pixels are divided.
        resize: filter for images of another size: Pillow's "bilinear", which averages over the area of a pixel.
        fit: how an image of another shape is brought to `size`: "stretch", or "crop", which resizes the image to cover
            8/7 of `size` and cuts out the middle. Arrays and tensors that have this size already are not cropped.
        events: how recordings of an event camera become images. None: the data are images.
    """

    size: tuple[int, int]
    mode: Literal["L", "RGB"] | None
    divisor: float = 255.0
    resize: str = "bilinear"
    fit: Fit = "stretch"
    events: EventWindows | None = None

    @classmethod
    def of(
        cls, network: NetworkConfig | OwnNetwork, fit: Fit = "stretch", events: EventWindows | None = None
    ) -> Preprocessing:
        """The preprocessing of training, which takes the darkest level to 0 and the brightest to 1."""
        return cls(network.image_size, _MODES.get(network.in_channels), fit=fit, events=events)


@dataclass(frozen=True, config=_STRICT)
class BaseModel:
    """The weights that training or conversion started from.

    Attributes:
        file: name of the file.
        sha256: SHA-256 of the file, hexadecimal.
        name: repository on the Hub, or None for a local file.
        revision: commit of the repository, or None.
    """

    file: str
    sha256: str
    name: str | None = None
    revision: str | None = None


def describe_network(
    network: nn.Module, image_shape: Sequence[int] | None = None, builder: str | None = None
) -> NetworkConfig | OwnNetwork:
    """The description of a network in config.json. Arguments and errors are those of `network_graph`.

    `builder` names the code that builds a network other than a `TTFSNetwork`. Default: the name of its class.
    """
    if isinstance(network, TTFSNetwork):
        return network.config
    return OwnNetwork.of(network_graph(network, image_shape), builder or type(network).__qualname__)


def _library() -> dict[str, str]:
    return {"name": LIBRARY, "version": ttfs_triton.__version__}


def _network(values: Any) -> NetworkConfig | OwnNetwork:
    """A network's description, from itself or from its JSON values."""
    if isinstance(values, NetworkConfig | OwnNetwork):
        return values
    if not isinstance(values, Mapping):
        raise ValueError("must be an object")
    return OwnNetwork.from_dict(values) if "builder" in values else NetworkConfig.from_dict(values)


@dataclass(frozen=True, config=_STRICT)
class ModelDescription:
    """The content of a config.json.

    Attributes:
        network: the configuration of a `TTFSNetwork`, or the layers of a network that the user's code builds.
        class_names: one name per class.
        preprocessing: how its images are prepared.
        dataset: training data, a Hub name or "sample"; None if read from a folder, or unknown.
        base_model: the weights that training or conversion started from, or None.
        library: name and version of the package that wrote the file; `to_dict` writes this package's.
    Raises:
        ValueError: class_names are not one per class or not all different, or the network does not take what
            preprocessing gives.

    Example:
        >>> network = NetworkConfig("4C3-P2-16", image_size=(8, 8), classes=2)
        >>> description = ModelDescription.of(network, class_names=["cat", "dog"])
        >>> description.preprocessing
        Preprocessing(size=(8, 8), mode='L', divisor=255.0, resize='bilinear', fit='stretch', events=None)
        >>> ModelDescription.from_dict(description.to_dict()) == description
        True
    """

    network: Annotated[NetworkConfig | OwnNetwork, PlainValidator(_network)]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    dataset: str | None = None
    base_model: BaseModel | None = None
    library: dict[str, str] = dataclasses.field(default_factory=_library)

    def __post_init__(self) -> None:
        network, preprocessing = self.network, self.preprocessing
        if len(self.class_names) != network.classes:
            raise ValueError(
                f"ModelDescription: class_names must be {network.classes} strings, one per class; "
                f"got {self.class_names!r:.400}."
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"ModelDescription: class_names must differ; got {self.class_names!r:.400}.")
        wanted = Preprocessing.of(network, preprocessing.fit, preprocessing.events)
        if preprocessing != wanted:
            raise ValueError(f"ModelDescription: preprocessing must be the network's, {wanted}; got {preprocessing}.")
        if preprocessing.events is not None and 2 * preprocessing.events.count != network.in_channels:
            raise ValueError(
                f"ModelDescription: events must have half as many windows as the network has channels, "
                f"{network.in_channels}; got {preprocessing.events.count}."
            )

    @classmethod
    def of(
        cls,
        network: NetworkConfig | OwnNetwork,
        *,
        class_names: Sequence[str] | None = None,
        dataset: str | None = None,
        base_model: BaseModel | None = None,
        fit: Fit = "stretch",
        events: EventWindows | None = None,
    ) -> ModelDescription:
        """A description of a network, with the preprocessing of training.

        Args:
            network, dataset, base_model: as in the attributes.
            class_names: one name per class. Default: "0", "1", ...
            fit, events: see `Preprocessing`.
        """
        names = [str(number) for number in range(network.classes)] if class_names is None else class_names
        return cls(network, tuple(names), Preprocessing.of(network, fit, events), dataset, base_model)

    def replace(self, **changes: Any) -> ModelDescription:
        """A copy with some attributes changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON values."""
        version = OWN if isinstance(self.network, OwnNetwork) else SPECIFIED
        values = _ADAPTER.dump_python(self, mode="json", exclude={"network", "library"})
        return {"format_version": version, "library": _library(), "network": self.network.to_dict(), **values}

    @classmethod
    def from_dict(cls, values: Any) -> ModelDescription:
        """The description for values from `to_dict`.

        Raises:
            LoadError: another format, unknown or missing keys, or values that do not describe a network.
        """
        version = values.get("format_version") if isinstance(values, Mapping) else None
        if isinstance(version, bool) or version not in (SPECIFIED, OWN):
            raise LoadError(
                f"ModelDescription.from_dict: format_version must be {SPECIFIED} or {OWN}; got {version!r:.80}. "
                "Upgrade ttfs-triton if it is larger; no released version wrote smaller ones."
            )
        try:
            content = json.dumps({key: value for key, value in values.items() if key != "format_version"})
            return _ADAPTER.validate_json(content)
        except ValidationError as error:
            problems = "; ".join(line.strip() for line in problem_lines(error)[:5])
            raise LoadError(f"ModelDescription.from_dict: values must describe a network; {problems}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise LoadError(f"ModelDescription.from_dict: values must describe a network; {error}") from error


_ADAPTER = TypeAdapter(ModelDescription)
