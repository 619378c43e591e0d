"""Which values a setting may have: a test, with the words that a refusal and the documentation have about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Limit(NamedTuple):
    """What a value must be.

    Attributes:
        words: what follows "must be".
        allows: whether a value is so.
    """

    words: str
    allows: Callable[[Any], bool]


def at_least(low: float, *, less_than: float | None = None, or_be: float | None = None) -> Limit:
    """Numbers from ``low`` on, all of them or those below a bound; ``or_be`` is one more that has a meaning."""
    words = f"at least {low:g}" + (f" and less than {less_than:g}" if less_than is not None else "")
    words += f", or {or_be:g}" if or_be is not None else ""
    return Limit(words, lambda v: v == or_be or (v >= low and (less_than is None or v < less_than)))


def between(low: float, high: float, *, or_be: float | None = None) -> Limit:
    """Numbers from ``low`` to ``high``, with both; ``or_be`` is one more that has a meaning."""
    words = f"between {low:g} and {_plain(high)}"
    words += f", or {or_be:g}" if or_be is not None else ""
    return Limit(words, lambda v: v == or_be or low <= v <= high)


def more_than(low: float, *, at_most: float | None = None) -> Limit:
    """Numbers above ``low``, all of them or those up to a bound."""
    words = f"more than {low:g}" + (f" and at most {_plain(at_most)}" if at_most is not None else "")
    return Limit(words, lambda v: v > low and (at_most is None or v <= at_most))


def one_of(*names: str) -> Limit:
    """One of some words."""
    return Limit(f"{', '.join(names[:-1])} or {names[-1]}", lambda v: v in names)


def of_each(limit: Limit, count: int = 0) -> Limit:
    """Lists of values that each are so: ``count`` of them, or at least one."""
    words = f"{count or 'one or more'} numbers, each {limit.words}"
    return Limit(words, lambda vs: len(vs) >= 1 and len(vs) == (count or len(vs)) and all(map(limit.allows, vs)))


def _plain(number: float) -> str:
    """A number without an exponent."""
    return str(int(number)) if number == int(number) else str(number)


def limit_of(field: dataclasses.Field[Any]) -> Limit | None:
    """The limit that a field of a settings object has, if not every value of its type is right."""
    limit: Limit | None = field.metadata.get("limit")
    return limit


def beyond_limits(settings: Any, prefix: str = "") -> Iterator[str]:
    """A sentence, without its full stop, about each setting whose value its limit does not allow."""
    for field in dataclasses.fields(settings):
        value, limit = getattr(settings, field.name), limit_of(field)
        if dataclasses.is_dataclass(value):
            yield from beyond_limits(value, f"{prefix}{field.name}.")
        elif limit is not None and not limit.allows(value):
            yield f"{prefix}{field.name} must be {limit.words}"
