"""What a command line takes, and the texts of errors."""

import signal
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from ttfs_triton.command_line import run_command
from ttfs_triton.train import Interrupted

LEAST = "Input should be greater than or equal to 1"


class Options(BaseModel):
    count: int = Field(1, ge=1)
    """How many."""
    steps: Annotated[int, Field(ge=1)] | Literal["network"] | None = None
    names: tuple[str, ...] = Field(("a",), min_length=1)


def run(*arguments: str, do=print, **options) -> None:
    run_command(Options, do, description="Do something.", arguments=arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--count 0", 1, f"count: {LEAST}; got 0"),
        ("--count many", 2, "--count"),
        ("--coutn 3", 2, "--coutn"),
    ],
)
def test_run_command_refuses_options_that_are_not_valid(arguments, code, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments.split(), do=lambda options: pytest.fail("ran"))
    shown = capsys.readouterr()
    assert stopped.value.code == code
    assert message in shown.out + shown.err


def refused(options: type[BaseModel], **values) -> ValidationError:
    with pytest.raises(ValidationError) as found:
        options(**values)
    return found.value


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (ValueError("three is one too many"), 1, "error: three is one too many\n"),
        (ValueError("load_images: data_dir must hold images."), 1, "error: data_dir must hold images.\n"),
        (ValueError("network: must be FILE.py:FUNCTION."), 1, "error: network: must be FILE.py:FUNCTION.\n"),
        (ValueError("points:\n  0.1: goal must be 1."), 1, "error: points:\n  0.1: goal must be 1.\n"),
        (refused(Options, count=0), 1, f"error: count: {LEAST}; got 0\n"),
        (refused(Options, steps=0), 1, f"error: steps: {LEAST}, or Input should be 'network'; got 0\n"),
        (refused(Options, names=()), 1, "error: names: give at least 1; got ()\n"),
        (MemoryError(), 1, "error: memory must suffice; got MemoryError. Use fewer images, or smaller batches.\n"),
        (Interrupted("SIGINT received: stopped.", signal.SIGINT), 130, "SIGINT received: stopped.\n"),
    ],
)
def test_errors_of_the_user_end_the_program_with_text_and_exit_code(error, code, shown, capsys):
    def fail(options):
        raise error

    for arguments in ((), ("--traceback",)):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, do=fail, errors=(ValueError, MemoryError, Interrupted))
        text = capsys.readouterr().err
        assert stopped.value.code == code
        assert text.endswith(shown)
        assert ("in fail" in text) == bool(arguments)
    with pytest.raises(type(error)):
        run(do=fail, errors=(KeyError,))
