"""``torchbeats finetune``: labelled sounds and a model → a model with labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchbeats import hub
from torchbeats.cli.console import complain, remark
from torchbeats.cli.labelled import DATA
from torchbeats.cli.tables import NAMES
from torchbeats.labelled import read_labelled


def finetune(
    data: DATA,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=f"{NAMES} Default: the small built-in model.")
    ] = None,
    problem_type: Annotated[
        str | None,
        typer.Option(help="single_label (softmax) or multi_label (sigmoid). Default: by what the labels are."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Times to go through the sounds. Default: 20.")] = None,
    freeze: Annotated[
        int | None, typer.Option(help="Layers, counted from the input, that stay as they are; -1: all but the head.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all randomness.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings in YAML.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A single setting, over both; --set model.lr=1e-3, say."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print all settings as YAML, and do nothing.")] = False,
) -> None:
    """Fine-tune a model on sounds with labels: class folders, or a list with path and label.

    The folder gets model.safetensors, which carries its labels; validation.json, metrics.csv, TensorBoard logs and
    run.yaml. A run that was stopped or killed goes on where it was when the same command is given again.
    """
    try:
        from torchbeats.cli.training import Display
        from torchbeats.training.finetune import Finetune, split
    except ModuleNotFoundError as error:
        raise typer.BadParameter(
            f"Training needs a few packages more ({error.name} is missing): pip install 'torchbeats[train]'."
        ) from error
    import yaml

    from torchbeats.loading import load
    from torchbeats.model import BEATs
    from torchbeats.training.settings import finetune_settings

    chosen = finetune_settings(config, set_ or (), seed=seed)
    for name, value in (("epochs", epochs), ("freeze", freeze)):
        if value is not None:
            chosen = finetune_settings(config, [*(set_ or ()), f"model.{name}={value}"], seed=seed)
    if show:
        print(yaml.safe_dump(chosen.to_dict(), sort_keys=False), end="")
        return
    labelled = read_labelled(data, problem_type)
    training, held_out = split(labelled, chosen.data.validation, chosen.seed)
    if model is None:
        complain(hub.BUILT_IN_NOTE, "Note")
        model = hub.BUILT_IN
    network = load(hub.resolve(model))
    if not isinstance(network, BEATs):
        raise typer.BadParameter(f"{model} is a tokenizer or an exported model; a BEATs checkpoint is needed.")
    about = {"data": [str(given) for given in data], "model": model}
    result = Finetune(out, network, training, held_out, chosen, about, Display()).train()
    remark(f"{result}: {len(labelled.classes)} classes. Try it: torchbeats tag FILE -m {result}")
