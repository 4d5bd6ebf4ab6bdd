"""The configuration of a network: JSON values that are enough to build it again.

One line of text specifies the hidden layers, as in papers: "16C5-P2-32C5p0-P2-128".
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
_SEPARATOR = re.compile(r"-(?![^(]*\))")  # not inside parentheses

# Bounds far above any network, so that a damaged or hostile file cannot ask for all of a machine's memory.
MAX_SIZE = 2**20  # most channels or features of a layer, and most classes
MAX_KERNEL = 2**10  # largest kernel size, stride and padding
MAX_LENGTH = 2**12  # most characters of a specification
MAX_LAYERS = MAX_LENGTH // 2  # most tokens of a specification, all repetitions of blocks included


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`64C3`: 64 channels (`size`), 3×3, padding (k − 1)//2; `64C3p0s2`: padding 0, stride 2.

    `skip` is the delay, in windows, of the skip of a block `(64C3-64C3)`: the number of its layers minus one. It is set
    in the block's last layer, and 0 in all others.
    """

    size: int
    kernel_size: int
    padding: int
    stride: int
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Pool:
    """`P2`: earliest spike of 2×2 neurons, stride 2; `P3p1s2`: 3×3, padding 1, stride 2."""

    kernel_size: int
    stride: int
    padding: int = 0


@dataclasses.dataclass(frozen=True)
class Average:
    """`A2`: the next layer's synapses read means of 2×2 neurons; `A`, before a fully connected layer: of whole maps."""

    kernel_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Dense:
    """`128`: 128 fully connected neurons (`size`); `skip` as in `Convolution`."""

    size: int
    skip: int = 0


Token = Convolution | Pool | Average | Dense
_PATTERNS: dict[type[Token], re.Pattern[str]] = {
    Convolution: re.compile(r"(?P<size>\d+)C(?P<kernel_size>\d+)(?:p(?P<padding>\d+))?(?:s(?P<stride>\d+))?"),
    Pool: re.compile(r"P(?P<kernel_size>\d+)(?:p(?P<padding>\d+))?(?:s(?P<stride>\d+))?"),
    Average: re.compile(r"A(?P<kernel_size>\d+)?"),
    Dense: re.compile(r"(?P<size>\d+)"),
}


def parse_specification(specification: str) -> tuple[Token, ...]:
    """Parse the hidden layers of a network, separated by "-"; the readout is not part of it.

    Args:
        specification: tokens as in `Convolution`, `Pool` and `Dense`, such as "16C5-P2-32C5p0-P2-128". Parentheses
            enclose a residual block of two or more convolutions or fully connected layers: by a skip, the block's
            input spikes also reach the neurons of its last layer. `(64C3-64C3)x3` are three such blocks. An `Average`
            belongs to the synapses of the next layer: with a size, a convolution; without, a fully connected layer or
            the readout.
    Returns:
        One token per layer.
    Raises:
        ValueError: the text is empty, not ASCII, longer than `MAX_LENGTH` or of more than `MAX_LAYERS` layers, or has a
            token that cannot be read, a size of zero or above `MAX_SIZE` or `MAX_KERNEL`, a convolution or pool after a
            fully connected layer, a misplaced average, or an invalid block. The message names the token.
    """
    if not isinstance(specification, str) or not specification.isascii() or len(specification) > MAX_LENGTH:
        rule = f"be text of at most {MAX_LENGTH} ASCII characters"
        raise ValueError(f"parse_specification: specification must {rule}; got {specification!r:.80}.")
    tokens: list[Token] = []
    for text in map(str.strip, _SEPARATOR.split(specification)):
        try:
            tokens += _parse_block(text)
            dense = any(isinstance(token, Dense) for token in tokens)
            if dense and isinstance(tokens[-1], Convolution | Pool | Average):
                raise ValueError("convolutions and pools must come before fully connected layers")
            if len(tokens) > MAX_LAYERS:
                raise ValueError(f"specification must have at most {MAX_LAYERS} layers; repeat blocks less often")
        except ValueError as error:
            raise ValueError(f'parse_specification: {error}; got "{text}" in "{specification:.80}".') from None
    for before, token, behind in zip([None, *tokens], tokens, [*tokens[1:], None], strict=False):
        whole = behind is None or isinstance(behind, Dense)  # the next layer reads whole maps
        fits = isinstance(before, Convolution | Pool) and (whole or isinstance(behind, Convolution))
        if isinstance(token, Average) and not (fits and whole == (token.kernel_size is None)):
            raise ValueError(
                "parse_specification: an average must follow a convolution or pool, and stand before a convolution if "
                f'it has a size, else before a fully connected layer or at the end; got "A{token.kernel_size or ""}".'
            )
    return tuple(tokens)


