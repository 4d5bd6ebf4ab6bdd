"""Which backend serves a call, who says so, and why Triton cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.common import KINDS, LINEAR, Kind, apply, operands
from ttfs_kernels import available_backends, backend, ops
from ttfs_kernels.triton_backend import launch
from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.launch import Device, unavailable

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


@pytest.fixture
def served_by(monkeypatch):
    """The backend whose layer a call comes to."""
    found, apply_layer = [], ops.apply_layer
    monkeypatch.setattr(ops, "apply_layer", lambda layer, given: found.append(layer) or apply_layer(layer, given))

    def ask(kind: Kind, device: torch.device, **options) -> str:
        apply(kind, operands(kind, device=device), **options)
        return {"TorchLayer": "torch", "TritonLayer": "triton"}[type(found.pop()).__name__]

    return ask


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process without a GPU and without TRITON_INTERPRET."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@KINDS
def test_backend_is_the_one_asked_for_and_auto_follows_the_device(served_by, device, kind):
    assert served_by(kind, device, backend="torch") == "torch"
    assert served_by(kind, device, backend="triton") == "triton"
    assert served_by(kind, device) == ("triton" if device.type == "cuda" else "torch")
    assert served_by(kind, CPU) == "torch"


def test_backend_sets_what_auto_means(served_by, device):
    assert (backend().choice, backend().source) == ("auto", "default")
    for name, other in (("triton", "torch"), ("torch", "triton")):
        report = backend(name)
        assert (report.choice, report.source) == (name, "backend()")
        assert served_by(LINEAR, device) == name
        assert served_by(LINEAR, device, backend=other) == other
    with pytest.raises(ValueError, match="backend: backend must be one of auto, triton, torch; got 'cuda'"):
        backend("cuda")


def test_report_tells_the_choices_made(served_by, device):
    assert backend().passes == ()
    served_by(LINEAR, device, backend="triton")
    (line,) = backend().passes
    assert line.startswith("forward {'batch': 5")
    assert line.endswith("(default)")
    assert "block_m" in line
    assert str(backend()).startswith("backend: auto (default)\nTriton on cpu: ")
    assert line in str(backend())
    assert available_backends() == ("triton", "torch")
    assert backend().unavailable[str(device)] == ""


def test_triton_refuses_devices_without_kernels(monkeypatch):
    assert unavailable(torch.device("xpu"), torch.float32) == "device 'xpu' is not a CUDA or ROCm GPU"
    old = torch.device("cuda", 99)
    monkeypatch.setitem(launch._devices, old, Device("old", Chip("cuda", 75), 80))
    assert unavailable(old, torch.float32) == "sm_75 is older than sm_80"
    tensors = operands(LINEAR, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r'dft_linear: backend="triton" must .*; float64 has no Triton kernel; use'):
        apply(LINEAR, tensors, backend="triton")
    assert apply(LINEAR, tensors).dtype == torch.float64


def test_variable_sets_what_auto_means_and_the_cpu_is_refused_without_the_interpreter():
    """Too late a TRITON_INTERPRET changes nothing, as Triton has been imported."""
    code = """
import os, torch, triton
from ttfs_kernels import available_backends, backend, dft_linear
os.environ["TRITON_INTERPRET"] = "1"
print(backend(), available_backends())
try:
    dft_linear(torch.rand(2, 3), torch.rand(4, 3))
except RuntimeError as error:
    print(error)
print(dft_linear(torch.rand(2, 3), torch.rand(4, 3), backend="torch").shape)
"""
    process = run_python(code, TTFS_KERNELS_BACKEND="triton")
    assert process.returncode == 0, process.stderr
    reason = "tensors are on the CPU, and TRITON_INTERPRET=1 was not set before the start"
    assert process.stdout.splitlines() == [
        "backend: triton (TTFS_KERNELS_BACKEND)",
        f"Triton on cpu: {reason} ('torch',)",
        f'dft_linear: backend="triton" must be able to run Triton kernels; {reason}. Use backend="torch" or "auto".',
        "torch.Size([2, 4])",
    ]


@pytest.mark.parametrize(
    ("code", "variables", "message"),
    [
        (
            "import ttfs_kernels",
            {"TTFS_KERNELS_BACKEND": "cuda"},
            "environment variable TTFS_KERNELS_BACKEND must be one of auto, triton, torch; got 'cuda'",
        ),
        (
            "import sys, torch; sys.modules['triton'] = None; from ttfs_kernels import dft_linear\n"
            "assert dft_linear(torch.rand(2, 3), torch.rand(4, 3)).shape == (2, 4)\n"
            "dft_linear(torch.rand(2, 3), torch.rand(4, 3), backend='triton')",
            {},
            "Triton is not installed (pip install triton; Linux only)",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_named(code, variables, message):
    process = run_python(code, **variables)
    assert process.returncode == 1
    assert message in process.stderr
