"""The lowest versions that pyproject.toml promises, as constraints for pip: `make test-oldest` installs them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

EXTRAS = ("train", "probe", "plots", "onnx", "search", "remote")  # those whose packages are old enough to differ
LOWEST = re.compile(r'"([\w.-]+)>=([\w.]+)')


def lowest(project: str) -> dict[str, str]:
    """``{package: version}`` of the dependencies and of `EXTRAS`, by the text of a pyproject.toml."""
    lists = (re.search(rf"^{name} = \[(.*?)\][^\n]*$", project, re.S | re.M) for name in ("dependencies", *EXTRAS))
    return dict(pair for found in lists if found for pair in LOWEST.findall(found[1]))


if __name__ == "__main__":
    pins = lowest((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in pins.items())
