from pathlib import Path

import ttfs_triton


def test_package_lists_what_it_has_and_nothing_else() -> None:
    packages = {path.parent.name for path in Path(ttfs_triton.__file__).parent.glob("*/__init__.py")}
    assert ttfs_triton.__version__
    assert set(dir(ttfs_triton)) == {"TTFSModel", "__version__", *packages}
    for name in packages:
        assert getattr(ttfs_triton, name).__name__ == f"ttfs_triton.{name}"
