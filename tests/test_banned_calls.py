"""No file of the project runs code that comes with data: unsafe torch.load, pickle, unsafe YAML, remote code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "ttfs_triton", "recipes", "bench", "docs", "tests")
PICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_YAML = {f"yaml.{kind}load{many}" for kind in ("", "full_", "unsafe_") for many in ("", "_all")}


def banned_calls(source: str) -> Iterator[tuple[int, str]]:
    """(line, what) for each banned import or call in Python source; names are followed through `import … as …`."""
    tree = ast.parse(source)
    meaning: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package = alias.name.split(".")[0]
                meaning[alias.asname or package] = alias.name if alias.asname else package
                if package in PICKLERS:
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if (node.module or "").split(".")[0] in PICKLERS:
                yield node.lineno, str(node.module)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition(".")
        name = meaning.get(first, first) + (f".{rest}" if rest else "")
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and keywords.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        if name in UNSAFE_YAML:
            yield node.lineno, name
        for keyword in ("trust_remote_code", "allow_pickle"):
            if keywords.get(keyword, "False") != "False":
                yield node.lineno, f"{name}({keyword}=…)"


def test_project_has_no_banned_calls() -> None:
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    found = [
        f"{file.relative_to(ROOT)}:{line}: {what}"
        for file in files
        for line, what in banned_calls(file.read_text(encoding="utf-8"))
    ]
    assert len(files) > 10
    assert found == []


def test_pickled_weights_are_read_in_one_place_only() -> None:
    files = (file for folder in FOLDERS if folder != "tests" for file in (ROOT / folder).rglob("*.py"))
    found = {str(file.relative_to(ROOT)) for file in files if "torch.load(" in file.read_text(encoding="utf-8")}
    assert found == {"ttfs_triton/convert/source.py"}


@pytest.mark.parametrize(
    "source",
    [  # planted violations, as text: none of it runs
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch as t\nt.load(\n    path,\n    map_location='cpu',\n)",
        "from torch import load\nload(path)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "from yaml import unsafe_load as read\nread(text)",
        "import pickle",
        "from joblib import load",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import datasets\ndatasets.load_dataset(name, trust_remote_code=flag)",
    ],
)
def test_banned_call_is_found(source: str) -> None:
    assert len(list(banned_calls(source))) == 1
