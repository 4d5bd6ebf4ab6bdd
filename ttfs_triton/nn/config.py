"""The configuration of a network: everything needed to build it again, as plain JSON values."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from ttfs_kernels import Neuron
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.specification import MAX_SIZE, Convolution, Dense, parse_specification

Encoder = Literal["latency", "analog", "whitened", "signed"]
"""How images enter a network; see `NetworkConfig`."""
MAX_CHANNELS = 2**12
"""Channels of an image."""
MAX_SIDE = 2**14
"""Height and width of an image, pixels."""
MAX_NUMBER = 1e6
"""Width, pixel values, statistics and gain; those that must be positive are at least its inverse."""


@dataclass(frozen=True)
class NetworkConfig:
    """A network of spiking neurons. Frozen; `to_dict` and `from_dict` go through JSON.

    Attributes:
        specification: hidden layers, see `parse_specification`; the class readout is appended.
        in_channels: of the images.
        image_size: (height, width) of the images.
        classes: number of classes.
        width: factor on the size of every hidden layer (at least 1 channel each).
        encoder: "latency" (a = pixel / max_value), "analog" (the first token is an analog convolution whose clamped
            outputs are spikes), "whitened" (the same with frozen weights that whiten patches of the images, see
            `ttfs_triton.nn.whiten`; `width` does not change it) or "signed" (it is of spiking neurons that read
            normalised pixels; see `SignedEncoder`).
        max_value: pixel value that fires first, latency encoder only.
        mean, std: per channel, in units of the pixels, not for a latency encoder.
        readout: "potential_start", "potential_end" or "first_spike"; see `ttfs_triton.nn.readout`.
        neuron: of every layer. At `psp_persistence=0` the network is an ANN with clamped ReLU.
        bias: learn initial membrane potentials.
        weight_standardisation: standardise the weights of every layer, unless there is batch norm; folds into plain
            weights.
        initial_gain: factor on the Kaiming initialisation.
        batch_norm: normalise the potentials of every hidden layer over the batch while training, but of a whitened
            encoder; folds into plain weights.
        dropout: probability that a spike of a fully connected hidden layer is dropped while training. The weights that
            read it are divided by 1 − dropout, not the activations: those are times.
        grid: of the chip that the network was trained or calibrated for, and on which it computes; None: real numbers.
    Raises:
        ValueError: a value of another type or out of range, also above `MAX_SIZE` (classes, and each hidden layer at
            its width), `MAX_CHANNELS`, `MAX_SIDE` or `MAX_NUMBER`; or options that exclude each other.
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
    encoder: Encoder = "latency"
    max_value: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    readout: Literal["potential_start", "potential_end", "first_spike"] = "potential_start"
    neuron: Neuron = Neuron()
    bias: bool = True
    weight_standardisation: bool = True
    initial_gain: float = 0.5
    batch_norm: bool = False
    dropout: float = 0.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "mean", "std"):  # JSON has no tuples
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        tokens = parse_specification(self.specification)
        self._check_types()
        self._check_choices()
        self._check_ranges()
        for token in tokens:
            size = (
                token.channels if isinstance(token, Convolution) else token.features if isinstance(token, Dense) else 0
            )
            if size * self.width > MAX_SIZE:
                _refuse(
                    "width", f"give no layer more than {MAX_SIZE} neurons or channels", self.width, f"{size} times it."
                )
        if self.encoder == "whitened" and isinstance(tokens[0], Convolution):
            components = 2 * self.in_channels * tokens[0].kernel_size ** 2
            if tokens[0].channels != components:
                _refuse(
                    "specification",
                    f'start with {components} channels for encoder="whitened", two a component of its patches',
                    self.specification,
                )
        if self.encoder != "latency":
            layers = [token for token in tokens if isinstance(token, Convolution | Dense)]
            if not isinstance(tokens[0], Convolution) or any(
                0 < layer.skip == place for place, layer in enumerate(layers)
            ):
                _refuse(
                    "specification",
                    f'start with a convolution for encoder="{self.encoder}", not in a block, since it reads no spikes',
                    self.specification,
                )

    def _check_types(self) -> None:
        """Exactly what JSON gives back: true is no number and 10.0 no count."""
        for name in ("in_channels", "classes"):
            if not _is_whole(getattr(self, name)):
                _refuse(name, "be a whole number", repr(getattr(self, name)))
        for name in ("width", "max_value", "initial_gain", "dropout"):
            if not _is_number(getattr(self, name)):
                _refuse(name, "be a finite number", repr(getattr(self, name)))
        for name in ("bias", "weight_standardisation", "batch_norm"):
            if not isinstance(getattr(self, name), bool):
                _refuse(name, "be True or False", repr(getattr(self, name)))
        for name, check, kind in (
            ("image_size", _is_whole, "whole"),
            ("mean", _is_number, "finite"),
            ("std", _is_number, "finite"),
        ):
            value = getattr(self, name)
            if value is None and name != "image_size":
                continue
            if not isinstance(value, tuple) or not all(map(check, value)):
                _refuse(name, f"be a tuple of {kind} numbers", f"{value!r:.80}")

    def _check_choices(self) -> None:
        for name, choices in (
            ("encoder", get_args(Encoder)),
            ("readout", ("potential_start", "potential_end", "first_spike")),
        ):
            if not isinstance(getattr(self, name), str) or getattr(self, name) not in choices:
                _refuse(name, f"be one of {', '.join(choices)}", getattr(self, name))
        if self.encoder != "latency" and self.max_value != 1:
            _refuse("max_value", f'be 1 for encoder="{self.encoder}"', self.max_value, "Use mean and std.")
        if self.encoder == "latency" and (self.mean is not None or self.std is not None):
            _refuse("mean and std", 'be None for encoder="latency"', (self.mean, self.std), "Use max_value.")
        if not isinstance(self.neuron, Neuron):
            _refuse("neuron", "be a Neuron", repr(self.neuron), "An ANN is Neuron(psp_persistence=0).")
        if self.grid is not None and not isinstance(self.grid, Grid):
            _refuse("grid", "be a Grid or None", repr(self.grid))

    def _check_ranges(self) -> None:
        for name, most in (("in_channels", MAX_CHANNELS), ("classes", MAX_SIZE)):
            if not 1 <= getattr(self, name) <= most:
                _refuse(name, f"be at least 1 and at most {most}", getattr(self, name))
        if len(self.image_size) != 2 or min(self.image_size) < 1 or max(self.image_size) > MAX_SIDE:
            _refuse("image_size", f"be two positive sizes up to {MAX_SIDE}, height and width", self.image_size)
        for name in ("width", "max_value", "initial_gain"):
            if not 1 / MAX_NUMBER <= getattr(self, name) <= MAX_NUMBER:
                _refuse(name, f"be positive, from {1 / MAX_NUMBER:g} to {MAX_NUMBER:g}", getattr(self, name))
        if not 0 <= self.dropout < 1:
            _refuse("dropout", "be in [0, 1)", self.dropout)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and len(value) != self.in_channels:
                _refuse(name, f"have one entry per channel ({self.in_channels})", value)
            if value is not None and max(map(abs, value)) > MAX_NUMBER:
                _refuse(name, f"have entries up to {MAX_NUMBER:g}", value)
        if self.std is not None and not min(self.std) >= 1 / MAX_NUMBER:
            _refuse("std", f"be positive, at least {1 / MAX_NUMBER:g}", self.std)

    def scaled(self, size: int) -> int:
        """Channels or features of a hidden layer of nominal size `size` at this `width`."""
        return max(1, round(size * self.width))

    def replace(self, **changes: Any) -> "NetworkConfig":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, those of the neuron among the others.

        "backend" and "neuron" say nothing and stay for readers of older versions: one was a setting of the machine, the
        other told ANNs apart. "grid" is there only if there is one: older versions, which would compute something else,
        refuse it.
        """
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Neuron):
                flat |= dataclasses.asdict(value)
            elif field.name == "grid":
                flat |= {} if value is None else {"grid": value.to_dict()}
            else:
                flat[field.name] = list(value) if isinstance(value, tuple) else value
        return flat | {"neuron": "dft", "backend": "auto"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NetworkConfig":
        """The configuration that `to_dict` gave, of this version or an older one.

        Older versions had layers of their own for ANNs, neuron "ann": convolution, batch norm, clamped ReLU. Such a
        network is read as what it computes: σ = 0, batch norm folded; `fold_tensors` does that to its weights.

        Raises:
            ValueError: unknown keys, a missing specification, or values that do not pass the checks above.
        """
        properties = {field.name for field in dataclasses.fields(Neuron)}
        own = {field.name for field in dataclasses.fields(cls)} - {"neuron", "grid"}
        known = own | properties | {"neuron", "backend", "grid"}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"NetworkConfig.from_dict: keys must be among {', '.join(sorted(known))}; got {', '.join(unknown)}."
            )
        if "specification" not in values:
            raise ValueError(f"NetworkConfig.from_dict: values must have a specification; got {sorted(values)}.")
        kind = values.get("neuron", "dft")
        if not isinstance(kind, str) or kind not in ("dft", "ann"):
            raise ValueError(f"NetworkConfig.from_dict: neuron must be one of dft, ann; got {kind}.")
        if kind == "ann":
            values = {**values, "psp_persistence": 0.0}
            if values.get("batch_norm") is True:
                values |= {"batch_norm": False, "weight_standardisation": False, "bias": True}
        neuron = Neuron(**{name: values[name] for name in properties & set(values)})
        grid = None if values.get("grid") is None else Grid.from_dict(values["grid"])
        return cls(neuron=neuron, grid=grid, **{name: values[name] for name in own & set(values)})


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return value.bit_length() < 1024 if isinstance(value, int) else math.isfinite(value)


def _refuse(name: str, rule: str, value: object, remedy: str = "") -> None:
    raise ValueError(f"NetworkConfig: {name} must {rule}; got {value}. {remedy}".rstrip())
