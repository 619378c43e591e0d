"""Settings by the size of the data, and the search of learning rates."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from helpers import small_model
from torchbeats.data.folds import split
from torchbeats.data.labelled import Example, Labelled, read_labelled
from torchbeats.errors import SettingsError
from torchbeats.training import search
from torchbeats.training.configuring import finetune_settings
from torchbeats.training.defaults import TABLE, DataSize
from torchbeats.training.explaining import reason
from torchbeats.training.finetune_run import Finetune
from torchbeats.training.listener import Listener
from torchbeats.training.reporter import Reporter, duration
from torchbeats.training.search import seconds_of

RATE = 16_000
QUICK = ["data.seconds=1", "data.batch_seconds=8", "data.workers=0", "trainer.accelerator=cpu", "model.pool=bands"]


class Said(Listener):
    """Keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)

    note = warn = say


def size(clips, seconds=5.0):
    return DataSize(clips, 10, seconds, 10.0)


@pytest.mark.parametrize("row", TABLE)
def test_settings_by_size_can_be_followed_and_say_why(row):
    clips = 50_000 if row is TABLE[-1] else row.below - 1
    settings = finetune_settings(size=size(clips))
    assert (settings.model.lr, settings.model.patience) == (row.lr, row.patience)
    sentence = reason(size(clips), settings.model)
    assert sentence.startswith(f"{clips:,} clips of 5.0 s, 10 classes: settings as for ")
    assert f"learning rate {row.lr:g}" in sentence
    cells = (f"{row.epochs:g}", row.patience, row.lr, row.layer_decay, row.average, row.clips_a_batch)
    line = " | ".join(map(str, (*cells, f"{100 * row.validation:.0f} %")))
    assert line in (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text("utf-8")


def test_what_is_given_wins():
    settings = finetune_settings(None, ["model.epochs=3", "data.batch_seconds=77"], size(100))
    assert (settings.model.epochs, settings.data.batch_seconds) == (3, 77)
    assert settings.model.lr == TABLE[0].lr
    assert finetune_settings(None, ["data.seconds=30"], DataSize(100, 2, 20.0, 30.0)).data.batch_seconds >= 30
    assert finetune_settings(None, ["data.seconds=10.04"], DataSize(100, 2, 0.3, 10.04)).data.batch_seconds == 10.04


def test_the_size_is_that_of_what_is_heard(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(3 * RATE), RATE)
    (tmp_path / "junk.wav").write_text("junk")
    whole, piece, junk = (
        Example(str(tmp_path / "a.wav"), ("x",)),
        (1.0, 1.5),
        Example(str(tmp_path / "junk.wav"), ("y",)),
    )
    part = whole._replace(start=piece[0], end=piece[1])
    assert DataSize.of(Labelled([whole, part, junk], ["x", "y"], "single_label"), 2.0) == (3, 2, 1.25, 2.0)
    assert DataSize.of(Labelled([junk], ["x", "y"], "single_label"), 2.0).seconds == 2.0


def test_durations():
    assert [seconds_of(text) for text in ("90s", "20m", "1.5h", " 2min ")] == [90, 1200, 5400, 120]
    for wrong in ("20", "m", "-3m", "3d", "", "1e99h", "nanm"):
        with pytest.raises(SettingsError, match="such as 90s"):
            seconds_of(wrong)
    assert [duration(seconds) for seconds in (50, 720, 12_240)] == ["50 s", "12 min", "3.4 h"]


@pytest.mark.parametrize(("seconds_a_step", "said"), [(7.2, "about 2.0 h to go, 988 steps of 7.20 s"), (0.01, None)])
def test_behind_a_few_steps_a_line_says_how_long_it_will_take(seconds_a_step, said, tmp_path, monkeypatch):
    now, listener = [0.0], Said()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    folder = SimpleNamespace(path=tmp_path, listener=listener)
    reporter = Reporter(SimpleNamespace(), folder, "Fine-tuning", {}, [], 50)
    reporter._begun = 0
    for reporter._done in range(1, 40):
        now[0] += seconds_a_step if reporter._done > 1 else 100  # the first is no measure
        reporter._estimate(1_000)
    assert len(listener.lines) == (said is not None)
    assert said is None or said in listener.lines[0]


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    for name, hertz in {"high": 2_000.0, "low": 300.0}.items():
        (folder / name).mkdir()
        for seed in range(6):
            random = np.random.default_rng([seed, int(hertz)])
            tone = 0.2 * np.sin(2 * np.pi * hertz * random.uniform(0.5, 2) * np.arange(RATE // 2) / RATE)
            soundfile.write(folder / name / f"{seed}.wav", tone + 0.05 * random.standard_normal(len(tone)), RATE)
    return split(read_labelled([folder]), 0.4, 0)


def test_a_search_that_is_stopped_goes_on_and_its_best_is_trained_with(parts, tmp_path, monkeypatch):
    training, held_out, _ = parts
    monkeypatch.setattr(search, "_seconds_an_epoch", lambda run, folder: 1.0)
    settings = finetune_settings(None, [*QUICK, "model.epochs=2", "model.lr=1e-3", "model.layer_decay=0.75"])

    def tune(name, said):
        torch.manual_seed(0)
        model = small_model(dropout=0.0, attention_dropout=0.0)
        run = Finetune(tmp_path / name, model, training, held_out, settings, {}, said, tune=5.0)
        return run, run.train()

    whole = Said()
    run, result = tune("whole", whole)
    tried = [line for line in whole.lines if line.startswith("Tried")]
    assert len(tried) == search.TRIALS
    assert "learning rate 0.001, layer decay 0.75, 1 epochs" in tried[0]
    (chosen,) = [line for line in whole.lines if line.startswith("Training goes on")]
    assert f"learning rate {run.settings.model.lr:.2g}, layer decay {run.settings.model.layer_decay:.2g}" in chosen
    assert {path.name for path in (tmp_path / "whole").iterdir()} >= {"model.safetensors", "validation.json"}
    found = json.loads((tmp_path / "whole" / "search.json").read_text("utf-8"))  # run.yaml has what was given
    assert (found["lr"], found["layer_decay"]) == (run.settings.model.lr, run.settings.model.layer_decay)
    assert len(found["tried"]) == search.TRIALS
    assert not (tmp_path / "whole" / "search").exists()

    trial, calls = search._trial, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trial(*arguments)

    monkeypatch.setattr(search, "_trial", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune("stopped", Said())
    monkeypatch.setattr(search, "_seconds_an_epoch", None)  # the plan is kept
    monkeypatch.setattr(search, "_trial", trial)
    again = Said()
    _, other = tune("stopped", again)
    assert [line for line in again.lines if line.startswith("Tried")] == tried
    assert other.read_bytes() == result.read_bytes()


def test_a_search_in_too_short_a_time_tries_nothing(parts, tmp_path, monkeypatch):
    training, held_out, _ = parts
    monkeypatch.setattr(search, "_seconds_an_epoch", lambda run, folder: 1e6)
    said, settings = Said(), finetune_settings(None, [*QUICK, "model.epochs=1"])
    Finetune(tmp_path / "run", small_model(), training, held_out, settings, {}, said, tune=1.0).train()
    assert any("too short" in line for line in said.lines)
    with pytest.raises(SettingsError, match="held out"):
        Finetune(tmp_path / "none", small_model(), training, None, settings, {}, said, tune=1.0)


def test_an_epoch_is_timed_and_nothing_is_left_of_it(tmp_path, monkeypatch):
    now, lengths = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def train(folder, settings, validated):
        folder.mkdir()
        lengths.append(settings.model.epochs)
        now[0] += 50 + 2 * round(settings.model.epochs * 40)  # a start, and two seconds a step

    run = search.Searched(finetune_settings(), 40, 400, 60, train)
    assert search._seconds_an_epoch(run, tmp_path / "timing") == pytest.approx(2 * 40 * (1 + 60 / 3 / 400))
    assert [round(40 * epochs) for epochs in lengths] == [2, 2, 8]
    assert not list(tmp_path.iterdir())
    run.settings.model.epochs = 6
    plans = [search._plan(run, tmp_path, budget) for budget in (1e6, 84 * 5, 84 * 4 / 2, 1)]
    assert plans[0] == {"trials": 5, "epochs": 6}  # never longer than what it is for
    assert plans[1:] == [{"trials": 5, "epochs": 1}, {"trials": 5, "epochs": 0.25}, {"trials": 0, "epochs": 0}]


def test_a_plan_that_was_too_hopeful_is_cut_short(tmp_path, monkeypatch):
    """Epochs take three times as long as those that were timed."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(search, "_seconds_an_epoch", lambda run, folder: 10.0)

    def train(folder, settings, validated):
        folder.mkdir()
        now[0] += 30.0 * settings.model.epochs
        return {"accuracy": settings.model.lr}

    said, settings = Said(), finetune_settings(None, ["model.epochs=1"])
    found = search.search(search.Searched(settings, 40, 400, 60, train), tmp_path / "search", 50.0, said)
    assert len(found["tried"]) == 1  # a second one would end at 60 s
    assert "The time is spent after 1 of 5 trials." in said.lines
    begun = now[0]
    assert search.search(search.Searched(settings, 40, 400, 60, train), tmp_path / "search", 50.0, said) == found
    assert now[0] == begun  # what was tried is not tried again
    (tmp_path / "search" / "1" / "score.json").write_text("0.5", "utf-8")  # as an earlier version had it
    assert search.search(search.Searched(settings, 40, 400, 60, train), tmp_path / "search", 50.0, said)["tried"]


@pytest.mark.parametrize("starts", [(30.0, 2.0, 2.0, 2.0, 2.0, 2.0), (3.0, 2.4, 2.0, 2.4, 2.0, 2.4)])
@pytest.mark.parametrize("seconds_a_step", [0.003, 0.02, 2.0])
def test_what_starts_cost_is_not_taken_for_steps_nor_steps_for_nothing(starts, seconds_a_step, tmp_path, monkeypatch):
    """The first training loads what all others find ready, and no two starts take the same time."""
    now, runs = [0.0], iter(starts)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def train(folder, settings, validated):
        now[0] += next(runs) + seconds_a_step * round(settings.model.epochs * 40)

    run = search.Searched(finetune_settings(), 40, 400, 0, train)
    epoch = search._seconds_an_epoch(run, tmp_path / "timing")
    assert epoch == pytest.approx(40 * seconds_a_step, rel=0.5)
    assert now[0] < sum(starts) + 30 * max(seconds_a_step, 0.1)
