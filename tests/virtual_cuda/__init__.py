"""A CUDA device that is not there, for machines without one.

Its tensors say `cuda:0` and `is_cuda`, keep their numbers on the CPU, compute with PyTorch's CPU kernels (Triton
kernels in its interpreter: TRITON_INTERPRET=1), and refuse to meet CPU tensors, as on a real device. What can be seen
this way: tensors on the wrong device, host synchronisations, launches of a step, branches that only CUDA takes,
autocast and gradient scaling. What cannot: numerics, speed, memory and races of compiled kernels; streams; graph
capture; torch.compile.

    pytest --device virtual                                     tests that take `device`, on this device
    python -m tests.virtual_cuda recipes/quickstart.py ...      a script on this device

It changes the whole process, for good: it needs one of its own.
"""

from tests.virtual_cuda.device import install, installed, why_not
from tests.virtual_cuda.watch import Record, recording

__all__ = ["Record", "install", "installed", "recording", "why_not"]
