"""Profiles training steps: a trace for a browser, and PyTorch's table of operators and layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from ttfs_triton.atomic import write_text
from ttfs_triton.nn.statistics import short_names
from ttfs_triton.nn.weighted import WeightedLayer

SKIPPED = 15  # steps before the first one that is traced: they allocate, compile or capture
ROWS = 60  # of the table


class StepProfiler:
    """Traces some steps of a run; when they are done, or the epoch is, writes `trace.json` and `steps.txt`.

    Each layer and each stage of a step have a row. Steps that are replayed from a CUDA graph have one for each kernel
    instead; `--cuda-graph off` shows the layers.

    Args:
        steps: number of steps; 0 for none.
        network: whose layers get rows.
        folder: for the two files; None: this process writes nothing.
        device: that trains.
        say: shows a line.
    """

    def __init__(
        self, steps: int, network: nn.Module, folder: Path | None, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self.steps, self.network, self.folder, self.device, self.say = steps, network, folder, device, say
        self._seen = 0
        self._profile: profile | None = None
        self._marks: list[Any] = []

    def step(self) -> None:
        """Called before each step."""
        self._seen += 1
        if self.steps and self._seen == SKIPPED + 1:
            for name, layer in _named_layers(self.network):
                self._marks += _mark(layer, f"layer {name}")
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profile = profile(activities=activities, acc_events=True)
            self._profile.start()
        elif self._seen == SKIPPED + self.steps + 1:
            self.close()

    def close(self) -> None:
        """Write what there is. Called after each epoch, and by `step` when all steps are traced."""
        if self._profile is None:
            return
        self._profile.stop()  # waits for the device
        for mark in self._marks:
            mark.remove()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.folder / "trace.json"))
            order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
            table = self._profile.key_averages().table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
            traced = min(self._seen - SKIPPED, self.steps)
            write_text(self.folder / "steps.txt", f"{traced} steps\n{table}\n")
            self.say(f"profile                  {self.folder / 'steps.txt'}, trace.json beside it")
        self.steps, self._profile = 0, None


def _named_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, WeightedLayer)]
    return list(zip(short_names([name for name, _ in found]), [module for _, module in found], strict=True))


def _mark(layer: nn.Module, name: str) -> list[Any]:
    """Give a layer's forward pass a row; returns the handles of its hooks."""
    open_rows: list[Any] = []

    def begin(*_: object) -> None:
        open_rows.append(record_function(name).__enter__())

    def end(*_: object) -> None:
        open_rows.pop().__exit__(None, None, None)

    return [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end, always_call=True)]
