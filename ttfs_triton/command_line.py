"""Command lines: parsing of options, and plain messages for errors that the user can fix.

Only the standard library is imported before a command line is parsed.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Options = TypeVar("Options", bound="BaseModel")
TRACEBACK = "--traceback"
RECIPES = Path(__file__).parent / "recipes"
ERRORS = (ValueError, RuntimeError, OSError, MemoryError)
_FUNCTION = re.compile(r"^\w+: (?=(?!must )[^:;]* (must|may) )")  # our function's name, which begins an error's text
_BRANCH = re.compile(r"[\[(-]|^(int|float|bool|str|none|tuple|list|dict)$")  # pydantic's names for the types of a union
_HINT = f"Add {TRACEBACK} to any command to see an error's traceback."


def recipe(name: str) -> Path:
    """The file of a recipe that comes with the package."""
    return RECIPES / f"{name}.yaml"


def program() -> str:
    """Command that starts this program again, quoted for a shell: `ttfs train NAME`, or an interpreter and a script."""
    started = sys.argv[0]
    if not started.startswith("ttfs "):
        return shlex.join([sys.executable, started])
    # `make train` activates no environment.
    return started if shutil.which("ttfs") else f"{shlex.quote(sys.executable)} -m ttfs_triton.{started}"


def run_command(
    options: type[Options],
    run: Callable[[Options], object] | str,
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    errors: tuple[type[Exception], ...] = ERRORS,
) -> None:
    """Parse options and run a command. The `main` of a command is this function with options and `run` filled in.

    `run` is a function of the options, or the name of a module that has one called `run`; it is imported after parsing.
    `errors`, or the module's `ERRORS`, can be fixed by the user: their text is printed without a traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    traceback = TRACEBACK in arguments
    with plain_errors(ValueError, traceback=traceback):
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
    """Parse a command line into values of options, by name, not yet validated; `--traceback` is ignored.

    Fields of the classes are the flags. If there are several classes, every class is a group in `--help`, its name ends
    in Options, and `defaults` has a value for every field.
    """
    import tyro

    forms = {group.__name__.removesuffix("Options").lower(): _form(group, defaults) for group in groups}
    members = [(name, form, dataclasses.field(default_factory=form)) for name, form in forms.items()]
    form = dataclasses.make_dataclass("Options", members) if len(groups) > 1 else next(iter(forms.values()))
    parsed = tyro.cli(
        form,
        args=[word for word in arguments if word != TRACEBACK],
        description="\n\n".join(filter(None, (description, _HINT))),
        prog=sys.argv[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values = dataclasses.asdict(parsed)
    return {key: value for part in values.values() for key, value in part.items()} if len(groups) > 1 else values


def _form(group: type[BaseModel], defaults: Mapping[str, Any] | None) -> type:
    """A dataclass with the fields of a group, for tyro: types are converted, rules are not checked."""
    kinds, fields = get_type_hints(group, include_extras=True), []
    for name, field in group.model_fields.items():
        value = field.default if defaults is None else defaults[name]
        default: Any = {} if field.is_required() else {"default_factory": lambda value=value: value}
        fields.append((name, _shown(name, kinds[name], field.description), dataclasses.field(**default)))
    return dataclasses.make_dataclass(group.__name__, fields, kw_only=True, namespace={"__doc__": group.__doc__})


def _shown(name: str, kind: Any, description: str | None) -> Any:
    """A field's type for `--help`: positional arguments go by name, tuples are `VALUE ...`, no default is empty."""
    import tyro

    bare, *marks = get_args(kind) if get_origin(kind) is Annotated else [kind]
    positional, several = tyro.conf.Positional in marks, get_origin(bare) is tuple and ... in get_args(bare)
    word = name.upper() if positional else "VALUE"
    shown = tyro.conf.arg(
        help=" ".join((description or "").split()),  # tyro would keep line breaks
        metavar=f"{word} ..." if several else word if positional else None,
        help_behavior_hint=lambda default: "" if default in ("", "None") else f"(default: {default})",
    )
    return Annotated[kind, shown]


def problem_lines(
    error: ValidationError, hidden: str = "", unknown: Callable[[str], str] = lambda key: "there is no such key"
) -> list[str]:
    """Lines `  key: rule; got value`, one per invalid key of pydantic's error; of several types, each has a rule.

    Args:
        hidden: part of a key's path to leave out, since users do not see it.
        unknown: gives the message for a key that does not exist.
    """
    rules = dict[str, list[str]]()
    got = dict[str, str]()
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"] if part != hidden]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "too_short" and "ctx" in problem:
            message = f"give at least {problem['ctx']['min_length']}"
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = unknown(".".join(path))
        else:
            path[1:] = (part for part in path[1:] if not _BRANCH.search(part))
        key = ".".join(path)
        rules.setdefault(key, []).append(message)
        got.setdefault(key, f"; got {problem['input']!r:.400}" if key else "")
    return [f"  {key}{': ' if key else ''}{(', or ' if key else '; ').join(rules[key])}{got[key]}" for key in rules]


def text_of(error: Exception) -> str:
    """An error's text for the user; for pydantic's errors, only the broken rules."""
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
