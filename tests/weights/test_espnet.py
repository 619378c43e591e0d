"""ESPnet's fine-tuned models: the problem that they solve is never guessed in silence."""

import datetime

import numpy as np
import pytest
import torch
import yaml

import torchbeats
from helpers import noise, small_model
from torchbeats import CheckpointError

TOKENS = ["cat", "dog", "hen", "<unk>"]


def fine_tuned(problem="single_label", **fields):
    return small_model(finetuned_model=True, predictor_class=3, max_distance=800, problem_type=problem, **fields)


def espnet_names(source):
    return {
        name.replace("predictor", "decoder.linear_out") if name.startswith("predictor") else f"encoder.{name}": tensor
        for name, tensor in source.state_dict().items()
    }


def converted(source, names=espnet_names, **more):
    """What people write so that other code reads it: the settings are those of the pre-trained model."""
    own = ("problem_type", "finetuned_model", "predictor_class")
    cfg = {name: value for name, value in source.cfg.to_dict().items() if name not in own}
    return {"model": names(source), "cfg": cfg, "token_list": TOKENS, **more}


def config(folder, kind=None, top=None, **encoder):
    """``top`` goes beside ``encoder_conf``, over what is there."""
    task = {} if kind is None else {"classification_type": kind}
    said = {"token_list": TOKENS, "model_conf": task, "encoder_conf": encoder, "decoder_conf": {"pooling": "mean"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**said, **(top or {})}))


def assert_reads(path, source):
    loaded = torchbeats.load(path)
    wav = torch.from_numpy(noise(0.5)).unsqueeze(0)
    assert torch.equal(loaded(wav)[1], source(wav)[1])
    assert loaded.labels == TOKENS[:3]


def research_names(source):
    return dict(source.state_dict())


@pytest.mark.parametrize("names", [espnet_names, research_names])
def test_a_converted_model_is_read_by_espnets_default_with_a_warning(tmp_path, names):
    source = fine_tuned()
    stored = converted(source, names)
    if names is research_names:
        stored["cfg"] |= {"finetuned_model": True, "predictor_class": 3}
    torch.save(stored, tmp_path / "m.pt")
    with pytest.warns(UserWarning, match=r"no config\.yaml .*softmax.*classification_type: multi-label.*15\.41663"):
        assert_reads(tmp_path / "m.pt", source)


@pytest.mark.parametrize(
    ("kind", "problem"), [("multi-label", "multi_label"), ("multi-class", "single_label"), (None, "single_label")]
)
def test_the_config_beside_a_converted_model_decides(tmp_path, kind, problem, recwarn):
    source = fine_tuned(problem)
    torch.save(converted(source), tmp_path / "m.pt")
    config(tmp_path, kind)
    assert_reads(tmp_path / "m.pt", source)
    assert not recwarn.list


def test_a_converted_model_may_say_it_itself(tmp_path, recwarn):
    source = fine_tuned("multi_label")
    stored = converted(source)
    stored["cfg"]["problem_type"] = "multi_label"
    torch.save(stored, tmp_path / "m.pt")
    assert_reads(tmp_path / "m.pt", source)
    assert not recwarn.list


