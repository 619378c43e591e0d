"""Other kinds of models than BEATs and the tokenizers, a file each, which registers its class with `kinds.register`.

`torchbeats.load` reads their files and every command that takes a model takes them; nothing else has to name them.
CONTRIBUTING.md shows such a file.
"""

from __future__ import annotations

import importlib
import pkgutil


def import_all() -> None:
    """Import every module of this room, so that its kinds are registered."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
