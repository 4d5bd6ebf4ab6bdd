"""Other commits of this checkout, to be measured beside it."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from _record import ROOT


def extract(name: str, folder: Path, *paths: str) -> Path:
    """Parts of a commit in a folder, which is returned; ends the program if there is no such commit.

    Args:
        name: of the commit.
        folder: to be made.
        paths: from the root of the checkout.
    """
    try:
        archive = subprocess.run(["git", "archive", name, *paths], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: --commits must name commits of this checkout; got {name!r}. {error}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as content:
        content.extractall(folder, filter="data")
    return folder
