"""``torchbeats pretrain``: sounds → a model, by the method's iterations."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from torchbeats.cli.console import remark, room
from torchbeats.cli.training_options import TRAINING_PACKAGES, TrainingDevice, device_settings, needed
from torchbeats.config import SIZES
from torchbeats.data.list_formats.formats import LIST_SUFFIXES
from torchbeats.extras import require

Size = Enum("Size", {name: name for name in SIZES}, type=str)  # type: ignore[misc]


def pretrain(
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA...",
            help=f"Sound files; folders, searched with all their subfolders; lists ({', '.join(LIST_SUFFIXES)}); URLs; "
            "WebDataset shards (.tar), by path or URL, with * and {000..127} for many.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the run.")] = None,
    size: Annotated[
        Size,
        typer.Option(
            help="Size of the model, with the training settings that suit it: nano for a laptop; base and large are "
            "the paper's, for GPUs."
        ),
    ] = Size.nano,  # type: ignore[attr-defined]
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Rounds of tokenizer and model. Default: that of the size.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="A model, by name or file, to distil the first tokenizer from. Default: random projection."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed. Default: 0.")] = None,
    device: TrainingDevice = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings, which override those of the size.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A single setting, which overrides both. Example: --set model.lr=1e-3.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print all settings as YAML, each with what it means, and do nothing else.")
    ] = False,
) -> None:
    """Pre-train a model on any sounds: a tokenizer labels them, a model learns the labels, and so on in turn.

    The folder receives run.yaml, metrics.csv, TensorBoard logs, the tokenizer and the model of every iteration, and in
    the end model.safetensors, which `torchbeats embed --model` takes. To continue a run that was stopped or killed,
    give the same command again.
    """
    from torchbeats.training.configuring import settings
    from torchbeats.training.explaining import explained_yaml

    assignments = [*(set_ or ()), *device_settings(device)]
    run_settings = settings(size.value, config, assignments, iterations=iterations, seed=seed)
    if show:
        print(explained_yaml(run_settings, room()), end="")
        return
    for package in TRAINING_PACKAGES:  # they take seconds to import, which a slip in the settings need not wait for
        require(package, "train")
    from torchbeats.cli.training import Display, one_speaks, stopping
    from torchbeats.training.run import Run

    one_speaks()
    data, out = needed(data, out)
    with stopping():
        model = Run(out, data, run_settings, teacher, Display()).train()
    remark(f"{model}: done.", f"torchbeats embed FOLDER -m {model} -o embeddings.parquet")
