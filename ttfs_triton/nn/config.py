"""The configuration of a network, as JSON values that are enough to build it again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ttfs_kernels import Neuron
from ttfs_triton.nn.grid import Grid
from ttfs_triton.nn.specification import MAX_SIZE, Convolution, Dense, Token, parse_specification

Encoder = Literal["latency", "analog", "whitened", "signed"]
"""How images enter a network; see `NetworkConfig`."""
MAX_CHANNELS = 2**12
"""Channels of an image."""
MAX_SIDE = 2**14
"""Height and width of an image, pixels."""
MAX_NUMBER = 1e6
"""Width, pixel values, statistics and gain; those that must be positive are at least its inverse."""
ReadoutTime = Literal["potential_start", "potential_end", "first_spike"]
"""When a decision is read: at the output window's start or end, or at the first output spike."""
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Positive = Annotated[float, Field(ge=1 / MAX_NUMBER, le=MAX_NUMBER)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
FROM_LIST = Field(strict=False)  # JSON has no tuples


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
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
    in_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 1
    image_size: Annotated[tuple[Side, Side], FROM_LIST] = (28, 28)
    classes: Annotated[int, Field(ge=1, le=MAX_SIZE)] = 10
    width: Positive = 1.0
    encoder: Encoder = "latency"
    max_value: Positive = 1.0
    mean: Annotated[tuple[Number, ...], FROM_LIST] | None = None
    std: Annotated[tuple[Positive, ...], FROM_LIST] | None = None
    readout: ReadoutTime = "potential_start"
    neuron: Neuron = Neuron()
    bias: bool = True
    weight_standardisation: bool = True
    initial_gain: Positive = 0.5
    batch_norm: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if problem := self._problem(parse_specification(self.specification)):
            raise ValueError(f"NetworkConfig: {problem}")

    def _problem(self, tokens: Sequence[Token]) -> str | None:
        """How fields do not fit each other, if so."""
        layers, first = [token for token in tokens if isinstance(token, Convolution | Dense)], tokens[0]
        largest = max((layer.size for layer in layers), default=0)
        if largest * self.width > MAX_SIZE:
            return f"width must give no layer more than {MAX_SIZE} neurons or channels; got {self.width}, of {largest}."
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None and len(value) != self.in_channels:
                return f"{name} must have one entry per channel ({self.in_channels}); got {value}."
        if self.encoder == "latency":
            if self.mean is None and self.std is None:
                return None
            return f"mean and std must be None for encoder=latency; got {self.mean}, {self.std}. Use max_value."
        rule = f"for encoder={self.encoder}"
        if self.max_value != 1:
            return f"max_value must be 1 {rule}; got {self.max_value}. Use mean and std."
        if not isinstance(first, Convolution) or any(0 < layer.skip == place for place, layer in enumerate(layers)):
            return f"specification must start with a convolution, not in a block, {rule}; got {self.specification}."
        components = 2 * self.in_channels * first.kernel_size**2
        if self.encoder == "whitened" and first.channels != components:
            return f"specification must start with {components} channels {rule}, two a component of its patches."
        return None

    def scaled(self, size: int) -> int:
        """Channels or features of a hidden layer of nominal size `size` at this `width`."""
        return max(1, round(size * self.width))

    def replace(self, **changes: Any) -> "NetworkConfig":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, flat, with the neuron's properties.

        "backend" and "neuron" are constant, for older versions. "grid" is there only if there is one, since versions
        without grids refuse it.
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

        ANNs of older versions, neuron "ann", become networks at σ = 0 without batch norm; `fold_tensors` folds theirs.

        Raises:
            ValueError: unknown keys, a missing specification, or values that do not pass the checks above.
        """
        own = {name: value for name, value in values.items() if name != "backend"}
        kind = own.pop("neuron", "dft")
        if kind not in ("dft", "ann"):
            raise ValueError(f"NetworkConfig.from_dict: neuron must be one of dft, ann; got {kind}.")
        if kind == "ann":
            own["psp_persistence"] = 0.0
            if own.get("batch_norm") is True:
                own |= {"batch_norm": False, "weight_standardisation": False, "bias": True}
        properties = own.keys() & {field.name for field in dataclasses.fields(Neuron)}
        own["neuron"] = Neuron(**{name: own.pop(name) for name in properties})
        if own.get("grid") is not None:
            own["grid"] = Grid.from_dict(own["grid"])
        return cls(**own)
