"""The console command `ttfs COMMAND ...`.

Until a command starts, only the standard library is imported, so that Ctrl-C works from the first moment on.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from ttfs_triton.command_line import RECIPES, recipe

COMMANDS = {
    "train": ("ttfs_triton.train", "Train a network by a recipe, or your own by --network FILE.py:FUNCTION."),
    "evaluate": ("ttfs_triton.commands:evaluate", "Score a network, count operations, price them on chips, simulate."),
    "energy": ("ttfs_triton.commands:energy", "Price another library's rate-coded network, and one beside it."),
    "classify": ("ttfs_triton.commands:classify", "Classify image files, and time the first output spike."),
    "convert": ("ttfs_triton.commands:convert", "Convert a trained ANN into a spiking network."),
    "calibrate": ("ttfs_triton.commands:calibrate", "Put a trained network on a chip's grid, without training."),
    "export": ("ttfs_triton.commands:export", "Write a network as C, ONNX or NIR, and check it in another program."),
    "sweep": ("ttfs_triton.sweep", "Accuracy against activity, energy, time steps, weight bits and faults."),
    "publish": ("ttfs_triton.commands:publish", "Publish a network on the Hugging Face Hub, with a model card."),
}
_MAIN_PROCESS = os.getpid()
NEUTRAL = "own"  # recipe that `ttfs train` uses if none is named: every key has its default


def main(words: list[str] | None = None) -> None:
    """Run the command in `words`, by default the words behind `ttfs`; exit code 2 for an unknown command or recipe.

    Ctrl-C ends the program with one line and code 130. A training run handles the first Ctrl-C itself, and saves; see
    `ttfs_triton.train.device`.
    """
    signal.signal(signal.SIGINT, _end)
    _open_streams()
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return
    if words[0] in ("-V", "--version"):
        print(f"ttfs-triton {version('ttfs-triton')}")
        return
    if words[0] == "env":
        from ttfs_triton.evaluate.machine import describe_machine

        print(describe_machine(), end="")
        return
    command, *flags = words
    if command not in COMMANDS:
        _refuse("command", command, [*COMMANDS, "env"])
    entry, description = COMMANDS[command]
    arguments: list[Any] = [description]
    sys.argv = [f"ttfs {command}", *flags]
    if command == "train":
        name, *flags = flags if flags and not flags[0].startswith("-") else [NEUTRAL, *flags]
        path = Path(name) if name.endswith((".yaml", ".yml")) else recipe(name)
        if not os.path.isfile(path):  # Path.is_file raises for names that are too long
            _refuse("recipe", name, [*_recipes(), NEUTRAL])
        sys.argv = ["ttfs train" if name == NEUTRAL else shlex.join(["ttfs", "train", name]), *flags]
        recipes = ", ".join(_recipes())
        arguments = [path, f"{description}\n\nttfs train RECIPE, with RECIPE one of {recipes}, or a YAML file."]
    module, _, function = entry.partition(":")
    getattr(import_module(module), function or "main")(*arguments)


def _end(number: int, frame: FrameType | None) -> None:
    """End at once, since libraries may swallow an exception. No file is half written; locks end with the process."""
    if os.getpid() == _MAIN_PROCESS:  # worker processes inherit this
        os.write(2, b"\nInterrupted. Nothing that was saved is lost.\n")
    os._exit(128 + number)


def _open_streams() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this program
            setattr(sys, name, open(os.devnull, "w"))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # σ has no place in some encodings
    if sys.stdout is sys.__stdout__ and not sys.stdout.isatty():
        pipe = io.BufferedWriter(_Pipe(sys.stdout.fileno(), "w", closefd=False))
        unbuffered = getattr(sys.stdout, "write_through", False)  # by `python -u`
        sys.stdout = io.TextIOWrapper(pipe, sys.stdout.encoding, "replace", line_buffering=unbuffered)


class _Pipe(io.FileIO):
    """Standard output that drops text once the reader has closed the pipe, as `| head` does, so that work goes on."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def _recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != NEUTRAL)


def _help() -> str:
    lines = ["ttfs COMMAND ...: train time-to-first-spike networks, and take them to chips", ""]
    lines += [f"  {name:<10} {description}" for name, (_, description) in COMMANDS.items()]
    lines += ["", f"  ttfs train RECIPE: one of {', '.join(_recipes())}; or own, for --network or --model"]
    lines += ["  ttfs COMMAND --help"]
    lines += ["  ttfs --version", "  ttfs env: versions and devices, for reports of bugs"]
    return "\n".join(lines)


def _refuse(what: str, given: str, allowed: list[str]) -> None:
    close = get_close_matches(given, allowed, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    print(f"error: ttfs: {what} must be one of {', '.join(allowed)}; got {given}.{hint}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
