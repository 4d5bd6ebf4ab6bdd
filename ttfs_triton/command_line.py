"""Command lines: parsing of options, and plain messages for errors that the user can fix.

Until a command runs, only the standard library is imported, so that Ctrl-C works from the first moment on.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Options = TypeVar("Options", bound="BaseModel")
TRACEBACK = "--traceback"
RECIPES = Path(__file__).parent / "recipes"
ERRORS = (ValueError, RuntimeError, OSError, MemoryError)
_FUNCTION = re.compile(r"^\w+: (?=(?!must )[^:;]* (must|may) )")  # the name of ours with which an error's text begins
_HINT = f"Add {TRACEBACK} to any command to see an error's traceback."


class OptionsError(ValueError):
    """Well-formed options with values that are not allowed; the text names each option, its rule and its value."""


def recipe(name: str) -> Path:
    """The file of a recipe that comes with the package."""
    return RECIPES / f"{name}.yaml"


def program() -> str:
    """How this program was started, quoted for a shell: `ttfs train NAME`, or `python recipes/train_NAME.py`."""
    if sys.argv[0].startswith("ttfs "):
        return sys.argv[0]
    active = os.path.dirname(shutil.which("python") or "") == os.path.dirname(sys.executable)
    return shlex.join(["python" if active else sys.executable, sys.argv[0]])  # `make train` activates no environment


def start(entry: str, *arguments: Any) -> None:
    """Import MODULE:FUNCTION and call it, as the whole program; Ctrl-C ends it with one line and code 130.

    A training run handles the first Ctrl-C itself, and saves. See `ttfs_triton.train.device`.
    """
    main_process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        # Exit at once, since library code may swallow an exception. Files are whole at every moment, and the locks of
        # an ended process are free.
        if os.getpid() == main_process:  # worker processes inherit this
            os.write(2, b"\nInterrupted. Nothing that was saved is lost.\n")
        os._exit(128 + number)

    signal.signal(signal.SIGINT, end)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this program
            setattr(sys, name, open(os.devnull, "w"))
    before, sys.stdout = sys.stdout, cast(TextIO, _Output(sys.stdout))
    try:
        module, _, function = entry.partition(":")
        getattr(importlib.import_module(module), function or "main")(*arguments)
    finally:
        sys.stdout = before
        write_out()


class _Output:
    """Standard output that drops its text once the reader has closed the pipe, as `| head` does: work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _dropping(self._stream):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _dropping(self._stream):
            self._stream.flush()


