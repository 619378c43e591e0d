"""Weights as training programs leave them: read where there is no doubt, and told why where there is."""

import argparse
import datetime
import pathlib

import numpy as np
import pytest
import torch

import torchbeats
from helpers import noise, small_model
from torchbeats import CheckpointError

HEAD = {"finetuned_model": True, "predictor_class": 3}
LABELS = {0: "cat", 1: "dog", 2: "hen"}


def model(**fields):
    return small_model(max_distance=800, **fields)


def named(source, prefix):
    return {prefix + name: tensor.clone() for name, tensor in source.state_dict().items()}


def assert_reads(path, source):
    loaded = torchbeats.load(path)
    wav = torch.from_numpy(noise(0.5)).unsqueeze(0)
    for ours, expected in zip(loaded(wav), source(wav), strict=True):
        assert torch.equal(ours, expected)
    return loaded


def adam(source):
    return {"state": {i: {"step": torch.tensor(3.0)} for i, _ in enumerate(source.parameters())}, "param_groups": []}


def lightning(source, prefix="model."):
    return {
        "state_dict": named(source, prefix),
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "optimizer_states": [adam(source)],
        "lr_schedulers": [],
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": pathlib.Path("runs")}},
    }


WRAPPED = {
    "Lightning": lightning,
    "Lightning, compiled": lambda m: lightning(m, "model._orig_mod."),
    "Lightning, an attribute of another name": lambda m: lightning(m, "net.beats."),
    "model_state_dict": lambda m: {"model_state_dict": named(m, ""), "optimizer_state_dict": adam(m), "epoch": 1},
    "DistributedDataParallel": lambda m: {"model_state_dict": named(m, "module."), "epoch": 1},
    "DistributedDataParallel, compiled": lambda m: {"model": named(m, "module._orig_mod."), "optimizer": adam(m)},
    "a tensor beside": lambda m: {"state_dict": named(m, "model."), "best": torch.tensor(0.5)},
    "bare, wrapped": lambda m: named(m, "module."),
    "each layer compiled": lambda m: {
        "state_dict": {
            name.replace("encoder.layers.0.", "encoder.layers.0._orig_mod."): tensor
            for name, tensor in named(m, "").items()
        }
    },
    "another key": lambda m: {"network": named(m, ""), "step": 3},
}


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_unwrapped(tmp_path, wrap, head, recwarn):
    source = model(**HEAD) if head else model()
    torch.save(wrap(source), tmp_path / "last.ckpt")
    assert_reads(tmp_path / "last.ckpt", source)
    said = [str(warning.message) for warning in recwarn]
    if wrap is not WRAPPED["bare, wrapped"]:  # which has always been read so
        assert [("no settings beside its weights" in text, "a sigmoid" in text) for text in said] == [(True, head)]


def test_settings_beside_the_weights_are_used(tmp_path, recwarn):
    source = small_model(fbank_mean=11.0, max_distance=77, deep_norm=False)
    for place in ({"cfg": source.cfg.to_dict()}, {"hyper_parameters": {"cfg": source.cfg.to_dict(), "lr": 1e-3}}):
        torch.save({**lightning(source), **place}, tmp_path / "m.ckpt")
        loaded = assert_reads(tmp_path / "m.ckpt", source)
        assert loaded.cfg.max_distance == 77
    torch.save({"cfg": source.cfg.to_dict(), "model": named(source, "module.")}, tmp_path / "m.pt")
    assert_reads(tmp_path / "m.pt", source)
    assert not recwarn.list


def test_labels_beside_the_weights_are_used(tmp_path):
    source = model(**HEAD)
    torch.save({**lightning(source), "label_dict": LABELS}, tmp_path / "m.ckpt")
    with pytest.warns(UserWarning, match="no settings"):
        assert torchbeats.load(tmp_path / "m.ckpt").label_dict == LABELS


def test_plain_objects_of_trainers_are_passed_over(tmp_path):
    source = model()
    content = lightning(source) | {
        "reporter": {"time": datetime.timedelta(seconds=3), "loss": np.float64(0.5), "count": np.int64(3)},
        "hyper_parameters": {"arguments": argparse.Namespace(out=pathlib.Path("x"), now=datetime.datetime.now())},
    }
    torch.save(content, tmp_path / "m.ckpt")
    with pytest.warns(UserWarning, match="no settings"):
        assert_reads(tmp_path / "m.ckpt", source)


def beside_a_loss(source):
    return {"state_dict": {**named(source, "model."), "criterion.weight": torch.ones(3), "train_acc.tp": torch.ones(1)}}


def half_wrapped(source):
    return {
        "state_dict": {
            ("module." if "layers.0" in name else "") + name: tensor for name, tensor in named(source, "").items()
        }
    }


REFUSED = {
    "beside a loss": (beside_a_loss, r"under 'model', beside tensors of something else: criterion\.weight, train_acc"),
    "half wrapped": (half_wrapped, r"parts of a BEATs under several names: 'no name', 'module'"),
    "two models": (
        lambda m: {"model": named(m, ""), "ema": named(m, "")},
        r"weights of several models, under 'model', 'ema'",
    ),
    "student and teacher": (
        lambda m: {"state_dict": {**named(m, "student."), **named(m, "teacher.")}},
        "'student', 'teacher'",
    ),
    "twice": (
        lambda m: {"state_dict": {**named(m, ""), **named(m, "_orig_mod.")}},
        "twice, with and without a wrapper: _orig_mod",
    ),
    "of another model": (
        lambda _: {"state_dict": {"conv1.weight": torch.ones(3)}, "epoch": 3},
        r"what it has under 'state_dict' are weights of another model: conv1\.weight",
    ),
    "no tensors": (lambda _: {"state_dict": {"a": 3}}, r"no tensors under 'state_dict': a"),
    "empty": (lambda _: {"state_dict": {}}, r"no tensors under 'state_dict'"),
}


@pytest.mark.parametrize(("write", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_in_doubt_is_told(tmp_path, write, said):
    torch.save(write(model()), tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match=said):
        torchbeats.load(tmp_path / "m.ckpt")
