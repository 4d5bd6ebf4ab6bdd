"""Lines of Python in each part of the repository, compared with its ceiling: `python -m tests.lines`.

If a change adds lines, it deletes as many. A ceiling is lowered when lines have gone, and raised only for features that
users asked for. The goal is the size that the part is to reach.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Folders: (ceiling, goal).
ROOMS = {
    ("ttfs_triton", "kernels", "recipes"): (24_988, 25_000),
    ("bench",): (3_400, 3_400),
    ("tests",): (16_997, 17_000),
}


def count(*folders: str) -> int:
    """Lines of the Python files that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name.endswith(".py")]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files if path.is_file())


def main() -> int:
    """Print a line for each room; 1 if one is above its ceiling."""
    above = 0
    for folders, (ceiling, goal) in ROOMS.items():
        lines = count(*folders)
        above += lines > ceiling
        word = "above its ceiling" if lines > ceiling else "at most"
        print(f"{' + '.join(folders):<32}{lines:>8,}  {word} {ceiling:,}; goal {goal:,}")
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
