"""What a recipe's command line takes, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from textwrap import indent
from typing import Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from ttfs_triton.command_line import program, run_command
from ttfs_triton.train import Interrupted


class Options(BaseModel):
    count: int = Field(1, ge=1)
    """How many."""
    flip_images: bool | Literal["sometimes"] = False
    """Whether."""
    other: str = ""
    """What else."""


def run(*arguments: str, do=print, **options) -> None:
    run_command(Options, do, description="Do something.", arguments=arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--count 0", 1, "count: Input should be greater than or equal to 1; got 0"),
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


def test_line_that_goes_on_runs_this_interpreter_without_its_environment(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["recipes/quickstart.py"])
    for folder, words in ((os.path.dirname(sys.executable), "python"), (str(tmp_path), sys.executable)):
        monkeypatch.setenv("PATH", folder)
        assert program() == f"{words} recipes/quickstart.py"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("--flip-images --other x", True),
        ("--other x --flip_images", True),
        ("--no-flip-images --other x", False),
        ("--flip-images False --other x", False),
        ("--other x --flip-images sometimes", "sometimes"),
        ("--flip-images=sometimes --other=x", "sometimes"),
        ("--other=x", False),
    ],
)
def test_a_flag_that_also_takes_words_is_still_a_flag(arguments, value):
    got = []
    run(*arguments.split(), do=got.append)
    assert got == [Options(flip_images=value, other="x")]


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
        (refused(Options, count=0), 1, "error: count: Input should be greater than or equal to 1; got 0\n"),
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


def started(folder, module):
    """Words and environment of a process that starts a command, whose module has this source."""
    (folder / "talker.py").write_text(module)
    code = "from ttfs_triton.command_line import start; start('talker')"
    return [sys.executable, "-c", code], os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


@pytest.mark.parametrize("phase", ["import", "main"])
def test_interrupt_ends_a_command_with_one_line(tmp_path, phase):
    ready = tmp_path / "ready"
    waits = f"import time\nopen({str(ready)!r}, 'w').close()\ntime.sleep(60)\n"
    words, variables = started(tmp_path, waits if phase == "import" else f"def main():\n{indent(waits, ' ')}")
    process = subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=10)
    assert process.returncode == 130
    assert shown.strip() == "Interrupted. Nothing that was saved is lost."


@pytest.mark.parametrize("lines", [1, 20_000])
def test_output_whose_reader_leaves_is_dropped_without_a_word(tmp_path, lines):
    """As `--help | head` does; short text is written when the program ends, long text before."""
    words, variables = started(
        tmp_path,
        "from pydantic import BaseModel\n"
        "from ttfs_triton.command_line import run_command\n"
        "class Options(BaseModel): pass\n"
        "def main():\n"
        f"    text = 'Say more. ' * {lines}\n"
        "    print(text, flush=True)\n"
        "    open('done', 'w').close()  # the work goes on\n"
        "    run_command(Options, print, description=text, arguments=['--help'])\n",
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, cwd=tmp_path, env=variables, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr, (tmp_path / "done").exists()) == (0, b"", True)


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_closed_standard_streams_end_nothing(tmp_path, closed):
    module = "import sys\ndef main(): print('a'); print('b', file=sys.stderr); open('done', 'w')"
    words, variables = started(tmp_path, module)
    line = ["bash", "-c", f'exec "$@" {closed}', "bash", *words]
    done = subprocess.run(line, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "b\n" if closed == ">&-" else "a\n")
    assert (tmp_path / "done").exists()
