"""`recipes/frontier.py`: one command that sweeps and goes on with what was begun."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec

from rich.console import Console

from ttfs_triton.command_line import run_command
from ttfs_triton.evaluation.output import command_line
from ttfs_triton.frontier.options import FrontierOptions
from ttfs_triton.frontier.plan import check_points, make_plan, outline
from ttfs_triton.frontier.sweep import Rows, Sweep
from ttfs_triton.report.frontier_page import write_frontier_page
from ttfs_triton.report.frontier_table import write_table
from ttfs_triton.scoring import device_name, versions
from ttfs_triton.train import Interrupted
from ttfs_triton.train.build import load_data
from ttfs_triton.train.device import make_accelerator
from ttfs_triton.train.run_folder import FolderLock

NAME = "frontier"


def main(description: str | None, arguments: Sequence[str] | None = None) -> None:
    """Entry point of the recipe: parse, sweep, exit with a plain message where the user can mend what went wrong."""
    run_command(
        FrontierOptions,
        run,
        prog="frontier.py",
        description=description,
        arguments=arguments,
        errors=(ValueError, RuntimeError, OSError, MemoryError, Interrupted),
    )


def run(options: FrontierOptions) -> Rows:
    """Sweep as asked, or go on with it; tables are written after each step.

    Returns:
        All rows.
    Raises:
        LoadError, HubError, ConfigError, ValueError: what cannot be done, all of it, before anything is trained.
        RuntimeError: another process sweeps into the same folder; or, in the end, points whose training diverged.
        Interrupted: a signal asked to stop; the same command goes on.
    """
    networks = make_plan(options)
    accelerator = make_accelerator(networks[0].config)
    if accelerator.num_processes > 1:
        raise ValueError(
            "frontier: must run in one process; start it plainly, python recipes/frontier.py. A point that several "
            "are to train is a run like any other: its config.yaml says how, and this command takes up what has ended."
        )
    console = Console(soft_wrap=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    data = {network.name: load_data(network.config, accelerator, say) for network in networks}
    for network in networks:
        check_points(network, data[network.name], accelerator)
    made = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": device_name(accelerator.device),
        "versions": versions(),
        "command": command_line("recipes/frontier.py"),
    }
    lock = FolderLock(options.output_dir)
    try:
        for text in outline(networks):
            say(text)
        sweep = Sweep(options, accelerator, say, lambda rows: write_table(options.output_dir, NAME, rows, made))
        for network in networks:
            sweep.run(network, data[network.name])
    finally:
        lock.release()
    written = [options.output_dir / f"{NAME}{ending}" for ending in (".csv", ".json", ".html")]
    if find_spec("matplotlib") is None:
        say(f"{written.pop()} needs matplotlib; found none. Run: pip install matplotlib, then this command again.")
    else:
        write_frontier_page(written[-1], sweep.rows, made)
    for path in written:
        say(f"written: {path}")
    if sweep.failed:
        lines = "\n".join(f"  {name}: {why}" for name, why in sweep.failed.items())
        raise RuntimeError(f"frontier: all points must be trained to the end; these were not:\n{lines}")
    return sweep.rows
