"""The folder for transformers, opened by sentence-transformers; embeddings are those of torchbeats."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import torchbeats
from helpers import noise, small_model, tone, write_sound
from torchbeats import audio

sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
pytest.importorskip("torchbeats.integrations.transformers")
SentenceTransformer = sentence_transformers.SentenceTransformer
SOUNDS = [noise(2), noise(1.3, seed=1), tone(0.7)]


@pytest.fixture
def model():
    return small_model()


@pytest.fixture
def folder(tmp_path, model):
    torchbeats.save(model, f"{tmp_path}/folder/")
    return tmp_path / "folder"


@pytest.fixture
def encoder(folder):
    return SentenceTransformer(str(folder), device="cpu")


def alone(model, sound):
    return model.encode(torch.from_numpy(sound).unsqueeze(0)).pooled()[0].numpy()


@pytest.mark.filterwarnings("ignore:No sampling_rate")
def test_a_ragged_batch(encoder, model):
    embeddings = encoder.encode(SOUNDS, batch_size=3)
    assert encoder.modalities == ["audio"]
    np.testing.assert_allclose(embeddings, [alone(model, sound) for sound in SOUNDS], atol=1e-6)
    similarity = encoder.similarity(embeddings, embeddings)
    expected = torch.nn.functional.cosine_similarity(*map(torch.from_numpy, (embeddings[:1], embeddings)))
    torch.testing.assert_close(similarity[0], expected)


def test_arrays_with_rates_and_paths(encoder, model, tmp_path):
    sound = tone(1, 44_100)
    expected = alone(model, audio.from_array(sound, 44_100))
    (embedding,) = encoder.encode([{"array": sound, "sampling_rate": 44_100}])
    np.testing.assert_allclose(embedding, expected, atol=1e-6)
    paths = [str(write_sound(tmp_path / f"{i}.wav", sound, 16_000, "FLOAT")) for i, sound in enumerate(SOUNDS)]
    np.testing.assert_allclose(encoder.encode(paths), [alone(model, sound) for sound in SOUNDS], atol=1e-5)


@pytest.mark.filterwarnings("ignore:No sampling_rate")
def test_saved_and_opened_again(encoder, model, tmp_path):
    encoder.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.encode(SOUNDS), encoder.encode(SOUNDS))
    assert torchbeats.load(tmp_path / "saved").digest() == torchbeats.load(tmp_path / "folder").digest()


@pytest.mark.filterwarnings("ignore:No sampling_rate")
def test_the_encoder_of_a_labelled_model(tmp_path):
    model = small_model(finetuned_model=True, predictor_class=3)
    torchbeats.save(model, f"{tmp_path}/labelled/")
    embeddings = SentenceTransformer(str(tmp_path / "labelled"), device="cpu").encode(SOUNDS)
    np.testing.assert_allclose(embeddings, [alone(model, sound) for sound in SOUNDS], atol=1e-6)


REMOTE = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
np.save(sys.argv[2], model.encode([{"array": np.sin(np.arange(16000) / 9), "sampling_rate": 16000}]))
"""


def test_trust_remote_code(folder, model, tmp_path):
    env = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(folder), str(tmp_path / "embeddings.npy")],
        env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = alone(model, np.sin(np.arange(16_000) / 9).astype(np.float32))
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy")[0], expected, atol=1e-6)
