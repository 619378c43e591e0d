"""Options of the commands that train, apart from `torchbeats.cli.training`, whose import takes Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchbeats.cli.tables import TRAINING
from torchbeats.errors import SettingsError

TRAINING_PACKAGES = ("lightning", "tensorboard")  # asked for before anything is read


def device_settings(device: str | None) -> list[str]:
    """What ``--device`` stands for among the settings of a training; nothing where it is not given.

    Raises:
        SettingsError: no device that a training can have.
    """
    if device is None:
        return []
    kind, _, number = device.partition(":")
    accelerator = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}.get(kind)
    if accelerator is None or (number and not number.isdecimal()) or (":" in device) != bool(number):
        raise SettingsError(f"A training's device is auto, cpu, cuda, mps, or one GPU such as cuda:1, not {device!r}.")
    devices = [f"trainer.devices='{number},'"] if number else []
    return [f"trainer.accelerator={accelerator}", *devices]


TrainingDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        rich_help_panel=TRAINING,
        help="cpu, cuda, mps, or one GPU such as cuda:1. Default: all GPUs if there are any.",
    ),
]


def needed(data: list[str] | None, out: Path | None) -> tuple[list[str], Path]:
    """What every training but one that only shows its settings must be given.

    Raises:
        SettingsError: it is not.
    """
    if not data:
        raise SettingsError("Name the sounds to train with: folders, files or lists.")
    if out is None:
        raise SettingsError("Name the folder for the run: --out FOLDER.")
    return data, out