@pytest.mark.parametrize(("kind", "problem"), [("multi-label", "multi_label"), ("multi-class", "single_label")])
def test_a_trainers_checkpoint_with_its_config(tmp_path, kind, problem, recwarn):
    """``checkpoint.pth``: what ESPnet goes on from, with its reporter's times and numbers of numpy's."""
    source = fine_tuned(problem, fbank_mean=11.7, fbank_std=4.5)
    stats = {"time": datetime.timedelta(seconds=5), "total_count": 3, "loss": np.float64(0.25)}
    torch.save(
        {
            "model": espnet_names(source),
            "reporter": {"stats": {1: {"train": stats}}, "epoch": 1},
            "optimizers": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
            "schedulers": [None],
            "scaler": None,
        },
        tmp_path / "checkpoint.pth",
    )
    config(tmp_path, kind, fbank_mean=11.7, fbank_std=4.5)
    assert_reads(tmp_path / "checkpoint.pth", source)
    assert not recwarn.list
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"needs its config\.yaml beside it"):
        torchbeats.load(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize(
    "option",
    [{"max_layer": 0}, {"max_layer": 5}, {"downsampling_rate": 2}, {"add_positional_information": True}],
    ids=str,
)
def test_options_that_change_the_model_are_refused_by_name(tmp_path, option):
    torch.save(espnet_names(fine_tuned()), tmp_path / "m.pth")
    config(tmp_path, "multi-class", **option)
    with pytest.raises(CheckpointError, match=next(iter(option))):
        torchbeats.load(tmp_path / "m.pth")
    config(tmp_path, "multi-class", max_layer=None, downsampling_rate=1, add_positional_information=False)
    assert_reads(tmp_path / "m.pth", fine_tuned())


@pytest.mark.parametrize("kind", ["regression", ["multi-label"], 3])
def test_another_classification_type_is_refused(tmp_path, kind):
    torch.save(espnet_names(fine_tuned()), tmp_path / "m.pth")
    config(tmp_path, kind)
    with pytest.raises(CheckpointError, match="classification_type must be one of multi-class, multi-label"):
        torchbeats.load(tmp_path / "m.pth")


def test_statistics_of_the_config_beside_win_over_those_of_the_pre_trained_model(tmp_path):
    """ESPnet itself never looks at those in ``cfg``."""
    source = fine_tuned(fbank_mean=11.7, fbank_std=4.5)
    stored = converted(source)
    stored["cfg"] |= {"fbank_mean": 15.66, "fbank_std": 6.38}
    torch.save(stored, tmp_path / "m.pt")
    config(tmp_path, "multi-class", fbank_mean=11.7, fbank_std=4.5)
    assert_reads(tmp_path / "m.pt", source)


# --- statistics -------------------------------------------------------------------------------------------------------

OLD, NEW = (15.41663, 6.55582), (15.2913, 5.90532)


def statistics(model):
    return model.cfg.fbank_mean, model.cfg.fbank_std


def without_statistics(stored):
    stored["cfg"] = {name: value for name, value in stored["cfg"].items() if not name.startswith("fbank_")}
    return stored


@pytest.mark.parametrize("form", ["bare", "converted"])
@pytest.mark.parametrize(
    ("version", "expected"),
    [("202511", OLD), ("202204", OLD), ("0.10.6", OLD), (202511, OLD), ("202609", NEW), ("202611", NEW), (202701, NEW)],
)
def test_the_version_in_the_config_decides_on_statistics(tmp_path, recwarn, form, version, expected):
    source = fine_tuned(fbank_mean=expected[0], fbank_std=expected[1])
    stored = espnet_names(source) if form == "bare" else without_statistics(converted(source))
    torch.save(stored, tmp_path / "m.pth")
    config(tmp_path, "multi-class", {"version": version})
    assert_reads(tmp_path / "m.pth", source)
    assert statistics(torchbeats.load(tmp_path / "m.pth")) == expected
    assert not recwarn.list


@pytest.mark.parametrize("version", [None, "0.0.0", "202602", "main", [1], True, 10**30])
def test_statistics_without_a_version_that_tells_are_warned_of(tmp_path, version):
    source = fine_tuned()
    torch.save(espnet_names(source), tmp_path / "m.pth")
    config(tmp_path, "multi-class", {} if version is None else {"version": version})
    with pytest.warns(UserWarning, match=r"15\.41663 and 6\.55582.* 202609 .*15\.2913 and 5\.90532"):
        assert_reads(tmp_path / "m.pth", source)


@pytest.mark.parametrize("place", ["cfg", "beats_config"])
def test_statistics_that_espnet_stores_and_never_uses(tmp_path, place):
    """Its encoder takes them as arguments of its own only; among the sizes they stay without effect."""
    source = fine_tuned(fbank_mean=NEW[0], fbank_std=NEW[1])
    stored = without_statistics(converted(source))
    unused = {"fbank_mean": 11.7, "fbank_std": 4.5}
    if place == "cfg":
        stored["cfg"] |= unused
    torch.save(stored, tmp_path / "m.pth")
    config(tmp_path, "multi-class", {"version": "202609"}, beats_config=unused if place == "beats_config" else {})
    with pytest.warns(UserWarning, match=r"11\.7 and 4\.5 .*ESPnet .*15\.2913 and 5\.90532"):
        assert_reads(tmp_path / "m.pth", source)


def test_a_converted_model_alone_warns_of_both_assumptions(tmp_path):
    torch.save(without_statistics(converted(fine_tuned())), tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="does not say all of how it was trained") as caught:
        assert_reads(tmp_path / "m.pt", fine_tuned())
    said = str(caught[0].message)
    assert len(caught) == 1
    assert "softmax" in said
    assert "15.41663 and 6.55582" in said
    assert "config.yaml beside it" in said


def test_a_converted_model_with_a_problem_type_warns_of_statistics_alone(tmp_path):
    stored = without_statistics(converted(fine_tuned()))
    stored["cfg"]["problem_type"] = "single_label"
    torch.save(stored, tmp_path / "m.pt")
    with pytest.warns(UserWarning, match=r"15\.41663 and 6\.55582") as caught:
        assert_reads(tmp_path / "m.pt", fine_tuned())
    assert "softmax" not in str(caught[0].message)


# --- pre-trained ------------------------------------------------------------------------------------------------------

PADS = {"patch_embedding_pad.weight": torch.ones(1, 1, 16, 16), "raw2fbank_pad.weight": torch.ones(1, 1, 400)}


def assert_encodes(path, source):
    loaded = torchbeats.load(path)
    wav = torch.from_numpy(noise(0.5)).unsqueeze(0)
    assert torch.equal(loaded(wav)[0], source(wav)[0])
    assert loaded.label_dict is None
    return loaded


def pre_trained(source, marks=("pads",)):
    """What ESPnet's generate_beats_checkpoint writes."""
    stored = without_statistics({"model": dict(source.state_dict()), "cfg": source.cfg.to_dict()})
    if "pads" in marks:
        stored["model"] |= PADS
    if "keys" in marks:
        stored["cfg"] |= {"decoder_layers": 3, "codebook_vocab_size": 1024}
    return stored


@pytest.mark.parametrize("marks", [("pads",), ("keys",), ()])
def test_the_config_beside_a_pre_trained_model_has_its_statistics(tmp_path, recwarn, marks):
    source = small_model(fbank_mean=11.7, fbank_std=4.5)
    torch.save(pre_trained(source, marks), tmp_path / "m.pt")
    config(tmp_path, fbank_mean=11.7, fbank_std=4.5, beats_config=source.cfg.to_dict())
    assert_encodes(tmp_path / "m.pt", source)
    assert not recwarn.list


def test_the_version_decides_on_a_pre_trained_models_statistics(tmp_path, recwarn):
    source = small_model(fbank_mean=NEW[0], fbank_std=NEW[1])
    torch.save(pre_trained(source), tmp_path / "m.pt")
    config(tmp_path, top={"version": "202609"})
    assert_encodes(tmp_path / "m.pt", source)
    assert not recwarn.list


def test_a_version_before_what_the_file_has_is_warned_of(tmp_path):
    """A copy from ESPnet's repository says the number of the last release, whichever statistics it had by then."""
    torch.save(pre_trained(small_model()), tmp_path / "m.pt")
    config(tmp_path, top={"version": "202511"})
    with pytest.warns(UserWarning, match=r"parts that ESPnet 202511.* lacked.* 15\.41663 and 6\.55582.* 15\.2913"):
        assert_encodes(tmp_path / "m.pt", small_model())
    config(tmp_path, top={"version": "202511"}, fbank_mean=11.7, fbank_std=4.5)
    assert_encodes(tmp_path / "m.pt", small_model(fbank_mean=11.7, fbank_std=4.5))


def test_a_pre_trained_model_alone_warns_of_its_statistics(tmp_path):
    torch.save(pre_trained(small_model()), tmp_path / "m.pt")
    with pytest.warns(UserWarning, match=r"15\.41663 and 6\.55582.*config\.yaml beside it") as caught:
        assert_encodes(tmp_path / "m.pt", small_model())
    assert len(caught) == 1


def test_somebody_elses_model_beside_a_config_of_espnets_is_left_alone(tmp_path, recwarn):
    """Microsoft's file in the folder of a model that was tuned from it."""
    source = small_model()
    torch.save(pre_trained(source, ()), tmp_path / "BEATs_iter3.pt")
    config(tmp_path, "multi-label", fbank_mean=11.7, fbank_std=4.5, beats_ckpt_path="BEATs_iter3.pt", beats_config={})
    assert_encodes(tmp_path / "BEATs_iter3.pt", source)
    (tmp_path / "config.yaml").write_text("model: other\nencoder_conf: [1]\n")
    assert_encodes(tmp_path / "BEATs_iter3.pt", source)
    (tmp_path / "config.yaml").write_text("a: [")
    assert_encodes(tmp_path / "BEATs_iter3.pt", source)
    assert not recwarn.list


def pre_training(source):
    """A checkpoint of ESPnet's pre-training, as it stands: the encoder, and the predictor of labels."""
    encoder = {f"encoder.{name}": tensor for name, tensor in (source.state_dict() | PADS).items()}
    predictor = {"decoder.mask_token": torch.ones(1, 1, 24), "decoder.decoder_embed.weight": torch.ones(24, 48)}
    return encoder | predictor | {"decoder.decoder_blocks.0.self_attn.q_proj.weight": torch.ones(24, 24)}


@pytest.mark.parametrize("wrap", [lambda sd: sd, lambda sd: {"model": sd, "reporter": {}, "optimizers": []}])
def test_a_checkpoint_of_pre_training_is_the_encoder_in_it(tmp_path, recwarn, wrap):
    source = small_model(fbank_mean=NEW[0], fbank_std=NEW[1])
    torch.save(wrap(pre_training(source)), tmp_path / "m.pth")
    sizes = {name: value for name, value in source.cfg.to_dict().items() if not name.startswith("fbank_")}
    config(tmp_path, top={"version": "202609"}, beats_config=sizes, is_pretraining=True)
    assert_encodes(tmp_path / "m.pth", source)
    assert not recwarn.list


def test_a_checkpoint_of_pre_training_has_espnets_defaults_where_the_config_is_silent(tmp_path):
    """Not those of published models: there is no other model that it was tuned from."""
    source = small_model(deep_norm=False, max_distance=1280)
    torch.save(pre_training(source), tmp_path / "m.pth")
    config(tmp_path, top={"version": "202511"}, beats_config={"gru_rel_pos": True})
    assert_encodes(tmp_path / "m.pth", source)


def test_a_checkpoint_of_pre_training_with_settings_of_its_own(tmp_path, recwarn):
    source = small_model(fbank_mean=11.7, fbank_std=4.5)
    torch.save({"model": pre_training(source), "cfg": source.cfg.to_dict()}, tmp_path / "m.pt")
    assert_encodes(tmp_path / "m.pt", source)
    assert not recwarn.list


def test_a_checkpoint_of_pre_training_without_its_config_is_told(tmp_path):
    torch.save(pre_training(small_model()), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"checkpoint of ESPnet's pre-training needs its config\.yaml beside it"):
        torchbeats.load(tmp_path / "m.pth")


# --- what stands in front of the encoder ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ({"normalize": "global_mvn", "normalize_conf": {"stats_file": "a.npz"}}, "normalize: global_mvn"),
        ({"normalize": "utterance_mvn", "normalize_conf": {"norm_vars": True}}, "normalize: utterance_mvn.*norm_vars"),
        ({"normalize": "utterance_mvn", "normalize_conf": [1]}, "normalize_conf"),
        ({"normalize": ["x"]}, "normalize: "),
        ({"preencoder": "sinc"}, "preencoder: sinc"),
        ({"preencoder": "linear", "preencoder_conf": {}}, "preencoder: linear"),
        ({"frontend": "default", "input_size": None}, "frontend: default"),
    ],
)
def test_what_changes_the_sound_before_the_encoder_is_refused_by_name(tmp_path, top, said):
    torch.save(espnet_names(fine_tuned()), tmp_path / "m.pth")
    config(tmp_path, "multi-class", top, fbank_mean=OLD[0], fbank_std=OLD[1])
    with pytest.raises(CheckpointError, match=said):
        torchbeats.load(tmp_path / "m.pth")


