"""On a GPU: everything that has to be seen there, in stages that each end within ten minutes.

    make gpu                                   # all stages, on an environment as the Makefile makes it
    make gpu VENV= ARGS="--minutes 9"          # this machine's own Python; stops in time, goes on with the next call
    python bench/gpu.py --only smoke tune      # some stages
    python bench/gpu.py --again smoke          # also if it has ended
    python bench/gpu.py --list

A stage that fails or takes too long does not stop the next. What has ended is not run again: a state file holds it, and
each stage's output is in a log beside it, written as it comes. Needs no network, and nothing that is not there already:
a stage whose packages or programs are missing says so and is left out. Each stage tests one statement; the table at
the end says of each whether it was confirmed, refuted, or not reached. The exit status is 1 if one was refuted, 2 if
none was, but some were not reached.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from _gpu_driver import ROOT, Stage, State, run_all, table
from _gpu_stages import STAGES


def parse(words: Sequence[str] | None, names: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STAGE", help="some stages")
    parser.add_argument("--again", nargs="+", choices=names, default=[], metavar="STAGE", help="also if ended")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; the next call goes on")
    parser.add_argument("--data-dir", type=Path, help="a local CIFAR-10, for the stage that trains on it")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", help="state, logs and results")
    parser.add_argument("--list", action="store_true", help="name the stages and end")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None, stages: Sequence[Stage] = STAGES) -> int:
    """Run the stages; returns the exit status."""
    start = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through `run`, which ends the stage
    options = parse(words, [stage.name for stage in stages])
    if options.list:
        print("\n".join(f"{stage.name:<18} {stage.statement}" for stage in stages))
        return 0
    chosen = [stage for stage in stages if stage.name in options.only]
    state = State(options.output / "state.json")
    if again := [name for name in options.again if name in state.outcomes]:
        for name in again:
            del state.outcomes[name]
        state.write()
    state = run_all(chosen, options.output.resolve(), options.data_dir, start + 60 * options.minutes)
    print(report := table(chosen, state))
    (options.output / "summary.txt").write_text(report + "\n", encoding="utf-8")
    verdicts = {state.of(stage).verdict for stage in chosen}
    return 1 if "refuted" in verdicts else 2 if "not reached" in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
