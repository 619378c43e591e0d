"""``torchbeats probe``: labelled sounds → how well frozen embeddings tell them apart."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from torchbeats.cli.console import Console, audio_progress, complain, count_progress, remark
from torchbeats.cli.labelled import (
    DATA,
    Format,
    FullyAnnotated,
    GroupFrom,
    LabelColumn,
    LabelFrom,
    MinOverlap,
    ProblemType,
    Sounds,
    note_several,
    show,
    windows,
)
from torchbeats.cli.tables import COMPUTING, HELD_OUT, MODEL, NAMES, BatchSeconds, Device, Jobs, Window, or_built_in
from torchbeats.data.folds import FOLDS, Design, design, groups_from
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.errors import SettingsError
from torchbeats.evaluation.attentive import ATTENTIVE, attentive, total_epochs
from torchbeats.evaluation.features import Features, plan_of, stored_features, write_features
from torchbeats.evaluation.probe import CLASSIFIERS, CS, NEIGHBOURS, Outcome, fits, probe_layers
from torchbeats.evaluation.rows import Rows, cached, rows_of
from torchbeats.extras import require
from torchbeats.files import cache_folder, plain, readable, sha256
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.plans import BATCH_SECONDS, WINDOW_SECONDS, EmbeddingPlan
from torchbeats.pooling import POOLINGS, WINDOW_POOLINGS
from torchbeats.version import __version__
from torchbeats.weights import hub

CLASSIFIERS_PANEL = "Classifiers"
Head = Enum("Head", {ATTENTIVE: ATTENTIVE}, type=str)  # type: ignore[misc]
Pool = Enum("Pool", {name: name for name in WINDOW_POOLINGS}, type=str)  # type: ignore[misc]


def probe(
    data: DATA,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", rich_help_panel=MODEL, help=f"{NAMES} Default: the small built-in model."),
    ] = None,
    pool: Annotated[
        Pool,
        typer.Option(
            metavar="POOLING",
            rich_help_panel=MODEL,
            help=f"Pooling. {'; '.join(f'{name}: {POOLINGS[name].about}' for name in WINDOW_POOLINGS)}.",
        ),
    ] = Pool.statistics,  # type: ignore[attr-defined]
    head: Annotated[
        Head | None,
        typer.Option(
            rich_help_panel=CLASSIFIERS_PANEL,
            help="One more classifier. attentive: learned weights of all layers, and attention over time in each "
            "frequency band. Training takes minutes, and features 10 MB on disk for ten seconds of sound with a base "
            "model. Default: none.",
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            rich_help_panel=MODEL,
            help="Transformer layer to read: 0 is the input of the first layer. Default: the last layer.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            rich_help_panel=HELD_OUT,
            help="Number of stratified folds, which keep groups together. Default: the split or the folds of the list, "
            f"or each of its groups in turn; otherwise {FOLDS}.",
        ),
    ] = None,
    group_from: GroupFrom = None,
    problem_type: ProblemType = None,
    c: Annotated[
        float | None,
        typer.Option(
            "--c",
            rich_help_panel=CLASSIFIERS_PANEL,
            help="Inverse regularisation strength of the linear classifier. Default: chosen from "
            f"{', '.join(f'{c:g}' for c in CS)} within the training sounds of each fold.",
        ),
    ] = None,
    format: Format = None,
    label_column: LabelColumn = None,
    label_from: LabelFrom = None,
    sounds: Sounds = None,
    min_overlap: MinOverlap = None,
    fully_annotated: FullyAnnotated = False,
    window: Window = WINDOW_SECONDS,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    device: Device = "auto",
    jobs: Jobs = None,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache",
            rich_help_panel=COMPUTING,
            help="Neither use nor keep embeddings in ~/.cache/torchbeats/probe.",
        ),
    ] = False,
) -> None:
    """Measure how much a model's embeddings tell about your labels: cross-validated, with a confidence interval.

    Two classifiers on frozen embeddings: logistic regression on standardised values (one class against the rest if
    sounds have several labels), and nearest neighbours by cosine; --head attentive adds a third. For comparison, chance
    is what the most frequent class gets. A sound that cannot be used is reported and left out; the exit status is then
    1.
    """
    require("sklearn", "probe")
    chosen_layer = int(layer) if layer and layer.isdecimal() else layer
    plan = EmbeddingPlan(pool.value, chosen_layer, window=window, batch_seconds=batch_seconds)
    if c is not None and not 0 < c < float("inf"):
        raise SettingsError(f"--c must be positive, not {c}.")
    cut = windows(window, min_overlap, fully_annotated)
    labelled = read_labelled(
        data, problem_type, label_column=label_column, label_from=label_from, sounds=sounds or (), windows=cut
    )
    if group_from is not None:
        labelled = groups_from(labelled, group_from)
    design(labelled, folds, group_from is not None)  # says what is wrong before anything is computed
    model = or_built_in(model)
    weights = hub.resolve(model)
    network = load(weights, device=device, expect=BEATs)
    plan.check(network)

    def compute() -> Rows:
        with audio_progress(len(labelled.examples), 0) as progress:
            return rows_of(labelled.examples, network, plan, jobs=jobs, progress=progress)

    started, digest = time.monotonic(), sha256(weights)
    folder = None if no_cache else cache_folder("probe")
    rows, from_cache = cached(folder, labelled.examples, digest, plan.settings(network), compute)
    for path, reason in rows.failures:
        complain(f"{path}: {reason}.", "Skipped")
    remark(f"Embeddings: {'kept from before' if from_cache else f'{time.monotonic() - started:.0f} s'}.")
    usable = labelled.subset(rows.indices.tolist())
    fold_design = design(usable, folds, group_from is not None)
    note_several(usable)
    for warning in fold_design.warnings:
        complain(warning, "Warning")
    layers = plan.layers(network)
    total = len(layers) * sum(fits(classifier, fold_design, c) for classifier in CLASSIFIERS)
    with count_progress(total, "fits") as on_fit:
        outcomes: list[tuple[int | str, Outcome]] = [*probe_layers(rows.values, layers, usable, fold_design, c, on_fit)]
    store = partial(_features, labelled, network, digest, plan_of(window, batch_seconds), jobs)
    last, layer_weights = _attentive(store, folder, rows, usable, fold_design) if head else (None, None)
    outcomes += [("all", last)] if last else []
    results = {
        "torchbeats": __version__,
        "model": model,
        "weights": f"sha256:{digest}",
        "data": [readable(os.path.abspath(input_path)) for input_path in data],
        "problem_type": usable.problem_type,
        "classes": usable.counts(),
        "examples": len(usable.examples),
        "failed": [{"path": readable(path), "error": reason} for path, reason in rows.failures],
        "held_out": fold_design.name,
        "warnings": fold_design.warnings,
        "interval_over": fold_design.unit,
        "folds": fold_design.names,
        "pool": plan.pool,
        "window": plan.window,
        "neighbours": NEIGHBOURS,
        "layer_weights": layer_weights,
        "results": [_result(*outcome) for outcome in outcomes],
    }
    show(format, plain(results), lambda out: _print(out, usable.problem_type, fold_design, outcomes))
    _report_failures(rows, len(labelled.examples))


def _report_failures(rows: Rows, total: int) -> None:
    """The count of sounds that are left out, if any, and exit status 1."""
    if rows.failures:
        complain(f"{len(rows.failures):,} of {total:,} sounds could not be used, or not to their end.")
        raise typer.Exit(1)


def _features(
    labelled: Labelled, network: BEATs, digest: str, plan: EmbeddingPlan, jobs: int | None, folder: Path
) -> Features:
    """Every layer's features of all sounds, from an earlier run where the folder has them."""

    def write(path: Path) -> None:
        with audio_progress(len(labelled.examples), 0) as progress:
            write_features(path, labelled.examples, network, plan, jobs=jobs, progress=progress)

    return stored_features(folder, labelled.examples, digest, plan.settings(network), write)[0]


