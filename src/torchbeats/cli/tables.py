"""What the commands that make a table of sounds share: their options, and the run itself."""

from __future__ import annotations

import hashlib
import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from torchbeats.cli.console import audio_progress, complain, remark
from torchbeats.inference import groups
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.onnx.engine import OnnxModel
from torchbeats.onnx.export import SUFFIX
from torchbeats.plans import BasePlan
from torchbeats.tables.store import Store
from torchbeats.weights import checkpoint


class Engines(str, Enum):
    """What computes."""

    torch = "torch"
    onnx = "onnx"


NAMES = (
    "A name from `torchbeats models`, a checkpoint file, or owner/repo or owner/repo/file on the Hugging Face Hub, "
    "with @revision behind it if need be."
)
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Sound files; folders, searched with all below them; lists (.csv, .txt, .jsonl, .parquet); - for paths on "
        "standard input.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The table: .parquet or .npz.")]


def _window(text: str | float) -> float | None:
    """Seconds, or None for "full"."""
    if text == "full":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number of seconds nor full.") from None


Window = Annotated[
    float | None,
    typer.Option(
        parser=_window,
        metavar="SECONDS|full",
        help="Seconds of audio that the model sees at once, or full for each sound as a whole. A rest of less than "
        "0.5 s joins the last window.",
    ),
]
Views = Annotated[
    int,
    typer.Option(
        min=1,
        help="For short sounds: hear each window so many times, a share of the model's step of 160 ms later each time, "
        "and take the mean.",
    ),
]
BatchSeconds = Annotated[float, typer.Option(help="Seconds of audio in a batch; less takes less memory.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, …; auto takes a GPU if there is one.")]
Engine = Annotated[
    Engines | None,
    typer.Option(
        help="What computes: torch; or onnx, which is ONNX Runtime on the CPU. Default: onnx for an .onnx file from "
        "`torchbeats export`, else torch."
    ),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Threads that decode. Default: up to 4.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]


def device_called(name: str) -> torch.device:
    """The device of that name, if this machine has it; for "auto" a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    torch.empty(0, device=device)  # says at once if it is not there
    return device


def opened(
    weights: Path,
    engine: Engines | None,
    device: str,
    dtype: torch.dtype = torch.float32,
    layer: int | None = None,
    expect: Any = None,
) -> tuple[Any, str]:
    """A model, ready to compute, and the name of its engine.

    Args:
        weights: a checkpoint, or an .onnx file.
        engine: what is to compute; what suits the file where not given.
        device: as `device_called` has it.
        dtype: for torch.
        layer: whose output is wanted.
        expect: `BEATsConfig` where a tokenizer is to be refused at once.
    """
    exported = weights.suffix == SUFFIX
    if exported and engine is Engines.torch:
        raise typer.BadParameter(f"{weights} is for ONNX Runtime; for torch name the checkpoint that it was made from.")
    if exported or engine is Engines.onnx:
        if torch.device("cpu" if device == "auto" else device).type != "cpu":
            raise typer.BadParameter("The engine onnx computes on the CPU; leave --device out, or use --engine torch.")
        if dtype != torch.float32:
            raise typer.BadParameter(
                "--dtype is for the engine torch; for smaller numbers, export the model with --int8."
            )
        if exported:
            return OnnxModel(weights), "onnx"
    model = load(weights) if expect is None else BEATs(checkpoint.read(weights, expect=expect))
    if engine is Engines.onnx:
        try:
            return OnnxModel.of(model, layer), "onnx"
        except ValueError as error:
            raise typer.BadParameter(f"{weights}: {error}") from error
    return model.to(device_called(device), dtype), "torch"


def described(paths: list[str]) -> str:
    """Tells one list of files from another, and notices a file whose size has changed."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.path.getsize(path)
        except OSError:
            size = -1
        digest.update(f"{path!r} {size}\n".encode())
    return f"{len(paths)} files, {digest.hexdigest()[:16]}"


def fill(store: Store, paths: list[str], model: Any, plan: BasePlan, jobs: int | None, what: str) -> None:
    """Make a table of ``what``, or go on with it, and say how it went; exit status 1 where files were left out."""
    if store.complete:
        complain(f"{store.out} is complete already; there is nothing to do.", "Note")
        raise typer.Exit(1 if store.failed else 0)
    if any(store.position):
        remark(f"Going on behind file {store.position.inputs:,} of {len(paths):,}.")
    with audio_progress(len(paths), store.position.inputs) as listener:
        sounds = [(path, path) for path in paths]
        for group in groups(sounds, model, plan, start=store.position, jobs=jobs, listener=listener):
            for path, reason in group.failures:
                complain(f"{path}: {reason}.", "Skipped")
            store.append(group)
    store.finish()
    if store.failed:
        good = len(paths) - store.failed
        complain(
            f"{store.out} has {good:,} of {len(paths):,} files; {store.errors} lists those that could not be read."
        )
        raise typer.Exit(1)
    remark(f"{store.out}: {what} of {len(paths):,} files.")
