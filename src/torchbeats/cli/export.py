"""``torchbeats export``: a model → an ONNX file that runs without torch and torchbeats."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from torchbeats.cli.console import remark
from torchbeats.cli.tables import NAMES
from torchbeats.extras import require
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.onnx import export as onnx_export
from torchbeats.onnx.export import OUTPUTS, SUFFIX
from torchbeats.weights import hub

OutputName = Enum("OutputName", {name: name for name in OUTPUTS}, type=str)  # type: ignore[misc]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=NAMES)],
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Weights as 8-bit integers: under a third of the size, values to about a percent."),
    ] = False,
    fbank: Annotated[
        bool,
        typer.Option(
            "--fbank/--waveform",
            help="What goes in: sound at 16 kHz, or log-mel features that were computed before.",
        ),
    ] = False,
    output: Annotated[
        list[OutputName] | None,
        typer.Option(help="What comes out; give it several times for several. Default: all that the model has."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Whose output: 0 is the input to the first layer. Default: the last.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Export a model to ONNX: a file for ONNX Runtime in any language. The output is complete or absent.

    Inputs are waveform (batch, samples) or fbank (batch, frames, 128), and lengths (batch) in samples or frames.
    Outputs are embedding, a clip's mean; probabilities, where the model has labels; steps of 160 ms; and patches.
    """
    if target.suffix != SUFFIX:
        raise typer.BadParameter(f"The output must end in {SUFFIX}; {target} does not.")
    if target.exists() and not overwrite:
        raise typer.BadParameter(f"{target} exists; use --overwrite to replace it.")
    require("onnx", "onnx")
    takes = "fbank" if fbank else "waveform"
    names = [name.value for name in output] if output else None
    network = load(hub.resolve(model), expect=BEATs)
    outputs = onnx_export.check(network, takes, names, layer)
    onnx_export.export(network, target, takes=takes, outputs=names, layer=layer, int8=int8)
    size = target.stat().st_size / 1e6
    remark(f"{target}: {takes} to {', '.join(outputs)}, {size:,.0f} MB.")
