"""What `kernels.py` measures: layers from a file, in the number formats that GPUs multiply in."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ttfs_kernels.triton_backend.problem import Problem
from ttfs_triton.nn import DFTConv2d, EarliestSpikePool2d, models

Number = Literal["bf16", "fp16", "tf32", "fp32"]
WIDE = 2**31  # elements from which offsets exceed 32 bits
SETTINGS = ("batch", "dtype", "with_slope", "surrogate")  # of a problem; the command line says


class Format(NamedTuple):
    """A dtype, and the precision of its products if it is float32, "ieee" or "tf32"."""

    name: str
    dtype: torch.dtype
    precision: str


FORMATS: dict[Number, Format] = {
    "bf16": Format("bfloat16", torch.bfloat16, "ieee"),
    "fp16": Format("float16", torch.float16, "ieee"),
    "tf32": Format("tf32", torch.float32, "tf32"),
    "fp32": Format("float32", torch.float32, "ieee"),
}


@dataclass(frozen=True)
class Layer:
    """A layer to measure.

    Attributes:
        name: kernel size, input and output channels, side of the maps; "c" is a convolution, "f" fully connected.
        networks: layers of networks that have this shape.
        fields: of `Problem`, without batch and dtype.
        wide: whether the batch is so large that offsets into activations exceed 32 bits.
    """

    name: str
    networks: tuple[str, ...]
    fields: dict[str, Any]
    wide: bool = False

    def problem(self, batch: int, number: Number, sigma: float, *, surrogate: bool = False) -> Problem:
        if self.wide:
            image = self.fields["height"] * self.fields["width"] * self.fields["in_channels"]
            batch = max(batch, -(-WIDE // image))
        settings = {"batch": batch, "dtype": FORMATS[number].dtype, "with_slope": sigma > 0}
        settings["surrogate"] = surrogate and sigma > 0
        return Problem.from_dict(self.fields | settings)


def in_front_of_pools() -> set[str]:
    """Layers of networks that may compute the pool behind them, as `Layer.networks` has them."""
    names = set()
    for model in ("cnn1", "vgg11", "vgg16"):
        with torch.device("meta"):
            features = getattr(models, model)().features
        for (name, layer), following in pairwise([*features.named_children(), ("", None)]):
            if isinstance(layer, DFTConv2d) and isinstance(following[1], EarliestSpikePool2d):
                names.add(f"{model}.{name}")
    return names


def load(path: Path) -> list[Layer]:
    """Layers of a file: a list of objects with `name`, optionally `layers` and `wide`, and fields of `Problem`.

    Raises:
        ValueError: something else is in the file; OSError: it cannot be read.
    """
    layers = []
    try:
        for values in json.loads(path.read_text(encoding="utf-8")):
            fields = {key: value for key, value in values.items() if key not in ("name", "layers", "wide")}
            if unwanted := [key for key in SETTINGS if key in fields]:
                raise ValueError(f"{', '.join(unwanted)} of {values['name']} belong on the command line")
            layer = Layer(values["name"], tuple(values.get("layers", ())), fields, values.get("wide", False))
            if min(layer.problem(1, "fp32", 1).out_size) < 1:
                raise ValueError(f"the kernel of {layer.name} is larger than its maps")
            layers.append(layer)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--shapes must name a file like bench/shapes.json; got {path}: {type(error).__name__}: {error}."
        ) from error
    if not layers:
        raise ValueError(f"--shapes must name a file with at least one layer; got {path}.")
    return layers


@contextmanager
def products(number: Number) -> Iterator[None]:
    """Float32 products in the precision of a number format, ours and the libraries'."""
    convolutions: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009  (type checkers do not know it)
    switches = (torch.backends.cuda.matmul, convolutions)
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = FORMATS[number].precision
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
