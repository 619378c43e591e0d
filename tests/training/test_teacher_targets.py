"""A teacher's layers as targets, against their definition written out; and a run that goes on, alone and in two."""

import copy
import csv
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

import torchbeats
from helpers import ALONE, SMALL, TaskTrainer, noise, pretrain_command, shaken, small_model, tiny_run
from torchbeats import BEATs, BEATsConfig
from torchbeats.errors import SettingsError
from torchbeats.patches import PatchGrid
from torchbeats.training import saving
from torchbeats.training import task as task_module
from torchbeats.training.augmentation import shift_mel
from torchbeats.training.configuring import settings
from torchbeats.training.corpus import Failure
from torchbeats.training.crops import Crop, collate, random_mask
from torchbeats.training.regression import Regression, Teacher
from torchbeats.training.reporter import Reporter
from torchbeats.training.run import Run
from torchbeats.training.settings import ModelSettings

GRID = PatchGrid()
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
CLOSE = {"rtol": 1e-4, "atol": 2e-5}  # float32 sums of some hundred terms in another order


def crops_of(seconds=(1.0, 0.55, 0.8), masks=1):
    random, crops = np.random.default_rng(0), []
    for i, length in enumerate(seconds):
        samples = noise(length, seed=i)
        patches = int(GRID.patches(len(samples)))
        crops.append(Crop(samples, np.stack([random_mask(patches, 0.75, random) for _ in range(masks)])))
    return crops


def regression(seed=0, **chosen):
    """A task without dropout whose every parameter matters, and whose teacher is not the model."""
    fields = {"predictor_layers": 2, "warmup": 1, "steps": 100, **chosen}
    task = Regression(small_model(seed, **NO_DROPOUT), ModelSettings(**fields), seed=1)
    shaken(task.network.predictor)
    task.teacher.model.load_state_dict(small_model(seed + 1, **NO_DROPOUT).state_dict())
    task.trainer = ALONE
    return task


def layers_of(model, crop):
    """Every layer's output for the patches of one clip, ``(T, C)`` in float64."""
    with torch.no_grad():
        features = model.preprocess(torch.from_numpy(crop.samples)[None])
        _, hiddens = model.encode_features(features, output_all_hiddens=True)
    return [hidden[0].double() for hidden in hiddens[1:]]


def normalised(x, norm):
    axis = {"instance": 0, "layer": 1}[norm]
    return (x - x.mean(axis, keepdim=True)) / (x.var(axis, correction=0, keepdim=True) + 1e-5).sqrt()


def by_hand(model, crop, layers, norm):
    """Targets of one clip, heard alone: of its patches and of the clip."""
    upper = layers_of(model, crop)[-layers:] if layers else layers_of(model, crop)
    patches = torch.stack([normalised(x, norm) for x in upper]).mean(0)
    clip = torch.stack([normalised(x.mean(0, keepdim=True), "layer")[0] for x in upper]).mean(0)
    return patches.float(), clip.float()


