"""Build the wheel into `dist/`, with a page whose links and pictures lead to the repository.

    make wheel REPOSITORY=https://github.com/OWNER/ttfs-triton

An index such as PyPI shows README.md on a page of its own, where relative links lead nowhere. The wheel is built from
the last commit, in a temporary copy whose links are absolute: files at REPOSITORY/blob/COMMIT, pictures at
REPOSITORY/raw/COMMIT, the addresses of GitHub and GitLab.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


def absolute(text: str, repository: str, commit: str) -> str:
    """Markdown with absolute links in place of relative ones; links within the page stay."""

    def replace(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/{commit}/{target})"

    return LINK.sub(replace, text)


def main() -> None:
    if len(sys.argv) != 2 or not re.fullmatch(r"https://[^/\s]+/\S+", sys.argv[1]):
        sys.exit(
            f"docs/wheel.py: REPOSITORY must be https://HOST/OWNER/NAME; got {sys.argv[1:]}. Give one such argument."
        )
    repository = sys.argv[1].removesuffix("/").removesuffix(".git")
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "source")
        archive = Path(folder, "source.tar")
        subprocess.run([*git, "archive", "-o", str(archive), "HEAD"], check=True)
        with tarfile.open(archive) as packed:
            packed.extractall(copy, filter="data")
        page, project = copy / "README.md", copy / "pyproject.toml"
        page.write_text(absolute(page.read_text(encoding="utf-8"), repository, commit), encoding="utf-8")
        urls = f'[project.urls]\nRepository = "{repository}"\n'
        project.write_text(project.read_text(encoding="utf-8").replace("[project.urls]\n", urls, 1), encoding="utf-8")
        build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(ROOT / "dist")]
        subprocess.run([*build, str(copy)], check=True)
    print(f"written: {', '.join(str(path) for path in sorted((ROOT / 'dist').glob('*.whl')))}")


if __name__ == "__main__":
    main()
