"""Settings that no model can have are told in one sentence, before anything of their size is made."""

import json
import resource
import time

import pytest
import torch
from safetensors.torch import save_file

import torchbeats
from helpers import SMALL, small_model
from torchbeats import CheckpointError

HEAD = {"finetuned_model": True, "predictor_class": 3}
LONG = "x" * 10**6
SIZES = (
    "embed_dim",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "conv_pos",
    "conv_pos_groups",
    "num_buckets",
    "max_distance",
    "input_patch_size",
    "predictor_class",
)
TABLE = "encoder.layers.1.self_attn.relative_attention_bias.weight"


def ours(path, about):
    tensors = {name: tensor for name, tensor in small_model(**HEAD).state_dict().items() if name != TABLE}
    save_file(tensors, path, {"torchbeats": json.dumps(about)})


def theirs(path, about):
    torch.save({"cfg": about["config"], "model": small_model(**HEAD).state_dict(), "label_dict": about["labels"]}, path)


FORMS = {"m.safetensors": ours, "m.pt": theirs}


def refused(tmp_path, name, **changes):
    """The sentence, once it has been seen to cost nothing."""
    about = {"version": 1, "kind": "beats", "config": {**SMALL, **HEAD}, "labels": None, **changes}
    FORMS[name](tmp_path / name, about)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        torchbeats.load(tmp_path / name)
    assert time.monotonic() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    said = str(caught.value).removeprefix(f"{tmp_path / name}: ")
    assert len(said) < 300
    assert "\n" not in said
    return said


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "value", [10**9, 10**30, 10**400, True, 0, -1, "12", 2.0, None, [], LONG, float("nan")], ids=repr
)
@pytest.mark.parametrize("setting", SIZES)
def test_sizes(tmp_path, form, setting, value):
    if setting == "encoder_layers" and type(value) is int and value >= 1:
        assert "layers; it holds 2" in refused(tmp_path, form, config={**SMALL, **HEAD, setting: value})
    else:
        assert f"{setting} must be" in refused(tmp_path, form, config={**SMALL, **HEAD, setting: value})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", ["fbank_mean", "fbank_std", "dropout", "encoder_layerdrop"])
@pytest.mark.parametrize("value", [10**400, True, float("inf"), float("nan"), "1", None, LONG], ids=repr)
def test_numbers(tmp_path, form, setting, value):
    assert f"{setting} must be" in refused(tmp_path, form, config={**SMALL, **HEAD, setting: value})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("setting", ["problem_type", "predictor_pool", "activation_fn"])
@pytest.mark.parametrize("value", [LONG, 10**30, True, [], "sigmoid"], ids=lambda value: repr(value)[:20])
def test_names(tmp_path, form, setting, value):
    assert setting.removesuffix("_fn") in refused(tmp_path, form, config={**SMALL, **HEAD, setting: value})


@pytest.mark.parametrize("setting", ["sample_frequency", "num_mel_bins"])
@pytest.mark.parametrize("value", [10**30, 10**400, True])
def test_another_front_end(tmp_path, setting, value):
    assert f"front end: {setting}" in refused(tmp_path, "m.pt", config={**SMALL, **HEAD, setting: value})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "labels",
    [
        5,
        True,
        LONG,
        {LONG: "a"},
        {"0": "a"},
        {"a": True, "b": False, "c": 2},
        {10**30: "a", 1: "b", 2: "c"},
        [[], [], []],
    ],
    ids=lambda labels: repr(labels)[:20],
)
def test_labels(tmp_path, form, labels):
    assert "label" in refused(tmp_path, form, labels=labels)


@pytest.mark.parametrize("kind", [[], {}, None, True, 10**30, "beast", LONG], ids=lambda kind: repr(kind)[:20])
def test_kinds(tmp_path, kind):
    assert "this version of torchbeats does not know" in refused(tmp_path, "m.safetensors", kind=kind)


@pytest.mark.parametrize("version", [True, 1.0, 2, 10**30, [], None, LONG], ids=lambda version: repr(version)[:20])
def test_versions(tmp_path, version):
    assert "newer torchbeats" in refused(tmp_path, "m.safetensors", version=version)


def bomb(levels):
    value = ["x"]
    for _ in range(levels):
        value = [value] * 9
    return value


def within_itself():
    value = {}
    value["again"] = [value]
    return value


@pytest.mark.parametrize(("levels", "make"), [(60, bomb), (0, lambda _: within_itself())])
def test_a_setting_that_unfolds_without_end(tmp_path, levels, make):
    """Nothing is built from it, but it would be kept, and written."""
    assert "'extra' holds more than 100,000 values" in refused(
        tmp_path, "m.pt", config={**SMALL, **HEAD, "extra": make(levels)}
    )
    theirs(tmp_path / "m.pt", {"config": {**SMALL, **HEAD, "extra": bomb(3)}, "labels": None})
    torchbeats.save(torchbeats.load(tmp_path / "m.pt"), tmp_path / "m.safetensors")
    assert torchbeats.load(tmp_path / "m.safetensors").cfg.extra == bomb(3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_that_were_rounded(tmp_path, dtype):
    """As they are they would be the weights of another model; integers that belong to it stay integers."""
    model = small_model()
    weights = model.state_dict()
    weights["layer_norm.weight"] = model.state_dict()["layer_norm.weight"].to(dtype)
    torch.save({"cfg": SMALL, "model": weights}, tmp_path / "m.pt")
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(CheckpointError, match=f"no floating-point numbers: layer_norm.weight .{name}"):
        torchbeats.load(tmp_path / "m.pt")
