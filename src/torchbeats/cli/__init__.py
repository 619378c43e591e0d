"""The command ``torchbeats``: one file a subcommand, each a few lines that name the stages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from itertools import zip_longest
from typing import Annotated

import typer

from torchbeats.audio import AudioWarning
from torchbeats.cli import (
    clips,
    convert,
    embed,
    evaluate,
    export,
    finetune,
    fit,
    map,
    models,
    pretrain,
    probe,
    search,
    serve,
    show,
    tag,
    tokens,
)
from torchbeats.cli.console import complain
from torchbeats.cli.ending import run, stoppable
from torchbeats.cli.quiet import with_quiet
from torchbeats.distributed.cluster import AUTO
from torchbeats.version import __version__

app = typer.Typer(
    name="torchbeats",
    help="The BEATs audio encoder: sounds in, embeddings out, with any published weights.",
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", "-V", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"torchbeats {__version__}")
        raise typer.Exit


# By use, as `torchbeats --help` shows them.
COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Use": {
        "embed": embed.embed,
        "tag": tag.tag,
        "clips": clips.clips,
        "tokens": tokens.tokens,
        "search": search.search,
        "map": map.map_,
        "serve": serve.serve,
    },
    "Judge": {"evaluate": evaluate.evaluate, "probe": probe.probe},
    "Teach": {"fit": fit.fit, "finetune": finetune.finetune, "pretrain": pretrain.pretrain},
    "Models": {"models": models.models, "show": show.show, "convert": convert.convert, "export": export.export},
}
# What is left of the work when a command is stopped. Those that train say so themselves.
GOES_ON = "What is done is kept; the same command goes on."
NOTHING_WRITTEN = "Nothing was written; the same command begins anew."
LEFT = {
    **dict.fromkeys(("embed", "tokens", "clips", "finetune", "pretrain"), GOES_ON),
    "serve": "The server had not begun.",
    "search": "Only what was printed, and whole files, are there; the same command begins anew.",
    "tag": "Nothing but the rows that were printed is kept; the same command begins anew.",
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(with_quiet(stoppable(command, LEFT.get(name, NOTHING_WRITTEN))))


def main() -> None:
    """Run the command; `torchbeats.cli.ending` lists the exit status."""
    warnings.showwarning = lambda message, category, *_: complain(
        str(message) if issubclass(category, AudioWarning) else f"{category.__name__}: {message}", "Warning"
    )
    sys.argv[1:] = with_address(sys.argv[1:])
    sys.exit(run(app))


def with_address(arguments: list[str]) -> list[str]:
    """The arguments, with an address behind a ``--ray`` that has none: no other option may lack a value."""
    result = list[str]()
    for word, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        result.append(word)
        if word == "--ray" and following.startswith("-"):
            result.append(AUTO)
    return result
