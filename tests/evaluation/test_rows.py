"""Rows that are kept are those of the very files that they were computed of."""

import pytest
import soundfile

from helpers import noise
from torchbeats.data.example import Example
from torchbeats.evaluation.rows import cache_key


def test_another_file_at_a_url_is_another_sound(tmp_path, monkeypatch):
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
    examples = [Example((tmp_path / "a.wav").as_uri(), ("x",))]
    key = cache_key(examples, "weights", {})
    monkeypatch.chdir(tmp_path)
    assert cache_key(examples, "weights", {}) == key
    soundfile.write(tmp_path / "a.wav", noise(2.0), 16_000)
    assert cache_key(examples, "weights", {}) != key
