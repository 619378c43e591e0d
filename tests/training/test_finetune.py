"""From labelled sounds to a model with labels, through the real command line."""

import csv
import dataclasses
import json
import math
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import torchbeats
from helpers import golden, small_model, under
from torchbeats import cli
from torchbeats.config import BEATsConfig
from torchbeats.data.folds import split
from torchbeats.data.labelled import Example as Ex
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.errors import InputError, SettingsError
from torchbeats.patches import PatchGrid
from torchbeats.training import finetune_run
from torchbeats.training.augmentation import add_noise, change_speed
from torchbeats.training.batches import Batches, Draw
from torchbeats.training.configuring import finetune_settings
from torchbeats.training.examples import (
    LabelledBatch,
    LabelledCorpus,
    LabelledCrops,
    as_data,
    class_weights,
    collate_labelled,
)
from torchbeats.training.finetune_run import Finetune
from torchbeats.training.finetuning import Finetuning, mask_spectrum, with_head
from torchbeats.training.settings import AugmentationSettings, FinetuneSettings, LabelledDataSettings, TuningSettings
from torchbeats.training.validation import Validate
from torchbeats.training.work import work_of

RATE = 16_000
PLAIN = AugmentationSettings(gain_db=0.0, roll=False, mixup=0.0, time_mask=0.0, mel_mask=0.0)
QUICK = [
    *("--set", "data.seconds=1", "--set", "data.batch_seconds=8", "--set", "data.workers=0"),
    *("--set", "trainer.accelerator=cpu", "--set", "trainer.log_every=2", "--set", "trainer.save_every=2"),
]
OPTIONS = ["--set", "data.validation=0.3", "--set", "model.lr=3e-3", "--set", "model.average=0.9"]
OPTIONS += ["--set", "model.pool=mean"]  # which files for the original code can have
NAMES = {"tief": 200.0, "hoch ♪": 3_000.0, "Rauschen": 0.0}  # classes that anything can tell apart


def sound(name, seed, seconds=0.6):
    random = np.random.default_rng(seed)
    n = round(seconds * RATE)
    if not NAMES[name]:
        return (random.standard_normal(n) / 10).astype(np.float32)
    hz = NAMES[name] * random.uniform(0.9, 1.1)
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(n) / RATE + random.uniform(0, 6))).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for name in NAMES:
        (folder / name).mkdir()
        for seed in range(10):
            soundfile.write(folder / name / f"{seed}.wav", sound(name, seed), RATE)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    torchbeats.save(small_model(dropout=0.0, attention_dropout=0.0), path)
    return path


