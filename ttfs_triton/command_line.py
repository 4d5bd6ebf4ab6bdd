"""The command line of a recipe: options in, and a plain message out where the user can mend what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import tyro
from pydantic import BaseModel

Options = TypeVar("Options", bound=BaseModel)


def run_command(
    options: type[Options],
    run: Callable[[Options], object],
    *,
    prog: str,
    description: str | None,
    arguments: Sequence[str] | None,
    errors: tuple[type[Exception], ...] = (ValueError, RuntimeError, OSError),
) -> None:
    """Parse options and run.

    Args:
        options: whose fields are the flags.
        run: what to do with them.
        prog: the recipe's file name.
        description: shown by `--help`.
        arguments: command line without the program's name. Default: sys.argv[1:].
        errors: of `run` that the user can mend.
    Raises:
        SystemExit: with code 2, for options that are not valid and for such errors.
    """
    parsed = tyro.cli(options, args=arguments, description=description, prog=prog)
    with plain_errors(*errors):
        run(parsed)


@contextmanager
def plain_errors(*errors: type[Exception]) -> Iterator[None]:
    """End the program where one of these errors leaves the block: its text is printed, not where it came from.

    Raises:
        SystemExit: with the error's `exit_code`, if it has one, else with 2.
    """
    try:
        yield
    except errors as error:
        code = getattr(error, "exit_code", 2)
        print(f"error: {error}" if code == 2 else error, file=sys.stderr)
        raise SystemExit(code) from error
