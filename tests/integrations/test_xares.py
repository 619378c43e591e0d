"""The written rules of X-ARES, and its own check where that is installed."""

import pytest
import torch

import torchbeats
from helpers import noise, small_model
from torchbeats.integrations import xares


@pytest.fixture
def encoder(tmp_path):
    torchbeats.save(small_model(), tmp_path / "model.safetensors")

    class SmallEncoder(xares.BEATsEncoder):
        checkpoint = str(tmp_path / "model.safetensors")

    return SmallEncoder()


def test_attributes_and_output(encoder):
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16_000, 48, 160)
    audio = torch.from_numpy(noise(3)).view(1, -1).repeat(2, 1)
    with torch.inference_mode():
        out = encoder(audio)
    assert out.shape == (2, 18, 48)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, encoder.model.encode(audio).steps())
    torch.testing.assert_close(encoder(audio[0]), out[:1])


def test_one_class_whose_name_ends_in_encoder():
    """X-ARES takes the only one that a file has, and keeps results under its name."""
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["BEATsEncoder"]


def test_the_built_in_model_without_a_checkpoint():
    with pytest.warns(UserWarning, match="built-in model"):
        assert xares.BEATsEncoder().output_dim == 256


def test_its_own_check_accepts_it(encoder):
    # Not in the extra: it wants torchaudio, whose PyPI build does not import beside a PyTorch for the CPU alone.
    checker = pytest.importorskip("xares.audio_encoder_checker")
    assert checker.check_audio_encoder(encoder)