def _parse_block(text: str) -> list[Token]:
    """The tokens of a block, with its repetitions, or of a single layer."""
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
        raise ValueError('a token must look like "64C3", "64C3p0s2", "P2", "A2" or "128"')
    values = {name: int(value) for name, value in match.groupdict().items() if value is not None}
    for name, value in values.items():
        least, most = 0 if name == "padding" else 1, MAX_SIZE if name == "size" else MAX_KERNEL
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}")
    if kind is Convolution:
        values = {"padding": (values["kernel_size"] - 1) // 2, "stride": 1} | values
    elif kind is Pool:
        values = {"stride": values["kernel_size"]} | values
    return kind(**values)


Encoder = Literal["latency", "analog", "whitened", "signed"]  # how images enter a network; see `NetworkConfig`
MAX_CHANNELS = 2**12  # most channels of an image
MAX_SIDE = 2**14  # largest height and width of an image, in pixels
MAX_NUMBER = 1e6  # largest width, statistic and gain; values that must be positive are at least 1 / MAX_NUMBER
# When a decision is read: at the output window's start or end, or at the first output spike.
ReadoutTime = Literal["potential_start", "potential_end", "first_spike"]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Positive = Annotated[float, Field(ge=1 / MAX_NUMBER, le=MAX_NUMBER)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
FROM_LIST = Field(strict=False)  # JSON has no tuples


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class NetworkConfig:
    """Configuration of a `TTFSNetwork`. Frozen; `to_dict` and `from_dict` convert it to and from JSON values.

    Attributes:
        specification: hidden layers, see `parse_specification`; the class readout is appended.
        in_channels: channels of the images.
        image_size: (height, width) of the images.
        classes: number of classes.
        width: factor on the size of every hidden layer (which keeps at least one channel).
        encoder: "latency" (pixels in [0, 1] are activations), "analog" (the first token is an analog convolution whose
            clamped outputs are spikes), "whitened" (an analog convolution of frozen weights that whiten patches of the
            images, see `ttfs_triton.nn.whiten`; `width` does not change it) or "signed" (the first token is a
            convolution of spiking neurons that read normalised pixels; see `SignedEncoder`).
        mean, std: mean and standard deviation per channel, in units of the pixels; not for a latency encoder.
        readout: "potential_start", "potential_end" or "first_spike"; see `ttfs_triton.nn.readout`.
        neuron: neuron model of every layer. At `psp_persistence=0` the network is an ANN with clamped ReLU.
        bias: learn initial membrane potentials.
        weight_standardisation: standardise the weights of every layer, unless there is batch norm; folds into plain
            weights.
        initial_gain: factor on the Kaiming initialisation.
        batch_norm: while training, normalise the potentials of every hidden layer except a whitened encoder over the
            batch; folds into plain weights. Means β start at 0, in front of a pool at `BIAS_BEFORE_POOL`.
        dropout: probability that a spike of a fully connected hidden layer is dropped while training. The next layer's
            weights, not the activations, are divided by 1 − dropout: activations are spike times.
        grid: grid of the chip that the network is trained or calibrated for; the network computes on it. It excludes
            batch norm, which a network folds before it is put on a grid. None: real numbers.
    Raises:
        ValueError: a value has the wrong type or is out of range (`MAX_SIZE` for classes and any hidden layer at its
            width, `MAX_CHANNELS`, `MAX_SIDE`, `MAX_NUMBER`), or one option excludes another.
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
        """A conflict between fields, as the text of an error; None without one."""
        layers, first = [token for token in tokens if isinstance(token, Convolution | Dense)], tokens[0]
        largest = max((layer.size for layer in layers), default=0)
        if largest * self.width > MAX_SIZE:
            return f"width must give no layer more than {MAX_SIZE} neurons or channels; got {self.width} · {largest}."
        if self.batch_norm and self.grid is not None:
            return f"grid must be None with batch_norm; got {self.grid.text()}. Train, then call network.put_on_grid."
        for name in ("mean", "std"):
            if (value := getattr(self, name)) is not None and len(value) != self.in_channels:
                return f"{name} must have one entry per channel ({self.in_channels}); got {value}."
        if self.encoder == "latency":
            if self.mean is None and self.std is None:
                return None
            return f"mean and std must be None for encoder=latency; got {self.mean}, {self.std}."
        rule = f"for encoder={self.encoder}"
        if not isinstance(first, Convolution) or any(0 < layer.skip == place for place, layer in enumerate(layers)):
            return f"specification must start with a convolution, not in a block, {rule}; got {self.specification}."
        components = 2 * self.in_channels * first.kernel_size**2
        if self.encoder == "whitened" and first.size != components:
            return f"specification must start with {components} channels {rule}, 2 per component; got {first.size}."
        return None

    def scaled(self, size: int) -> int:
        """Channels or features of a hidden layer of nominal size `size` at this `width`."""
        return max(1, round(size * self.width))

    def replace(self, **changes: Any) -> "NetworkConfig":
        """A copy with some fields changed; all fields are checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, flat, with the neuron's properties."""
        values = dataclasses.asdict(self)
        neuron = values.pop("neuron")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()} | neuron

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NetworkConfig":
        """The configuration for values from `to_dict`. Three further keys of older files are ignored or checked.

        Raises:
            ValueError: unknown keys, a missing specification, or values that do not pass the checks above.
        """
        fields = {name: value for name, value in values.items() if name != "backend"}
        for name, always in (("neuron", "dft"), ("max_value", 1)):
            if (value := fields.pop(name, always)) != always:
                raise ValueError(f"NetworkConfig.from_dict: {name} must be {always}; got {value!r:.80}. Leave it out.")
        properties = fields.keys() & {field.name for field in dataclasses.fields(Neuron)}
        fields["neuron"] = Neuron(**{name: fields.pop(name) for name in properties})
        if fields.get("grid") is not None:
            fields["grid"] = Grid.from_dict(fields["grid"])
        return cls(**fields)
