"""``torchbeats models``: the names that can be loaded."""

from __future__ import annotations

import sys

from rich.padding import Padding
from rich.text import Text

from torchbeats.cli.console import Console
from torchbeats.weights import hub

COLUMNS = ("name", "size", "licence", "cached", "source", "about")


def models() -> None:
    """List the models that can be loaded by name, with size, licence, source, and whether they are cached."""
    rows = [*(_built_in(name) for name in hub.BUILT_INS), *(_row(source) for source in hub.MODELS.values())]
    if not sys.stdout.isatty():  # for other programs: tab-separated
        for row in (COLUMNS, *rows):
            print(*row, sep="\t")
        return
    console = Console()
    for name, size, licence, cached, source, about in rows:
        state = {"yes": "cached", "no": "not cached"}.get(cached, cached)
        console.print(Text.assemble((name, "bold"), f"  {size}, {licence}, {state}"))
        console.print(Padding(Text(about), (0, 4)))
        console.print(Padding(Text(source, "dim"), (0, 4)))
    console.print()
    console.print(
        "Every checkpoint file, and owner/repo[/file][@revision] on the Hugging Face Hub, can be used in place of a "
        "name."
    )


def _built_in(name: str) -> tuple[str, ...]:
    file = hub.BUILT_INS[name]
    about = {
        hub.BUILT_IN: "the default: a small model pre-trained on free audio, for first steps and tests",
        hub.BUILT_IN_TAGGER: "of the same size, fine-tuned to tag 17 coarse classes",
    }
    return name, f"{file.stat().st_size / 1e6:,.0f} MB", "see MODEL_CARD.md", "built in", str(file), about[name]


def _row(source: hub.Source) -> tuple[str, ...]:
    size = "size unknown" if source.size is None else f"{source.size / 1e6:,.0f} MB"
    cached = "yes" if hub.is_cached(source) else "no"
    kind = "datasets/" if source.repo_type == "dataset" else ""
    page = f"https://huggingface.co/{kind}{source.repo}"
    where = f"{page}/resolve/{source.revision}/{source.file}" if source.file else page
    return source.name, size, source.licence, cached, where, source.about
