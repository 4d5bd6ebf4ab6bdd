"""The command line of a recipe: options in, and a plain message out where the user can mend what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

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
        errors: of `run` that the user can mend: their text is printed, not where they come from.
    Raises:
        SystemExit: with code 2, for options that are not valid and for such errors.
    """
    try:
        parsed = tyro.cli(options, args=arguments, description=description, prog=prog)
    except ValidationError as error:
        problem = error.errors()[0]
        _exit(f"{'-'.join(map(str, problem['loc']))}: {problem['msg']}; got {problem['input']!r}.")
    try:
        run(parsed)
    except errors as error:
        _exit(str(error))


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
