"""A stand-in for CUDA graphs: records the operators of a step and replays them into the same memory, without Python."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraphs:
    """`CudaGraphs` for the CPU: what is captured is undone, so that a capture executes nothing, as on a GPU.

    `failure` is the message of the error in which captures end; `recorder` notes a capture while it lasts.
    """

    def __init__(self, failure: str | None = None) -> None:
        self.failure = failure
        self.replays = self.asides = self.captures = 0
        self.recorder: Recorder | None = None

    def aside(self) -> AbstractContextManager[None]:
        self.asides += 1
        return nullcontext()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        random_state = torch.get_rng_state()
        self.recorder = recorder = Recorder()
        with recorder:
            work()
        self.recorder = None
        self.captures += 1
        recorder.undo()
        torch.set_rng_state(random_state)
        if self.failure is not None:
            raise RuntimeError(self.failure)

        def replay() -> None:
            self.replays += 1
            recorder.replay()

        return replay


class Recorder(TorchDispatchMode):
    """Notes every operator that computes; refuses what the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Compiled code runs as such; under other modes Dynamo would run what it was made from."""
        return True

    def __torch_dispatch__(self, operator, _, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator._schema.name
        if name.startswith("profiler::"):
            return operator(*args, **kwargs)
        if name == "aten::_local_scalar_dense" and args[0].dtype == torch.int32:
            return operator(*args)  # DistributedDataParallel's map of used parameters, on the host also with a GPU
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"):
            raise RuntimeError(f"operation not permitted when stream is capturing ({name})")
        names = [argument.name for argument in operator._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        for argument in operator._schema.arguments:
            if argument.name in given and argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(given[argument.name])
        if operator is torch.ops.aten.native_batch_norm.default:
            self._keep(args[3:5])  # the running statistics, of whose change its schema does not tell
        result = operator(*args, **kwargs)
        returned = operator._schema.returns
        views = bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        if not views:
            fresh = [] if any(r.alias_info is not None for r in returned) else _tensors(result)
            self.calls.append((operator, args, kwargs, fresh))
        return result

    def _keep(self, value: Any) -> None:
        """Keep what a tensor's whole storage held before the capture."""
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._before:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self._before[storage.data_ptr()] = (whole, whole.clone())

    def note_launch(self, launch: Any) -> None:
        """Note the launch of a Triton kernel, which passes the dispatcher by; it fills new tensors only."""
        self.calls.append((launch, (), {}, []))

    def undo(self) -> None:
        """Put back what was overwritten."""
        for whole, before in self._before.values():
            whole.copy_(before)

    def replay(self) -> None:
        """Compute all again, and write results into the memory of the captured ones."""
        with torch.no_grad():
            for operator, args, kwargs, fresh in self.calls:
                result = operator(*args, **kwargs)
                if getattr(operator, "namespace", None) == "c10d":
                    result[1].wait()
                for own, new in zip(fresh, _tensors(result), strict=bool(fresh)):
                    if own.numel():
                        own.detach().copy_(new)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
