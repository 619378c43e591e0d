"""``torchbeats finetune``: labelled sounds and a model → a model with labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchbeats.cli.console import Console, complain, remark, room
from torchbeats.cli.labelled import (
    OPTIONAL_DATA,
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
from torchbeats.cli.tables import HELD_OUT, MODEL, NAMES, OUTPUT, TRAINING, or_built_in
from torchbeats.cli.training_options import TRAINING_PACKAGES, TrainingDevice, device_settings, needed
from torchbeats.data.folds import FOLDS, Design, design, groups_from, split
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.errors import InputError, quoted, some_of
from torchbeats.extras import require
from torchbeats.files import plain
from torchbeats.weights import hub

if TYPE_CHECKING:
    from torchbeats.training.cross_validation import CrossValidated


def finetune(
    data: OPTIONAL_DATA = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", rich_help_panel=OUTPUT, help="Folder for the run.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", rich_help_panel=MODEL, help=f"{NAMES} Default: the small built-in model."),
    ] = None,
    problem_type: ProblemType = None,
    epochs: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=TRAINING, help="Passes through the sounds, at most. Default: by the number of sounds."
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            rich_help_panel=TRAINING,
            help="First search learning rate and layer decay for so long, such as 20m, by the sounds held out; of a "
            "cross-validation in each fold.",
        ),
    ] = None,
    freeze: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="Number of layers to freeze, from the input on; -1: all but the label head. Default: 0.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=TRAINING,
            help="32-true, bf16-mixed, 16-mixed and so on. Default: bf16-mixed where the GPU or CPU has it, else "
            "32-true.",
        ),
    ] = None,
    device: TrainingDevice = None,
    cross_validate: Annotated[
        bool,
        typer.Option(
            "--cross-validate",
            rich_help_panel=HELD_OUT,
            help="Fine-tune once for each fold, and evaluate on the sounds that were held out. Folds are those of the "
            f"list, or each of its groups in turn; otherwise {FOLDS} stratified folds.",
        ),
    ] = False,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            rich_help_panel=HELD_OUT,
            help="Cross-validate with this many stratified folds, which keep groups together.",
        ),
    ] = None,
    group_from: GroupFrom = None,
    seed: Annotated[int | None, typer.Option(min=0, rich_help_panel=TRAINING, help="Random seed. Default: 0.")] = None,
    config: Annotated[Path | None, typer.Option(rich_help_panel=TRAINING, help="YAML file with settings.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            rich_help_panel=TRAINING,
            help="A single setting, which overrides --config. Example: --set model.lr=1e-3.",
        ),
    ] = None,
    format: Format = None,
    label_column: LabelColumn = None,
    label_from: LabelFrom = None,
    sounds: Sounds = None,
    min_overlap: MinOverlap = None,
    fully_annotated: FullyAnnotated = False,
    show_settings: Annotated[
        bool,
        typer.Option(
            "--show",
            rich_help_panel=TRAINING,
            help="Print all settings as YAML, each with what it means, and do nothing else. With DATA, those that are "
            "chosen for its size, and why.",
        ),
    ] = False,
) -> None:
    """Fine-tune a model on labelled sounds.

    The folder receives model.safetensors, which carries its labels, and validation.json, metrics.csv, TensorBoard logs
    and run.yaml. To continue a run that was stopped or killed, give the same command again.

    Some sounds are held out, to measure the model and to choose the best epoch: those in the split validation (or else
    test) of a list, or a share of each class. Training ends when nothing gets better, and where it gains nothing beyond
    noise over a linear head on the frozen model, that head is what you get. A cross-validation gives figures, and a
    folder for each fold.
    """
    from torchbeats.training.configuring import finetune_settings
    from torchbeats.training.defaults import DataSize
    from torchbeats.training.explaining import explained_yaml, reason

    options_given = {"model.epochs": epochs, "model.freeze": freeze, "trainer.precision": precision}
    options = [f"{name}={value}" for name, value in options_given.items() if value is not None]
    assignments = [*(set_ or ()), *options, *device_settings(device)]
    run_settings = finetune_settings(config, assignments, seed=seed)
    if show_settings and not data:
        print(explained_yaml(run_settings, room()), end="")
        return
    for package in TRAINING_PACKAGES:  # they take seconds to import, which a slip in the settings need not wait for
        require(package, "train")
    from torchbeats.cli.training import Display, one_speaks, stopping
    from torchbeats.loading import load
    from torchbeats.model import BEATs
    from torchbeats.training.cross_validation import CrossValidation
    from torchbeats.training.finetune_run import Finetune
    from torchbeats.training.search import seconds_of

    one_speaks()
    budget = 0.0 if tune is None else seconds_of(tune)
    data, out = needed(data, out if out is not None or not show_settings else Path())
    cut = windows(run_settings.data.seconds, min_overlap, fully_annotated)
    labelled = read_labelled(
        data, problem_type, label_column=label_column, label_from=label_from, sounds=sounds or (), windows=cut
    )
    labelled = _usable(labelled, group_from)
    size = DataSize.of(labelled, run_settings.data.seconds)
    run_settings = finetune_settings(config, assignments, size, seed=seed)
    why = reason(size, run_settings.model)
    if show_settings:
        print(f"# {why}\n{explained_yaml(run_settings, room())}", end="")
        return
    remark(why)
    cross = cross_validate or folds is not None
    plan = design(labelled, folds, group_from is not None, run_settings.seed) if cross else None
    parts = None if cross else split(labelled, run_settings.data.validation, run_settings.seed)
    model = or_built_in(model)
    network = load(hub.resolve(model), expect=BEATs)
    about = {"data": [str(path) for path in data], "model": model}
    if parts is None:
        assert plan is not None
        for warning in plan.warnings:
            complain(warning, "Warning")
        with stopping():
            result = CrossValidation(out, network, labelled, plan, run_settings, about, Display(), budget).run()
        if result is not None:
            show(format, plain(result.to_dict(plan)), lambda console: _print(console, result, plan))
            remark(f"{out}: a folder for each fold, and all figures in validation.json.")
        return
    if parts.rest.examples:
        complain(f"The {len(parts.rest.examples):,} sounds for testing are left alone: torchbeats evaluate.", "Note")
    with stopping():
        file = Finetune(out, network, parts.train, parts.validation, run_settings, about, Display(), budget).train()
    views = f" --views {run_settings.data.views}" if run_settings.data.views > 1 else ""
    remark(f"{file}: {len(labelled.classes)} classes.", f"torchbeats tag FILE -m {file}{views}")


def _print(console: Console, result: CrossValidated, plan: Design) -> None:
    kind = "accuracy" if result.report.problem_type == "single_label" else "mAP"
    low, high = (f"{100 * end:.1f}" for end in result.interval)
    by_fold = [f"{100 * value:.1f}" if value == value else "?" for value in result.by_fold]
    console.print(f"{kind} {100 * result.report.figures[kind]:.1f} %, 95 %: {low} – {high}")
    held_out = ", ".join(f"{name} {figure}" for name, figure in zip(plan.names, by_fold, strict=True))
    console.print(f"Held out: {held_out}")
    console.print(f"{result.report.examples:,} sounds held out: {plan.name}. Interval: bootstrap over {plan.unit}.")


def _usable(labelled: Labelled, group_from: str | None) -> Labelled:
    """The sounds that exist; a warning names the others before the training begins."""
    labelled, missing = labelled.existing()
    if missing:
        complain(f"{len(missing):,} files are not there, and left out: {quoted(missing)}.", "Warning")
    labelled, outside = labelled.within_files()
    if outside:
        complain(
            f"Pieces that their files do not have are left out, {len(outside):,} of them: {some_of(outside, 5)}.",
            "Warning",
        )
    if empty := [name for name, count in labelled.counts().items() if not count]:
        raise InputError(f"None of the sounds of {quoted(empty)} is left.")
    note_several(labelled)
    return labelled if group_from is None else groups_from(labelled, group_from)
