"""`torch.cuda` for one device that is not there; `guard.cpp` is compiled once a version of PyTorch, into a cache."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from tests.virtual_cuda.tensors import VirtualMode, VirtualTensor, inner, is_cuda
from tests.virtual_cuda.watch import count

NAME, MEMORY = "virtual CUDA device", 80 << 30
PROPERTIES = types.SimpleNamespace(name=NAME, major=9, minor=0, total_memory=MEMORY, multi_processor_count=132)
SOURCE = Path(__file__).with_name("guard.cpp")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttfs-triton" / "virtual-cuda"
COMPILER = os.environ.get("CXX") or "g++"
_installed = False


def install() -> None:
    """Give this process one CUDA device for the rest of its life. Before the first backward pass."""
    global _installed
    if _installed:
        return
    if torch.cuda.is_available():
        raise RuntimeError("install: there must be no GPU; got one. Set CUDA_VISIBLE_DEVICES= to hide it.")
    if (reason := why_not()) is not None:
        raise RuntimeError(f"install: {reason}.")
    if not _library().is_file():
        _compile(_library())
    ctypes.CDLL(str(_library())).install()  # makes PyTorch believe in one CUDA device
    for name, value in _replacements().items():
        setattr(torch.cuda, name, value)
    # A build with CUDA has no more than one without: no graphs, no cuDNN.
    torch.backends.cuda.is_built = lambda: False
    torch.backends.cudnn.version = lambda: None
    torch.cuda.device.__enter__ = lambda self: None  # type: ignore[method-assign]
    torch.cuda.device.__exit__ = lambda self, *_: False  # type: ignore[method-assign]
    torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]
    torch.Generator = _Generator  # type: ignore[misc]
    for types_ in (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types):
        types_.append(VirtualTensor)
    torch.__future__.set_swap_module_params_on_conversion(True)  # nn.Module.to, in both directions
    # These build CPU tensors behind the back of dispatch modes.
    torch.tensor, torch.as_tensor = _tensor, _as_tensor
    _unwrap_in_triton()
    VirtualMode().__enter__()
    _installed = True


def installed() -> bool:
    """Whether this process has the virtual device."""
    return _installed


def _replacements() -> dict[str, Any]:
    state = torch.zeros(16, dtype=torch.uint8)
    # Random numbers on the device are the CPU generator's: seeds and states are nobody's.
    ignored = "_lazy_init set_device empty_cache reset_peak_memory_stats manual_seed manual_seed_all"
    constants = {
        **dict.fromkeys((*ignored.split(), "set_rng_state", "set_rng_state_all")),
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
        **dict.fromkeys(("_is_in_bad_fork", "is_current_stream_capturing"), False),
        **{"device_count": 1, "current_device": 0, "initial_seed": 0, "power_draw": 0},
        **{"memory_allocated": 0, "max_memory_allocated": 0, "mem_get_info": (MEMORY, MEMORY)},
        **{"get_device_name": NAME, "get_device_capability": (9, 0), "get_device_properties": PROPERTIES},
    }
    return {name: lambda *_, value=value, **__: value for name, value in constants.items()} | {
        "synchronize": lambda *_: count("synchronisations", "synchronize"),
        "get_rng_state": lambda *_: state.clone(),
        "get_rng_state_all": lambda: [state.clone()],
        **dict.fromkeys(("current_stream", "default_stream", "Stream", "Event"), _Work),
        "stream": lambda _: nullcontext(),
    }


class _Work:
    """A stream, or an event; the device has always done it."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter()

    record = __init__

    def synchronize(self) -> None:
        count("synchronisations", "stream or event")

    def wait(self, *_: Any) -> None: ...

    wait_stream = wait_event = wait

    def record_event(self, *_: Any) -> "_Work":
        return _Work()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "_Work") -> float:
        return (end.seconds - self.seconds) * 1e3


class _OfGenerator(type(torch.Generator)):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, _REAL_GENERATOR)


_REAL_GENERATOR, _REAL_TENSOR, _REAL_AS_TENSOR = torch.Generator, torch.tensor, torch.as_tensor


class _Generator(_REAL_GENERATOR, metaclass=_OfGenerator):
    """A CPU generator, whatever the device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _REAL_GENERATOR("cpu")


def _tensor(data: Any, *, dtype=None, device=None, requires_grad=False, pin_memory=False):
    tensor = _REAL_TENSOR(data, dtype=dtype)
    return (tensor.to(device) if is_cuda(device) else tensor).requires_grad_(requires_grad)


def _as_tensor(data: Any, dtype=None, device=None):
    if isinstance(data, torch.Tensor):
        return data.to(device=device or data.device, dtype=dtype or data.dtype)
    return _tensor(data, dtype=dtype, device=device) if is_cuda(device) else _REAL_AS_TENSOR(data, dtype=dtype)


def _unwrap_in_triton() -> None:
    """Interpreted kernels work on the CPU tensors behind virtual ones."""
    try:
        from triton.runtime.interpreter import GridExecutor
    except ImportError:
        return
    call = GridExecutor.__call__

    def on_the_cpu(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        virtual = [value is not inner(value) for value in tensors]
        if any(virtual):
            count("launches", self.fn.__name__)
            if not all(virtual):
                raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        with _disable_current_modes():
            return call(self, *tree_map(inner, args), **tree_map(inner, kwargs))

    GridExecutor.__call__ = on_the_cpu


def why_not() -> str | None:
    """Why there can be no virtual device here; None if there can."""
    if sys.platform != "linux":
        return "the virtual CUDA device is for Linux"
    if not _library().is_file() and shutil.which(COMPILER) is None:
        return f"the virtual CUDA device needs a C++ compiler; {COMPILER} was not found (CXX names another)"
    return None


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