def run(monkeypatch, *arguments):
    """Exit status of the command."""
    monkeypatch.setattr("sys.argv", ["torchbeats", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "clips_per_second"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def tuned(folder, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, "finetune", folder, "-m", weights, "-o", out, *QUICK, "--epochs", 25, *OPTIONS) == 0
    return out


def test_class_folders_become_a_tagger(tuned, folder, monkeypatch, capsys):
    model = torchbeats.load(tuned / "model.safetensors")
    assert model.labels == sorted(NAMES)
    assert (model.cfg.problem_type, model.cfg.predictor_class) == ("single_label", 3)
    validation = json.loads((tuned / "validation.json").read_text("utf-8"))
    assert validation["figures"]["accuracy"] == 1.0  # tones and noise: nothing less would do
    status = run(monkeypatch, "tag", folder / "hoch ♪" / "3.wav", "-m", tuned / "model.safetensors", "--top", 1)
    tag = json.loads(capsys.readouterr().out)
    assert (status, tag["labels"][0]["label"]) == (0, "hoch ♪")
    table = rows(tuned)
    assert float(table[-1]["loss"]) < float(table[0]["loss"])
    assert float(table[-1]["score"]) == 1.0


def test_a_finished_run_does_nothing_and_another_is_refused(tuned, folder, weights, monkeypatch, capsys):
    before = (tuned / "model.safetensors").stat().st_mtime_ns
    assert run(monkeypatch, "finetune", folder, "-m", weights, "-o", tuned, *QUICK, "--epochs", 25, *OPTIONS) == 0
    assert (tuned / "model.safetensors").stat().st_mtime_ns == before
    assert run(monkeypatch, "finetune", folder, "-m", weights, "-o", tuned, *QUICK, "--epochs", 9, *OPTIONS) == 2
    assert "model.epochs was 25.0 and is now 9.0" in capsys.readouterr().err


def test_several_labels_make_a_multi_label_model(folder, weights, tmp_path, monkeypatch):
    with (tmp_path / "list.csv").open("w") as file:
        print("path,label,split", file=file)
        for seed in range(6):
            for name in NAMES:
                others = ";Rauschen" if name == "tief" else ""
                print(f"{folder / name / f'{seed}.wav'},{name}{others},{'test' if seed > 4 else 'train'}", file=file)
    out = tmp_path / "run"
    arguments = ("finetune", tmp_path / "list.csv", "-m", weights, "-o", out, *QUICK, "--epochs", 1)
    assert run(monkeypatch, *arguments) == 0
    model = torchbeats.load(out / "model.safetensors")
    assert model.cfg.problem_type == "multi_label"
    assert {"mAP", "lwlrap"} <= json.loads((out / "validation.json").read_text())["figures"].keys()


class Stopped(Exception):
    """Stands for whatever ends a process."""


def test_a_stopped_run_goes_on_to_the_same_result(folder, weights, tmp_path, monkeypatch):
    settings = finetune_settings(None, [value for value in QUICK if value != "--set"], seed=3)
    settings.model.epochs, settings.model.lr, settings.augment.mel_shift = 4, 1e-3, 4
    training, held_out, _ = split(read_labelled([folder]), 0.3, 0)

    def tune(name):
        return Finetune(tmp_path / name, torchbeats.load(weights), training, held_out, settings, {}).train()

    whole = torchbeats.load(tune("whole"))
    step, seen = Finetuning.step, []

    def stop(self, batch):
        seen.append(1)
        if len(seen) == 6:  # behind a state, in the middle of things
            raise Stopped
        return step(self, batch)

    monkeypatch.setattr(Finetuning, "step", stop)
    with pytest.raises(Stopped):
        tune("stopped")
    assert (tmp_path / "stopped" / "state.ckpt").exists()
    monkeypatch.setattr(Finetuning, "step", step)
    monkeypatch.delattr(finetune_run, "linear_model")  # it has been fitted
    resumed = torchbeats.load(tune("stopped"))
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert rows(tmp_path / "whole") == rows(tmp_path / "stopped")


def corpus_of(folder):
    labelled = read_labelled([folder])
    return labelled, LabelledCorpus(labelled)


def test_mixing_mixes_sounds_and_labels_alike(folder):
    labelled, corpus = corpus_of(folder)
    crops = LabelledCrops(corpus, PLAIN)
    plain = [crops[Draw(row, 1.0, (0, 0, row))] for row in (0, 12, 25)]
    whole = collate_labelled(plain, PatchGrid(), 3)
    assert torch.equal(whole.targets, torch.eye(3)[labelled.targets()[[0, 12, 25]]])
    mixed = collate_labelled([crop._replace(mix=0.75) for crop in plain], PatchGrid(), 3)
    torch.testing.assert_close(mixed.wav, 0.75 * whole.wav + 0.25 * whole.wav.roll(1, 0))
    torch.testing.assert_close(mixed.targets, 0.75 * whole.targets + 0.25 * whole.targets.roll(1, 0))


def test_a_faster_clip_is_shorter_and_higher():
    n = np.arange(RATE)
    samples = np.sin(2 * np.pi * 400 * n / RATE).astype(np.float32)
    fast = change_speed(samples, 1.25)
    assert len(fast) == RATE * 4 // 5
    spectrum = np.abs(np.fft.rfft(fast * np.hanning(len(fast))))
    assert spectrum.argmax() * RATE / len(fast) == pytest.approx(500, abs=2)


def test_noise_lies_below_the_clip():
    clip = (0.1 * np.sin(np.arange(RATE) / 3)).astype(np.float32)
    below = []
    for seed in range(20):
        noisy = add_noise(clip, np.random.default_rng(seed))
        assert noisy.dtype == np.float32
        below.append(20 * np.log10(clip.std() / (noisy - clip).std()))
    assert 5 <= min(below) < 20 < max(below) <= 40.1  # drawn evenly from 5 to 40 dB
    assert not add_noise(np.zeros(RATE, np.float32), np.random.default_rng(0)).any()


def test_clips_begin_at_different_times(folder):
    _, corpus = corpus_of(folder)
    crops = LabelledCrops(corpus, dataclasses.replace(PLAIN, delay=0.16))
    lengths = [len(crops[Draw(0, 1.0, (0, 0, i))].samples) / RATE for i in range(20)]
    assert 0.6 <= min(lengths) < 0.65
    assert 0.71 < max(lengths) <= 0.76 + 1e-3


def test_speeds_differ_from_clip_to_clip(folder):
    _, corpus = corpus_of(folder)
    crops = LabelledCrops(corpus, dataclasses.replace(PLAIN, speed=0.2))
    lengths = [len(crops[Draw(0, 1.0, (0, 0, i))].samples) / (0.6 * RATE) for i in range(20)]
    assert 0.83 - 1e-3 <= min(lengths) < 0.92
    assert 1.1 < max(lengths) <= 1.25 + 1e-3


def test_pieces_of_files_are_what_is_heard(folder):
    path = str(folder / "tief" / "1.wav")
    labelled = Labelled([Ex(path, ("tief",), 0.1, 0.3), Ex(path, ("tief",), 0.2)], ["tief", "x"], "single_label")
    corpus = LabelledCorpus(labelled)
    np.testing.assert_allclose(corpus.seconds, [0.2, 0.4], atol=1e-4)
    samples = torchbeats.audio.load(path)
    np.testing.assert_array_equal(corpus.read(0, 0.05, 9.0), samples[2_400:4_800])
    np.testing.assert_array_equal(corpus.read(1, 0.1, 0.1), samples[4_800:6_400])


def test_rare_classes_are_drawn_as_often_as_others():
    targets = np.zeros((100, 2), np.float32)
    targets[:90, 0] = targets[90:, 1] = 1
    weights = class_weights(targets)
    assert weights[:90].sum() == pytest.approx(weights[90:].sum())
    halfway = class_weights(targets, 0.5)
    assert halfway[:90].sum() == pytest.approx(3 * halfway[90:].sum())  # nine times as many, drawn three times as often
    targets[:60] = 0  # of no class, which is one more
    weights = class_weights(targets)
    assert weights[:60].sum() == pytest.approx(weights[60:90].sum()) == pytest.approx(weights[90:].sum())


def test_long_sounds_are_drawn_no_oftener_than_short_ones_of_rare_classes(tmp_path):
    examples = []
    for name, seconds in (("long", 30.0), ("short", 0.5)):
        path = str(tmp_path / f"{name}.wav")
        soundfile.write(path, sound("Rauschen", 0, seconds), RATE)
        examples += [Ex(path, (name,), 0.0, seconds)] * 4
    corpus = LabelledCorpus(Labelled(examples, ["long", "short"], "single_label"))
    data = as_data(LabelledDataSettings(seconds=1.0, batch_seconds=8.0))
    batches = Batches(corpus, data, 0, small_model().grid, weights=class_weights(corpus.targets), fill=False)
    drawn = [draw.row >= 4 for batch in islice(batches, 100) for draw in batch]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.1)


def task_with(**tuning):
    settings = TuningSettings(**tuning)
    return Finetuning(with_head(small_model(), ["a", "b"], "single_label", settings), settings, PLAIN, 10, 0)


def trained(task):
    return {name.removeprefix("model.") for name, p in task.named_parameters() if p.requires_grad}


def test_frozen_layers_stay():
    names = trained(task_with(freeze=1))
    assert "encoder.layers.1.fc1.weight" in names
    assert not any(name.startswith(("encoder.layers.0.", "patch_embedding", "encoder.pos_conv")) for name in names)
    assert trained(task_with(freeze=-1)) == {"predictor.weight", "predictor.bias"}


def test_layers_learn_the_slower_the_lower_they_are():
    task = task_with(layer_decay=0.5, lr=1.0, warmup=0.0)
    groups = task.configure_optimizers()["optimizer"].param_groups
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    model = task.model
    found = [
        rates[id(weight)]
        for weight in (
            model.predictor.weight,
            model.encoder.layers[1].fc1.weight,
            model.encoder.layers[0].fc1.weight,
            model.patch_embedding.weight,
        )
    ]
    assert found == [1.0, 1.0, 0.5, 0.25]


def test_masks_cover_a_stretch_of_frames_and_one_of_bins():
    torch.manual_seed(0)
    masked = mask_spectrum(torch.ones(64, 50, 128), 0.5, 0.25)
    hidden_frames = (masked == 0).all(2).sum(1)
    hidden_bins = (masked == 0).all(1).sum(1)
    assert 8 < hidden_frames.float().mean() < 17  # 12 expected
    assert int(hidden_frames.max()) <= 25
    assert int(hidden_bins.max()) <= 32
    assert torch.equal(mask_spectrum(masked, 0.0, 0.0), masked)


def test_split_keeps_groups_together_and_every_class_in_training():
    examples = [Ex(f"{i}.wav", ("a" if i < 40 else "b",), group=str(i // 4)) for i in range(79)] + [Ex("c.wav", ("c",))]
    training, held_out, _ = split(Labelled(examples, ["a", "b", "c"], "single_label"), 0.2, 0)
    assert not {e.group for e in training.examples} & {e.group for e in held_out.examples}
    assert all(training.counts().values())
    assert 8 <= len(held_out.examples) <= 24
    again = split(Labelled(examples, ["a", "b", "c"], "single_label"), 0.2, 0)[1]
    assert again.examples == held_out.examples
    names = ["val"] * 3 + ["test"] * 5 + ["train"] * 72
    own = [example._replace(split=name) for example, name in zip(examples, names, strict=True)]
    parts = split(Labelled(own, ["a", "b", "c"], "single_label"), 0.2, 0)
    assert [len(part.examples) for part in parts] == [72, 3, 5]
    only = [example._replace(split="test" if i < 4 else None) for i, example in enumerate(examples)]
    parts = split(Labelled(only, ["a", "b", "c"], "single_label"), 0.2, 0)
    assert [len(part.examples) for part in parts] == [76, 4, 0]
    odd = [example._replace(split="Held-out" if i < 4 else "extra") for i, example in enumerate(examples)]
    with pytest.raises(InputError, match="no telling what the split 'extra' is for"):
        split(Labelled(odd, ["a", "b", "c"], "single_label"), 0.2, 0)
    odd = [example._replace(split="Held-out" if i < 4 else "Train") for i, example in enumerate(examples)]
    assert len(split(Labelled(odd, ["a", "b", "c"], "single_label"), 0.2, 0).validation.examples) == 4
    with pytest.raises(InputError, match="all are held out"):
        split(Labelled(own[:8], ["a", "b", "c"], "single_label"), 0.2, 0)


def test_pieces_of_a_recording_are_held_out_together():
    examples = [
        Ex(f"{recording}.wav", ("a" if window % 3 else "b",), float(window), window + 1.0)
        for recording in range(6)
        for window in range(20)
    ]
    parts = split(Labelled(examples, ["a", "b"], "single_label"), 0.2, 0)
    assert parts.validation is not None
    assert not {e.path for e in parts.train.examples} & {e.path for e in parts.validation.examples}


@pytest.mark.parametrize(
    "assignment",
    [
        "model.epochs=0",
        "model.lr=.nan",
        "model.layer_decay=0",
        "model.pool=max",
        "augment.mixup=-1",
        "augment.speed=0.9",
        "augment.delay=-1",
        "data.views=0",
        "data.balance=2",
        "data.validation=1",
        "nothing=1",
    ],
)
def test_settings_that_cannot_be_followed(assignment):
    with pytest.raises(SettingsError):
        finetune_settings(None, [assignment])
    assert math.isfinite(FinetuneSettings().model.lr)


def test_bad_data_are_refused_before_anything_is_trained(folder, weights, tmp_path, monkeypatch, capsys):
    def said(*data):
        status = run(monkeypatch, "finetune", *data, "-m", weights, "-o", tmp_path / "run", *QUICK)
        return status, capsys.readouterr().err

    one = tmp_path / "one"
    (one / "only").mkdir(parents=True)
    soundfile.write(one / "only" / "a.wav", sound("tief", 0), RATE)
    status, text = said(one)
    assert (status, "two classes or more" in text) == (2, True)
    (tmp_path / "wrong.csv").write_text("file,what\na.wav,x\n")
    status, text = said(tmp_path / "wrong.csv")
    assert (status, "column called label" in text) == (2, True)
    (tmp_path / "half.csv").write_text("path,label\none/only/a.wav,x\nb.wav,y\n")
    status, text = said(tmp_path / "half.csv")
    assert (status, "1 files are not there" in text, "None of the sounds of 'y' is left" in text) == (2, True, True)
    (tmp_path / "gone.csv").write_text("path,label\na.wav,x\nb.wav,y\n")
    status, text = said(tmp_path / "gone.csv")
    assert (status, "None of the 2 sounds is there" in text) == (2, True)
    assert not (tmp_path / "run").exists()


def test_broken_files_are_named_and_training_ends_when_nothing_gets_better(weights, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for seed in range(8):  # the same noise in both: there is nothing to learn
            soundfile.write(tmp_path / "d" / name / f"{seed}.wav", sound("Rauschen", seed), RATE)
    (tmp_path / "d" / "a" / "broken.wav").write_text("junk")
    (tmp_path / "d" / "b" / "empty.wav").touch()
    out = tmp_path / "run"
    options = ("--epochs", 40, "--set", "model.patience=2", "--set", "data.validation=0.25")
    assert run(monkeypatch, "finetune", tmp_path / "d", "-m", weights, "-o", out, *QUICK, *options) == 0
    listed = [json.loads(line)["path"] for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {path.rpartition("/")[2] for path in listed} <= {"broken.wav", "empty.wav"}
    assert "Skipped" in capsys.readouterr().err
    assert torchbeats.load(out / "model.safetensors").labels == ["a", "b"]
    epoch = 3  # 16 or 17 sounds of 0.6 s, up to 13 a batch
    assert int(rows(out)[-1]["step"]) < 40 * epoch / 2


def test_gradients_of_a_step_are_those_of_the_reference():
    about, tensors = golden("gradients")
    model = torchbeats.BEATs(BEATsConfig(about["cfg"]), freeze=False)
    model.load_state_dict(under(tensors, "model"), strict=True)
    settings = TuningSettings(dropout=0.0, gradient_decay=model.cfg.layer_wise_gradient_decay_ratio)
    labels = [str(i) for i in range(model.cfg.predictor_class)]
    model.label_dict = dict(enumerate(labels))
    task = Finetuning(with_head(model, labels, "multi_label", settings), settings, PLAIN, 10, 0)
    task._trainer = SimpleNamespace(world_size=1)  # a step asks it only how many processes there are
    B, samples = tensors["wav"].shape
    zero = torch.zeros(B, dtype=torch.int64)
    batch = LabelledBatch(
        tensors["wav"], zero + samples, tensors["target"], zero, torch.zeros(B, 1), torch.ones(B), failures=[]
    )
    task.train()
    loss = task.step(batch)["loss"]
    torch.testing.assert_close(loss.detach(), tensors["loss"].squeeze(), rtol=0, atol=2e-5)
    loss.backward()
    expected = under(tensors, "grad")
    typical = torch.stack([value.abs().max() for value in expected.values()]).median()
    for name, value in expected.items():  # tolerances as for the model itself, see test_encoder.py
        actual = task.model.get_parameter(name).grad
        scale = typical if name.endswith("k_proj.bias") else value.abs().max()
        assert (actual - value).abs().max() / scale < 2e-4, name


def test_the_result_can_be_written_for_code_that_expects_the_original_format(tuned, folder, tmp_path, monkeypatch):
    assert run(monkeypatch, "convert", tuned / "model.safetensors", tmp_path / "m.pt") == 0
    stored = torch.load(tmp_path / "m.pt", weights_only=True)
    assert {"cfg", "model", "label_dict"} <= stored.keys()
    assert stored["cfg"]["finetuned_model"]
    assert sorted(stored["label_dict"].values()) == sorted(NAMES)
    wav = torch.from_numpy(sound("tief", 1)).unsqueeze(0)
    ours, theirs = (torchbeats.BEATs(path) for path in (tuned / "model.safetensors", tmp_path / "m.pt"))
    torch.testing.assert_close(ours(wav)[1], theirs(wav)[1], rtol=0, atol=0)
    assert theirs.labels == ours.labels


@pytest.mark.parametrize(("pool", "values"), [("bands", 8), ("statistics", 16)])
def test_a_head_over_another_pooling(pool, values, folder, weights, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    options = (*QUICK, *OPTIONS, "--epochs", 3, "--set", f"model.pool={pool}")
    assert run(monkeypatch, "finetune", folder, "-m", weights, "-o", out, *options) == 0
    assert json.loads((out / "validation.json").read_text("utf-8"))["figures"]["accuracy"] == 1
    model = torchbeats.load(out / "model.safetensors")
    assert tuple(model.predictor.weight.shape) == (3, values * model.cfg.encoder_embed_dim)
    assert run(monkeypatch, "convert", out / "model.safetensors", tmp_path / "m.pt") != 0
    assert f"no head over {pool}" in capsys.readouterr().err
    assert not (tmp_path / "m.pt").exists()
    # Another head is a fresh one.
    tuned = with_head(model, model.labels, "single_label", TuningSettings(pool="mean"))
    assert tuple(tuned.predictor.weight.shape) == (3, model.cfg.encoder_embed_dim)


def test_cross_validation_asks_about_every_sound_once(folder, weights, tmp_path, monkeypatch, capsys):
    with (tmp_path / "list.csv").open("w") as file:
        print("path,label,speaker", file=file)
        for name in NAMES:
            for seed in range(6):
                print(f"{folder / name / f'{seed}.wav'},{name},{seed % 2}", file=file)
        print(f"{folder / 'tief' / 'gone.wav'},tief,1", file=file)
    out = tmp_path / "run"
    options = (*QUICK, "--epochs", 25, "--set", "model.lr=3e-3", "--set", "model.average=0.9")
    options += ("--set", "data.views=2")
    by = ("--group-from", r"([0-9])\.wav$", "--folds", 2)
    command = ("finetune", tmp_path / "list.csv", "-m", weights, "-o", out, *by, *options)
    assert run(monkeypatch, *command) == 0
    said = capsys.readouterr()
    assert "1 files are not there" in said.err
    found = json.loads((out / "validation.json").read_text("utf-8"))
    assert json.loads(said.out) == found
    assert (found["held_out"], found["interval_over"]) == ("2 stratified folds, groups kept together", "groups")
    assert sum(row["examples"] for row in found["classes"]) == 18
    assert found["figures"]["accuracy"] >= 0.9  # tones and noise
    assert found["figures"]["accuracy"] == pytest.approx(np.mean(found["by_fold"]))
    low, high = found["interval"]
    assert low <= found["figures"]["accuracy"] <= high
    heard = [np.load(out / f"fold-{k}" / "scores.npz")["heard"].tolist() for k in (1, 2)]
    assert sorted(heard[0] + heard[1]) == list(range(18))
    assert not {i % 6 for i in heard[0]} & {i % 6 for i in heard[1]}  # the number is the group
    with np.load(out / "fold-1" / "scores.npz") as kept:
        scores = dict(zip(kept["heard"].tolist(), kept["values"], strict=True))
    heard_first = folder / "tief" / f"{min(heard[0])}.wav"
    (tags,) = torchbeats.tag(heard_first, str(out / "fold-1" / "model.safetensors"), top=3, views=2, window=1)
    assert max(scores[min(heard[0])]) == pytest.approx(tags.labels[0][1], abs=1e-5)
    before = (out / "fold-1" / "model.safetensors").stat().st_mtime_ns
    (out / "fold-2" / "scores.npz").unlink()  # as if it had been stopped there
    (out / "validation.json").unlink()
    assert run(monkeypatch, *command) == 0
    assert (out / "fold-1" / "model.safetensors").stat().st_mtime_ns == before
    assert json.loads((out / "validation.json").read_text("utf-8")) == found


def test_a_fold_of_which_nothing_can_be_read_does_not_cost_the_others(folder, weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "junk.wav").write_text("junk")
    with (tmp_path / "list.csv").open("w") as file:
        print("path,label,group", file=file)
        for name in ("tief", "Rauschen"):
            for seed in range(4):
                print(f"{folder / name / f'{seed}.wav'},{name},{seed % 2}", file=file)
        print(f"{tmp_path / 'junk.wav'},tief,broken", file=file)
    out = tmp_path / "run"
    command = ("finetune", tmp_path / "list.csv", "-m", weights, "-o", out, *QUICK, "--epochs", 1, "--cross-validate")
    assert run(monkeypatch, *command) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert sum(row["examples"] for row in found["classes"]) == 8
    assert [value is None for value in found["by_fold"]] == [False, False, True]
    assert "junk.wav" in said.err
    assert "junk.wav" in (out / "skipped.jsonl").read_text()


def test_a_cross_validation_goes_on_with_the_same_sounds_only(folder, weights, tmp_path, monkeypatch, capsys):
    def write(seeds):
        rows = [f"{folder / name / f'{seed}.wav'},{name},s1" for name in ("tief", "Rauschen") for seed in range(seeds)]
        (tmp_path / "list.csv").write_text(
            "\n".join(["path,label,split", *rows])
        )  # of which there are no train and test

    out = tmp_path / "run"
    command = ("finetune", tmp_path / "list.csv", "-m", weights, "-o", out, *QUICK, "--epochs", 1, "--folds", 2)
    write(4)
    assert run(monkeypatch, *command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folds"] == ["1", "2"]
    write(5)
    assert run(monkeypatch, *command) == 2
    assert "sounds was 8 sounds, " in capsys.readouterr().err
    write(4)
    assert run(monkeypatch, *command) == 0
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize("how", ["--folds=2", "--set=data.validation=0.3"])
def test_an_edited_file_is_noticed(weights, tmp_path, monkeypatch, capsys, how):
    """Of the same size, in the same place: only its time of change tells."""
    for name in ("tief", "Rauschen"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for seed in range(4):
            soundfile.write(tmp_path / "in" / name / f"{seed}.wav", sound(name, seed), RATE)
    command = ("finetune", tmp_path / "in", "-m", weights, "-o", tmp_path / "run", *QUICK, "--epochs", 1, how)
    assert run(monkeypatch, *command) == 0
    assert run(monkeypatch, *command) == 0
    capsys.readouterr()
    soundfile.write(tmp_path / "in" / "tief" / "2.wav", sound("tief", 9), RATE)
    assert run(monkeypatch, *command) == 2
    error = capsys.readouterr().err
    assert "holds a run with other settings: sounds was 8 sounds, " in error


def test_a_sound_on_the_other_side_of_the_split_is_noticed(folder):
    labelled, _ = corpus_of(folder)
    names = {work_of(labelled.examples, {"held out": rows}) for rows in ([], [0], [1], [0, 1])}
    assert len(names) == 4
    assert work_of(labelled.examples, {"held out": [0, 1]}) in names


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "Fold 2 ends with its last epoch, as no class is large enough"),
        (["--tune", "5s"], "Fold 2 ends with its last epoch and without a search of learning rates, as no class"),
    ],
)
def test_patience_without_sounds_to_validate_on(folder, weights, tmp_path, monkeypatch, capsys, more, said):
    rows = [f"{folder / name / f'{seed}.wav'},{name}" for name in ("tief", "Rauschen") for seed in range(2)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    command = ("finetune", tmp_path / "list.csv", "-m", weights, "-o", tmp_path / "run", *QUICK, "--epochs", 1)
    assert run(monkeypatch, *command, "--folds", 2, "--set", "model.patience=1", *more) == 0
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("readable", [0, 1])
def test_sounds_to_validate_on_that_cannot_be_read(folder, weights, tmp_path, monkeypatch, capsys, readable):
    (tmp_path / "junk.wav").write_text("junk")
    rows = [f"{folder / name / f'{seed}.wav'},{name},train" for name in ("tief", "Rauschen") for seed in range(3)]
    rows += [f"{tmp_path / 'junk.wav'},tief,valid", *[f"{folder / 'tief' / '5.wav'},tief,valid"] * readable]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    out = tmp_path / "run"
    command = ("finetune", tmp_path / "list.csv", "-m", weights, "-o", out, *QUICK, "--epochs", 2)
    assert run(monkeypatch, *command) == 0
    assert "junk.wav" in (out / "skipped.jsonl").read_text()
    assert ("Nothing to validate on" in capsys.readouterr().err) == (not readable)
    assert (out / "validation.json").exists() == bool(readable)
    assert torchbeats.load(out / "model.safetensors").labels == ["Rauschen", "tief"]


def test_nothing_is_validated_before_the_first_step(folder, weights, tmp_path, monkeypatch):
    steps = []
    ask = Validate._evaluate
    monkeypatch.setattr(Validate, "_evaluate", lambda self, model: (steps.append(self.step), ask(self, model)))
    options = (*QUICK, *OPTIONS, "--epochs", 2, "--set", "trainer.accumulate=2", "--set", "data.batch_seconds=2")
    options = (*options, "--set", "model.head_first=false")
    assert run(monkeypatch, "finetune", folder, "-m", weights, "-o", tmp_path / "run", *options) == 0
    assert len(steps) == 2
    assert steps[0] == steps[1] / 2 > 0


def test_a_class_that_is_only_asked_about_is_told(folder, weights, tmp_path, monkeypatch, capsys):
    with (tmp_path / "list.csv").open("w") as file:
        print("path,label,split", file=file)
        for name, split_name in (("tief", "train"), ("hoch ♪", "train"), ("Rauschen", "test")):
            for seed in range(2):
                print(f"{folder / name / f'{seed}.wav'},{name},{split_name}", file=file)
    arguments = ("finetune", tmp_path / "list.csv", "-m", weights, "-o", tmp_path / "run", *QUICK, "--epochs", 1)
    assert run(monkeypatch, *arguments) == 0
    assert "nothing to train on for 'Rauschen'" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_kept_away(folder, weights, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    out.mkdir()
    code = (
        "import sys, time; from torchbeats.files import held; "
        "file = held(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, out / ".lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert run(monkeypatch, "finetune", folder, "-m", weights, "-o", out, *QUICK, "--epochs", 1) == 2
        other.kill()
    assert "Another run is at work" in capsys.readouterr().err
    assert run(monkeypatch, "finetune", folder, "-m", weights, "-o", out, *QUICK, "--epochs", 0.1) == 0
