"""``torchbeats fit``: a table of embeddings and labels → a label head, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column
from rich.table import Table as Printed

from torchbeats.cli.console import Console, complain, remark, working
from torchbeats.cli.labelled import Format, GroupFrom, LabelColumn, Sounds, show
from torchbeats.cli.tables import NAMES, OUTPUT, Overwrite
from torchbeats.data.folds import groups_from
from torchbeats.data.labelled import read_labelled
from torchbeats.data.windows import MIN_OVERLAP
from torchbeats.errors import SettingsError, quoted
from torchbeats.extras import require
from torchbeats.files import csv_line, plain, readable, refuse_existing, refuse_inputs, replacing
from torchbeats.heads.fitting import FOLDS, Head, base_model, fit_head, whole_model
from torchbeats.heads.labelling import label_windows
from torchbeats.heads.suggesting import Suggestion, suggest
from torchbeats.tables.reading import Table
from torchbeats.weights import checkpoint

SUGGESTIONS = ".suggestions.csv"  # in place of the output's ending


def fit(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A table that `torchbeats embed` wrote.")],
    labels: Annotated[
        list[str],
        typer.Argument(
            metavar="LABELS...",
            help="Labels of its files or of stretches of them: lists with the columns path and label, and optionally "
            "start and end (seconds); folders with one subfolder of sounds per class; or annotations from Raven, "
            "Audacity, Kaleidoscope or BirdNET, and folders of these.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", rich_help_panel=OUTPUT, help="Model to write: .safetensors.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help=f"The model that the table was made with. {NAMES} Default: what the table names."
        ),
    ] = None,
    precision: Annotated[
        float, typer.Option(help="Precision that the threshold of each class must reach on held-out windows.")
    ] = 0.9,
    min_overlap: Annotated[
        float,
        typer.Option(help="Share of the shorter of the two that a window and a labelled stretch must have in common."),
    ] = MIN_OVERLAP,
    fully_annotated: Annotated[
        bool, typer.Option("--fully-annotated", help="Windows of labelled files without a label contain no class.")
    ] = False,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation; files are kept together.")] = FOLDS,
    label_column: LabelColumn = None,
    sounds: Sounds = None,
    group_from: GroupFrom = None,
    problem_type: Annotated[
        str | None,
        typer.Option(help="single_label (softmax) or multi_label (sigmoid). Default: chosen from the labels."),
    ] = None,
    suggest_: Annotated[
        int, typer.Option("--suggest", min=0, help="Name this many windows that are worth labelling next.")
    ] = 0,
    format: Format = None,
    overwrite: Overwrite = False,
) -> None:
    """Fit a label head to stored embeddings, in seconds: a model for `torchbeats tag`.

    The head is a logistic regression with calibrated probabilities and, for each class, the threshold that reaches
    --precision. With one class a window, the model calls unknown what is less familiar than all but one in twenty of
    the windows held out. All figures come from files that were held out. --suggest prints windows to label next:
    uncertain ones, and likely ones of classes with few labels.
    """
    require("sklearn", "probe")
    _check_output(output, [table, *map(Path, labels)], overwrite, suggestions=suggest_ > 0)
    stored = Table(table)
    labelled = read_labelled(labels, problem_type, label_column=label_column, sounds=sounds or ())
    if group_from is not None:
        labelled = groups_from(labelled, group_from)
    windows = label_windows(stored, labelled, min_overlap, fully_annotated)
    base = base_model(stored, model)
    for number, note in enumerate(_notes(windows.unused)):
        complain(note, "Note" if number else "Warning")
    with working() as show_progress:
        head = fit_head(
            stored.take(windows.indices),
            windows.labelled,
            precision=precision,
            folds=folds,
            progress=lambda done, total: show_progress(f"Fit {done} of {total}"),
        )
    for warning in head.warnings:
        complain(warning, "Warning")
    checkpoint.save(whole_model(base, head, stored.about), output)
    suggestions = suggest(stored, head, windows.indices, suggest_) if suggest_ else []
    show(format, plain(_as_json(head, suggestions)), lambda out: _print(out, head, suggestions))
    if suggestions:
        _write(output.with_suffix(SUGGESTIONS), suggestions)
    remark(f"{output}: {len(head.classes)} classes.", f"torchbeats tag {table} -m {output}")


def _check_output(output: Path, inputs: list[Path], overwrite: bool, suggestions: bool) -> None:
    if output.suffix != ".safetensors":
        raise SettingsError(f"The output must end in .safetensors; {output} does not.")
    refuse_inputs([output, output.with_suffix(SUGGESTIONS)], inputs)
    refuse_existing(output, overwrite)
    if suggestions:
        refuse_existing(output.with_suffix(SUGGESTIONS), overwrite)


def _notes(unused: list[Any]) -> list[str]:
    if not unused:
        return []
    names = quoted(dict.fromkeys(example.path for example in unused), 3)
    return [f"{len(unused):,} labelled stretches have no window in the table, and are not used: {names}."]


def _as_json(head: Head, suggestions: list[Suggestion]) -> dict[str, Any]:
    return {
        "classes": head.classes,
        "problem_type": head.problem_type,
        "held_out": head.held_out,
        "figures": head.figures,
        "abstention": head.abstention,
        "by_class": head.by_class,
        "c": head.c,
        "warnings": head.warnings,
        "suggestions": [{**suggestion._asdict(), "path": readable(suggestion.path)} for suggestion in suggestions],
    }


def _print(out: Console, head: Head, suggestions: list[Suggestion]) -> None:
    columns = ("windows", "average precision", "threshold", "precision", "recall")
    printed = Printed("class", *(Column(name, justify="right") for name in columns))
    for row in head.by_class:
        values = (row.get(name.replace(" ", "_")) for name in columns[1:])
        shown = ("–" if value is None or value != value else f"{value:.3f}" for value in values)
        printed.add_row(row["class"], f"{row['windows']:,}", *shown)
    out.print(printed)
    if head.held_out:
        means = ", ".join(f"{name} {value:.3f}" for name, value in head.figures.items())
        out.print(f"{means}; held out: {head.held_out}.")
    if head.abstention is not None:
        share, least = head.abstention["false_alarms"], head.abstention["threshold"]
        out.print(f"Below a probability of {least:.3f} a sound is called unknown: {share:.1%} of those held out.")
    for suggestion in suggestions:
        span = f"{readable(suggestion.path)} {suggestion.start:.2f}–{suggestion.end:.2f} s"
        out.print(f"{span}: {suggestion.label} {suggestion.probability:.2f} ({suggestion.reason})")


def _write(path: Path, suggestions: list[Suggestion]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        file.write(csv_line(Suggestion._fields))
        file.writelines(csv_line((readable(suggestion.path), *suggestion[1:])) for suggestion in suggestions)
