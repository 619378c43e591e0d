"""``torchbeats search``: a table of embeddings and some sounds → the rows that are like them."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table as Lines

from torchbeats.cli.console import Console, complain, count_progress, remark
from torchbeats.cli.tables import NAMES, OUTPUT, Device, Overwrite
from torchbeats.files import as_json, readable
from torchbeats.search import searching

QUERY = "a sound file, file@12.5-15.0 for the part of it between these seconds, or row:7 for a row of the table"


class Formats(str, Enum):
    """How matches are printed."""

    table = "table"
    jsonl = "jsonl"


def search(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="Table of embeddings, as `torchbeats embed` writes it.")
    ],
    query: Annotated[
        list[str],
        typer.Argument(metavar="QUERY...", help=f"What to look for: {QUERY}, counted from 0. Several are averaged."),
    ],
    unlike: Annotated[
        list[str] | None,
        typer.Option(metavar="QUERY", help="What the results must be unlike. Can be given several times."),
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of results.")] = 20,
    not_same_file: Annotated[
        bool, typer.Option("--not-same-file", help="Leave out rows of the files that the queries are from.")
    ] = False,
    index: Annotated[
        bool,
        typer.Option(
            "--index",
            help="Search by the index of a Lance table, which is built first if there is none: faster with millions of "
            "rows, but a few of the best may be missing.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            rich_help_panel=OUTPUT,
            help="Results to write: .csv, .jsonl, .parquet, .raven.txt (selection table), .audacity.txt (label track "
            "of one recording), or a folder for WAV clips named by rank. Default: standard output.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="Label of the results in .raven.txt and .audacity.txt. Default: match; for Audacity rank and score.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"{NAMES} Default: the model that the table names.")
    ] = None,
    device: Device = "auto",
    format: Annotated[
        Formats | None,
        typer.Option(
            rich_help_panel=OUTPUT,
            help="Format on standard output. Default: a table on a terminal, otherwise a JSON object a line.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Find the rows of a table that are most like some sounds, by the cosine of their embeddings.

    All rows are compared. The first search of a large Parquet table keeps its vectors unpacked in
    ~/.cache/torchbeats/search, for later ones: at most 16 GB of all tables, those searched longest ago go first.
    """
    from torchbeats.search import results
    from torchbeats.tables.tags import ending_of

    clips = output is not None and results.check_output(output, [table, *query, *(unlike or ())], overwrite)
    matches = searching.search(
        table,
        query,
        unlike=unlike or (),
        n=n,
        not_same_file=not_same_file,
        index=index,
        model=model,
        device=device,
    )
    if output is None:
        if format is Formats.table or (format is None and sys.stdout.isatty()):
            _print(matches)
        else:
            print("".join(as_json(results.as_object(match)) + "\n" for match in matches), end="")
    elif clips:
        with count_progress(len(matches), "clips") as progress:
            failures = results.write_clips(output, matches, progress)
        for failure in failures:
            complain(str(failure), "Skipped")
        remark(f"{output}: {len(matches) - len(failures):,} clips.")
        if failures:
            raise typer.Exit(1)
    else:
        results.WRITERS[ending_of(output.name, results.WRITERS) or ""](output, matches, label)
        remark(f"{output}: {len(matches):,} rows.")


def _print(matches: list[searching.Match]) -> None:
    lines = Lines("score", "path", "start", "end", box=None)
    for match in matches:
        lines.add_row(f"{match.score:.3f}", readable(match.path), f"{match.start:,.2f}", f"{match.end:,.2f}")
    Console().print(lines)
