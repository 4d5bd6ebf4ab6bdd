"""What the processes of a run agree on: sums, and what the main process alone finds out."""

from collections.abc import Callable
from typing import Any, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor


def sum_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum a tensor over all processes; every process gets the result, `values` stays as it is."""
    return cast(Tensor, accelerator.reduce(values.clone(), "sum"))


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