@pytest.mark.parametrize(
    "top",
    [
        {"normalize": None, "preencoder": None, "frontend": None, "input_size": 1},
        {"normalize": "none", "preencoder": "null", "frontend": "nil"},
        {"frontend": "default", "input_size": 1},  # which ESPnet then leaves out
        {"normalize": "utterance_mvn", "normalize_conf": {}},
        {"normalize": "utterance_mvn", "normalize_conf": {"norm_means": False, "norm_vars": False}},
    ],
)
def test_what_changes_nothing_before_the_encoder_is_read(tmp_path, recwarn, top):
    torch.save(espnet_names(fine_tuned()), tmp_path / "m.pth")
    config(tmp_path, "multi-class", top, fbank_mean=OLD[0], fbank_std=OLD[1])
    assert_reads(tmp_path / "m.pth", fine_tuned())
    assert not recwarn.list


def test_a_waveform_less_its_mean_is_the_same_sound():
    """That is all that ``utterance_mvn`` does as ESPnet sets it, and every window of the front end does it again."""
    source = fine_tuned()
    wav = torch.from_numpy(noise(2.0)).unsqueeze(0) * 0.2 + 0.3
    torch.testing.assert_close(source(wav - wav.mean())[1], source(wav)[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(source(wav - wav.mean())[0], source(wav)[0], atol=1e-3, rtol=0)
    assert (source(2 * wav)[0] - source(wav)[0]).abs().max() > 0.01  # a loudness does matter
