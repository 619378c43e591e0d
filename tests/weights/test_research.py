"""Files for the research code: what it computes from them, by its own arithmetic, is what the model computes."""

import pytest
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer
from torchbeats import BEATs, BEATsConfig, RandomProjectionTokenizer, Tokenizers, TokenizersConfig
from torchbeats.config import FBANK_MEAN, FBANK_STD

OWN = {"fbank_mean": 11.7, "fbank_std": 4.5}


def as_the_research_code_reads(path, kind):
    """A model from the file's settings and tensors, which normalises by the published statistics whatever they say."""
    stored = torch.load(path, weights_only=True)
    settings = {name: value for name, value in stored["cfg"].items() if name not in OWN}
    model = {BEATs: lambda: BEATs(BEATsConfig(settings)), Tokenizers: lambda: Tokenizers(TokenizersConfig(settings))}
    model = model[kind]()
    model.load_state_dict(stored["model"], strict=True)
    assert (model.cfg.fbank_mean, model.cfg.fbank_std) == (FBANK_MEAN, FBANK_STD)
    return model, stored


@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("make", [small_model, small_tokenizer])
def test_own_statistics_are_folded_into_the_patch_embedding(tmp_path, make, conv_bias):
    model = make(**OWN, conv_bias=conv_bias)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torchbeats.save(model, tmp_path / "m.pt")
    theirs, stored = as_the_research_code_reads(tmp_path / "m.pt", type(model))
    wav = torch.from_numpy(noise(1.0)).unsqueeze(0)
    for reader in (theirs, torchbeats.load(tmp_path / "m.pt")):
        expected = model.embed_patches(model.preprocess(wav))
        torch.testing.assert_close(reader.embed_patches(reader.preprocess(wav)), expected, atol=1e-5, rtol=0)
        features, hiddens = (m.encode_features(m.preprocess(wav))[0].x for m in (reader, model))
        torch.testing.assert_close(features, hiddens, atol=2e-5, rtol=0)
    assert (stored["cfg"]["fbank_mean"], stored["cfg"]["fbank_std"]) == (FBANK_MEAN, FBANK_STD)
    assert stored["cfg"]["conv_bias"] is True
    # The model itself stays as it is, and so does a file of ours.
    assert model.cfg.fbank_mean == 11.7
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    torchbeats.save(model, tmp_path / "m.safetensors")
    assert torchbeats.load(tmp_path / "m.safetensors").cfg.fbank_std == 4.5


def test_published_statistics_change_nothing(tmp_path):
    model = small_model()
    torchbeats.save(model, tmp_path / "m.pt")
    stored = torch.load(tmp_path / "m.pt", weights_only=True)
    assert stored["cfg"]["conv_bias"] is False
    assert stored["model"].keys() == model.state_dict().keys()
    assert all(torch.equal(stored["model"][name], tensor) for name, tensor in model.state_dict().items())


def test_half_precision_keeps_the_bias_exact(tmp_path):
    model = small_model(**OWN)
    torchbeats.save(model, tmp_path / "half.pt", torch.float16)
    stored = torch.load(tmp_path / "half.pt", weights_only=True)["model"]
    assert stored["patch_embedding.weight"].dtype == torch.float16
    assert stored["patch_embedding.bias"].dtype == torch.float32


def test_the_built_in_model_reads_right_in_research_code(tmp_path):
    model = torchbeats.load("beats-nano")
    assert model.cfg.fbank_mean != FBANK_MEAN  # or this test shows nothing
    torchbeats.save(model, tmp_path / "m.pt")
    theirs, _ = as_the_research_code_reads(tmp_path / "m.pt", BEATs)
    wav = torch.from_numpy(noise(1.0)).unsqueeze(0)
    torch.testing.assert_close(theirs(wav)[0], model(wav)[0], atol=5e-5, rtol=0)


@pytest.mark.parametrize("problem", ["single_label", "multi_label"])
def test_a_single_label_model_is_written_with_a_warning(tmp_path, problem, recwarn):
    model = small_model(finetuned_model=True, predictor_class=3, problem_type=problem)
    torchbeats.save(model, tmp_path / "m.pt")
    said = [str(warning.message) for warning in recwarn if warning.category is UserWarning]
    assert len(said) == (problem == "single_label")
    assert all("m.pt is of a single-label model" in message and "apply a sigmoid" in message for message in said)
    torchbeats.save(model, tmp_path / "m.safetensors")
    assert [str(warning.message) for warning in recwarn if warning.category is UserWarning] == said


def test_what_the_research_code_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no head over bands"):
        torchbeats.save(small_model(finetuned_model=True, predictor_class=3, predictor_pool="bands"), tmp_path / "m.pt")
    with pytest.raises(
        ValueError, match=r"must end in \.safetensors; .*m\.pt does not: .* knows no random-projection tokenizer"
    ):
        torchbeats.save(RandomProjectionTokenizer(), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []
