"""``torchbeats models``: the names that can be loaded."""

from __future__ import annotations

import sys

from rich.padding import Padding
from rich.text import Text

from torchbeats.cli.console import Console
from torchbeats.weights.catalogue import ModelEntry
from torchbeats.weights.catalogue import models as all_models

COLUMNS = ("name", "size", "licence", "cached", "source", "about")


def models() -> None:
    """List the models that can be loaded by name, with size, licence, source, and whether they are cached."""
    if not sys.stdout.isatty():  # for other programs: tab-separated
        print(*COLUMNS, sep="\t")
        for entry in all_models():
            cached = "built in" if entry.built_in else "yes" if entry.cached else "no"
            print(entry.name, _size(entry), entry.licence, cached, entry.source, entry.about, sep="\t")
        return
    console = Console()
    for entry in all_models():
        cached = "built in" if entry.built_in else "cached" if entry.cached else "not cached"
        console.print(Text.assemble((entry.name, "bold"), f"  {_size(entry)}, {entry.licence}, {cached}"))
        console.print(Padding(Text(entry.about), (0, 4)))
        console.print(Text(f"    {entry.source}", "dim"), soft_wrap=True)  # one word, to be copied
    console.print()
    console.print(
        "Every checkpoint file, and owner/repo[/file][@revision] on the Hugging Face Hub, can be used in place of a "
        "name. The classes of any tagger: torchbeats show NAME."
    )


def _size(entry: ModelEntry) -> str:
    return "size unknown" if entry.bytes is None else f"{entry.bytes / 1e6:,.0f} MB"
