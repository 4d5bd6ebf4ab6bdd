"""Packages that only exporting needs."""

import importlib
from types import ModuleType


def require(function: str, module: str, extra: str) -> ModuleType:
    """Import a module of an extra.

    Args:
        function: who asks, for the message.
        module: to import.
        extra: of ttfs-triton, that installs it.
    Raises:
        RuntimeError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{function}: {error.name} must be installed; found none. Run: pip install 'ttfs-triton[{extra}]'."
        ) from error
