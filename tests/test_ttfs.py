"""The command `ttfs`, as a program of its own and outside of the repository."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from textwrap import indent
from typing import Any, get_origin

import pytest
from pydantic import ValidationError

from tests.train.runs import environment
from ttfs_triton.command_line import RECIPES
from ttfs_triton.train import TrainConfig, run
from ttfs_triton.ttfs import COMMANDS, main


def ttfs(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "ttfs_triton.ttfs", *words)
    return subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300)


def test_help_names_every_command_and_recipe(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert all(path.stem in shown for path in RECIPES.glob("*.yaml") if path.stem != "own")


HELP = """
import sys
from ttfs_triton.ttfs import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as ended:
        assert not ended.code
assert "torch" not in sys.modules
"""


def test_help_of_all_commands_is_plain_and_needs_no_pytorch(tmp_path):
    words = [sys.executable, "-c", HELP]
    done = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: ttfs classify [-h] MODEL IMAGES ..." in done.stdout
    assert not any(text in done.stdout for text in ("[[", "[STR", "(default: )"))


def test_no_number_of_a_command_is_huge():
    for place in {place for name, (place, _) in COMMANDS.items() if name != "train"}:
        module, _, function = place.partition(":")
        options = getattr(import_module(module), function or "main").args[0]
        for key, field in options.model_fields.items():
            if "int" in str(field.annotation):
                value = (10**20,) if get_origin(field.annotation) is tuple else 10**20
                with pytest.raises(ValidationError) as refused:
                    options(**{key: value})
                assert key in [problem["loc"][0] for problem in refused.value.errors()], (place, key)


def test_version_and_machine_are_told(capsys):
    main(["--version"])
    main(["env"])
    first, *facts = capsys.readouterr().out.splitlines()
    assert first == f"ttfs-triton {version('ttfs-triton')}"
    assert {"system", "python", "torch", "cpu", "gpu"} <= {line.split()[0] for line in facts}
    assert str(Path.home()) not in "".join(facts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], r"command must be one of train, evaluate, .*; got trian\. Did you mean train\?"),
        (["train", "vgg16-cifar10O"], r"recipe must be one of .*; got vgg16-cifar10O. Did you mean vgg16-cifar10\?"),
    ],
)
def test_unknown_words_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("command", ["ttfs", f"{shlex.quote(sys.executable)} -m ttfs_triton.ttfs"])
def test_the_command_that_goes_on_is_quoted_and_needs_no_active_environment(tmp_path, monkeypatch, command):
    monkeypatch.setattr("shutil.which", lambda name: name if command == "ttfs" else None)
    monkeypatch.setattr("sys.argv", ["ttfs"])
    monkeypatch.setattr("ttfs_triton.train.main", lambda *_: None)
    (tmp_path / "config.yaml").touch()
    (tmp_path / "my recipe.yaml").touch()
    main(["train", str(tmp_path / "my recipe.yaml")])
    said = run._advice(run.RunFolder(tmp_path), TrainConfig(), None, in_program=False)
    assert said.startswith(f"Go on with: {command} train '{tmp_path}/my recipe.yaml' --")


def test_a_recipe_is_trained_evaluated_and_gone_on_with_by_the_words_that_it_says(tmp_path, monkeypatch, capsys):
    flags = ("--dataset", "sample", "--model", "4C5-P4-16", "--cpu", "--epochs", "1", "--max-train-samples", "200")
    trained = ttfs(tmp_path, "train", *flags, "--max-test-samples", "50", "--output-dir", "run")
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test_images"] == 50
    monkeypatch.chdir(tmp_path)
    main(["train", "--output-dir", "run", "--resume"])
    main(["evaluate", "run", "--cpu", "--max-test-samples", "20"])
    shown = capsys.readouterr().out
    assert all(words in shown for words in ("has ended already", "20 images"))


def started(folder: Path, module: str) -> dict[str, Any]:
    """Words and environment of a process whose only command is the function `main` of this source."""
    (folder / "talker.py").write_text(module)
    code = "from ttfs_triton.ttfs import COMMANDS, main; COMMANDS['talk'] = ('talker', ''); main(['talk'])"
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return {"args": [sys.executable, "-c", code], "env": variables, "stderr": subprocess.PIPE, "cwd": folder}


@pytest.mark.parametrize("phase", ["import", "main"])
def test_interrupt_ends_a_command_with_one_line(tmp_path, phase):
    waits = "import time\nopen('ready', 'w').close()\ntime.sleep(60)\n"
    module = waits if phase == "import" else f"def main(_):\n{indent(waits, ' ')}"
    process = subprocess.Popen(**started(tmp_path, module))
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=10)
    assert (process.returncode, shown.strip()) == (130, b"Interrupted. Nothing that was saved is lost.")


@pytest.mark.parametrize("lines", [1, 20_000])
def test_output_whose_reader_leaves_is_dropped_without_a_word(tmp_path, lines):
    """As `--help | head` does; short text is written when the program ends, long text before."""
    module = f"def main(_): print('Say more. ' * {lines}); open('done', 'w').close()  # the work goes on"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(**started(tmp_path, module), stdout=writer, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr, (tmp_path / "done").exists()) == (0, b"", True)


@pytest.mark.parametrize(("closed", "shown"), [(">&-", "b\n"), ("2>&-", "a\n")])
def test_closed_standard_streams_end_nothing(tmp_path, closed, shown):
    process = started(tmp_path, "import sys\ndef main(_): print('a'); print('b', file=sys.stderr)")
    process["args"] = ["bash", "-c", f'exec "$@" {closed}', "bash", *process["args"]]
    done = subprocess.run(**process, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, shown)
