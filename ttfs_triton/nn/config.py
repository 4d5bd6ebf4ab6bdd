"""The configuration of a network: everything needed to build it again, as plain JSON values."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ttfs_kernels import Neuron
from ttfs_triton.nn.specification import Convolution, parse_specification


@dataclass(frozen=True)
class NetworkConfig:
    """A network of spiking neurons, or its analog twin. Frozen; `to_dict` and `from_dict` go through JSON.

    Attributes:
        specification: hidden layers, see `parse_specification`; the class readout is appended.
        in_channels: of the images.
        image_size: (height, width) of the images.
        classes: number of classes.
        width: factor on the size of every hidden layer (at least 1 channel each).
        encoder: "latency" (a = pixel / max_value) or "analog" (the first token is an analog convolution whose clamped
            outputs are spikes).
        max_value: pixel value that fires first, latency encoder only.
        mean, std: per channel, in units of the pixels, analog encoder only.
        readout: "potential_start", "potential_end" or "first_spike"; see `ttfs_triton.nn.readout`.
        neuron: of every layer. An analog network keeps the one that its spiking twin is to have.
        bias: learn initial membrane potentials.
        weight_standardisation: standardise the weights of every layer; folds into plain weights.
        initial_gain: factor on the Kaiming initialisation.
        analog: the artificial twin, clamped ReLU in place of spikes; in files neuron "ann", and "dft" otherwise.
        batch_norm: normalise every hidden layer over the batch, analog networks only.
        dropout: probability that a spike of a fully connected hidden layer is dropped while training. The weights that
            read it are divided by 1 − dropout, not the activations: those are times.
    Raises:
        ValueError: a value out of range, or options that exclude each other.
    Example:
        >>> config = NetworkConfig("16C5-P2-128", neuron=Neuron(psp_persistence=0.25))
        >>> config.replace(classes=100).to_dict()["psp_persistence"]
        0.25
        >>> NetworkConfig.from_dict(config.to_dict()) == config
        True
    """

    specification: str
    in_channels: int = 1
    image_size: tuple[int, int] = (28, 28)
    classes: int = 10
    width: float = 1.0
    encoder: Literal["latency", "analog"] = "latency"
    max_value: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    readout: Literal["potential_start", "potential_end", "first_spike"] = "potential_start"
    neuron: Neuron = Neuron()
    bias: bool = True
    weight_standardisation: bool = True
    initial_gain: float = 0.5
    analog: bool = False
    batch_norm: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std"):  # JSON has no tuples
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        tokens = parse_specification(self.specification)
        self._check_choices()
        self._check_ranges()
        if self.encoder == "analog" and not isinstance(tokens[0], Convolution):
            _refuse("specification", 'start with a convolution for encoder="analog"', self.specification)

    def _check_choices(self) -> None:
        for name, choices in (
            ("encoder", ("latency", "analog")),
            ("readout", ("potential_start", "potential_end", "first_spike")),
        ):
            if getattr(self, name) not in choices:
                _refuse(name, f"be one of {', '.join(choices)}", getattr(self, name))
        if self.encoder == "analog" and self.max_value != 1:
            _refuse("max_value", 'be 1 for encoder="analog"', self.max_value, "Use mean and std.")
        if self.encoder == "latency" and (self.mean is not None or self.std is not None):
            _refuse("mean and std", 'be None for encoder="latency"', (self.mean, self.std), "Use max_value.")
        if not isinstance(self.neuron, Neuron):
            _refuse("neuron", "be a Neuron", repr(self.neuron), "Give analog=True for an analog network.")
        if self.batch_norm and not self.analog:
            _refuse("batch_norm", "be False for a spiking network", True, "Use weight_standardisation.")
        if self.analog and self.readout != "potential_start":
            _refuse("readout", "be potential_start for an analog network", self.readout, "It has no slope.")

    def _check_ranges(self) -> None:
        for name in ("in_channels", "classes"):
            if getattr(self, name) < 1:
                _refuse(name, "be at least 1", getattr(self, name))
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            _refuse("image_size", "be two positive sizes, height and width", self.image_size)
        for name in ("width", "max_value", "initial_gain"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                _refuse(name, "be positive and finite", getattr(self, name))
        if not 0 <= self.dropout < 1:
            _refuse("dropout", "be in [0, 1)", self.dropout)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.in_channels:
                _refuse(name, f"have one entry per channel ({self.in_channels})", value)
        if self.std is not None and not min(self.std) > 0:
            _refuse("std", "be positive", self.std)

    def scaled(self, size: int) -> int:
        """Channels or features of a hidden layer of nominal size `size` at this `width`."""
        return max(1, round(size * self.width))

    def replace(self, **changes: Any) -> "NetworkConfig":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, those of the neuron among the others.

        "backend" says nothing: it was a setting of the machine and stays for readers of older versions.
        """
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Neuron):
                flat |= dataclasses.asdict(value)
            elif field.name == "analog":
                flat["neuron"] = "ann" if value else "dft"
            else:
                flat[field.name] = list(value) if isinstance(value, tuple) else value
        return flat | {"backend": "auto"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NetworkConfig":
        """The configuration that `to_dict` gave, of this version or an older one.

        Raises:
            ValueError: unknown keys, a missing specification, or values that do not pass the checks above.
        """
        properties = {field.name for field in dataclasses.fields(Neuron)}
        own = {field.name for field in dataclasses.fields(cls)} - {"neuron", "analog"}
        known = own | properties | {"neuron", "backend"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"NetworkConfig.from_dict: keys must be among {', '.join(sorted(known))}; got {', '.join(unknown)}."
            )
        if "specification" not in values:
            raise ValueError(f"NetworkConfig.from_dict: values must have a specification; got {sorted(values)}.")
        kind = values.get("neuron", "dft")
        if kind not in ("dft", "ann"):
            raise ValueError(f"NetworkConfig.from_dict: neuron must be one of dft, ann; got {kind}.")
        neuron = Neuron(**{name: values[name] for name in properties & set(values)})
        return cls(neuron=neuron, analog=kind == "ann", **{name: values[name] for name in own & set(values)})


def _refuse(name: str, rule: str, value: object, remedy: str = "") -> None:
    raise ValueError(f"NetworkConfig: {name} must {rule}; got {value}. {remedy}".rstrip())
