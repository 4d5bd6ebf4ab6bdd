"""Choice of a call's backend, and the reasons why Triton kernels cannot run."""

import importlib
from unittest.mock import Mock

import pytest
import torch

from tests.bench.modules import run_python
from tests.kernels.common import KINDS, Kind, apply, operands
from ttfs_kernels import checks, ops
from ttfs_kernels.triton import blocks
from ttfs_kernels.triton.blocks import Chip, unavailable

CPU = torch.device("cpu")
ON_THE_CPU = "tensors are on the CPU, and TRITON_INTERPRET=1 was not set before the start"
CALL = "dft_linear(torch.rand(2, 3), torch.rand(4, 3)"
# What a process without a GPU and without TRITON_INTERPRET runs, and says.
PROCESSES = {
    # Too late a TRITON_INTERPRET changes nothing, as Triton has been imported.
    "the variable sets what auto means": (
        f"""
import triton
os.environ |= {{"TTFS_KERNELS_BACKEND": "triton", "TRITON_INTERPRET": "1"}}
from ttfs_kernels import dft_linear
print({CALL}, backend="torch").shape)
{CALL})
""",
        [
            "torch.Size([2, 4])",
            f'dft_linear: backend="triton" must be able to run Triton kernels; {ON_THE_CPU}. '
            'Use backend="torch" or "auto".',
        ],
    ),
    "the variable must name a backend": (
        """
os.environ["TTFS_KERNELS_BACKEND"] = "cuda"
from ttfs_kernels import dft_linear
""",
        ["environment variable TTFS_KERNELS_BACKEND must be one of auto, triton, torch; got 'cuda'."],
    ),
    "Triton that is not installed is named": (
        f"""
sys.modules["triton"] = None
from ttfs_kernels import dft_linear
print({CALL}).shape)
{CALL}, backend="triton")
""",
        [
            "torch.Size([2, 4])",
            'dft_linear: backend="triton" must be able to run Triton kernels; Triton is not installed '
            '(pip install triton; Linux only). Use backend="torch" or "auto".',
        ],
    ),
}


@pytest.fixture
def served_by(monkeypatch):
    """The backend whose layer a call comes to."""
    found, apply_layer = [], ops.apply_layer
    monkeypatch.setattr(ops, "apply_layer", lambda *given: found.append(given[1]) or apply_layer(*given))

    def ask(kind: Kind, device: torch.device, **options) -> str:
        apply(kind, operands(kind, device=device), **options)
        return {"TorchLayer": "torch", "TritonLayer": "triton"}[type(found.pop()).__name__]

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


def test_triton_refuses_devices_and_dtypes_without_kernels(monkeypatch):
    assert unavailable(CPU, torch.float64) == "float64 has no Triton kernel; use float32, or the torch backend"
    assert unavailable(torch.device("xpu"), torch.float32) == "device 'xpu' is not a CUDA or ROCm GPU"
    old = torch.device("cuda", 99)
    monkeypatch.setitem(blocks._chips, old, Chip("cuda", 75, 80))
    assert unavailable(old, torch.float32) == "sm_75 is older than sm_80"
    assert checks.backend_for("dft_linear", "auto", Mock(is_cuda=True, device=old, dtype=torch.float32)) == "torch"


@pytest.mark.parametrize("process", PROCESSES)
def test_processes_without_a_gpu_say_why(process):
    code, said = PROCESSES[process]
    start = "import os, sys, torch\nsys.excepthook = lambda kind, error, _: print(error)\n"
    assert run_python("-c", start + code, status=1, CUDA_VISIBLE_DEVICES="").splitlines() == said
