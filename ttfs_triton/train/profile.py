"""Where the time of training steps goes: a trace for a browser, and a table by layer and pass.

PyTorch's profiler tells which operator ran when, and gives a backward operator the number of the forward one that it
belongs to; so layers need to be marked in the forward pass only, and nothing is added to what autograd does. Steps
that are replayed from a graph have no operators: then as many are made one by one, for the table alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ttfs_triton.atomic import write_text
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer

# Of what the steps themselves mark.
STAGES = ("data", "loss", "clipping", "optimiser", "moving average")
LAYER = "layer "
BACKWARD = "autograd::engine::evaluate_function: "
# Steps before the first one that is traced: what allocates, compiles or captures.
SKIPPED = 15

Row = tuple[str, str]


class StepProfiler:
    """Traces some steps of a run, and writes `trace.json` and `steps.txt` when they are done.

    Args:
        steps: how many.
        network: whose hidden layers and readout are told apart.
        folder: for the two files; None: this process writes nothing.
        device: that trains.
        graphed: asked when tracing begins: whether steps are replayed from a graph.
        say: shows a line.
    """

    def __init__(
        self,
        steps: int,
        network: nn.Module,
        folder: Path | None,
        device: torch.device,
        graphed: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.steps, self.network, self.folder, self.device = steps, network, folder, device
        self.graphed, self.say = graphed, say
        self.one_by_one = False
        self._ahead = steps and SKIPPED
        self._open: ExitStack | None = None
        self._profile: profile | None = None
        self._left = 0
        self._text: list[str] = []
        self._finished = steps == 0

    def before_step(self) -> None:
        """Begin to trace if it is time."""
        if self._finished or self._open is not None:
            return
        if self._ahead > 0:
            self._ahead -= 1
            return
        self._begin()

    def after_step(self) -> None:
        """End the trace if enough steps are in it."""
        if self._open is None:
            return
        self._left -= 1
        if self._left == 0:
            self._end()

    def close(self) -> None:
        """Write what there is, if the epoch ends first."""
        if self._open is not None:
            self._end()

    def _begin(self) -> None:
        self._left, self._open = self.steps, ExitStack()
        if not self.graphed() or self.one_by_one:
            for name, layer in named_layers(self.network):
                self._open.callback(_marked(layer, LAYER + name))
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        self._profile = self._open.enter_context(profile(activities=activities, acc_events=True))

    def _end(self) -> None:
        assert self._open is not None
        assert self._profile is not None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        done = self.steps - self._left
        self._open.close()
        self._open = None
        events = list(self._profile.events() or [])
        if self.graphed() and not self.one_by_one:
            self._text.append(f"{done} steps, replayed from a graph: the device is idle {idle_share(events):.1%}\n")
            self._text.append(self._profile.key_averages().table(sort_by="self_device_time_total", row_limit=30))
            self._write("trace.json")
            self.one_by_one = True
            return
        how = "one by one" if self.one_by_one else "as they are"
        self._text.append(f"{done} steps, {how}\n{step_table(events)}")
        self._write("trace-one-by-one.json" if self.one_by_one else "trace.json")
        self.one_by_one, self._finished = False, True
        if self.folder is not None:
            write_text(self.folder / "steps.txt", "\n".join(self._text) + "\n")
            self.say(f"profile                  {self.folder / 'steps.txt'}, trace.json beside it")

    def _write(self, name: str) -> None:
        if self.folder is not None:
            assert self._profile is not None
            self.folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.folder / name))


def named_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers of a network, and modules between them, in the order in which they were declared."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, WeightedLayer)]
    inside = {id(part) for _, layer in layers for part in layer.modules() if part is not layer}
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, WeightedLayer) or (next(module.children(), None) is None and id(module) not in inside)
    ]
    return list(zip(short_names([name for name, _ in found]), [module for _, module in found], strict=True))


def _marked(layer: nn.Module, name: str) -> Callable[[], None]:
    """Mark a layer's forward pass in the trace; returns what undoes it."""
    open_marks: list[Any] = []

    def begin(*_: object) -> None:
        open_marks.append(record_function(name).__enter__())

    def end(*_: object) -> None:
        open_marks.pop().__exit__(None, None, None)

    handles = [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end, always_call=True)]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def time_by_row(events: Iterable[Any]) -> dict[Row, float]:
    """Microseconds of the operators of a trace, by (layer or stage, pass).

    Args:
        events: `torch.autograd.profiler_util.FunctionEvent`s. Time on a GPU where there is any, else on the CPU.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]
    on_gpu = any(event.self_device_time_total > 0 for event in events)
    layers = {event.sequence_nr: mark for event in events if event.sequence_nr >= 0 and (mark := _layer(event))}
    times: defaultdict[Row, float] = defaultdict(float)
    for event in events:
        times[_row(event, layers)] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return dict(times)


def _row(event: Any, layers: dict[int, str]) -> Row:
    """Where an operator belongs: what encloses it says so."""
    while event is not None:
        if event.name in STAGES:
            return event.name, "—"
        if event.name.startswith(LAYER):
            return event.name.removeprefix(LAYER), "forward"
        if event.name.startswith(BACKWARD):
            return layers.get(event.sequence_nr, "all layers, and loss"), "backward"
        event = event.cpu_parent
    return "other", "—"


def _layer(event: Any) -> str | None:
    while event is not None:
        if event.name.startswith(LAYER):
            return event.name.removeprefix(LAYER)
        event = event.cpu_parent
    return None


def idle_share(events: Sequence[Any]) -> float:
    """Share of the time between the first and the last event in which none ran: on the GPU if there are any, else on
    the CPU."""
    on_gpu = [event for event in events if event.device_type != DeviceType.CPU]
    spans = sorted((event.time_range.start, event.time_range.end) for event in on_gpu or events)
    if not spans:
        return 0.0
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    whole = end - spans[0][0]
    return 1 - busy / whole if whole > 0 else 0.0


def step_table(events: Sequence[Any]) -> str:
    """Shares of time as text: layers in their order, then stages; idle is a share of the whole, not of the sum."""
    times = time_by_row(events)
    total = sum(times.values()) or 1.0
    order = [row for row in times if row[1] == "forward"] + [row for row in times if row[1] == "backward"]
    order += sorted((row for row in times if row[1] == "—"), key=lambda row: -times[row])
    lines = [f"{'layer or stage':<24}{'pass':<10}{'ms':>10}{'share':>8}"]
    lines += [
        f"{name:<24}{way:<10}{times[name, way] / 1e3:>10.2f}{times[name, way] / total:>8.1%}" for name, way in order
    ]
    lines += [f"{'idle':<24}{'—':<10}{'':>10}{idle_share(events):>8.1%}"]
    return "\n".join(lines)
