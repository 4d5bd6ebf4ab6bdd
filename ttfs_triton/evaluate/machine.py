"""Versions of packages, and the device's name, on which results depend besides code and data."""

import importlib.metadata
import platform
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with its build: 2.15.0+cu132
    for package in ("ttfs-triton", "triton", "accelerate", "datasets", "safetensors"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_machine() -> str:
    """Lines for a report of a bug: versions, system and devices; no paths, names of users or hosts."""
    devices = [device_name(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    facts = {"system": platform.platform(), **versions(), "cpu": device_name(torch.device("cpu"))}
    facts["gpu"] = ", ".join(devices) or "none that PyTorch can use"
    return "".join(f"{name:<13} {value}\n" for name, value in facts.items())


def device_name(device: torch.device) -> str:
    """Name of a device, such as "NVIDIA H100" or "CPU Intel(R) Xeon(R), 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {processor_name()}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    """Model of the CPU, such as "Intel(R) Xeon(R) Platinum 8481C"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
