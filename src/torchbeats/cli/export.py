"""``torchbeats export``: a model → an ONNX file that runs without torch and torchbeats."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from torchbeats import audio
from torchbeats.audio import Floats
from torchbeats.cli.console import complain, files, remark
from torchbeats.cli.tables import NAMES, Overwrite
from torchbeats.data.inputs import find_sounds
from torchbeats.errors import AudioError, InputError, SettingsError
from torchbeats.extras import require
from torchbeats.files import refuse_existing
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.onnx import export as onnx_export
from torchbeats.onnx.export import SUFFIX
from torchbeats.onnx.outputs import OUTPUTS
from torchbeats.weights import hub

CLIPS, SECONDS = 64, 10.0  # to calibrate with, at most

OutputName = Enum("OutputName", {name: name for name in OUTPUTS}, type=str)  # type: ignore[misc]


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=NAMES)],
    target: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="File to write.")],
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Store weights as 8-bit integers: less than a third of the size, about 1 % off."),
    ] = False,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT",
            help="With --int8: files, folders or lists of sounds like those that the model will hear; may be given "
            "several times. OpenVINO computes such a file fastest (--engine openvino). Of at most 64 sounds the first "
            "ten seconds are read.",
        ),
    ] = None,
    fbank: Annotated[
        bool,
        typer.Option(
            "--fbank/--waveform",
            help="Input of the graph: sound at 16 kHz, or log-mel features.",
        ),
    ] = False,
    output: Annotated[
        list[OutputName] | None,
        typer.Option(
            metavar="OUTPUT",
            help=f"Output of the graph: {', '.join(OUTPUTS)}; may be given several times. Default: all that the model "
            "has.",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Transformer layer to read: 0 is the input of the first layer. Default: the last layer."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Export a model to an ONNX file, which ONNX Runtime runs in any language.

    Inputs: waveform (batch, samples) or fbank (batch, frames, 128), and lengths (batch) in samples or frames.
    Outputs: embedding, the mean over a clip; probabilities, if the model has a label head; steps of 160 ms; patches.
    """
    if target.suffix != SUFFIX:
        raise SettingsError(f"The output must end in {SUFFIX}; {target} does not.")
    if calibrate and not int8:
        raise SettingsError("--calibrate is for --int8: without it nothing is rounded.")
    refuse_existing(target, overwrite)
    for package in ("onnx", "onnxruntime") if calibrate else ("onnx",):
        require(package, "onnx")
    takes = "fbank" if fbank else "waveform"
    names = [name.value for name in output] if output else None
    network = load(hub.resolve(model), expect=BEATs)
    outputs = onnx_export.check(network, takes, names, layer)
    sounds = _beginnings(calibrate) if calibrate else None
    onnx_export.export(network, target, takes=takes, outputs=names, layer=layer, int8=int8, calibrate=sounds)
    size = target.stat().st_size / 1e6
    remark(f"{target}: {takes} to {', '.join(outputs)}, {size:,.0f} MB.")
    if sounds:
        remark(f"Calibrated with {files(len(sounds))}; computed fastest with --engine openvino.")


def _beginnings(inputs: list[str]) -> list[Floats]:
    """The first seconds of some of the sounds, evenly taken from among all; those that cannot be read are left out."""
    named = find_sounds(inputs)
    chosen = [named[index * len(named) // CLIPS] for index in range(CLIPS)] if len(named) > CLIPS else named
    result = []
    for sound in chosen:
        end = sound.start + SECONDS if sound.end is None else min(sound.end, sound.start + SECONDS)
        content = sound.path if sound.content is None else sound.content.open()
        try:
            result.append(audio.excerpt(content, sound.start, end - sound.start))
        except AudioError as error:
            complain(f"{sound.path} was left out: {error.reason}.", "Warning")
    if not result:
        raise InputError("None of the sounds to calibrate with could be read.")
    return result
