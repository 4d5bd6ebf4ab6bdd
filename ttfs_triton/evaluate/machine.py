"""How figures were made: command line, date, device, and versions of packages."""

import importlib.metadata
import platform
import re
import shlex
import sys
import time
from pathlib import Path

import torch


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    numbers = {"python": platform.python_version(), "torch": torch.__version__}  # with its build: 2.15.0+cu132
    for package in ("ttfs-triton", "triton", "accelerate", "datasets", "safetensors"):
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return numbers


def describe_machine() -> str:
    """Lines for a bug report: versions, system and devices; no paths and no names of users or hosts."""
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


def facts(command: str, device: torch.device) -> dict[str, str]:
    """How the figures of a command were made: date, device, versions and command line."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(device),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "command": command_line(command),
    }


def command_line(command: str) -> str:
    """The command line of this run of `ttfs COMMAND`; absolute paths are cut to their last part, also after "="."""
    words = (re.sub(r"(^|=)/.*?([^/]*)/*$", r"\1\2", word) for word in sys.argv[1:])
    return shlex.join(["ttfs", command, *words])