# --- the teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"deep_norm": False, "layer_norm_first": True}])
@pytest.mark.parametrize(("layers", "norm"), [(0, "instance"), (1, "instance"), (2, "layer")])
def test_targets_are_the_mean_of_normalised_layers_of_each_clip_alone(layers, norm, fields):
    model = shaken(small_model(0, encoder_layers=3, **fields))
    teacher, crops = Teacher(model, 0.9, layers, norm), crops_of()
    batch = collate(crops, GRID)
    patches, clips = teacher(model.preprocess(batch.wav), batch.samples)
    for row, crop in enumerate(crops):
        of_patches, of_clip = by_hand(teacher.model, crop, layers, norm)
        torch.testing.assert_close(patches[row, : len(of_patches)], of_patches, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(clips[row], of_clip, rtol=1e-3, atol=1e-3)
    other = Teacher(model, 0.9, 1 + layers % 2, norm)
    assert not torch.allclose(patches, other(model.preprocess(batch.wav), batch.samples)[0], atol=0.1)


def test_a_teacher_is_the_moving_average_of_its_student():
    """By the formula, step for step, in float64; and nothing that the convolution keeps of earlier weights is used."""
    student = shaken(small_model(0)).unfreeze()
    teacher = Teacher(student, 0.75, 0, "instance")
    begun = {name: weight.double() for name, weight in student.state_dict().items()}
    heard = student.preprocess(torch.from_numpy(noise(1.0))[None])
    samples = torch.tensor([16_000])
    for _ in range(3):
        teacher(heard, samples)
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.1)
        teacher.follow(student)
        begun = {name: 0.75 * begun[name] + 0.25 * weight.double() for name, weight in student.state_dict().items()}
    for name, weight in teacher.model.state_dict().items():
        torch.testing.assert_close(weight.double(), begun[name], rtol=1e-6, atol=1e-7)
    fresh = Teacher(student, 0.75, 0, "instance")
    fresh.model.load_state_dict(teacher.model.state_dict())
    torch.testing.assert_close(teacher(heard, samples)[0], fresh(heard, samples)[0])


def test_a_teacher_is_never_trained_and_never_drops():
    task = Regression(small_model(0, dropout=0.5), ModelSettings(), seed=0).train()
    assert not task.teacher.model.training
    assert not any(weight.requires_grad for weight in task.teacher.parameters())
    trained = {
        id(weight) for group in task.configure_optimizers()["optimizer"].param_groups for weight in group["params"]
    }
    assert trained == {id(weight) for weight in task.network.parameters()}


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "masks"), [(0.0, 1), (0.5, 1), (0.0, 3)])
def test_loss_is_the_distance_from_the_targets_of_hidden_patches(beta, masks):
    task, crops = regression(teacher_beta=beta, masks=masks), crops_of(masks=masks)
    batch = collate([*crops, crops[0]._replace(counts=False)], GRID)
    model = task.network.model
    expected, wanted = [], []
    for crop in crops:
        targets, _ = by_hand(task.teacher.model, crop, 0, "instance")
        for mask in crop.hidden:
            alone = collate([crop._replace(hidden=mask)], GRID)
            error = task.network(model.preprocess(alone.wav), alone)[0] - targets[torch.from_numpy(mask)]
            small = 0.5 * error.square() / beta if beta else error.square()
            expected.append(small.where((error.abs() < beta) | (beta == 0), error.abs() - 0.5 * beta).mean(1))
            wanted.append(targets[torch.from_numpy(mask)])
    scalars = task.step(batch)
    torch.testing.assert_close(scalars["loss"], torch.cat(expected).mean(), rtol=1e-3, atol=1e-3)
    variance = torch.cat(wanted).var(0, correction=0).mean()
    torch.testing.assert_close(scalars["target_variance"], variance, rtol=1e-3, atol=1e-3)


def test_the_teacher_hears_the_clip_alone_as_it_is(monkeypatch):
    """Neither what is laid over it nor the shift that the model hears."""
    task = regression(mix=1.0, mel_shift=4)
    crops = [crop._replace(softer=5.0, shift=shift) for crop, shift in zip(crops_of([0.9, 0.9]), (4, -3), strict=True)]
    batch, heard, taught = collate(crops, GRID), [], []
    clean, normalise = task.network.model.fbank(batch.wav), task.network.model.normalise
    task.teacher.register_forward_pre_hook(lambda _, args: taught.append(args[0]))
    task.network.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
    task.step(batch)
    assert torch.equal(taught[0], normalise(clean))
    assert not torch.equal(heard[0], normalise(shift_mel(clean, batch.shifts)))  # there is another clip in it


