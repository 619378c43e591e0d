"""``torchbeats pretrain``: sounds → a model, by the method's iterations."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from torchbeats.cli.console import remark
from torchbeats.config import SIZES
from torchbeats.extras import require

Size = Enum("Size", {name: name for name in SIZES}, type=str)  # type: ignore[misc]


def pretrain(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Sound files; folders, searched with all below them; lists (.csv, .txt, .jsonl, .parquet); WebDataset "
            "shards (.tar), by path or URL, with * and {000..127} for many.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    size: Annotated[Size, typer.Option(help="Of the model, with the training settings that suit it.")] = Size.base,  # type: ignore[attr-defined]
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Rounds of labels and model. Default: that of the size.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="A model, by name or file, to distil the first labels from. Default: random projection."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings in YAML, over those of the size.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A single setting, over both; --set model.lr=1e-3, say."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print all settings as YAML, and do nothing.")] = False,
) -> None:
    """Pre-train a model on any sounds: labels, model, tokenizer, model, and so on.

    The folder gets run.yaml, metrics.csv, TensorBoard logs, every iteration's tokenizer and model, and at last
    model.safetensors, which `torchbeats embed --model` takes. A run that was stopped or killed goes on where it was
    when the same command is given again.
    """
    require("lightning", "train")
    import yaml

    from torchbeats.cli.training import Display, stopping
    from torchbeats.training.processes import leads
    from torchbeats.training.run import Run
    from torchbeats.training.settings import settings

    chosen = settings(size.value, config, set_ or (), iterations=iterations, seed=seed)
    if show:
        print(yaml.safe_dump(chosen.to_dict(), sort_keys=False), end="")
        return

    with stopping():
        model = Run(out, data, chosen, teacher, Display()).train()
    if leads():
        remark(f"{model}: done. Try it: torchbeats embed FOLDER -m {model} -o embeddings.parquet")
