"""What is kept of values, where it lies, and how present values compare with it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
NUMBERS, TENSORS = FOLDER / "values.json", FOLDER / "values.safetensors"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of Triton's kernels
SAMPLES = 64  # elements that are kept of a tensor, at most: all of a small one, every n-th of a larger one
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 2e-1, "trained": 1e-2, "grid": math.inf}
"""Largest relative difference where bits may differ, by a part of the value's name. Of tensors, it is the root mean
square of the samples' difference, or the means' if larger, over the recorded one; at least three times the largest seen
with AVX2 or SSE alone and with PyTorch 2.11 and 2.15. In bfloat16, rounding moves whole spikes. "trained": after a few
steps. "grid": not compared, since one rounding at the border of a chip's weights changes gradients as a whole."""
DECIDE_BITS = ("torch", "triton", "numpy", "product", "device", "capability", "amx")
"""Parts of the environment on which the bits of tensors depend. Triton's interpreter multiplies by NumPy, whose BLAS
chooses by processor and environment: "product" is the hash of one of its products."""

Value = Tensor | int | float | str


def environment() -> dict[str, Any]:
    """What values are computed by and on."""
    factors = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32) - np.float32(0.5)
    return {
        **{package: version(package) for package in ("torch", "triton", "numpy")},
        "product": _hash((factors[0] @ factors[1]).tobytes()),
        "device": DEVICE,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }


def write(values: Mapping[str, Value]) -> None:
    """Record values, with the environment."""
    numbers: dict[str, Any] = {"environment": environment()}
    numbers |= {name: _summary(value) if isinstance(value, Tensor) else value for name, value in values.items()}
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in numbers.items())
    NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    tensors = {name: _samples(value) for name, value in values.items() if isinstance(value, Tensor)}
    safetensors.torch.save_file(tensors, TENSORS)


class Record:
    """The recorded values; `same_bits` if the environment is the recorded one, so that tensors must have equal bits."""

    def __init__(self) -> None:
        self._numbers: dict[str, Any] = json.loads(NUMBERS.read_text(encoding="utf-8"))
        self._samples = safetensors.torch.load_file(TENSORS)
        recorded, present = self._numbers.pop("environment"), environment()
        self.same_bits = all(recorded[key] == present[key] for key in DECIDE_BITS)

    def differences(self, values: Mapping[str, Value], group: str) -> dict[str, str]:
        """What differs, by name: values of a group that are not the recorded ones, and those that only one side has.

        Text and integers, also in tensors, are compared exactly everywhere. Floating-point tensors are compared bit by
        bit if `same_bits`, otherwise within `TOLERANCE`. Energies are compared within the tolerance of float64.
        """
        recorded = {name for name in self._numbers if name.startswith(f"{group}/")}
        differing = dict.fromkeys(recorded - values.keys(), "recorded, not computed")
        differing |= dict.fromkeys(values.keys() - recorded, "computed, not recorded")
        for name in sorted(recorded & values.keys()):
            compare = self._tensor if isinstance(values[name], Tensor) else self._number
            differing[name] = compare(name, values[name])
        return {name: text for name, text in differing.items() if text}

    def _number(self, name: str, value: float | str) -> str:
        recorded = self._numbers[name]
        near = isinstance(value, float) and isinstance(recorded, float | int)
        near = near and math.isclose(value, recorded, rel_tol=TOLERANCE["float64"])
        return "" if value == recorded or near else f"{value!r}, recorded {recorded!r}"

    def _tensor(self, name: str, value: Tensor) -> str:
        present, recorded = _summary(value), self._numbers[name]
        if present["sha256"] == recorded["sha256"]:
            return ""
        kind, recorded_kind = (f"{summary['dtype']} {summary['shape']}" for summary in (present, recorded))
        if kind != recorded_kind:
            return f"{kind}, recorded {recorded_kind}"
        difference = _samples(value).double() - self._samples[name].double()
        scale = max(recorded["rms"], 1e-300)
        sizes = float(difference.square().mean().sqrt()) / scale, abs(present["mean"] - recorded["mean"]) / scale
        size = max(sizes) if value.isfinite().all() else math.inf
        exact = not value.is_floating_point() or self.same_bits
        if not exact and size <= next(TOLERANCE[part] for part in name.split("/") if part in TOLERANCE):
            return ""
        kind = "bits" if exact else "values"
        return f"{kind} differ, samples by up to {float(difference.abs().max()):.3g}, relatively {size:.2g}"


def _summary(tensor: Tensor) -> dict[str, Any]:
    """Type, shape, hash, mean and root mean square. −0 is 0, and the memory format makes no difference."""
    plain = (tensor.detach().cpu() + 0).contiguous()
    return {
        "dtype": str(plain.dtype).removeprefix("torch."),
        "shape": list(plain.shape),
        "sha256": _hash(plain.flatten().view(torch.uint8).numpy().tobytes()),
        "mean": float(plain.double().mean()),
        "rms": float(plain.double().square().mean().sqrt()),
    }


def _samples(tensor: Tensor) -> Tensor:
    flat = tensor.detach().cpu().flatten()
    return flat[:: max(1, math.ceil(flat.numel() / SAMPLES))].clone()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