def test_the_second_loss_is_the_distance_from_the_clip_s_target():
    task, crops = regression(utterance=0.5), crops_of((1.0, 0.55), masks=2)
    batch, model = collate([*crops, crops[0]._replace(counts=False)], GRID), task.network.model
    scalars, expected = task.step(batch), []
    for crop in crops:
        _, target = by_hand(task.teacher.model, crop, 0, "instance")
        for mask in crop.hidden:
            alone = collate([crop._replace(hidden=mask)], GRID)
            x = task.network(model.preprocess(alone.wav), alone)[1][0]
            expected.append((task.network.clip(x.mean(1))[0] - target).square().mean())
    torch.testing.assert_close(scalars["utterance"], torch.stack(expected).mean(), rtol=1e-3, atol=1e-3)
    task.settings.utterance = 0.0
    torch.testing.assert_close(task.step(batch)["loss"], scalars["loss"] - 0.5 * scalars["utterance"], **CLOSE)


@pytest.mark.parametrize("utterance", [0.0, 0.5])
def test_every_parameter_but_the_teacher_s_learns(utterance):
    task = regression(utterance=utterance)
    task.step(collate(crops_of([1.0, 0.55, 0.3, 0.8]), GRID))["loss"].backward()
    for name, weight in task.network.named_parameters():
        if not name.endswith("k_proj.bias"):  # moves every score of a query alike, which softmax does not see
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 1e-9, name
    assert all(weight.grad is None for weight in task.teacher.parameters())


def test_a_batch_of_which_nothing_could_be_read_teaches_nothing():
    task = regression(utterance=0.5)
    loss = task.step(collate([Failure("a", "broken")], GRID))["loss"]
    loss.backward()
    assert loss == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in task.parameters())


def test_loss_and_variance_of_processes_are_those_of_all_their_patches(monkeypatch):
    """What each computes is averaged."""
    task, crops = regression(), crops_of()
    together = task.step(collate(crops, GRID))
    batches = [collate(crops[:1], GRID), collate(crops[1:], GRID)]
    sums = []
    monkeypatch.setattr("torchbeats.training.regression.all_sum", lambda x: (sums.append(x), x)[1])
    for batch in batches:
        task.step(batch)
    total = sum(sums)
    monkeypatch.setattr("torchbeats.training.regression.all_sum", lambda x: total)
    monkeypatch.setattr(task_module, "all_sum", lambda count: torch.full_like(count, float(total[-1])))
    task.trainer = trainer = TaskTrainer(world_size=2)
    parts = [task.step(batch) for batch in batches]
    for name, value in together.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value, **CLOSE)
    assert trainer


def test_targets_that_have_collapsed_are_told():
    """A model of which all patches look the same has targets without variance."""
    task = Regression(small_model(0, **NO_DROPOUT), ModelSettings(), seed=0)
    task.trainer = trainer = TaskTrainer()
    batch = collate(crops_of(), GRID)
    task.training_step(batch, 0)
    report = task.report()
    assert report["target_variance"] > 0.1
    assert task.warning_text(report) is None
    assert f"variance of the targets {report['target_variance']:.2f}" in task.status_text(report)
    with torch.no_grad():
        for layer in task.teacher.model.encoder.layers:
            layer.final_layer_norm.weight.zero_()
    task.training_step(batch, 0)
    report = task.report()
    assert report["target_variance"] < 1e-6
    assert "the teacher's targets have collapsed: their variance is 0.0000" in task.warning_text(report)
    assert trainer


