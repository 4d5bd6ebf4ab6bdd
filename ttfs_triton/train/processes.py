"""What the processes of a run agree on: to stop, and what the main process alone finds out."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

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
    """SIGTERM and SIGINT as a request that the training loop honours at the next step.

    Within its `with` block, the first SIGTERM or SIGINT is noted, and a second one acts as usual.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def everywhere(self) -> bool:
        """Whether any process was asked to stop. All processes must call it at the same point."""
        if self.accelerator.num_processes == 1:
            return self.received is not None
        flag = torch.tensor(int(self.received is not None), device=self.accelerator.device)
        return bool(sum_over_processes(self.accelerator, flag).item())


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
