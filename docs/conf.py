"""The documentation site: `make docs` writes it to docs/_build, without a network."""

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # this checkout, installed or not

project = "ttfs-triton"
copyright = "the ttfs-triton developers"
try:
    release = importlib.metadata.version("ttfs-triton")
except importlib.metadata.PackageNotFoundError:
    release = "unreleased"

extensions = [
    "myst_nb",  # Markdown pages, and notebooks that are run while the site is built
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without a network
]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "ttfs-triton"
html_static_path = ["_static"]
html_css_files = ["neuron.css", "tables.css"]
html_js_files = [("neuron.js", {"defer": "defer"})]

# Notebooks: all are run anew, and a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

# API: docstrings in Google's style, in which single backquotes are code.
default_role = "code"
suppress_warnings = ["ref.python"]  # attributes of one name in several classes
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of PyTorch say nothing of ours
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Sections of a line or two, such as "Source: Wei et al., Eq. 5", which stand close to the lists above them.
_SHORT_SECTION = re.compile(r"(Source|Gradient|Precision|Gradients|Note): ")

_STAR = re.compile(r"(?<![\w*\\])\*{1,2}(?=\w)(?!.*\w\*)")  # of `*shape` and `**overrides`, not of *emphasis*


def set_apart(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Make paragraphs of short sections; reStructuredText would take them for a part of what stands above."""
    result: list[str] = []
    inside = False
    for line in lines:
        line = line if line.lstrip().startswith((">>>", "...")) else _STAR.sub(lambda star: r"\*" * len(star[0]), line)
        if starts := bool(_SHORT_SECTION.match(line)):
            result.append("")
        elif inside and not line.startswith(" "):
            result.append("")
            inside = False
        inside = inside or starts
        result.append(line.strip() if inside else line)
    lines[:] = result


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", set_apart, priority=400)  # before napoleon, at 500
