"""No file of the project runs code that comes with data: unsafe torch.load, pickle, unsafe YAML, remote code.

Ruff refuses the functions and modules that pyproject.toml bans; keywords are searched for here.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "ttfs_triton", "recipes", "bench", "docs", "tests")
KEYWORDS = re.compile(r"(trust_remote_code|allow_pickle)\s*=\s*(?!False)\w")


def banned(*words: str, source: str | None = None) -> list[str]:
    """Lines in which ruff finds banned names."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "concise", *words]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    return [line for line in done.stdout.splitlines() if "TID251" in line]


def test_project_has_no_banned_calls() -> None:
    assert banned("--ignore-noqa", *FOLDERS) == []
    text = {file: file.read_text(encoding="utf-8") for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    assert [file for file, source in text.items() if KEYWORDS.search(source) and file != Path(__file__)] == []
    assert text[ROOT / "ttfs_triton/convert/source.py"].count("torch.load(") == 1
    assert 'torch.load(file, map_location="cpu", weights_only=True)' in text[ROOT / "ttfs_triton/convert/source.py"]


PLANTED = """# planted violations, as text: none of it runs
import torch as t; t.load(path, map_location="cpu")
from torch import load; load(path)
import yaml; yaml.load(text, Loader=yaml.Loader)
from yaml import unsafe_load as read; read(text)
import pickle
from joblib import load
"""


def test_banned_calls_and_keywords_are_seen() -> None:
    found = banned("--stdin-filename", "ttfs_triton/planted.py", "-", source=PLANTED)
    assert {line.split(":")[1] for line in found} == set("234567")
    assert KEYWORDS.search("datasets.load_dataset(name, trust_remote_code=flag)")
    assert KEYWORDS.search("np.load(path, allow_pickle=True)")
    assert not KEYWORDS.search("np.load(path, allow_pickle=False)")
