"""Network specifications in one line, as papers write them: "16C5-P2-32C5p0-P2-128"."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

_CONVOLUTION = re.compile(r"(?P<channels>\d+)C(?P<kernel_size>\d+)(?:p(?P<padding>\d+))?(?:s(?P<stride>\d+))?")
_POOL = re.compile(r"P(?P<kernel_size>\d+)(?:s(?P<stride>\d+))?")
_AVERAGE = re.compile(r"A(?P<kernel_size>\d+)?")
_DENSE = re.compile(r"(?P<features>\d+)")
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


@dataclass(frozen=True)
class Pool:
    """`P2`: earliest spike of 2×2 neurons, stride 2; `P3s2`: 3×3, stride 2."""

    kernel_size: int
    stride: int


@dataclass(frozen=True)
class Average:
    """`A2`: the synapses behind it read means of 2×2 neurons; `A`, in front of a fully connected layer, of maps."""

    kernel_size: int | None


@dataclass(frozen=True)
class Dense:
    """`128`: 128 fully connected neurons; `skip` as of a convolution."""

    features: int
    skip: int = 0


Token = Convolution | Pool | Average | Dense


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
    for text in _SEPARATOR.split(specification):
        for token in _parse_block(text.strip(), specification):
            if not isinstance(token, Dense) and tokens and isinstance(tokens[-1], Dense):
                raise ValueError(
                    f"parse_specification: convolutions and pools must come before fully connected layers; got "
                    f'"{text}" behind "{tokens[-1].features}" in "{specification}".'
                )
            if len(tokens) == MAX_LAYERS:
                raise ValueError(
                    f"parse_specification: specification must have at most {MAX_LAYERS} layers; got more, in "
                    f'"{specification:.80}". Repeat blocks less often.'
                )
            tokens.append(token)
    _check_averages(tokens, specification)
    return tuple(tokens)


def _check_averages(tokens: list[Token], specification: str) -> None:
    for token, before, behind in zip(tokens, [None, *tokens], [*tokens[1:], None], strict=False):
        if isinstance(token, Average):
            whole = behind is None or isinstance(behind, Dense)
            fits = token.kernel_size is None if whole else isinstance(behind, Convolution) and token.kernel_size
            if not fits or not isinstance(before, Convolution | Pool):
                text = f"A{token.kernel_size or ''}"
                raise ValueError(
                    f"parse_specification: an average must stand behind maps and, with a size, in front of a "
                    f'convolution, or without one in front of fully connected layers or at the end; got "{text}" in '
                    f'"{specification}".'
                )


def _parse_block(text: str, specification: str) -> Iterator[Token]:
    """The tokens of a block, as often as it is repeated; one token otherwise."""
    if not text.startswith("("):
        yield _parse_token(text, specification)
        return
    block = _BLOCK.fullmatch(text)
    tokens = [_parse_token(part.strip(), specification) for part in block["layers"].split("-")] if block else []
    kinds = {type(token) for token in tokens}
    if block is None or len(tokens) < 2 or kinds not in ({Convolution}, {Dense}) or block["times"] == "0":
        raise ValueError(
            "parse_specification: a block must be of two or more convolutions, or fully connected layers, as in "
            f'"(64C3-64C3)" or "(64C3-64C3)x3"; got "{text}" in "{specification}".'
        )
    tokens[-1] = replace(tokens[-1], skip=len(tokens) - 1)  # pyright: ignore[reportCallIssue]
    for _ in range(int(block["times"] or 1)):
        yield from tokens


def output_size(size: int, kernel_size: int, stride: int, padding: int = 0) -> int:
    """Height or width of a map behind a convolution or pool; less than 1 if the map is too small."""
    return (size + 2 * padding - kernel_size) // stride + 1


def _parse_token(text: str, specification: str) -> Token:
    if match := _CONVOLUTION.fullmatch(text):
        values = {name: int(value) for name, value in match.groupdict().items() if value is not None}
        values.setdefault("padding", (values["kernel_size"] - 1) // 2)
        values.setdefault("stride", 1)
        token, positive = Convolution(**values), (values["channels"], values["kernel_size"], values["stride"])
        kernels: tuple[int, ...] = (*positive[1:], values["padding"])
    elif match := _POOL.fullmatch(text):
        values = {name: int(value) for name, value in match.groupdict().items() if value is not None}
        values.setdefault("stride", values["kernel_size"])
        token, positive = Pool(**values), tuple(values.values())
        kernels = positive
    elif match := _AVERAGE.fullmatch(text):
        size = match["kernel_size"]
        token = Average(None if size is None else int(size))
        positive = kernels = (1 if size is None else int(size),)
    elif match := _DENSE.fullmatch(text):
        token = Dense(int(match["features"]))
        positive, kernels = (token.features,), ()
    else:
        raise ValueError(
            f'parse_specification: each token must look like "64C3", "64C3p0s2", "P2" or "128"; got "{text}" in '
            f'"{specification}".'
        )
    if min(positive) < 1:
        raise ValueError(f'parse_specification: sizes must be positive; got "{text}" in "{specification}".')
    if max(positive) > MAX_SIZE or max(kernels, default=0) > MAX_KERNEL:
        raise ValueError(
            f"parse_specification: sizes must be at most {MAX_SIZE}, of kernels, strides and padding {MAX_KERNEL}; got "
            f'"{text}" in "{specification}".'
        )
    return token
