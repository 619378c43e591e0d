"""A kind of model that is one file: saved, loaded and run by the command, without a word about it anywhere else."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import torchbeats
from helpers import noise, write_sound
from torchbeats import BEATs, other_models
from torchbeats.errors import CheckpointError, ModelError
from torchbeats.pooling import POOLINGS
from torchbeats.weights import kinds


@pytest.fixture
def mel_projection(tmp_path, monkeypatch):
    """The module, put into the room as a contributor would, and taken out again."""
    room = tmp_path / "room"
    room.mkdir()
    shutil.copy(Path(__file__).with_name("mel_projection.py"), room)
    monkeypatch.setattr(other_models, "__path__", [*other_models.__path__, str(room)])
    monkeypatch.setattr(kinds, "KINDS", dict(kinds.KINDS))
    other_models.import_all()
    module = sys.modules["torchbeats.other_models.mel_projection"]
    yield module
    del sys.modules[module.__name__]


@pytest.fixture
def file(mel_projection, tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "mel.safetensors"
    torchbeats.save(mel_projection.MelProjection(mel_projection.MelProjectionConfig(width=5)), path)
    return path


def test_it_is_saved_and_loaded_by_its_kind(mel_projection, file):
    model = torchbeats.load(file)
    assert type(model) is mel_projection.MelProjection
    assert (model.cfg.width, model.training) == (5, False)
    assert torchbeats.load(file, freeze=False).training
    assert type(torchbeats.load(file, expect=mel_projection.MelProjection)) is mel_projection.MelProjection
    with pytest.raises(CheckpointError, match=r"torchbeats\.MelProjection"):
        torchbeats.load(file, expect=BEATs)


@pytest.mark.parametrize("pool", sorted(POOLINGS))
def test_the_command_embeds_with_it(run, file, tmp_path, pool):
    sound = tmp_path / "a.wav"
    write_sound(sound, noise(3.0), 16_000)
    status, _, messages = run("embed", sound, "-o", tmp_path / "t.parquet", "-m", file, "--pool", pool, "--window", "1")
    assert status == 0, messages
    column = pq.read_table(tmp_path / "t.parquet")["embedding"]
    values = np.array(column.to_pylist(), np.float32).reshape(len(column), -1)
    rows = next(torchbeats.embed([sound], model=torchbeats.load(file), pool=pool, window=1.0)).embedding
    assert np.isfinite(values).all()
    assert values.shape[1] == int(np.prod(POOLINGS[pool].shape(8, 5)))
    assert np.allclose(values[0], np.ravel(rows), atol=1e-6)  # the same computation in the same batches


def test_its_file_says_what_it_is(run, file):
    status, out, _ = run("show", file)
    assert status == 0
    assert "width" in out


def test_a_setting_that_does_not_fit_its_tensors_is_told(mel_projection, file, tmp_path):
    model = torchbeats.load(file)
    model.cfg.width = 6
    torchbeats.save(model, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match=r"width is 6, where the shape of projection\.weight says 5"):
        torchbeats.load(tmp_path / "wrong.safetensors")


def test_what_only_beats_models_have_is_refused_in_a_sentence(file, tmp_path):
    with pytest.raises(ModelError, match="ONNX Runtime is for BEATs models"):
        torchbeats.load(file, engine="onnx")
    with pytest.raises(ModelError, match="transformers has no class"):
        torchbeats.save(torchbeats.load(file), f"{tmp_path}/folder/")
    with pytest.raises(torchbeats.SettingsError, match=r"must end in \.safetensors"):
        torchbeats.save(torchbeats.load(file), tmp_path / "m.pt")


def test_two_kinds_of_one_name_are_a_mistake():
    class Other(torch.nn.Module):
        pass

    with pytest.raises(ValueError, match="BEATs is 'beats'"):
        kinds.register("beats", torchbeats.BEATsConfig)(Other)


def test_settings_of_no_kind_are_told():
    class Unknown(torchbeats.config.ModelConfig):
        pass

    with pytest.raises(ModelError, match="Unknown"):
        kinds.kind_of(Unknown)
