"""Every published weight format in, one safetensors file out, and a sentence for whatever is none of them.

Loading changes no weight, so outputs are compared for equality, not closeness.
"""

import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from contextlib import suppress

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import torchbeats
from helpers import SMALL, noise, small_model, small_tokenizer
from torchbeats import BEATs, BEATsConfig, CheckpointError, Tokenizers, files
from torchbeats.weights import checkpoint, hub

LABELS = {2: "/m/09x0r", 0: "/m/04rlf", 1: "dog, barking"}  # in an order of its own
NAMES = ["Music", "dog, barking", "Speech"]
HEAD = {"finetuned_model": True, "predictor_class": 3}
TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
PARAMETRIZED = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def labelled(**fields):
    model = small_model(**{**HEAD, **fields})
    model.label_dict = dict(LABELS)
    return model


def answers(model):
    """All that a model says of two clips of different length."""
    wav = torch.zeros(2, 20_000)
    wav[0], wav[1, :9_000] = torch.from_numpy(noise(1.25, seed=1)), torch.from_numpy(noise(0.5625, seed=2))
    lengths = torch.tensor([20_000, 9_000])
    with torch.no_grad():
        if isinstance(model, Tokenizers):
            return [model.encode(wav, lengths).labels]
        encoded = model.encode(wav, lengths)
        found = [encoded.x.masked_fill(encoded.padding_mask.unsqueeze(-1), 0)]
        return found if model.predictor is None else [*found, model.forward(wav, lengths=lengths)[1]]


def assert_same(loaded, source):
    assert type(loaded) is type(source)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert len(list(loaded.parameters())) == len(list(source.parameters()))  # the position table is still one
    for one, other in zip(answers(loaded), answers(source), strict=True):
        assert torch.equal(one, other)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def content(model=None):
    """A file as Microsoft writes it, open to changes."""
    model = model or small_model()
    return {"cfg": model.cfg.to_dict(), "model": state(model)}


# --- ours -------------------------------------------------------------------------------------------------------------

MODELS = {
    "plain": small_model,
    "labels": labelled,
    "head without labels": lambda: small_model(**HEAD, problem_type="single_label"),
    "tokenizer": small_tokenizer,
}


@pytest.mark.filterwarnings("ignore:.*single-label model")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_round_trip(tmp_path, make, suffix):
    model = make()
    path = tmp_path / "new folder" / f"model{suffix}"
    torchbeats.save(model, path)
    loaded = torchbeats.load(path)
    assert_same(loaded, model)
    assert loaded.cfg == model.cfg
    assert loaded.cfg.to_dict() == model.cfg.to_dict()
    assert loaded.label_dict == model.label_dict
    torchbeats.save(loaded, path)  # over the very file that its tensors may still be mapped to
    assert_same(torchbeats.load(str(path)), model)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.filterwarnings("ignore:.*single-label model")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_one_file_is_a_whole_model(tmp_path, suffix):
    model = BEATs(
        BEATsConfig(
            {**SMALL, **HEAD, "problem_type": "single_label", "fbank_mean": 11.5, "fbank_std": 3.25}
            | {"espnet_extra": {"a": [1, 2.5, None]}, "learning_rate": 5e-4, "no_json": {1, 2}}
        )
    )
    model.label_dict = dict(LABELS)
    torchbeats.save(model, tmp_path / f"model{suffix}")
    loaded = torchbeats.load(tmp_path / f"model{suffix}")
    assert loaded.labels == NAMES
    statistics = (15.41663, 6.55582) if suffix == ".pt" else (11.5, 3.25)  # there they are in the patch embedding
    assert (loaded.cfg.problem_type, loaded.cfg.fbank_mean, loaded.cfg.fbank_std) == ("single_label", *statistics)
    assert (loaded.cfg.espnet_extra, loaded.cfg.learning_rate) == ({"a": [1, 2.5, None]}, 5e-4)
    assert "no_json" not in loaded.cfg.to_dict()
    torch.testing.assert_close(answers(loaded)[1].sum(-1), torch.ones(2))  # softmax
    if suffix == ".safetensors":
        assert_same(loaded, model)
    else:
        torch.testing.assert_close(answers(loaded), answers(model), atol=1e-5, rtol=0)


