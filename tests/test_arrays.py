import numpy as np
import pytest

import torchbeats
from helpers import noise, small_model, write_sound


def test_a_row_a_sound_is_the_mean_over_its_windows(tmp_path):
    model, sounds = small_model(), [noise(1), noise(5, seed=1), noise(2, seed=2)]
    write_sound(tmp_path / "a.wav", noise(1, seed=3), 16_000)
    inputs = [*sounds, str(tmp_path / "a.wav")]
    result = torchbeats.encode(inputs, model, window=2.0, pool="bands")
    rows = list(torchbeats.embed(inputs, model, window=2.0, pool="bands"))
    assert len(rows) == 1 + 3 + 1 + 1
    expected = [
        rows[0].embedding,
        np.mean([row.embedding for row in rows[1:4]], 0),
        *(row.embedding for row in rows[4:]),
    ]
    assert result.dtype == np.float32
    # Sums in another order.
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_a_sound_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    with pytest.raises(torchbeats.AudioError, match=r"bad\.wav"):
        torchbeats.encode([noise(1), tmp_path / "bad.wav"], small_model())


def test_a_pooling_of_steps_makes_no_row_a_sound():
    with pytest.raises(ValueError, match="needs the pooling mean, bands, statistics, not 'steps'"):
        torchbeats.encode([noise(1)], small_model(), pool="steps")


def test_rows_print_in_a_line():
    (row,) = torchbeats.embed([noise(1)], small_model())
    assert repr(row) == f"Embedding(path='[0]', start=0, end=1, embedding=<{len(row.embedding)} × float32>)"
