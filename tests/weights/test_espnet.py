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


def config(folder, kind=None, **encoder):
    task = {} if kind is None else {"classification_type": kind}
    said = {"token_list": TOKENS, "model_conf": task, "encoder_conf": encoder, "decoder_conf": {"pooling": "mean"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))


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
    with pytest.warns(UserWarning, match=r"no config\.yaml .*softmax.*classification_type: multi-label"):
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