def test_position_table_is_stored_once(tmp_path):
    model = small_model()
    torchbeats.save(model, tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert [name for name in file.keys() if "relative_attention_bias" in name] == [TABLE.format(0)]  # noqa: SIM118
        assert json.loads(file.metadata()["torchbeats"])["kind"] == "beats"
    torchbeats.save(model, tmp_path / "theirs.pt")
    stored = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert set(stored) == {"cfg", "model"}
    tables = [stored["model"][TABLE.format(layer)] for layer in range(2)]  # the research code wants it under each
    assert tables[0].data_ptr() == tables[1].data_ptr()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_loaded_model_can_be_trained_and_the_file_stays(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torchbeats.save(small_model(), path)
    before = path.read_bytes()
    model = BEATs(path, freeze=False)
    model.extract_features(torch.from_numpy(noise(0.5)).unsqueeze(0))[0].square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.mul_(2)
    assert model.patch_embedding.weight.grad.abs().sum() > 0
    assert path.read_bytes() == before
    assert not any(p.requires_grad for p in BEATs(path).parameters())


def test_load_takes_dtype(tmp_path):
    torchbeats.save(small_model(), tmp_path / "m.safetensors")
    model = torchbeats.load(tmp_path / "m.safetensors", dtype=torch.bfloat16, freeze=False)
    assert model.patch_embedding.weight.dtype == torch.bfloat16
    assert model.training


def test_load_without_a_name_is_the_built_in_model_and_says_so():
    with pytest.warns(UserWarning, match=r"built-in model beats-nano .* larger one, such as beats-iter3-plus-as2m"):
        model = torchbeats.load()
    assert sum(p.numel() for p in model.parameters()) <= 6_000_000
    assert hub.BUILT_INS[hub.BUILT_IN].stat().st_size <= 12_000_000
    named = torchbeats.load("beats-nano")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), named.parameters(), strict=True))


