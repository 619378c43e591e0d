"""``torchbeats models``: the names that can be loaded."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from torchbeats import hub

COLUMNS = ("name", "size", "licence", "source", "cached", "about")


def models() -> None:
    """List the names of published models, with size, licence, where they come from, and whether they are cached."""
    rows = [_row(source) for source in hub.MODELS.values()]
    if not sys.stdout.isatty():  # for other programs: tab-separated
        for row in (COLUMNS, *rows):
            print(*row, sep="\t")
        return
    table = Table(*COLUMNS, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        "\nAny owner/repo[/file][@revision] on the Hugging Face Hub works as a name too, and so does any file.",
        highlight=False,
        markup=False,
    )


def _row(source: hub.Source) -> tuple[str, ...]:
    size = "?" if source.size is None else f"{source.size / 1e6:,.0f} MB"
    cached = "yes" if hub.is_cached(source) else "no"
    return source.name, size, source.licence, source.repo, cached, source.about
