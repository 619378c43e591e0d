"""A regular expression → what it finds in the paths of sounds, such as a speaker or a class."""

from __future__ import annotations

import re
from collections.abc import Callable

from torchbeats.errors import InputError


def finder(pattern: str, purpose: str) -> Callable[[str], str]:
    """A function from a path to the pattern's first group in it, or its whole match if it has no groups.

    Args:
        pattern: a regular expression, searched for anywhere in the path.
        purpose: what it is to find, for messages.

    Raises:
        InputError: no regular expression; later, a path that it does not fit.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{pattern!r} is not a regular expression: {error}.") from error

    def find(path: str) -> str:
        match = compiled.search(path)
        if match is None or not (value := match[1] if compiled.groups else match[0]):
            raise InputError(f"The pattern {pattern!r} finds no {purpose} in {path}.")
        return value

    return find