def test_a_model_learns_what_its_teacher_says():
    """Of clips that are either loud or soft: their hidden patches can be told by those that are seen."""
    torch.manual_seed(0)
    chosen = ModelSettings(
        predictor_layers=1, lr=3e-3, warmup=5, steps=50, teacher_decay=0.9, teacher_norm="layer", mask=0.75
    )
    task = Regression(BEATs(BEATsConfig(SMALL), freeze=False), chosen, seed=0)
    task.trainer = trainer = TaskTrainer()
    made, random, reports = task.configure_optimizers(), np.random.default_rng(0), []
    for step in range(50):
        crops = []
        for i in range(8):
            samples = noise(0.7, seed=1000 * step + i, level=[0.5, 0.001][i % 2])
            crops.append(Crop(samples, random_mask(int(GRID.patches(len(samples))), 0.75, random)))
        made["optimizer"].zero_grad()
        task.training_step(collate(crops, GRID), step).backward()
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
        task.callbacks()[0].follow()
        if step + 1 in (5, 45, 50):
            reports.append(task.report())
    first, last = reports[0], reports[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert last["loss"] < 0.6 * last["target_variance"]  # of what the mean of all patches would leave
    assert trainer


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(9):
        soundfile.write(folder / f"{i}.wav", noise(0.6 + 0.3 * i, seed=i, level=0.03 * (i + 1)), 16_000)
    return folder


def run(data, out, **over):
    fields = {"iterations": 1, "trainer__devices": 1, "trainer__save_every": 2, "model__targets": "teacher", **over}
    return Run(out, [str(data)], settings("nano", assignments=tiny_run(**fields))).train()


OPTIONS = {
    "model__masks": 2,
    "model__mask_block": 2,
    "model__mix": 0.7,
    "model__utterance": 0.5,
    "model__mel_shift": 3,
    "model__teacher_layers": 1,
    "model__teacher_norm": "layer",
    "model__teacher_beta": 0.3,
    "config__input_patch_size": 8,
}


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "clips_per_second"} for row in found]


@pytest.fixture(scope="module")
def whole(sounds, tmp_path_factory):
    """An undisturbed run, and the last state of its teacher and its model."""
    out, last = tmp_path_factory.mktemp("whole") / "run", {}
    follow = Teacher.follow

    def note(self, student):
        follow(self, student)
        last.update(teacher=copy.deepcopy(self.model.state_dict()), model=copy.deepcopy(student.state_dict()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "follow", note)
        run(sounds, out, model__teacher_decay=0.5)
    return out, last


def test_a_run_without_labels_gives_the_model_as_an_ordinary_checkpoint(whole, sounds):
    out, last = whole
    assert sorted(path.name for path in (out / "iteration-1").iterdir()) == ["model.safetensors"]
    saved = load_file(out / "model.safetensors")
    assert saved.keys() <= last["model"].keys()  # a table that layers share is stored once
    assert all(torch.equal(weight, last["model"][name]) for name, weight in saved.items())
    assert any(not torch.equal(weight, last["teacher"][name]) for name, weight in saved.items())
    model = torchbeats.load(out / "model.safetensors")
    (embedded,) = torchbeats.embed(str(sounds / "3.wav"), model, pool="bands")
    assert embedded.embedding.shape == (8 * 32,)
    found = rows(out)
    assert [row["step"] for row in found] == ["2", "4", "6"]
    assert all(float(row["target_variance"]) > 0.1 and float(row["loss"]) > 0 for row in found)
    assert {row["perplexity"] for row in found} == {""}


@pytest.mark.parametrize("options", [{"model__teacher_decay": 0.5}, OPTIONS], ids=["plain", "all options"])
def test_a_stopped_run_goes_on_to_the_same_bits(whole, sounds, tmp_path, monkeypatch, options):
    """In the middle of what a report counts; the teacher is that of the step at which it stopped."""
    if options is OPTIONS:
        run(sounds, tmp_path / "whole", **options)
    undisturbed = tmp_path / "whole" if options is OPTIONS else whole[0]

    def stop(self, trainer, *_):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "on_train_batch_start", stop, raising=False)
        with pytest.raises(saving.TrainingStopped):
            run(sounds, tmp_path / "run", **options)
    state = torch.load(tmp_path / "run" / "iteration-1" / "model.ckpt", weights_only=True)["state_dict"]
    name = "model.encoder.layers.0.fc1.weight"
    assert not torch.equal(state[f"teacher.{name}"], state[f"network.{name}"])
    run(sounds, tmp_path / "run", **options)
    ours, theirs = load_file(tmp_path / "run" / "model.safetensors"), load_file(undisturbed / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert rows(tmp_path / "run") == rows(undisturbed)


def test_a_killed_run_goes_on_from_its_last_state(whole, sounds, tmp_path, monkeypatch):
    """Steps behind it are made again, and the teacher follows them once."""

    def kill(self, trainer, *_):
        if trainer.global_step == 5:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "on_train_batch_start", kill, raising=False)
        with pytest.raises(ZeroDivisionError):
            run(sounds, tmp_path / "run", model__teacher_decay=0.5)
    state = torch.load(tmp_path / "run" / "iteration-1" / "model.ckpt", weights_only=True)
    assert state["global_step"] == 4
    run(sounds, tmp_path / "run", model__teacher_decay=0.5)
    ours, theirs = load_file(tmp_path / "run" / "model.safetensors"), load_file(whole[0] / "model.safetensors")
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert rows(tmp_path / "run") == rows(whole[0])


