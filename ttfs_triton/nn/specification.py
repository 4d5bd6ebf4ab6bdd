"""Network specifications in one line, as papers write them: "16C5-P2-32C5p0-P2-128"."""

import re
from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Pool:
    """`P2`: earliest spike of 2×2 neurons, stride 2; `P3s2`: 3×3, stride 2."""

    kernel_size: int
    stride: int


@dataclass(frozen=True)
class Average:
    """`A2`: the synapses behind it read means of 2×2 neurons; `A`, in front of a fully connected layer, of maps."""

    kernel_size: int | None = None


@dataclass(frozen=True)
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
    tokens[-1] = replace(tokens[-1], skip=len(tokens) - 1)  # pyright: ignore[reportCallIssue]
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
