"""``torchbeats evaluate``: labelled sounds → how good a fine-tuned model's classes are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.table import Column, Table

from torchbeats.cli.console import Console, audio_progress, complain, remark, skipped
from torchbeats.cli.labelled import (
    DATA,
    Format,
    FullyAnnotated,
    LabelColumn,
    LabelFrom,
    MinOverlap,
    Sounds,
    show,
    windows,
)
from torchbeats.cli.tables import MODEL, NAMES, OUTPUT, BatchSeconds, Device, Engine, Jobs, Overwrite, Views, Window
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.errors import MissingPackageError
from torchbeats.evaluation import plots
from torchbeats.evaluation.metrics import ClassFigures, Report, report
from torchbeats.evaluation.rows import Rows, rows_of
from torchbeats.extras import is_installed
from torchbeats.files import csv_line, plain, readable, refuse_existing, refuse_inputs, replacing, sha256, write_json
from torchbeats.labels import names_and_aliases
from torchbeats.loading import load
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, ScorePlan
from torchbeats.protocol import PROBABILITIES
from torchbeats.tables.formats import METADATA_KEY
from torchbeats.version import __version__
from torchbeats.weights import hub

CALLED = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mAP": "mAP",
    "auc": "AUC",
    "d_prime": "d′",
    "lwlrap": "lwlrap",
    "macro_f1": "macro F1",
}
FILES = ("metrics.json", "classes.csv", "scores.parquet", "confusion.png")  # that --out gets
COLUMNS = ("sounds", "AP", "AUC", "precision", "recall", "F1")
SHOWN_CLASSES = 60  # more of them are no table for a terminal


def evaluate(
    data: DATA,
    model: Annotated[str, typer.Option("--model", "-m", rich_help_panel=MODEL, help=NAMES)],
    split: Annotated[str | None, typer.Option(help="Only examples of this split of the list or folder.")] = None,
    fold: Annotated[str | None, typer.Option(help="Only examples of this fold of the list.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            rich_help_panel=OUTPUT,
            help=f"Folder to write {', '.join(FILES)} to.",
        ),
    ] = None,
    format: Format = None,
    label_column: LabelColumn = None,
    label_from: LabelFrom = None,
    sounds: Sounds = None,
    min_overlap: MinOverlap = None,
    fully_annotated: FullyAnnotated = False,
    window: Window = WINDOW_SECONDS,
    views: Views = 1,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    engine: Engine = None,
    device: Device = "auto",
    jobs: Jobs = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how well a fine-tuned model classifies labelled sounds.

    Single-label models: accuracy, macro F1, mAP, d′ and a confusion matrix. Multi-label models: mAP, d′, lwlrap, and
    macro F1 at a probability of 0.5. Both with figures for every class. Labels may be the model's class names or
    AudioSet ids. The scores of a sound are the mean over its windows. A sound that cannot be read is reported and left
    out; the exit status is then 1.
    """
    for file in (out / name for name in FILES) if out is not None else ():
        refuse_existing(file, overwrite)
    plan = ScorePlan(window=window, batch_seconds=batch_seconds, views=views)
    weights = hub.resolve(model)
    network = load(weights, engine=engine and engine.value, device=device)
    plan.check(network)
    names, aliases = names_and_aliases(network.label_dict, network.labels, network.outputs[PROBABILITIES].shape[0])
    problem_type = getattr(network.cfg, "problem_type", None)
    cut = windows(window, min_overlap, fully_annotated)
    labelled = read_labelled(
        data,
        problem_type,
        names,
        aliases,
        label_column=label_column,
        label_from=label_from,
        sounds=sounds or (),
        windows=cut,
    )
    examples = labelled.select(split, fold)
    if out is not None:
        refuse_inputs((out / name for name in FILES), [*data, *(example.path for example in examples.examples)])
        out.mkdir(parents=True, exist_ok=True)
        if examples.problem_type == "single_label" and not is_installed("matplotlib"):
            complain(f"There will be no confusion.png. {MissingPackageError('matplotlib', 'plots')}", "Note")
    with audio_progress(len(examples.examples), 0) as progress:
        rows = rows_of(examples.examples, network, plan, jobs=jobs, progress=progress, on_failure=skipped)
    usable = examples.subset(rows.indices.tolist())
    result = report(usable.targets(), rows.values, names)
    about = {
        "torchbeats": __version__,
        "model": model,
        "weights": f"sha256:{sha256(weights)}",
        "data": [readable(os.path.abspath(path)) for path in data],
        "split": split,
        "fold": fold,
        "window": plan.window,
        "views": plan.views,
    }
    everything = _as_json(result, about, rows)
    if out is not None:
        _write(out, result, everything, usable, rows)
    show(format, everything, lambda console: _print(console, result))
    if result.absent:
        complain(
            f"{len(result.absent)} of {len(names)} classes have no examples; means over classes leave them out.", "Note"
        )
    if rows.failures:
        complain(f"{len(rows.failures):,} of {len(examples.examples):,} sounds could not be used, or not to their end.")
        raise typer.Exit(1)
    if out is not None:
        remark(f"{out}: figures of {len(usable.examples):,} sounds.")


def _as_json(result: Report, about: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """A report as JSON has it; what is not defined is null."""
    return plain(
        {
            **about,
            "problem_type": result.problem_type,
            "examples": result.examples,
            "failed": [{"path": readable(path), "error": reason} for path, reason in rows.failures],
            "metrics": result.figures,
            "classes": [figures._asdict() for figures in result.classes],
            "absent": result.absent,
            "confusion": None if result.confusion is None else result.confusion.tolist(),
        }
    )


def _print(console: Console, result: Report) -> None:
    means = Table("", *(CALLED[name] for name in result.figures))
    means.add_row(f"{result.examples:,} sounds", *(f"{value:.3f}" for value in result.figures.values()))
    console.print(means)
    present = [figures for figures in result.classes if figures.examples]
    if len(present) > SHOWN_CLASSES:
        console.print(f"{len(present)} classes: --out or --format json has their figures.")
        return
    table = Table("class", *(Column(name, justify="right") for name in COLUMNS))
    for figures in present:
        values = (f"{value:.3f}" if value == value else "–" for value in figures[2:])
        table.add_row(figures.name, f"{figures.examples:,}", *values)
    console.print(table)


def _write(out: Path, result: Report, everything: dict[str, Any], usable: Labelled, rows: Rows) -> None:
    write_json(out / "metrics.json", everything)
    with replacing(out / "classes.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        file.write(csv_line(ClassFigures._fields))
        file.writelines(csv_line("" if value != value else value for value in figures) for figures in result.classes)
    scores = pa.FixedSizeListArray.from_arrays(pa.array(rows.values.reshape(-1)), rows.values.shape[1])
    columns = {
        "path": [readable(example.path) for example in usable.examples],
        "start": pa.array([example.start for example in usable.examples], pa.float64()),
        "end": pa.array([example.end for example in usable.examples], pa.float64()),
        "labels": pa.array([list(example.labels) for example in usable.examples], pa.list_(pa.string())),
        "scores": scores,
    }
    settings = {name: everything[name] for name in ("torchbeats", "model", "weights", "window", "views")}
    about = {**settings, "classes": [figures.name for figures in result.classes]}
    with replacing(out / "scores.parquet") as temporary:
        table = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(about)})
        pq.write_table(table, temporary)
    picture = out / "confusion.png"
    if result.confusion is not None and is_installed("matplotlib"):
        with replacing(picture) as temporary:
            plots.draw_confusion(result.confusion, [figures.name for figures in result.classes], temporary)
    else:
        picture.unlink(missing_ok=True)  # an earlier evaluation's
