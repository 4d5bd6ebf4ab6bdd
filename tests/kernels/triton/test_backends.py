"""Which backend serves a call, who says so, and why Triton cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.test_operators import KINDS, apply, arguments
from ttfs_kernels import available_backends, backend, dft_linear, torch_backend
from ttfs_kernels.triton_backend import launch, layer
from ttfs_kernels.triton_backend.formulation import Chip
from ttfs_kernels.triton_backend.launch import Device, unavailable

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


def served_by(kind: str, device: torch.device, **options) -> str:
    """The module of the autograd function that a call comes to."""
    x, weight, bias = (t.detach().to(device).requires_grad_() for t in arguments(kind) if t is not None)
    (node,) = [type(apply(kind, x, weight, bias, **options).grad_fn)]
    return {torch_backend.DFTLayer: "torch", layer.DFTLayer: "triton"}[node._forward_cls]


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a process without a GPU and without TRITON_INTERPRET."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@KINDS
def test_auto_takes_pytorch_without_a_gpu(kind):
    assert served_by(kind, CPU) == "torch"


@KINDS
@pytest.mark.gpu
def test_auto_takes_our_kernels_on_a_gpu(device, kind):
    assert served_by(kind, device) == "triton"
    assert served_by(kind, CPU) == "torch"


@KINDS
def test_backend_is_the_one_asked_for(device, kind):
    assert served_by(kind, device, backend="torch") == "torch"
    assert served_by(kind, device, backend="triton") == "triton"


def test_backend_sets_what_auto_means(device):
    assert backend().choice == "auto"
    assert backend().source == "default"
    report = backend("triton")
    assert (report.choice, report.source) == ("triton", "backend()")
    assert served_by("linear", device) == "triton"
    assert served_by("linear", device, backend="torch") == "torch"
    backend("torch")
    assert served_by("linear", device) == "torch"
    assert served_by("linear", device, backend="triton") == "triton"


def test_backend_refuses_other_names():
    with pytest.raises(ValueError, match="backend: backend must be one of auto, triton, torch; got 'cuda'"):
        backend("cuda")


def test_report_tells_the_choices_made(device):
    assert backend().passes == ()
    served_by("linear", device, backend="triton")
    (line,) = backend().passes
    assert line.startswith("forward {'batch': 5")
    assert line.endswith("(default)")
    assert "block_m" in line
    text = str(backend())
    assert text.startswith("backend: auto (default)\nTriton on cpu: ")
    assert line in text


def test_both_backends_are_available(device):
    assert available_backends() == ("triton", "torch")
    assert backend().unavailable[str(device)] == ""


@KINDS
@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (torch.float64, "float64 has no Triton kernel; use float32, or the torch backend"),
        (torch.bfloat16, "Triton's interpreter multiplies bfloat16 wrongly; use float16 or float32 there"),
    ],
)
def test_triton_refuses_dtypes_that_it_cannot_multiply(device, kind, dtype, reason):
    if device.type == "cuda" and dtype == torch.bfloat16:
        pytest.skip("a GPU multiplies bfloat16")
    tensors = [t.detach().to(device, dtype) for t in arguments(kind) if t is not None]
    expected = f'dft_{kind}: backend="triton" must be able to run Triton kernels; {reason}'
    with pytest.raises(RuntimeError, match=expected):
        apply(kind, *tensors, backend="triton")
    apply(kind, *tensors)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies bfloat16")
def test_triton_refuses_the_dtype_of_autocast():
    x, weight = torch.rand(2, 3), torch.rand(4, 3)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="multiplies bfloat16 wrongly"):
        dft_linear(x, weight, backend="triton")


def test_triton_refuses_devices_without_kernels(monkeypatch):
    assert unavailable(torch.device("xpu"), torch.float32) == "device 'xpu' is not a CUDA or ROCm GPU"
    old = torch.device("cuda", 99)
    monkeypatch.setitem(launch._devices, old, Device("old", Chip("cuda", 75), 80))
    assert unavailable(old, torch.float32) == "sm_75 is older than sm_80"


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


def test_variable_must_name_a_backend():
    process = run_python("import ttfs_kernels", TTFS_KERNELS_BACKEND="cuda")
    assert process.returncode == 1
    assert "environment variable TTFS_KERNELS_BACKEND must be one of auto, triton, torch; got 'cuda'" in process.stderr


def test_triton_that_is_not_installed_is_named():
    code = """
import sys, torch
sys.modules["triton"] = None
from ttfs_kernels import dft_linear
print(dft_linear(torch.rand(2, 3), torch.rand(4, 3)).shape)
dft_linear(torch.rand(2, 3), torch.rand(4, 3), backend="triton")
"""
    process = run_python(code)
    assert process.stdout == "torch.Size([2, 4])\n"
    assert "Triton is not installed (pip install triton; Linux only)" in process.stderr
