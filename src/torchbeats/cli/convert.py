"""``torchbeats convert``: a checkpoint of any family → one file that is a whole model, or a folder for transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from torchbeats.cli.console import remark
from torchbeats.cli.tables import Overwrite
from torchbeats.errors import SettingsError
from torchbeats.files import refuse_existing
from torchbeats.loading import load
from torchbeats.weights import checkpoint, transformers_folder


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A checkpoint file, or a name as for `torchbeats embed --model`.")
    ],
    target: Annotated[
        str,  # a path would lose the slash at its end
        typer.Argument(
            metavar="OUT",
            help="File to write: .safetensors, with weights, config and labels; or .pt, for the research code. A "
            "folder (a name that ends in /): for transformers and sentence-transformers.",
        ),
    ],
    half: Annotated[
        bool, typer.Option("--half", help="Store weights as float16: half the size. They are loaded as float32.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint of any published family to one file, or to a folder for transformers."""
    path, folder = Path(target), transformers_folder.is_folder(target)
    if not folder and path.suffix not in checkpoint.SUFFIXES:
        raise SettingsError(
            f"The output must end in {', '.join(checkpoint.SUFFIXES)}, or in / for a folder; {target} does not."
        )
    for output in (path / name for name in transformers_folder.holds_model(path)) if folder else (path,):
        refuse_existing(output, overwrite)
    model = load(source, engine="torch")
    checkpoint.save(model, target, torch.float16 if half else None)
    labels = f", {len(model.label_dict)} labels" if model.label_dict else ""
    size = (path / transformers_folder.WEIGHTS if folder else path).stat().st_size
    remark(f"{target}: {model.cfg.summary()}{labels}, {size / 1e6:,.0f} MB.")
