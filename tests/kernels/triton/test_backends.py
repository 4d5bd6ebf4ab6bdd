"""Choice of a call's backend, and the reasons why Triton kernels cannot run."""

import importlib

import pytest
import torch

from tests.kernels.common import KINDS, LINEAR, Kind, apply, operands
from ttfs_kernels import checks, ops
from ttfs_kernels.triton import common
from ttfs_kernels.triton.common import Chip, unavailable

CPU = torch.device("cpu")


@pytest.fixture
def served_by(monkeypatch):
    """The backend whose layer a call comes to."""
    layers, apply_layer = [], ops.apply_layer
    monkeypatch.setattr(ops, "apply_layer", lambda *given: layers.append(given[1]) or apply_layer(*given))

    def ask(kind: Kind, device: torch.device, **options) -> str:
        apply(kind, operands(kind, device=device), **options)
        return {"TorchLayer": "torch", "TritonLayer": "triton"}[type(layers.pop()).__name__]

    return ask


@KINDS
def test_backend_is_the_one_asked_for_and_auto_follows_the_device_or_the_variable(served_by, device, kind, monkeypatch):
    assert served_by(kind, device) == ("triton" if device.type == "cuda" else "torch")
    assert served_by(kind, CPU) == "torch"
    for name, other in (("triton", "torch"), ("torch", "triton")):
        assert served_by(kind, device, backend=name) == name
        monkeypatch.setenv(checks.VARIABLE, name)
        importlib.reload(checks)
        assert served_by(kind, device) == name
        assert served_by(kind, device, backend=other) == other


def test_triton_says_why_it_cannot_run(monkeypatch):
    assert unavailable(CPU, torch.float64) == "float64 has no Triton kernel; use float32, or the torch backend"
    assert unavailable(torch.device("xpu"), torch.float32) == "device 'xpu' is not a CUDA or ROCm GPU"
    old = torch.device("cuda", 99)
    monkeypatch.setitem(common._chips, old, Chip("cuda", 75, 80))
    assert unavailable(old, torch.float32) == "sm_75 is older than sm_80"
    refused = r'dft_linear: backend="triton" must be able to run Triton kernels; {}.* Use backend="torch" or "auto".'
    for owner, name, reason in (
        (common, "INTERPRETING", "tensors are on the CPU, and TRITON_INTERPRET=1 was not set before the start"),
        (checks, "_HAS_TRITON", "Triton is not installed"),
    ):
        monkeypatch.setattr(owner, name, False)
        with pytest.raises(RuntimeError, match=refused.format(reason)):
            apply(LINEAR, operands(LINEAR), backend="triton")
        assert apply(LINEAR, operands(LINEAR)).shape == LINEAR.out
    monkeypatch.setenv(checks.VARIABLE, "cuda")
    with pytest.raises(ValueError, match=f"variable {checks.VARIABLE} must be one of auto, triton, torch; got 'cuda'"):
        importlib.reload(checks)
