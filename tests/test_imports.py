"""Imports point from recipes and bench to ttfs_triton to ttfs_kernels, and need no GPU and no extras."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ttfs_triton

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels/ttfs_kernels", "ttfs_triton", "recipes", "bench", "docs")


def within_package(*names: str) -> tuple[str, ...]:
    return tuple(f"ttfs_triton.{name}" for name in names)


# From the ground up: the rooms of the package, and which others each of them uses.
USES = {
    "data": "",
    "nn": "",
    "training_options": "data nn",
    "energy": "nn",
    "chip": "nn energy",
    "model": "data nn",
    "evaluate": "data nn energy chip model",
    "convert": "data nn model",
    "hub": "nn energy model evaluate training_options",
    "train": "data nn energy model evaluate convert hub training_options",
    "export": "data nn energy chip model evaluate",
    "sweep": "data nn energy chip model evaluate convert train training_options",
}

# Modules below all rooms.
BELOW = "atomic command_line commands option_rules run_records shared_options table untrusted_files wording".split()

# Packages that `pip install -e .` alone does not bring.
EXTRAS = "matplotlib torchvision onnx onnxruntime nir nirtorch snntorch spikingjelly tensorboard".split()

# What modules under a name must not import. All entries that match a module apply.
ABOVE = {
    "ttfs_kernels": ("ttfs_triton", "recipes", "bench", "docs", "tests"),
    "ttfs_triton": ("recipes", "bench", "docs", "tests"),
    **{
        f"ttfs_triton.{room}": within_package(*set(USES) - {room, *uses.split()}, "ttfs") for room, uses in USES.items()
    },
    **{f"ttfs_triton.{name}": within_package(*USES) for name in BELOW},
    "recipes": ("bench", "docs", "tests"),
    "bench": ("docs", "tests"),
}


def module_name(path: Path) -> str:
    """Dotted name of a file; `kernels/` is a plain folder, not a package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("kernels.")


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, at its top or anywhere inside; ruff bans relative imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from ((node.lineno, f"{source}{alias.name}") for alias in node.names)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def test_imports_point_down() -> None:
    upward = []
    for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        module = module_name(path)
        forbidden = [name for prefix, names in ABOVE.items() if within(module, prefix) for name in names]
        upward += [
            f"{path.relative_to(ROOT)}:{line}: {module} imports {name}"
            for line, name in imported_names(path)
            if any(within(name, prefix) for prefix in forbidden)
            or (within(module, "ttfs_triton") and ".command." in name)  # a command file is the end of a way
        ]
    assert upward == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for types count. Which packages use which others is tested above."""
    files = {module_name(path): path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    uses = {
        module: {name for _, full in imported_names(path) for name in (full, full.rpartition(".")[0]) if name in files}
        for module, path in files.items()
    }
    tuple(TopologicalSorter(uses).static_order())  # raises CycleError


def test_package_lists_what_it_has_and_nothing_else() -> None:
    packages = {path.parent.name for path in (ROOT / "ttfs_triton").glob("*/__init__.py")}
    assert set(dir(ttfs_triton)) == {"TTFSModel", "__version__", *packages}
    assert all(getattr(ttfs_triton, name).__name__ == f"ttfs_triton.{name}" for name in packages)
    assert not (ROOT / "kernels" / "__init__.py").exists()  # it would hide Hugging Face's package of that name


# In this order, in one process, as importing PyTorch takes seconds: what each line must not have imported yet.
IMPORTS = """
import ttfs_kernels
assert "ttfs_triton" not in sys.modules
import ttfs_triton, ttfs_triton.nn
assert "ttfs_triton.train" not in sys.modules
assert "huggingface_hub" not in sys.modules
ttfs_triton.TTFSModel
import ttfs_triton.train
import ttfs_triton.evaluate.command, ttfs_triton.export.command, ttfs_triton.hub.publish
import ttfs_triton.convert.command
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
