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
    show,
    tag,
    tokens,
)
from torchbeats.cli.console import complain
from torchbeats.errors import TorchbeatsError
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
    "Use": {"embed": embed.embed, "tag": tag.tag, "clips": clips.clips, "tokens": tokens.tokens},
    "Judge": {"evaluate": evaluate.evaluate, "probe": probe.probe},
    "Teach": {"fit": fit.fit, "finetune": finetune.finetune, "pretrain": pretrain.pretrain},
    "Models": {"models": models.models, "show": show.show, "convert": convert.convert, "export": export.export},
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command. Exit status: 0 all done, 1 some inputs could not be read, 2 nothing could be done."""
    warnings.showwarning = lambda message, category, *_: complain(
        str(message) if issubclass(category, AudioWarning) else f"{category.__name__}: {message}", "Warning"
    )
    try:
        app()
    except (TorchbeatsError, OSError) as error:  # what a user can mend; anything else is our fault, with its traceback
        complain(str(error))
        sys.exit(2)