def test_save_refuses_other_names(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors, \.pt, \.pth; .*m\.bin does not"):
        torchbeats.save(small_model(), tmp_path / "m.bin")


# --- theirs -----------------------------------------------------------------------------------------------------------


def microsoft(folder):
    model = small_model()
    torch.save(content(model), folder / "m.pt")
    return folder / "m.pt", model, None


def microsoft_legacy(folder):
    """As PyTorch before 1.6 wrote it, as parameters rather than tensors, newer names for the convolution."""
    model = small_model()
    stored = {rename(name): torch.nn.Parameter(tensor) for name, tensor in state(model).items()}
    said = {"cfg": model.cfg.to_dict(), "model": OrderedDict(stored)}
    torch.save(said, folder / "m.pt", _use_new_zipfile_serialization=False)
    return folder / "m.pt", model, None


def microsoft_finetuned(folder):
    model = labelled()
    torch.save({**content(model), "label_dict": LABELS}, folder / "m.pt")
    return folder / "m.pt", model, NAMES


def microsoft_tokenizer(folder):
    model = small_tokenizer()
    torch.save(content(model), folder / "Tokenizer.pt")
    return folder / "Tokenizer.pt", model, None


def openbeats(folder):
    model = small_model(fbank_mean=11.7, fbank_std=4.5)
    stored = content(model)
    stored["cfg"] |= {"codebook_vocab_size": 1024, "mask_ratio": 0.75, "use_flash_attn": False}
    stored["model"] |= {"patch_embedding_pad.weight": torch.ones(1, 1, 16, 16), "raw2fbank_pad.weight": torch.ones(3)}
    torch.save(stored, folder / "epoch_latest.pt")
    return folder / "epoch_latest.pt", model, None


def openbeats_finetuned(folder, kind="multi-label", symbols=("<blank>", "<unk>"), **encoder_conf):
    """``encoder_conf`` may hold what should be refused."""
    problem = "multi_label" if kind == "multi-label" else "single_label"
    model = labelled(max_distance=800, fbank_mean=11.7, fbank_std=4.5, problem_type=problem)
    stored = {
        name.replace("predictor", "decoder.linear_out") if name.startswith("predictor") else f"encoder.{name}": tensor
        for name, tensor in state(model).items()
    }
    stored["encoder.patch_embedding_pad.weight"] = torch.ones(1)
    torch.save(stored, folder / "valid.acc.best.pth")
    said = {
        "token_list": [LABELS[0], LABELS[1], LABELS[2], *symbols],
        "model_conf": {"classification_type": kind},
        "encoder_conf": {"fbank_mean": 11.7, "fbank_std": 4.5, "beats_config": {"dropout": 0.0}, **encoder_conf},
        "decoder_conf": {"pooling": "mean"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(said))
    return folder / "valid.acc.best.pth", model, NAMES


def avex(folder, prefix="", head=True, labels="index", dtype=torch.float32):
    model = labelled(max_distance=800) if head else small_model(max_distance=800)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.to(dtype))
    stored = {f"{prefix}{rename(name)}": tensor.to(dtype) for name, tensor in state(model).items()}
    del stored[prefix + TABLE.format(1)]  # safetensors hold a tensor once
    if head:
        for part in ("weight", "bias"):
            stored[f"classifier.{part}"] = stored.pop(f"{prefix}predictor.{part}")
            if prefix:
                stored[f"{prefix}predictor.{part}"] = torch.full((527,), torch.nan)  # of what it was tuned from
        table = {str(i): name for i, name in LABELS.items()} if labels == "index" else {v: k for k, v in LABELS.items()}
        (folder / "label_map.json").write_text(json.dumps(table))
    save_file(stored, folder / "esp.safetensors")
    return folder / "esp.safetensors", model, NAMES if head else None


def rename(name):
    stem, _, last = name.rpartition(".")
    return f"{stem}.{PARAMETRIZED.get(last, last)}"


FAMILIES = {
    "Microsoft": microsoft,
    "Microsoft, old file": microsoft_legacy,
    "Microsoft, fine-tuned": microsoft_finetuned,
    "Microsoft, tokenizer": microsoft_tokenizer,
    "OpenBEATs": openbeats,
    "OpenBEATs, multi-label": openbeats_finetuned,
    "OpenBEATs, multi-class": lambda folder: openbeats_finetuned(folder, "multi-class", ["<unk>"]),
    "AVEX, flat, no head": lambda folder: avex(folder, head=False),
    "AVEX, flat": avex,
    "AVEX, backbone": lambda folder: avex(folder, "backbone.", labels="name"),
    "AVEX, half": lambda folder: avex(folder, "backbone.", dtype=torch.float16),
}


@pytest.mark.parametrize("write", FAMILIES.values(), ids=FAMILIES)
def test_family(tmp_path, write):
    path, source, names = write(tmp_path)
    loaded = torchbeats.load(path)
    assert_same(loaded, source)
    for name in ("problem_type", "fbank_mean", "fbank_std", "encoder_layers", "predictor_class", "max_distance"):
        assert getattr(loaded.cfg, name) == getattr(source.cfg, name), name
    if names is None:
        assert loaded.label_dict is None
    else:
        assert loaded.labels == names
        assert loaded.label_dict == LABELS
    torchbeats.save(loaded, tmp_path / "ours.safetensors")
    for stray in (*tmp_path.glob("*.json"), *tmp_path.glob("*.yaml")):
        stray.unlink()
    again = torchbeats.load(tmp_path / "ours.safetensors")
    assert_same(again, source)
    assert again.label_dict == loaded.label_dict
    assert again.cfg.to_dict() == loaded.cfg.to_dict()


def test_extra_settings_of_openbeats_are_kept(tmp_path):
    assert torchbeats.load(openbeats(tmp_path)[0]).cfg.codebook_vocab_size == 1024


def test_config_above_the_checkpoint_in_the_hub_cache(tmp_path):
    folder = tmp_path / "models--o--r" / "snapshots" / "c0ffee"
    (folder / "exp" / "a").mkdir(parents=True)
    _, source, _ = openbeats_finetuned(folder)
    (folder / "valid.acc.best.pth").rename(folder / "exp" / "a" / "valid.acc.best.pth")
    assert_same(torchbeats.load(folder / "exp" / "a" / "valid.acc.best.pth"), source)


def test_right_kind(tmp_path):
    model, tokenizer = microsoft(tmp_path)[0], microsoft_tokenizer(tmp_path)[0]
    assert type(torchbeats.load(model)) is BEATs
    assert type(torchbeats.load(tokenizer)) is Tokenizers
    for kind, path, said in ((BEATs, tokenizer, r"Tokenizer\.pt: this is a tokenizer"), (Tokenizers, model, "a model")):
        with pytest.raises(CheckpointError, match=f"{said} checkpoint.*torchbeats.load"):
            kind(path)


# --- faults -----------------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def with_state(change):
    """A file whose tensors have been changed."""

    def write(path):
        stored = content()
        change(stored["model"])
        torch.save(stored, path)

    return write


def with_cfg(**changes):
    def write(path):
        stored = content()
        stored["cfg"] |= changes
        torch.save(stored, path)

    return write


def saved(value):
    return lambda path: torch.save(value() if callable(value) else value, path)


def holding(data):
    return lambda path: path.write_bytes(data)


def finetuned(label_dict):
    return saved(lambda: {**content(labelled()), "label_dict": label_dict})


def drop(count):
    def change(tensors):
        for name in list(tensors)[:count]:
            del tensors[name]

    return with_state(change)


def spoil(value, dtype=torch.float32):
    def change(tensors):
        tensors["encoder.layers.1.fc1.bias"] = tensors["encoder.layers.1.fc1.bias"].to(dtype)
        tensors["encoder.layers.1.fc1.bias"][3] = value

    return with_state(change)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 362000000\n"
FAULTS = {
    "empty": (holding(b""), "the file is empty"),
    "html": (holding(b"\n <!DOCTYPE html><html><body>404</body></html>"), "web page, not a checkpoint: the link"),
    "html without doctype": (holding(b"<HTML>Sign in to OneDrive</HTML>" * 100), "web page"),
    "xml": (holding(b'\xef\xbb\xbf<?xml version="1.0"?><Error>PublicAccessNotPermitted</Error>'), "web page"),
    "git-lfs": (holding(LFS), "git lfs pull"),
    "text": (holding(b"BEATs" * 100), "not a checkpoint"),
    "zeros": (holding(bytes(5000)), "damaged"),
    "list": (saved([1, 2]), "it holds a list"),
    "tensor": (saved(torch.ones(3)), "it holds a Tensor"),
    "nothing in it": (saved({}), "no tensors"),
    "no cfg": (saved(lambda: {"model": state(small_model())}), 'no "cfg"'),
    "cfg a string": (saved(lambda: {**content(), "cfg": "base"}), "config must be a dictionary .* not str"),
    "cfg a list of pairs": (saved(lambda: {**content(), "cfg": [("a", 1)]}), "config must be a dictionary"),
    "cfg with numbers for names": (saved(lambda: {**content(), "cfg": {1: 2}}), "config must be a dictionary"),
    "layers a string": (with_cfg(encoder_layers="2"), "encoder_layers must be of type int, not '2'"),
    "layers none": (with_cfg(encoder_layers=None), "encoder_layers"),
    "layers negative": (with_cfg(encoder_layers=-1), "encoder_layers must be at least 1"),
    "dropout a list": (with_cfg(dropout=[0.1]), "dropout must be of type float"),
    "dropout impossible": (with_cfg(dropout=7.0), "dropout"),
    "activation unknown": (with_cfg(activation_fn="tanhh"), "tanhh"),
    "width of another": (with_cfg(encoder_embed_dim=47), "multiple of encoder_attention_heads"),
    "width enormous": (with_cfg(encoder_embed_dim=48 * 10**9), "config"),
    "setting named like a method": (with_cfg(check=1, to_dict=2, update=3), "config"),
    "resnet": (
        saved(lambda: torch.nn.Conv2d(3, 4, 3).state_dict()),
        "not a BEATs checkpoint: it has no .*weight, bias",
    ),
    "resnet with cfg": (
        saved(lambda: {"cfg": {}, "model": {f"layer{i}.weight": torch.ones(2) for i in range(9)}}),
        r"another model: it has layer0.weight, .*, layer7.weight and 1 more",
    ),
    "training state": (
        saved(lambda: {"state_dict": {"a": torch.ones(1)}, "epoch": 3}),
        "what it has under 'state_dict' are weights of another model: a",
    ),
    "one missing": (drop(1), r"it lacks patch_embedding.weight\. It is damaged"),
    "seven missing": (drop(7), r"it lacks patch_embedding.weight, (\S+, ){5}\S+\."),
    "extra": (with_state(lambda t: t.update(more=torch.ones(2))), "do not belong to the model: more"),
    "misshapen": (
        with_state(lambda t: t.update({"layer_norm.weight": torch.ones(31)})),
        r"wrong: layer_norm.weight \(31,\) instead of \(32,\)",
    ),
    "missing, extra and misshapen": (
        with_state(lambda t: t.update({"lost": t.pop("layer_norm.bias"), "layer_norm.weight": torch.ones(1, 32)})),
        r"lacks layer_norm\.bias; .* lost; .* \(1, 32\) instead of \(32,\)",
    ),
    "nan": (spoil(torch.nan), "NaN or infinite weights, in encoder.layers.1.fc1.bias"),
    "infinite": (spoil(torch.inf), "NaN or infinite"),
    "nan in half": (spoil(torch.nan, torch.bfloat16), "NaN or infinite"),
    "beyond float32": (spoil(1e300, torch.float64), "NaN or infinite"),
    "no values": (
        with_state(lambda t: t.update({"layer_norm.bias": torch.ones(32, device="meta")})),
        "layer_norm.bias",
    ),
    "sparse": (with_state(lambda t: t.update({"layer_norm.bias": torch.ones(32).to_sparse()})), "layer_norm.bias"),
    "complex": (with_state(lambda t: t.update({"layer_norm.bias": torch.ones(32) * 1j})), "layer_norm.bias"),
    "two labels for three classes": (finetuned({0: "a", 1: "b"}), "2 labels for a head of 3"),
    "labels that skip a number": (finetuned({0: "a", 1: "b", 3: "c"}), "3 labels for a head of 3|labels"),
    "labels a number": (finetuned(3), "labels cannot be read"),
    "labels at infinity": (finetuned({"a": float("inf"), "b": 0, "c": 1}), "labels cannot be read"),
}


@pytest.mark.parametrize(("write", "said"), FAULTS.values(), ids=FAULTS)
def test_fault(tmp_path, write, said):
    path = tmp_path / "model.pt"
    write(path)
    with pytest.raises(CheckpointError, match=said) as caught:
        torchbeats.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith(".")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.pt", "none.safetensors"):
        for load in (torchbeats.load, BEATs, Tokenizers):
            with pytest.raises(FileNotFoundError, match="none"):
                load(path)
    with pytest.raises(CheckpointError, match="this is a folder"):
        BEATs(tmp_path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["whole", "cfg", "model"])
def test_nothing_is_executed(tmp_path, where, legacy):
    target, path = tmp_path / "executed", tmp_path / "model.pt"
    stored = content()
    if where == "whole":
        stored = Bomb(target)
    elif where == "cfg":
        stored["cfg"]["bomb"] = Bomb(target)
    else:
        stored["model"]["patch_embedding.weight"] = Bomb(target)
    torch.save(stored, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"it wants to run code on loading \(\w+\.system\), which .* never"):
        torchbeats.load(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the bomb is live
    assert target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_plain_pickle_and_pickled_module(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(CheckpointError):
        torchbeats.load(path)
    assert not (tmp_path / "executed").exists()
    torch.save(small_model(), path)
    with pytest.raises(CheckpointError, match=r"run code on loading \(torchbeats\.model\.BEATs\)"):
        torchbeats.load(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Bytes of a good file in each format."""
    folder = tmp_path_factory.mktemp("whole")
    torchbeats.save(labelled(), folder / "ours.safetensors")
    torchbeats.save(labelled(), folder / "zip.pt")
    torch.save({**content(labelled()), "label_dict": LABELS}, folder / "old.pt", _use_new_zipfile_serialization=False)
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


CUTS = [1, 8, 9, 100, 0.1, 0.5, 0.9, -1000, -100, -1]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("form", ["ours", "zip", "old"])
def test_cut_off(tmp_path, whole, form, cut):
    data = whole[form]
    (tmp_path / "m").write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(CheckpointError, match=r"damaged|cut off|not a checkpoint"):
        checkpoint.source(tmp_path / "m", BEATsConfig)


STARTS = [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\x00(", b"\x40\0\0\0\0\0\0\0{", b"\x02\0\0\0\0\0\0\0{}"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=80, deadline=None, derandomize=True)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_random_bytes(tmp_path_factory, start, rest):
    path = tmp_path_factory.getbasetemp() / "random.pt"
    path.write_bytes(start + rest)
    with pytest.raises(CheckpointError):
        torchbeats.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    form=st.sampled_from(["ours", "zip", "old"]),
    changes=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_bytes(tmp_path_factory, whole, form, changes):
    data = bytearray(whole[form])
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(data)
    with suppress(CheckpointError):  # any file is a model, or this
        torchbeats.load(path)


HOSTILE = {
    "not JSON": "{",
    "a list": "[]",
    "null": "null",
    "no config": '{"version": 1, "kind": "beats", "labels": null}',
    "config a list": '{"version": 1, "kind": "beats", "config": [], "labels": null}',
    "config too large": '{"version": 1, "kind": "beats", "config": {"encoder_layers": 1e999}, "labels": null}',
    "labels nested": json.dumps({"version": 1, "kind": "beats", "config": {**SMALL, **HEAD}, "labels": {"0": {}}}),
    "another kind": json.dumps({"version": 1, "kind": "tokenizer", "config": SMALL, "labels": None}),
    "newer": json.dumps({"version": 2, "kind": "beats", "config": SMALL, "labels": None}),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("about", HOSTILE.values(), ids=HOSTILE)
def test_hostile_metadata(tmp_path, about):
    save_file(
        state(small_model()) | {TABLE.format(1): torch.zeros(32, 4)}, tmp_path / "m.safetensors", {"torchbeats": about}
    )
    with pytest.raises(CheckpointError):
        torchbeats.load(tmp_path / "m.safetensors")


def test_newer_format_is_named(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "m.safetensors", {"torchbeats": HOSTILE["newer"]})
    with pytest.raises(CheckpointError, match=r"newer torchbeats \(format 2\); upgrade"):
        torchbeats.load(tmp_path / "m.safetensors")


def rewritten(change):
    def write(folder):
        path = openbeats_finetuned(folder)[0]
        said = yaml.safe_load((folder / "config.yaml").read_text())
        change(said)
        (folder / "config.yaml").write_text(yaml.safe_dump(said))
        return path

    return write


SIDECARS = {
    "no config.yaml": (lambda f: (openbeats_finetuned(f)[0], (f / "config.yaml").unlink())[0], "needs its config.yaml"),
    "config.yaml is no YAML": (
        lambda f: (openbeats_finetuned(f)[0], (f / "config.yaml").write_text("a: [1"))[0],
        "is not YAML",
    ),
    "config.yaml runs code": (
        lambda f: (openbeats_finetuned(f)[0], (f / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []"))[
            0
        ],
        "is not YAML",
    ),
    "config.yaml a bomb": (
        lambda f: (openbeats_finetuned(f)[0], (f / "config.yaml").write_text("[" + "1," * 4_000_000 + "]"))[0],
        "holds more than 150,000 values",
    ),
    "config.yaml a list": (
        lambda f: (openbeats_finetuned(f)[0], (f / "config.yaml").write_text("[1]"))[0],
        "holds a list",
    ),
    "head of attention": (rewritten(lambda y: y.update(decoder_conf={"pooling": "attention"})), "pools by attention"),
    "adapter": (lambda f: openbeats_finetuned(f, adapter_config="a.json")[0], "adapter_config"),
    "too few labels": (rewritten(lambda y: y.update(token_list=["a", "b"])), "2 labels for a head of 3"),
    "encoder_conf a list": (rewritten(lambda y: y.update(encoder_conf=[1])), "encoder_conf|config"),
    "beats_config a number": (rewritten(lambda y: y["encoder_conf"].update(beats_config=3)), "beats_config|config"),
    "labels a list of two": (
        lambda f: (avex(f)[0], (f / "label_map.json").write_text('{"0": "a", "1": "b"}'))[0],
        "2 labels for a head of 3",
    ),
    "labels no JSON": (lambda f: (avex(f)[0], (f / "label_map.json").write_text("{"))[0], "cannot be read"),
}


@pytest.mark.parametrize(("write", "said"), SIDECARS.values(), ids=SIDECARS)
def test_fault_beside(tmp_path, write, said):
    path = write(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        torchbeats.load(path)


def test_finetuned_without_label_names(tmp_path):
    path, source, _ = avex(tmp_path)
    (tmp_path / "label_map.json").unlink()
    loaded = torchbeats.load(path)
    assert loaded.labels is None
    assert_same(loaded, source)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_replacing_is_all_or_nothing(tmp_path, error):
    path = tmp_path / "a" / "file"
    with pytest.raises(error), files.replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert list(path.parent.iterdir()) == []
    with files.replacing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()
    with pytest.raises(error), files.replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"m{suffix}"
    torchbeats.save(small_model(), path)
    before = path.read_bytes()

    def break_off(*arguments):
        target = next(a for a in arguments if isinstance(a, os.PathLike))
        target.write_bytes(before[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", break_off)
    monkeypatch.setattr("torch.save", break_off)
    with pytest.raises(OSError, match="no space left on device"):
        torchbeats.save(small_model(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_mode_follows_umask(tmp_path, umask, mode, suffix):
    before = os.umask(umask)
    try:
        torchbeats.save(small_model(), tmp_path / f"m{suffix}")
    finally:
        os.umask(before)
    assert (tmp_path / f"m{suffix}").stat().st_mode & 0o777 == mode


# --- memory -----------------------------------------------------------------------------------------------------------

# Not by getrusage, whose peak a child inherits from the process that started it.
PEAK = """
import re, sys, safetensors.torch, torchbeats
from pathlib import Path
held = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = held("VmRSS")
model = torchbeats.load(sys.argv[1])
print(held("VmHWM") - before, sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory from /proc")
def test_loading_peaks_at_little_more_than_the_model(tmp_path, monkeypatch):
    """At most 1.3 × the model's size above what the process held before; at least 0.9, or nothing was measured."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # saves seconds
    torch.manual_seed(0)
    model = BEATs(BEATsConfig(torchbeats.config.SIZES["base"], encoder_layers=8))  # 62 M parameters
    for name in ("base.safetensors", "base.pt"):
        torchbeats.save(model, tmp_path / name)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        peak, size = map(int, done.stdout.split())
        assert size > 60e6 * 4
        assert 0.9 <= peak / size <= 1.3, name
        (tmp_path / name).unlink()


def test_a_config_of_another_depth_is_refused_before_anything_is_built(tmp_path):
    model = small_model()
    content = {"cfg": {**model.cfg.to_dict(), "encoder_layers": 10**9}, "model": model.state_dict()}
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="speaks of 1000000000 layers; it holds 2"):
        BEATs(tmp_path / "m.pt")


def test_half_of_another_model(tmp_path):
    model = small_model()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "fc1" in name}
    torch.save({"cfg": model.cfg.to_dict(), "model": tensors}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="another model: it lacks patch_embedding"):
        BEATs(tmp_path / "m.pt")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = small_model()
    for name in ("a", "b"):
        torchbeats.save(model, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_head_that_was_taken_off_or_exchanged(tmp_path, suffix):
    model = small_model(finetuned_model=True, predictor_class=3)
    model.label_dict = {0: "a", 1: "b", 2: "c"}
    wav = torch.randn(1, 8000)

    def saved():
        torchbeats.save(model, tmp_path / f"model{suffix}")
        return torchbeats.load(tmp_path / f"model{suffix}")

    assert saved().labels == ["a", "b", "c"]
    model.predictor = torch.nn.Linear(48, 5)
    again = saved()
    assert again.labels is None
    torch.testing.assert_close(again(wav)[1], model(wav)[1])
    model.predictor = None
    again = saved()
    assert again.predictor is None
    torch.testing.assert_close(again(wav)[0], model(wav)[0])
    assert model.cfg.finetuned_model
    model.predictor = torch.nn.Sequential(torch.nn.Linear(48, 5))
    with pytest.raises(ValueError, match=r"predictor is a Sequential.*predictor = None"):
        saved()
