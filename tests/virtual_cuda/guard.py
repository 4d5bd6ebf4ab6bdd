"""Compiles `guard.cpp` once a version of PyTorch, into the user's cache, and loads it."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("guard.cpp")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttfs-triton" / "virtual-cuda"


COMPILER = os.environ.get("CXX") or "g++"


def why_not() -> str | None:
    """Why there can be no virtual device here; None if there can."""
    if sys.platform != "linux":
        return "the virtual CUDA device is for Linux"
    if not _library().is_file() and shutil.which(COMPILER) is None:
        return f"the virtual CUDA device needs a C++ compiler; {COMPILER} was not found (CXX names another)"
    return None


def install() -> None:
    """Make PyTorch believe in one CUDA device, for the rest of the process and before its first backward pass.

    Raises:
        RuntimeError: there can be none here, or the compiler failed.
    """
    if (reason := why_not()) is not None:
        raise RuntimeError(f"install: {reason}.")
    if not _library().is_file():
        _compile(_library())
    ctypes.CDLL(str(_library())).install()


def _library() -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes() + torch.__file__.encode()).hexdigest()[:12]
    return CACHE / f"torch-{torch.__version__}-{digest}" / "guard.so"


def _compile(library: Path) -> None:
    """Compile into a temporary file and rename it, since several processes may do so at once."""
    home = Path(torch.__file__).parent
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        part = Path(folder) / library.name
        command = [COMPILER, "-std=c++20", "-O1", "-shared", "-fPIC", str(SOURCE), "-o", str(part)]
        command += [f"-I{home / 'include'}", f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10", "-ltorch_cpu"]
        command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"install: {SOURCE.name} must compile; {' '.join(command)} said\n{process.stderr}")
        os.replace(part, library)
