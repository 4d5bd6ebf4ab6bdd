"""What the processes of a run agree on: gradients, to stop, and what the main process alone finds out."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ttfs_triton.nn.weighted import WeightedLayer
from ttfs_triton.scoring import sum_over_processes


class Interrupted(Exception):
    """The run was asked to stop; everything that it needs to go on has been saved.

    Attributes:
        exit_code: 128 plus the signal's number, as shells have it.
    """

    def __init__(self, message: str, received: signal.Signals | None) -> None:
        super().__init__(message)
        self.received = received
        self.exit_code = 128 + (received or signal.SIGTERM)


class StopRequest:
    """SIGTERM and SIGINT as a request that the training loop honours at the next step at which processes agree.

    Within its `with` block, the first SIGTERM or SIGINT is noted, and a second one acts as usual. Whoever sends one to
    all processes sends it to torchrun too, which repeats it to those that it started: there, a second one that comes
    with the first is the same.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    REPEATED = 2.0  # seconds after the first, in which torchrun repeats it

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._repeated, self._since = self.REPEATED if "TORCHELASTIC_RUN_ID" in os.environ else 0.0, 0.0

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self.received is None or not self._repeated:  # what is repeated may come when all is saved
            self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            if not self._repeated:
                self._restore()
        elif time.monotonic() - self._since > self._repeated:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def due(self, step: int, every: int) -> bool:
        """Whether to stop after this step, as any process was asked to; all processes must call it after each step.

        Agreeing makes GPUs wait for their hosts: several agree every so many steps, and stop then.
        """
        if self.accelerator.num_processes == 1:
            return self.received is not None
        if self.accelerator.device.type != "cpu" and step % every:
            return False
        mine = torch.tensor([float(self.received is not None)], device=self.accelerator.device)
        return bool(sum_over_processes(self.accelerator, mine).item())


def compress_gradients(model: nn.Module, say: Callable[[str], None]) -> None:
    """Let processes exchange gradients rounded to bfloat16, each the mean of theirs; a line if there is one process."""
    if not isinstance(model, DistributedDataParallel):
        say("gradient_compression: one process exchanges no gradients")
        return
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    # Under the hook's own name PyTorch insists on GPUs, although gloo sums bfloat16, too.
    model.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))


def share_statistics(network: nn.Module) -> None:
    """Let batch norm of every layer take its statistics over all processes."""
    for module in network.modules():
        if isinstance(module, WeightedLayer):
            module.statistics_group = torch.distributed.group.WORLD


def ask_main_process(accelerator: Accelerator, ask: Callable[[], Any], error: type[Exception]) -> Any:
    """What `ask` returns in the main process, which alone calls it; if it raises `error` there, all processes do."""
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = ask()
        except error as problem:
            answer[1] = str(problem)
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise error(answer[1])
    return answer[0]
