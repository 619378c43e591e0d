"""Optional packages: imported where they are used, and named in one sentence where they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torchbeats.errors import MissingPackageError


def require(package: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        package: name of the module.
        extra: of torchbeats, which installs it.

    Raises:
        MissingPackageError: it, or something that it needs, is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(error.name or package, extra) from error


def is_installed(package: str) -> bool:
    """Whether an optional package is there; it is not imported."""
    return importlib.util.find_spec(package) is not None
