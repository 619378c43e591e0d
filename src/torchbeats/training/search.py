"""A short search of learning rates before a fine-tuning: small trainings from the same start, judged by validation.

RUN/search/plan.json           how long each trial trains, so that a search that goes on does the same
RUN/search/1, 2, …             a trial each: a fine-tuning like any other
RUN/search/found.json          what was tried, and the best

Each trial is a whole schedule, warm-up and all, in as many steps as the time allows. First learning rates around the
one given, then layer decays at the best of them; all depends on the seed and the plan alone.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchbeats.data.labelled import Labelled
from torchbeats.errors import SettingsError
from torchbeats.files import write_json
from torchbeats.model import BEATs
from torchbeats.training.settings import FinetuneSettings

if TYPE_CHECKING:
    from torchbeats.training.finetune_run import Finetune

RATES = (1.0, 0.3, 3.0)  # times the learning rate given
DECAYS = (-0.15, 0.1)  # beside the layer decay given
TRIALS = len(RATES) + len(DECAYS)
_EPOCHS = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # lengths of a trial: coarse, so that most runs plan alike
_TIMED_STEPS = (2, 8)  # of two runs, whose difference tells how long a step takes
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


def seconds_of(duration: str) -> float:
    """Seconds of a duration such as ``90s``, ``20m`` or ``1.5h``.

    Raises:
        SettingsError: it is none.
    """
    number = duration.strip().rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = duration.strip()[len(number) :]
    try:
        seconds = float(number) * _UNITS[unit]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < 1e8:
        raise SettingsError(f"A duration is a number and a unit, such as 90s, 20m or 1.5h, not {duration!r}.")
    return seconds


def search(run: Finetune, model: BEATs, folder: Path, budget: float, file: Path) -> None:
    """Try learning rates and layer decays, and write down what was found.

    Args:
        run: the fine-tuning that is to use it.
        model: that it begins with.
        folder: of the search; one that was stopped goes on where it was.
        budget: seconds.
        file: where the best goes.
    """
    listener, settings = run.run_folder.listener, run.settings
    folder.mkdir(exist_ok=True)
    plan_file = folder / "plan.json"
    if not plan_file.exists():
        write_json(plan_file, _plan(run, model, budget))
    plan = json.loads(plan_file.read_text("utf-8"))
    given = (settings.model.lr, settings.model.layer_decay)
    if not plan["trials"]:
        listener.warn("The time is too short to try any learning rate; those of the settings are used.")
        write_json(file, {"lr": given[0], "layer_decay": given[1], "tried": []})
        return
    tried: list[dict[str, Any]] = []
    for number in range(1, plan["trials"] + 1):
        best = max(tried, key=lambda trial: trial["score"], default={"lr": given[0]})
        lr, decay = given
        if number <= len(RATES):
            lr *= RATES[number - 1]
        else:
            lr, decay = best["lr"], min(1.0, max(0.3, decay + DECAYS[number - len(RATES) - 1]))
        score = _trial(run, model, folder / str(number), lr, decay, plan["epochs"])
        tried.append({"lr": lr, "layer_decay": decay, "score": score})
        listener.say(
            f"Tried learning rate {lr:.2g}, layer decay {decay:.2g}, {plan['epochs']:g} epochs: held out {score:.1%}"
        )
    best = max(tried, key=lambda trial: trial["score"])  # the first of equals, which is nearer to what was given
    listener.say(f"Training goes on with learning rate {best['lr']:.2g}, layer decay {best['layer_decay']:.2g}.")
    write_json(file, {"lr": best["lr"], "layer_decay": best["layer_decay"], "tried": tried})


def with_found(settings: FinetuneSettings, found: dict[str, Any]) -> FinetuneSettings:
    """The same settings with what a search found."""
    settings = copy.deepcopy(settings)
    settings.model.lr, settings.model.layer_decay = found["lr"], found["layer_decay"]
    return settings


def _plan(run: Finetune, model: BEATs, budget: float) -> dict[str, Any]:
    """How many trials there are, and how many epochs each has."""
    seconds = _seconds_an_epoch(run, model)
    for trials in (TRIALS, len(RATES)):
        lengths = [length for length in _EPOCHS if length * seconds * trials <= budget]
        if lengths:
            return {"trials": trials, "epochs": min(max(lengths), run.settings.model.epochs)}
    return {"trials": 0, "epochs": 0.0}


def _seconds_an_epoch(run: Finetune, model: BEATs) -> float:
    """How long an epoch takes, its validation included, by a few steps that are thrown away."""
    steps, elapsed = run.steps_an_epoch(), []
    for count in _TIMED_STEPS:  # what both have in common is the start
        folder, settings = run.folder / "search" / "timing", _settings(run, run.settings.model.lr, 1.0, count / steps)
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.monotonic()
        _fine_tuning(run, model, folder, settings, None).train()
        elapsed.append(time.monotonic() - begun)
    shutil.rmtree(folder, ignore_errors=True)
    step = max(1e-3, (elapsed[1] - elapsed[0]) / (_TIMED_STEPS[1] - _TIMED_STEPS[0]))
    assert run.held_out is not None
    # What is only heard takes about a third of what is learned from.
    heard = len(run.held_out.examples) * run.settings.data.views / (3 * len(run.labelled.examples))
    return step * steps * (1 + heard)


def _settings(run: Finetune, lr: float, layer_decay: float, epochs: float) -> FinetuneSettings:
    settings = copy.deepcopy(run.settings)
    settings.model.lr, settings.model.layer_decay, settings.model.epochs = lr, layer_decay, epochs
    settings.model.patience, settings.model.head_first = 0, False
    if str(settings.trainer.devices) in ("auto", "-1") or str(settings.trainer.devices).isdigit():
        settings.trainer.devices = 1
    return settings


def _fine_tuning(
    run: Finetune, model: BEATs, folder: Path, settings: FinetuneSettings, held_out: Labelled | None
) -> Finetune:
    return type(run)(folder, model, run.labelled, held_out, settings, {"trial": True})


def _trial(run: Finetune, model: BEATs, folder: Path, lr: float, layer_decay: float, epochs: float) -> float:
    """The best validation of a training that is as short as planned."""
    result = folder / "score.json"
    if not result.exists():
        _fine_tuning(run, model, folder, _settings(run, lr, layer_decay, epochs), run.held_out).train()
        figures = json.loads((folder / "validation.json").read_text("utf-8"))["figures"]
        write_json(result, {"score": figures["accuracy" if run.labelled.problem_type == "single_label" else "mAP"]})
        (folder / "model.safetensors").unlink(missing_ok=True)
    return float(json.loads(result.read_text("utf-8"))["score"] or 0.0)
