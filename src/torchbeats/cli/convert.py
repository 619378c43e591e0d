"""``torchbeats convert``: a checkpoint of any family → one safetensors file that is a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from torchbeats.cli.console import remark
from torchbeats.errors import SettingsError
from torchbeats.loading import load
from torchbeats.weights import checkpoint


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A checkpoint file, or a name as for `torchbeats embed --model`.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="File to write: .safetensors, with weights, config and labels; or .pt, for the research code.",
        ),
    ],
    half: Annotated[
        bool, typer.Option("--half", help="Store weights as float16: half the size. They are loaded as float32.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Convert a checkpoint of any published family to one file."""
    if target.suffix not in checkpoint.SUFFIXES:
        raise SettingsError(f"The output must end in {', '.join(checkpoint.SUFFIXES)}; {target} does not.")
    if target.exists() and not overwrite:
        raise SettingsError(f"{target} exists; use --overwrite to replace it.")
    model = load(source, engine="torch")
    checkpoint.save(model, target, torch.float16 if half else None)
    labels = f", {len(model.label_dict)} labels" if model.label_dict else ""
    remark(f"{target}: {model.cfg.summary()}{labels}, {target.stat().st_size / 1e6:,.0f} MB.")
