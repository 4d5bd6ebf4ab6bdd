"""The configuration of a network: JSON values that are enough to build it again.

Its layers are told in one line, as papers write them: "16C5-P2-32C5p0-P2-128".
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ttfs_kernels import Neuron
from ttfs_triton.nn.grid import Grid

_BLOCK = re.compile(r"\((?P<layers>[^()]*)\)(?:x(?P<times>\d{1,4}))?")
_SEPARATOR = re.compile(r"-(?![^(]*\))")  # not inside of parentheses

# Bounds far above any network, so that a damaged or hostile file cannot ask for all of a machine's memory.
MAX_SIZE = 2**20
"""Channels or features of a layer, and classes."""
MAX_KERNEL = 2**10
"""Kernel size, stride and padding."""
MAX_LENGTH = 2**12
"""Characters of a specification."""
MAX_LAYERS = MAX_LENGTH // 2
"""Tokens of a specification, those of repeated blocks included."""


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`64C3`: 64 channels, 3×3, padding (k − 1)//2; `64C3p0s2`: padding 0, stride 2.

    The last of a block `(64C3-64C3)` has `skip`: windows for which the spikes that enter the block wait for it, one for
    each layer of the block before it. 0 elsewhere.
    """

    channels: int
    kernel_size: int
    padding: int
    stride: int
    skip: int = 0

    @property
    def size(self) -> int:
        """Channels."""
        return self.channels


@dataclasses.dataclass(frozen=True)
class Pool:
    """`P2`: earliest spike of 2×2 neurons, stride 2; `P3s2`: 3×3, stride 2."""

    kernel_size: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Average:
    """`A2`: the synapses behind it read means of 2×2 neurons; `A`, in front of a fully connected layer, of maps."""

    kernel_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Dense:
    """`128`: 128 fully connected neurons; `skip` as of a convolution."""

    features: int
    skip: int = 0

    @property
    def size(self) -> int:
        """Features."""
        return self.features


Token = Convolution | Pool | Average | Dense
_PATTERNS: dict[type[Token], re.Pattern[str]] = {
    Convolution: re.compile(r"(?P<channels>\d+)C(?P<kernel_size>\d+)(?:p(?P<padding>\d+))?(?:s(?P<stride>\d+))?"),
    Pool: re.compile(r"P(?P<kernel_size>\d+)(?:s(?P<stride>\d+))?"),
    Average: re.compile(r"A(?P<kernel_size>\d+)?"),
    Dense: re.compile(r"(?P<features>\d+)"),
}


def parse_specification(specification: str) -> tuple[Token, ...]:
    """Parse the hidden layers of a network, separated by "-"; the readout is not part of it.

    Args:
        specification: tokens as in `Convolution`, `Pool` and `Dense`, such as "16C5-P2-32C5p0-P2-128". Parentheses are
            a residual block, of two or more convolutions or fully connected layers: spikes that enter it also reach the
            neurons of its last layer, delayed. `(64C3-64C3)x3` are three such blocks. An `Average` belongs to the
            synapses of the convolution behind it, or without a size to those of the fully connected layer or readout.
    Returns:
        One token per layer.
    Raises:
        ValueError: no text, or longer than `MAX_LENGTH`; a token that cannot be read, a size of zero or above
            `MAX_SIZE` or `MAX_KERNEL`, a convolution or pool behind a fully connected layer, an average with nothing
            that it belongs to, a block that is none, more than `MAX_LAYERS`, or no layer at all. The message names the
            token.
    """
    if not isinstance(specification, str) or len(specification) > MAX_LENGTH:
        got = f"{len(specification)}" if isinstance(specification, str) else f"{specification!r:.80}"
        raise ValueError(
            f"parse_specification: specification must be text of at most {MAX_LENGTH} characters; got {got}."
        )
    tokens: list[Token] = []
    for text in map(str.strip, _SEPARATOR.split(specification)):
        try:
            tokens += _parse_block(text)
            if isinstance(tokens[-1], Convolution | Pool | Average) and any(isinstance(each, Dense) for each in tokens):
                raise ValueError("convolutions and pools must come before fully connected layers")
            if len(tokens) > MAX_LAYERS:
                raise ValueError(f"specification must have at most {MAX_LAYERS} layers; repeat blocks less often")
        except ValueError as error:
            raise ValueError(f'parse_specification: {error}; got "{text}" in "{specification:.80}".') from None
    for before, token, behind in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        whole = behind is None or isinstance(behind, Dense)  # its reader sees whole maps
        fits = isinstance(before, Convolution | Pool) and (whole or isinstance(behind, Convolution))
        if isinstance(token, Average) and not (fits and whole == (token.kernel_size is None)):
            raise ValueError(
                "parse_specification: an average must stand behind maps and, with a size, before a convolution, else "
                f'before a fully connected layer or at the end; got "A{token.kernel_size or ""}".'
            )
    return tuple(tokens)


def _parse_block(text: str) -> list[Token]:
    """The tokens of a block, as often as it is repeated; one token otherwise."""
    if not text.startswith("("):
        return [_parse_token(text)]
    block = _BLOCK.fullmatch(text)
    tokens = [_parse_token(part.strip()) for part in block["layers"].split("-")] if block else []
    kinds = {type(token) for token in tokens}
    if block is None or len(tokens) < 2 or kinds not in ({Convolution}, {Dense}) or block["times"] == "0":
        raise ValueError(
            'a block must be of two or more convolutions, or fully connected layers, as in "(64C3-64C3)x3"'
        )
    tokens[-1] = dataclasses.replace(tokens[-1], skip=len(tokens) - 1)  # pyright: ignore[reportCallIssue]
    return tokens * int(block["times"] or 1)


def _parse_token(text: str) -> Token:
    for kind, pattern in _PATTERNS.items():  # noqa: B007
        if match := pattern.fullmatch(text):
            break
    else:
        raise ValueError('each token must look like "64C3", "64C3p0s2", "P2", "A2" or "128"')
    values = {name: int(value) for name, value in match.groupdict().items() if value is not None}
    for name, value in values.items():
        least, most = 0 if name == "padding" else 1, MAX_SIZE if name in ("channels", "features") else MAX_KERNEL
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}")
    if kind is Convolution:
        values = {"padding": (values["kernel_size"] - 1) // 2, "stride": 1} | values
    elif kind is Pool:
        values = {"stride": values["kernel_size"]} | values
    return kind(**values)


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