def _attentive(
    store: Callable[[Path], Features], folder: Path | None, rows: Rows, usable: Labelled, fold_design: Design
) -> tuple[Outcome, list[float]]:
    """Cross-validate the attentive head on features that are kept in the folder, or for this run alone."""
    with tempfile.TemporaryDirectory() as scratch:
        features = store(Path(scratch) if folder is None else folder).subset(rows.indices)
        with count_progress(total_epochs(features, fold_design), "epochs") as on_epoch:
            outcome, weights = attentive(features, usable, fold_design, on_epoch=on_epoch)
        del features  # Windows deletes no file that is mapped to memory
    return outcome, weights


def _result(layer: int | str, outcome: Outcome) -> dict[str, Any]:
    return {
        "layer": layer,
        "classifier": outcome.classifier,
        **outcome.figures,
        "interval": outcome.interval,
        "chance": outcome.chance,
        "tested": outcome.tested,
        "by_fold": outcome.by_fold,
        "c": outcome.c,
        "confusion": None if outcome.confusion is None else outcome.confusion.tolist(),
    }


def _print(out: Console, problem_type: str, design: Design, outcomes: list[tuple[int | str, Outcome]]) -> None:
    single = problem_type == "single_label"
    main = "accuracy" if single else "mAP"
    columns = ("layer", "classifier", main, "95 %", "chance", *(("macro F1",) if single else ()), "C")
    table = Table(*(Column(name, no_wrap=True) for name in columns))
    for layer, outcome in outcomes:
        low, high = (f"{100 * end:.1f}" if end == end else "?" for end in outcome.interval)
        table.add_row(
            str(layer),
            outcome.classifier,
            f"{100 * outcome.figures[main]:.1f} %",
            f"{low} – {high}",
            f"{100 * outcome.chance:.1f} %",
            *((f"{100 * outcome.figures['macro_f1']:.1f} %",) if single else ()),
            ", ".join(f"{c:g}" for c in sorted(set(outcome.c))),
        )
    out.print(table)
    tested = outcomes[0][1].tested
    out.print(f"{tested:,} sounds held out: {design.name}. Intervals: bootstrap over {design.unit}.")
