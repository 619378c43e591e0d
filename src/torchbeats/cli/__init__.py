"""The command ``torchbeats``: one file a subcommand, each a few lines that name the stages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
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
from torchbeats.interrupts import take_keyboard_interrupts
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
        "serve": serve.serve,
    },
    "Judge": {"evaluate": evaluate.evaluate, "probe": probe.probe},
    "Teach": {"fit": fit.fit, "finetune": finetune.finetune, "pretrain": pretrain.pretrain},
    "Models": {"models": models.models, "show": show.show, "convert": convert.convert, "export": export.export},
}
# What is left of the work when a command is stopped. Those that train say so themselves.
GOES_ON = "What is done is kept; the same command goes on."
NOTHING_WRITTEN = "Nothing was written; the same command begins anew."
LEFT = {"embed": GOES_ON, "tokens": GOES_ON, "tag": "Nothing but the rows that were printed is kept."}
LEFT["serve"] = "The server had not begun."
TRAINING = ("finetune", "pretrain")
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        if name not in TRAINING:
            command = stoppable(command, LEFT.get(name, NOTHING_WRITTEN))
        app.command(name, rich_help_panel=panel)(with_quiet(command))


def main() -> None:
    """Run the command; `torchbeats.cli.ending` lists the exit status."""
    take_keyboard_interrupts()
    warnings.showwarning = lambda message, category, *_: complain(
        str(message) if issubclass(category, AudioWarning) else f"{category.__name__}: {message}", "Warning"
    )
    sys.exit(run(app))
