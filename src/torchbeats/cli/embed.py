"""``torchbeats embed``: sounds → a table of embeddings."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import torch
import typer

from torchbeats.cli.console import complain
from torchbeats.cli.tables import (
    NAMES,
    BatchSeconds,
    Device,
    Engine,
    Inputs,
    Jobs,
    Output,
    Overwrite,
    Window,
    described,
    device_called,
    fill,
    opened,
)
from torchbeats.config import BEATsConfig
from torchbeats.data.inputs import find_audio
from torchbeats.files import sha256
from torchbeats.onnx.engine import OnnxModel
from torchbeats.plans import BATCH_SECONDS, POOLS, WINDOW_SECONDS, Plan
from torchbeats.tables.store import Store
from torchbeats.version import __version__
from torchbeats.weights import hub

Pool = Enum("Pool", {name: name for name in POOLS}, type=str)  # type: ignore[misc]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]


def embed(
    inputs: Inputs,
    output: Output,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"{NAMES} Default: the small built-in model.")
    ] = None,
    pool: Annotated[
        Pool,
        typer.Option(
            help="A row a window: mean over its patches, or bands (mean over time, 8 frequency bands kept). A row a "
            "160 ms step: steps (mean over its bands), or patches (all of them)."
        ),
    ] = Pool.mean,  # type: ignore[attr-defined]
    layer: Annotated[
        int | None, typer.Option(help="Whose output: 0 is the input to the first layer. Default: the last.")
    ] = None,
    window: Window = WINDOW_SECONDS,
    hop: Annotated[
        float | None, typer.Option(help="Seconds from a window's start to the next. Default: the window.")
    ] = None,
    batch_seconds: BatchSeconds = BATCH_SECONDS,
    engine: Engine = None,
    device: Device = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Numbers to compute in.")] = Dtype.float32,  # type: ignore[attr-defined]
    jobs: Jobs = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn sounds into embeddings: one table with the columns path, start, end (seconds) and embedding.

    A file that cannot be read is reported, listed in OUTPUT.errors.jsonl and left out, and the exit status is 1. A run
    that was stopped goes on where it was when the same command is given again.
    """
    try:
        plan = Plan(pool.value, layer, hop, window=window, batch_seconds=batch_seconds)
        device_called(device)
    except (ValueError, RuntimeError, AssertionError) as error:  # PyTorch asserts that it has CUDA
        raise typer.BadParameter(str(error)) from error
    paths = find_audio(inputs)
    if model is None:
        complain(hub.BUILT_IN_NOTE, "Note")
        model = hub.BUILT_IN
    weights = hub.resolve(model)
    network, computes = opened(weights, engine, device, DTYPES[dtype.value], layer, expect=BEATsConfig)
    if isinstance(network, OnnxModel):
        try:
            plan.check(network)
        except ValueError as error:
            raise typer.BadParameter(f"{model}: {error}") from error
    if layer is not None and not 0 <= layer <= network.cfg.encoder_layers:
        raise typer.BadParameter(f"The model has {network.cfg.encoder_layers} layers; there is no layer {layer}.")
    dim, by_band = network.cfg.encoder_embed_dim, plan.pool in ("bands", "patches")
    width = dim * network.grid.bands if by_band else dim
    about = {
        "torchbeats": __version__,
        "model": model,
        "weights": f"sha256:{sha256(weights)}",
        "pool": plan.pool,
        "shape": [network.grid.bands, dim] if by_band else [dim],
        "layer": network.layer if isinstance(network, OnnxModel) else plan.layer,
        "window": plan.window,
        "hop": plan.hop,
        "batch_seconds": plan.batch_seconds,
        "dtype": dtype.value,
        "engine": computes,
        "inputs": described(paths),
    }
    fill(Store(output, about, width, overwrite), paths, network, plan, jobs, "embeddings")
