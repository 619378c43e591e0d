"""Rows of a table to hear: as much as a row has, whatever lies behind it in its file."""

import tarfile

import numpy as np
import pytest
import soundfile

from helpers import noise
from torchbeats import EmbeddingPlan, audio, write_table
from torchbeats.errors import AudioError
from torchbeats.serve.page.excerpts import Excerpts
from torchbeats.tables.reading import Table


def test_no_more_is_decoded_than_a_row_has(tmp_path, monkeypatch):
    samples = noise(150.0)
    soundfile.write(tmp_path / "long.wav", samples, 16_000, "FLOAT")
    write_table(tmp_path / "long.wav", tmp_path / "t.parquet", "beats-nano", EmbeddingPlan(window=1.0))
    decoded = []
    blocks = audio._decode
    monkeypatch.setattr(audio, "_decode", lambda *a: (decoded.append(len(b)) or b for b in blocks(*a)))
    excerpts = Excerpts(Table(tmp_path / "t.parquet"))
    for row, start in ((0, 0), (30, 30)):
        decoded.clear()
        np.testing.assert_array_equal(excerpts.samples(row), samples[16_000 * start :][:16_000])
        assert sum(decoded) < len(samples) / 2


def test_a_sound_in_a_shard_is_told_of(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "a.wav", "a.wav")
    write_table(tmp_path / "s.tar", tmp_path / "t.parquet", "beats-nano", EmbeddingPlan(window=1.0))
    with pytest.raises(AudioError, match=r"s\.tar#a\.wav: it lies in a shard: unpack .*s\.tar to get at it by itself"):
        Excerpts(Table(tmp_path / "t.parquet")).wav(0)