@contextmanager
def _dropping(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else Python flushes again, and complains


def write_out(text: str = "") -> None:
    """Write a text to standard output and flush it; drop it if the reader has closed the pipe, as `| head` does."""
    with _dropping(sys.stdout):
        sys.stdout.write(text)
        sys.stdout.flush()


def run_command(
    options: type[Options],
    run: Callable[[Options], object] | str,
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    errors: tuple[type[Exception], ...] = ERRORS,
) -> None:
    """Parse options and run. The `main` of a command is this function with options and `run` filled in.

    `run` is a function of the options, or a module that is imported then, with `run`, and maybe the `ERRORS` that the
    user can fix: their text is printed without a traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    traceback = TRACEBACK in arguments
    with plain_errors(OptionsError, *errors, traceback=traceback):
        values = options(**parse_options(options, description=description, arguments=arguments))
    if isinstance(run, str):
        module = importlib.import_module(run)
        run, errors = cast(Callable[[Options], object], module.run), getattr(module, "ERRORS", errors)
    with plain_errors(*errors, traceback=traceback):
        run(values)


def parse_options(
    *groups: type[BaseModel],
    description: str | None,
    arguments: Sequence[str],
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Parse a command line, of which `--traceback` is ignored, into values of options, by name.

    Fields of the classes are the flags. If there are several classes, each is a group in `--help`, its name ends in
    Options, and `defaults` has a value for every field.
    """
    import tyro
    from pydantic import ValidationError, create_model, model_validator

    class Refused(Exception):
        """Refused values. Not a ValueError: tyro would print that in pydantic's words, with names of our classes."""

    def refuse(cls: type, values: Any, check: Callable[[Any], Any]) -> Any:
        try:
            return check(values)
        except ValidationError as error:
            raise Refused(*problem_lines(error)) from error

    method: Any = classmethod(refuse)
    validators: Any = {"refuse": model_validator(mode="wrap")(method)}
    fields: dict[str, Any] = {}
    for group in groups:
        checked = create_model(group.__name__, __base__=group, __validators__=validators)
        for field in checked.model_fields.values():  # tyro would keep the line breaks of docstrings
            field.description = field.description and " ".join(field.description.split())
        kinds = get_type_hints(group, include_extras=True)
        checked.__annotations__ = {name: _shown(name, kinds[name]) for name in group.model_fields}
        given = {name: (defaults or {}).get(name) for name in group.model_fields}
        fields[group.__name__.removesuffix("Options").lower()] = (checked, checked.model_construct(**given))
    form: Any = create_model("Options", **fields) if len(groups) > 1 else next(iter(fields.values()))[0]
    try:
        parsed = tyro.cli(
            form,
            args=_with_values(groups, arguments),
            description="\n\n".join(filter(None, (description, _HINT))),
            prog=program(),
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except Refused as error:
        raise OptionsError("the command line is not usable:\n" + "\n".join(error.args)) from None
    parts = [getattr(parsed, name) for name in fields] if len(groups) > 1 else [parsed]
    return {key: value for part in parts for key, value in part.model_dump().items()}


def _shown(name: str, kind: Any) -> Any:
    """The type of a field for `--help`: positional ones by their name, several as `VALUE ...`, no empty default."""
    import tyro

    bare, *marks = get_args(kind) if get_origin(kind) is Annotated else [kind]
    positional, several = tyro.conf.Positional in marks, get_origin(bare) is tuple and ... in get_args(bare)
    word = name.upper() if positional else "VALUE"
    shown = tyro.conf.arg(
        metavar=f"{word} ..." if several else word if positional else None,
        help_behavior_hint=lambda default: "" if default in ("", "None") else f"(default: {default})",
    )
    return Annotated[kind, shown]


def _with_values(groups: Sequence[type[BaseModel]], arguments: Sequence[str]) -> list[str]:
    """Write `--flag` as `--flag True` and `--no-flag` as `--flag False` if the flag also takes words."""
    flags = [
        f"--{name.replace('_', '-')}"
        for options in groups
        for name, field in options.model_fields.items()
        if bool in get_args(field.annotation)
    ]
    arguments = [word for word in arguments if word != TRACEBACK]
    written = []
    for word, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        flag = word.replace("_", "-")
        positive = flag.replace("--no-", "--", 1)
        if flag in flags and following.startswith("--"):
            written += [flag, "True"]
        elif flag not in flags and positive in flags:
            written += [positive, "False"]
        else:
            written.append(word)
    return written


def problem_lines(
    error: ValidationError, hidden: str = "", unknown: Callable[[str], str] = lambda key: "there is no such key"
) -> list[str]:
    """A line for each invalid key of pydantic's error: `  key: rule; got value`.

    Args:
        hidden: part of a key's path to leave out, since users do not see it.
        unknown: gives the message for a key that does not exist.
    """
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"] if part != hidden)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = unknown(key)
        lines.append(f"  {key}: {message}; got {problem['input']!r:.400}" if key else f"  {message}")
    return lines


def text_of(error: Exception) -> str:
    """Text of an error for the user: of pydantic's, only the rules that are broken."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return "\n".join(line.strip() for line in problem_lines(error))
    if lacks_memory(error):  # MemoryError mostly has no text
        return f"memory must suffice; got {str(error) or 'MemoryError'}. Use fewer images, or smaller batches."
    return str(error)


def lacks_memory(error: Exception) -> bool:
    """Whether main memory did not suffice: PyTorch raises a RuntimeError then."""
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


@contextmanager
def plain_errors(*errors: type[Exception], traceback: bool = False) -> Iterator[None]:
    """End the program if the block raises one of these errors: print its text, and its traceback only if asked to.

    Raises:
        SystemExit: with the error's `exit_code`, if it has one, else with 1.
    """
    try:
        yield
    except errors as error:
        if traceback:
            import traceback as tracebacks

            tracebacks.print_exception(error)
        code = getattr(error, "exit_code", None)
        text = text_of(error) or type(error).__name__
        print(f"error: {_FUNCTION.sub('', text, count=1)}" if code is None else text, file=sys.stderr)
        raise SystemExit(1 if code is None else code) from error