def test_two_processes_compute_what_one_does(whole, sounds, tmp_path):
    """The same sums in another order."""
    out = tmp_path / "run"
    over = {"iterations": 1, "trainer__save_every": 2, "model__targets": "teacher", "model__teacher_decay": 0.5}
    arguments = pretrain_command(sounds, out, **over, trainer__devices=2, trainer__strategy="ddp")
    done = subprocess.run(
        [sys.executable, "-m", "torchbeats", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    two = load_file(out / "model.safetensors")
    for name, weight in load_file(whole[0] / "model.safetensors").items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(rows(whole[0]), rows(out), strict=True):
        for column in ("loss", "target_variance"):
            assert float(b[column]) == pytest.approx(float(a[column]), rel=1e-3, abs=1e-3)


def test_a_teacher_follows_once_a_step_where_gradients_accumulate(sounds, tmp_path, monkeypatch):
    followed, follow = [], Teacher.follow
    monkeypatch.setattr(Teacher, "follow", lambda self, student: (followed.append(1), follow(self, student)))
    run(sounds, tmp_path, trainer__accumulate=2, model__steps=4)
    assert len(followed) == 4


def test_a_tokenizer_can_be_distilled_from_what_came_of_it(whole, sounds, tmp_path):
    teacher = str(whole[0] / "model.safetensors")
    chosen = settings("nano", assignments=tiny_run(iterations=1, trainer__devices=1))
    Run(tmp_path / "run", [str(sounds)], chosen, teacher).train()
    assert [row["phase"] for row in rows(tmp_path / "run")] == ["tokenizer"] * 3 + ["model"] * 3


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["model.targets=students"], "model.targets must be codes or teacher"),
        (["model.targets=teacher", "iterations=2"], "no labels that a tokenizer could be made for, so iterations must"),
        (["model.teacher_decay=1"], "model.teacher_decay must be at least 0 and less than 1"),
        (["model.teacher_decay=-0.1"], "model.teacher_decay"),
        (["model.teacher_layers=7"], "model.teacher_layers must be at most the model's 6 layers"),
        (["model.teacher_layers=-1"], "model.teacher_layers"),
        (["model.teacher_norm=batch"], "model.teacher_norm must be instance or layer"),
        (["model.teacher_beta=-1"], "model.teacher_beta must be at least 0"),
        (["model.teacher_beta=.inf"], "model.teacher_beta"),
    ],
)
def test_settings_that_cannot_be_followed(assignments, said):
    with pytest.raises(SettingsError, match=said):
        settings("nano", assignments=assignments)


def test_a_model_to_distil_from_is_refused_where_nothing_is_distilled(sounds, tmp_path):
    chosen = settings("nano", assignments=tiny_run(iterations=1, model__targets="teacher"))
    with pytest.raises(SettingsError, match=r"The teacher beats-nano is there to distil a tokenizer from, and with"):
        Run(tmp_path / "run", [str(sounds)], chosen, "beats-nano")
    assert not (tmp_path / "run").exists()
