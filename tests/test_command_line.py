"""What a recipe's command line takes, and how it ends."""

import signal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ttfs_triton.command_line import plain_errors, run_command
from ttfs_triton.train import Interrupted


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(1, ge=1)
    """How many."""


def run(*arguments: str, do=print, **options) -> None:
    run_command(Options, do, prog="some.py", description="Do something.", arguments=arguments, **options)


def test_run_command_hands_over_validated_options(capsys):
    got = []
    run("--count", "3", do=got.append)
    assert got == [Options(count=3)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "greater than or equal to 1"),
        (["--count", "many"], "--count"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_run_command_refuses_options_that_are_not_valid(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, do=lambda options: pytest.fail("ran"))
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in shown.out + shown.err


def test_run_command_tells_errors_of_the_user_only(capsys):
    def fail(options):
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run(do=fail)
    with pytest.raises(SystemExit):
        run(do=fail, errors=(KeyError,))
    assert capsys.readouterr().err == "error: 'ours'\n"


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (ValueError("count must be 1; got 2."), 2, "error: count must be 1; got 2.\n"),
        (Interrupted("SIGINT received: stopped after step 3.", signal.SIGINT), 130, "SIGINT received: stopped after "),
    ],
)
def test_plain_errors_end_the_program_with_text_and_exit_code(error, code, shown, capsys):
    with pytest.raises(SystemExit) as stopped, plain_errors(ValueError, Interrupted):
        raise error
    assert stopped.value.code == code
    assert capsys.readouterr().err.startswith(shown)
