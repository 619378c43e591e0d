"""A short search of learning rates before a fine-tuning: small trainings from the same start, judged by validation.

RUN/search/plan.json           how long each trial trains, so that a search that goes on does the same
RUN/search/1, 2, …             a trial each: a fine-tuning like any other
RUN/search/1/score.json        its figure on the sounds held out, and how long it took
RUN/search/found.json          what was tried, and the best; RUN/search.json when the run is done

Each trial is a whole schedule, warm-up and all, in as many steps as the time allows. First learning rates around the
one given, then layer decays at the best of them; all depends on the seed and the plan alone.
"""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchbeats.errors import SettingsError
from torchbeats.files import write_json
from torchbeats.training.listener import Listener
from torchbeats.training.settings import FinetuneSettings

RATES = (1.0, 0.3, 3.0)  # times the learning rate given
DECAYS = (-0.15, 0.1)  # beside the layer decay given
TRIALS = len(RATES) + len(DECAYS)
_EPOCHS = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # lengths of a trial: coarse, so that most runs plan alike
_TIMED_STEPS = (2, 8)  # of two runs, whose difference tells how long a step takes
_CLEAR_SECONDS = 1.0  # of difference, which is more than starts differ by; until then the second run has more steps
_MOST_TIMED = 512
_OVERDRAFT = 1.1  # of the time that is given, where the plan was too hopeful
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


@dataclass
class Searched:
    """A fine-tuning, as far as a search has to know it.

    Attributes:
        settings: of it.
        steps: of an epoch.
        clips: that it trains on.
        held_out: sounds that it validates on.
        train: trains in a folder with other settings, with validation or without, to the end; returns the figures of
            validation.json, none without.
    """

    settings: FinetuneSettings
    steps: int
    clips: int
    held_out: int
    train: Callable[[Path, FinetuneSettings, bool], dict[str, float]]


def search(run: Searched, folder: Path, budget: float, listener: Listener) -> dict[str, Any]:
    """Try learning rates and layer decays.

    Args:
        run: the fine-tuning that is to use what is found.
        folder: of the search; one that was stopped goes on where it was.
        budget: seconds.
        listener: told what was tried.

    Returns:
        "lr" and "layer_decay", the best, and all that was "tried".
    """
    settings, plan_file = run.settings, folder / "plan.json"
    folder.mkdir(exist_ok=True)
    if not plan_file.exists():
        write_json(plan_file, _plan(run, folder, budget))
    plan = json.loads(plan_file.read_text("utf-8"))
    given = (settings.model.lr, settings.model.layer_decay)
    if not plan["trials"]:
        listener.warn("The time is too short to try any learning rate; those of the settings are used.")
        return {"lr": given[0], "layer_decay": given[1], "tried": []}
    tried: list[dict[str, Any]] = []
    spent = 0.0
    for number in range(1, plan["trials"] + 1):
        if tried and spent * (1 + 1 / len(tried)) > _OVERDRAFT * budget:
            listener.say(f"The time is spent after {len(tried)} of {plan['trials']} trials.")
            break
        lr, decay = given
        if number <= len(RATES):
            lr *= RATES[number - 1]
        else:
            lr = best_of(tried)["lr"]
            decay = min(1.0, max(0.3, decay + DECAYS[number - len(RATES) - 1]))
        score, seconds = _trial(run, folder / str(number), lr, decay, plan["epochs"])
        spent += seconds
        tried.append({"lr": lr, "layer_decay": decay, "score": score})
        listener.say(
            f"Tried learning rate {lr:.2g}, layer decay {decay:.2g}, {plan['epochs']:g} epochs: held out {score:.1%}"
        )
    best = best_of(tried)
    listener.say(f"Training goes on with learning rate {best['lr']:.2g}, layer decay {best['layer_decay']:.2g}.")
    return {"lr": best["lr"], "layer_decay": best["layer_decay"], "tried": tried}


def best_of(tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The trial with the highest score; of equals the first, which is nearest to what was given."""
    return max(tried, key=lambda trial: trial["score"])


def with_found(settings: FinetuneSettings, found: dict[str, Any]) -> FinetuneSettings:
    """The same settings with what a search found."""
    settings = copy.deepcopy(settings)
    settings.model.lr, settings.model.layer_decay = found["lr"], found["layer_decay"]
    return settings


def _plan(run: Searched, folder: Path, budget: float) -> dict[str, Any]:
    """How many trials there are, and how many epochs each has."""
    seconds = _seconds_an_epoch(run, folder / "timing")
    for trials in (TRIALS, len(RATES)):
        lengths = [length for length in _EPOCHS if length * seconds * trials <= budget]
        if lengths:
            return {"trials": trials, "epochs": min(max(lengths), run.settings.model.epochs)}
    return {"trials": 0, "epochs": 0.0}


def _seconds_an_epoch(run: Searched, folder: Path) -> float:
    """How long an epoch takes, its validation included, by a few steps that are thrown away."""

    def seconds(count: int) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.monotonic()
        run.train(folder, _settings(run, run.settings.model.lr, 1.0, count / run.steps), False)
        elapsed = time.monotonic() - begun
        shutil.rmtree(folder, ignore_errors=True)
        return elapsed

    few, many = _TIMED_STEPS
    seconds(few)  # the very first also loads and compiles what the others find ready
    start, whole = seconds(few), seconds(many)  # what both have in common is the start
    while whole - start < _CLEAR_SECONDS and many < _MOST_TIMED:
        many *= 4
        whole = seconds(many)
    # Where no difference is to be seen, the start counts as steps, so that the time is kept all the same.
    step = (whole - start) / (many - few) if whole > start else whole / many
    # What is only heard takes about a third of what is learned from.
    heard = run.held_out * run.settings.data.views / (3 * run.clips)
    return step * run.steps * (1 + heard)


def _settings(run: Searched, lr: float, layer_decay: float, epochs: float) -> FinetuneSettings:
    settings = copy.deepcopy(run.settings)
    settings.model.lr, settings.model.layer_decay, settings.model.epochs = lr, layer_decay, epochs
    settings.model.patience, settings.model.head_first = 0, False
    if str(settings.trainer.devices) in ("auto", "-1") or str(settings.trainer.devices).isdigit():
        settings.trainer.devices = 1
    return settings


def _trial(run: Searched, folder: Path, lr: float, layer_decay: float, epochs: float) -> tuple[float, float]:
    """The best validation of a training that is as short as planned, and the seconds that it took."""
    result = folder / "score.json"
    if not result.exists():
        begun = time.monotonic()
        figures = run.train(folder, _settings(run, lr, layer_decay, epochs), True)
        score = figures.get("accuracy", figures.get("mAP"))  # None where nothing can be validated
        write_json(result, {"score": score or 0.0, "seconds": time.monotonic() - begun})
        (folder / "model.safetensors").unlink(missing_ok=True)
    found = json.loads(result.read_text("utf-8"))
    if isinstance(found, float):  # of a search that an earlier version began
        return found, 0.0
    return float(found["score"]), float(found["seconds"])
