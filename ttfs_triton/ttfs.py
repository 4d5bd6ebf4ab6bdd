"""The console command `ttfs COMMAND ...`. It imports only the standard library before it starts the command."""

from __future__ import annotations

import os
import shlex
import sys
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path

from ttfs_triton.command_line import RECIPES, recipe, start, write_out

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
NEUTRAL = "own"  # recipe that `ttfs train` uses if none is named: every key has its default


def main(words: list[str] | None = None) -> None:
    """Run the command that `words`, by default those behind `ttfs`, name; code 2 for an unknown command or recipe."""
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        write_out(_help() + "\n")
        return
    if words[0] in ("-V", "--version"):
        write_out(f"ttfs-triton {version('ttfs-triton')}\n")
        return
    if words == ["env"]:
        from ttfs_triton.evaluate.machine import describe_machine

        write_out(describe_machine())
        return
    command, *flags = words
    if command not in COMMANDS:
        _refuse("command", command, list(COMMANDS))
    module, description = COMMANDS[command]
    if command != "train":
        sys.argv = [f"ttfs {command}", *flags]
        start(module, description)
        return
    name, *flags = flags if flags and not flags[0].startswith("-") else [NEUTRAL, *flags]
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipe(name)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        _refuse("recipe", name, _recipes())
    sys.argv = ["ttfs train" if name == NEUTRAL else shlex.join(["ttfs", "train", name]), *flags]
    start(
        module, path, f"{description}\n\nttfs train RECIPE, with RECIPE one of {', '.join(_recipes())}, or a YAML file."
    )


def _recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != NEUTRAL)


def _help() -> str:
    lines = ["ttfs COMMAND ..., train time-to-first-spike networks and take them to chips", ""]
    lines += [f"  {name:<10} {description}" for name, (_, description) in COMMANDS.items()]
    lines += ["", f"  ttfs train RECIPE, of {', '.join(_recipes())}", "  ttfs COMMAND --help"]
    lines += ["  ttfs --version; ttfs env, versions and devices for a report of a bug"]
    return "\n".join(lines)


def _refuse(what: str, given: str, allowed: list[str]) -> None:
    close = get_close_matches(given, allowed, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    print(f"error: ttfs: {what} must be one of {', '.join(allowed)}; got {given}.{hint}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
