"""``torchbeats convert``: a checkpoint of any family → one safetensors file that is a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from torchbeats.cli.console import remark
from torchbeats.config import BEATsConfig, RandomProjectionConfig, TokenizersConfig
from torchbeats.loading import load
from torchbeats.weights import checkpoint


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A checkpoint file, or a name as for `torchbeats embed`.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="A .safetensors file with weights, config and labels; or a .pt file as the research code reads it.",
        ),
    ],
    half: Annotated[
        bool, typer.Option("--half", help="Store float16 numbers: half the size, and loaded as float32 all the same.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Convert a checkpoint of any published family. The output is complete or absent."""
    if target.suffix not in checkpoint.SUFFIXES:
        raise typer.BadParameter(f"The output must end in {', '.join(checkpoint.SUFFIXES)}; {target} does not.")
    if target.exists() and not overwrite:
        raise typer.BadParameter(f"{target} exists; use --overwrite to replace it.")
    model = load(source)
    try:
        checkpoint.save(model, target, torch.float16 if half else None)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    remark(f"{target}: {_described(model)}, {target.stat().st_size / 1e6:,.1f} MB.")


def _described(model: Any) -> str:
    """What kind of model it is, and how large."""
    said = [type(model).__name__]
    if isinstance(model.cfg, BEATsConfig):
        said.append(f"{model.cfg.encoder_layers} layers of {model.cfg.encoder_embed_dim}")
    if parameters := sum(parameter.numel() for parameter in model.parameters()):
        said.append(f"{parameters / 1e6:.1f} M parameters")
    if isinstance(model.cfg, (TokenizersConfig, RandomProjectionConfig)):
        said.append(f"{model.cfg.quant_n:,} codes")
    if model.label_dict:
        said.append(f"{len(model.label_dict)} labels")
    return ", ".join(said)
