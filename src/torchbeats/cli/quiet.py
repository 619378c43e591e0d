"""``--quiet``, which every command has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from torchbeats.cli.console import be_quiet

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only: no notes, no progress.")
]


def with_quiet(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one more option."""

    @functools.wraps(command)
    def quiet_or_not(*arguments: object, quiet: bool = False, **options: object) -> None:
        be_quiet(quiet)
        command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    quiet_or_not.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])  # type: ignore[attr-defined]
    quiet_or_not.__annotations__ = {**command.__annotations__, "quiet": Quiet}
    return quiet_or_not
