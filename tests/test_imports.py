"""Imports point from recipes and bench to ttfs_triton to ttfs_kernels, and need no GPU and no extras."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ttfs_triton

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels/ttfs_kernels", "ttfs_triton", "recipes", "bench", "docs")


def within_package(*names: str) -> tuple[str, ...]:
    return tuple(f"ttfs_triton.{name}" for name in names)


# From the ground up.
ROOMS = "data augment nn hardware model scoring report convert hub train evaluation export frontier".split()

# Packages that `pip install -e .` alone does not bring.
EXTRAS = "matplotlib torchvision onnx onnxruntime nir nirtorch snntorch spikingjelly tensorboard".split()

# What modules under a name must not import. All entries that match a module apply.
ABOVE = {
    "ttfs_kernels": ("ttfs_triton", "recipes", "bench", "docs", "tests"),
    "ttfs_triton": ("recipes", "bench", "docs", "tests"),
    "ttfs_triton.data": within_package(*ROOMS[1:]),
    "ttfs_triton.augment": within_package(*ROOMS[2:]),
    "ttfs_triton.nn": within_package("data", "augment", *ROOMS[3:]),
    "ttfs_triton.hardware": within_package("data", "augment", *ROOMS[4:]),
    "ttfs_triton.hardware.counts": within_package("hardware.energy", "hardware.simulation"),
    "ttfs_triton.hardware.energy": within_package("hardware.simulation"),
    "ttfs_triton.model": within_package("augment", "hardware", *ROOMS[5:]),
    "ttfs_triton.scoring": within_package("augment", "hardware", "model", *ROOMS[6:]),
    "ttfs_triton.report": within_package("augment", "model", *ROOMS[7:]),
    "ttfs_triton.convert": within_package("augment", "hardware", "scoring", "report", *ROOMS[8:]),
    "ttfs_triton.hub": within_package("augment", "convert", "scoring", *ROOMS[9:]),
    "ttfs_triton.train": within_package("report", "evaluation", "export", "frontier"),
    "ttfs_triton.evaluation": within_package("convert", "hub", "train", "export", "frontier"),
    "ttfs_triton.export": within_package("convert", "hub", "report", "scoring", "train", "frontier"),
    "ttfs_triton.frontier": within_package("augment", "hub", "export"),
    "recipes": ("bench", "docs", "tests"),
    "bench": ("docs", "tests"),
}


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a file; `kernels/` is a plain folder, not a package."""
    parts = list(path.relative_to(root).with_suffix("").parts)
    if parts[0] == "kernels":
        parts = parts[1:]
    return ".".join(parts)


def imported_names(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, at its top or anywhere inside."""
    package = module.removesuffix(".__init__") if module.endswith(".__init__") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*base, *([source] if source else [])])
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def upward_imports(root: Path) -> list[str]:
    """`file:line: module imports name` for every import that points up."""
    found = []
    for path in sorted(file for folder in FOLDERS for file in (root / folder).rglob("*.py")):
        module = module_name(path, root)
        forbidden = [name for prefix, names in ABOVE.items() if within(module, prefix) for name in names]
        found += [
            f"{path.relative_to(root)}:{line}: {module} imports {name}"
            for line, name in imported_names(path, module)
            if any(within(name, prefix) for prefix in forbidden)
        ]
    return found


def test_imports_point_down() -> None:
    assert upward_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("kernels/ttfs_kernels/ops.py", "import ttfs_triton"),
        ("ttfs_triton/nn/layers.py", "from ttfs_triton import train"),
        ("ttfs_triton/nn/layers.py", "from ..train.config import TrainConfig"),
        ("ttfs_triton/nn/__init__.py", "from .. import hardware"),
        ("ttfs_triton/nn/layers.py", "def later():\n    import ttfs_triton.train.loop"),
        ("ttfs_triton/hub/card.py", "from recipes import quickstart"),
        ("bench/train_step.py", "import tests.oracles"),
    ],
)
def test_upward_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line, encoding="utf-8")
    (found,) = upward_imports(tmp_path)
    assert found.startswith(f"{file}:{line.count(chr(10)) + 1}: ")


def test_package_lists_what_it_has_and_nothing_else() -> None:
    packages = {path.parent.name for path in (ROOT / "ttfs_triton").glob("*/__init__.py")}
    assert set(dir(ttfs_triton)) == {"TTFSModel", "__version__", *packages}
    assert all(getattr(ttfs_triton, name).__name__ == f"ttfs_triton.{name}" for name in packages)


def test_kernels_folder_is_not_a_package() -> None:
    # Hugging Face's package `kernels` is imported under that name; ours would hide it.
    assert not (ROOT / "kernels" / "__init__.py").exists()


# In this order, in one process, as importing PyTorch takes seconds: what each line must not have imported yet.
IMPORTS = """
import ttfs_kernels
assert "ttfs_triton" not in sys.modules
import ttfs_triton, ttfs_triton.nn
assert "ttfs_triton.train" not in sys.modules
assert "huggingface_hub" not in sys.modules
ttfs_triton.TTFSModel
import ttfs_triton.train
import ttfs_triton.evaluation.command, ttfs_triton.export.command, ttfs_triton.hub.publish
import ttfs_triton.convert.command, ttfs_triton.report
"""


def test_import_needs_neither_gpu_nor_triton_nor_extras() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    without_triton = f"import sys; sys.modules.update(dict.fromkeys({('triton', *EXTRAS)}))\n{IMPORTS}"
    process = subprocess.run([sys.executable, "-c", without_triton], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_type_checkers_find_an_editable_install(tmp_path: Path) -> None:
    pytest.importorskip("pyright", reason="type checking needs pyright")
    (tmp_path / "mine.py").write_text("from ttfs_triton.nn import DFTConv2d\nDFTConv2d(1, 2, 3, psi=4)\n")
    checker = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "mine.py"]
    process = subprocess.run(checker, cwd=tmp_path, capture_output=True, text=True)
    assert 'No parameter named "psi"' in process.stdout, process.stdout
    assert process.stdout.count("error:") == 1
