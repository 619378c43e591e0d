"""The written rules of HEAR's interface, and its validator where that is installed."""

import sys
import types

import pytest
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer
from torchbeats import CheckpointError
from torchbeats.integrations import hear


@pytest.fixture
def checkpoint(tmp_path):
    torchbeats.save(small_model(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def sounds(count, samples):
    return torch.stack([torch.from_numpy(noise(1, rate=samples, seed=row)) for row in range(count)])


def test_attributes_of_the_model(checkpoint):
    model = hear.load_model(str(checkpoint))
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate == 16_000
    assert (model.scene_embedding_size, model.timestamp_embedding_size) == (48, 48)


def test_the_built_in_model_without_a_file():
    with pytest.warns(UserWarning, match="built-in model"):
        model = hear.load_model()
    assert model.scene_embedding_size == 256


def test_timestamps_are_the_middles_of_the_steps_in_milliseconds(checkpoint):
    model = hear.load_model(checkpoint)
    audio = sounds(3, 32_000)
    steps, times = hear.get_timestamp_embeddings(audio, model)
    assert steps.shape == (3, 12, 48)
    assert steps.dtype == torch.float32
    torch.testing.assert_close(times[2, :3], torch.tensor([80.0, 240.0, 400.0]))
    assert times.shape == (3, 12)
    torch.testing.assert_close(steps, model.encode(audio).steps())


def test_a_scene_is_the_mean_of_its_patches(checkpoint):
    model = hear.load_model(checkpoint)
    audio = sounds(2, 60_000)
    torch.testing.assert_close(
        hear.get_scene_embeddings(audio, model), model.encode(audio).pooled(), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("samples", [166_719, 166_720, 167_000, 320_000, 500_001])
def test_long_sounds_in_windows_that_join(checkpoint, samples):
    """A rest shorter than half a second joins the window before; no step is lost or told twice."""
    model = hear.load_model(checkpoint)
    audio = sounds(1, samples)
    steps, times = hear.get_timestamp_embeddings(audio, model)
    assert steps.size(1) == times.size(1) == model.grid.steps(samples)
    if samples >= 166_720:
        torch.testing.assert_close(steps[:, :62], model.encode(audio[:, :158_960]).steps())
        torch.testing.assert_close(steps[:, 62:124], model.encode(audio[:, 158_720 : 158_720 + 158_960]).steps())
    else:
        torch.testing.assert_close(steps, model.encode(audio).steps())


def test_half_precision_gives_float32(checkpoint):
    model = hear.load_model(checkpoint).bfloat16()
    assert hear.get_scene_embeddings(sounds(2, 16_000), model).dtype == torch.float32


def test_a_tokenizer_is_refused(tmp_path):
    torchbeats.save(small_tokenizer(), tmp_path / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match="this is a tokenizer checkpoint"):
        hear.load_model(tmp_path / "tokenizer.safetensors")


def test_the_validator_accepts_it(checkpoint, monkeypatch):
    """It asks of a model whether it is TensorFlow's, which is all that it would need that package for."""
    if "tensorflow" not in sys.modules:
        stand_in = types.ModuleType("tensorflow")
        stand_in.Module = type("Module", (), {})
        monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    # Not in the extra: it wants TensorFlow, and is complete without (pip install --no-deps hearvalidator).
    validate = pytest.importorskip("hearvalidator.validate")
    with pytest.warns(UserWarning, match="less than or equal to 50ms"):  # a step is 160 ms
        validate.ValidateModel("torchbeats.integrations.hear", str(checkpoint), "cpu")()
