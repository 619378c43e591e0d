"""The one thread that computes: what shares a batch, what is not computed, and errors that stay with their sound."""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from helpers import noise, small_model
from torchbeats import EmbeddingPlan, embed
from torchbeats.errors import RequestError
from torchbeats.serve.batching import Batcher
from torchbeats.serve.metrics import Metrics

PLAN = EmbeddingPlan(batch_seconds=8.0)
TOLERANCE = 1e-5  # what padding in a batch may change in float32


class Gated:
    """A model that computes when it is let, and remembers its batches."""

    def __init__(self):
        self._model, self.gate, self.batches = small_model(), threading.Event(), []
        self.gate.set()
        self.broken = None

    def __getattr__(self, name):
        return getattr(self._model, name)

    def compute(self, output, wav, lengths=None, layer=None):
        self.batches.append(list(wav.shape))
        assert self.gate.wait(60)
        if self.broken is not None and (wav == self.broken).any():
            raise RuntimeError("out of memory")
        return self._model.compute(output, wav, lengths, layer)


@pytest.fixture
def batcher():
    batcher = Batcher(Metrics())
    yield batcher
    batcher.close()


def test_what_waits_is_computed_together_and_as_if_alone(batcher):
    model = Gated()
    model.gate.clear()
    clips = [noise(seconds, seed=seed) for seed, seconds in enumerate((1.0, 2.0, 3.0, 2.5, 1.5, 25.0))]
    first = batcher.submit("first", noise(1.0), model, PLAN)
    while not model.batches:
        pass
    futures = [batcher.submit(str(number), clip, model, PLAN) for number, clip in enumerate(clips)]
    other = batcher.submit("other", clips[0], model, EmbeddingPlan(pool="bands", batch_seconds=8.0))
    assert batcher.backlog() == pytest.approx(1.0 + sum(map(len, clips)) / 16_000 + 1.0)
    model.gate.set()
    first.result(60)
    for number, (clip, future) in enumerate(zip(clips, futures, strict=True)):
        group, rows = future.result(60), list(embed([clip], model._model))
        np.testing.assert_allclose(group.values, [row.embedding for row in rows], atol=TOLERANCE)
        assert group.times.tolist() == [[row.start, row.end] for row in rows]
        assert group.begins.tolist() == [True] + [False] * (len(rows) - 1)
        assert set(group.paths) == {str(number)}
    assert other.result(60).values.shape[1] == 8 * 48
    counts = [shape[0] for shape in model.batches]
    assert max(counts) > 1
    assert max(rows * length for rows, length in model.batches) <= 10 * 16_000  # a window is more than a batch's 8 s
    assert batcher.backlog() == 0
    assert batcher.speed() > 0


def test_what_is_cancelled_is_not_computed(batcher):
    model = Gated()
    model.gate.clear()
    first = batcher.submit("first", noise(1.0), model, PLAN)
    while not model.batches:
        pass
    gone = batcher.submit("gone", noise(5.0), model, PLAN)
    last = batcher.submit("last", noise(2.0), model, PLAN)
    assert gone.cancel()
    assert batcher.backlog() == pytest.approx(1.0 + 5.0 + 2.0)
    model.gate.set()
    first.result(60)
    last.result(60)
    assert [length for _, length in model.batches] == [16_000, 32_000]
    with pytest.raises(CancelledError):
        gone.result()


def test_an_error_costs_its_own_sound(batcher):
    model = Gated()
    model.broken = 0.123456
    bad = noise(1.0)
    bad[100] = model.broken
    model.broken = float(bad[100])
    model.gate.clear()
    first = batcher.submit("first", noise(0.5), model, PLAN)
    while not model.batches:
        pass
    futures = [batcher.submit(name, clip, model, PLAN) for name, clip in (("good", noise(1.5)), ("bad", bad))]
    model.gate.set()
    first.result(60)
    assert futures[0].result(60).values.shape == (1, 48)
    with pytest.raises(RuntimeError, match="out of memory"):
        futures[1].result(60)
    assert batcher.submit("next", noise(1.0), model, PLAN).result(60).values.shape == (1, 48)


def test_numbers_that_are_none(batcher):
    model = small_model()
    with torch.no_grad():
        model.post_extract_proj.weight.fill_(torch.nan)
    with pytest.raises(RequestError, match="sound 3: the model gives numbers for it that are not finite"):
        batcher.submit("sound 3", noise(1.0), model, PLAN).result(60)


def test_the_end_comes_when_all_is_computed():
    batcher = Batcher(Metrics())
    future = batcher.submit("x", noise(3.0), small_model(), PLAN)
    batcher.close()
    assert future.done()
    with pytest.raises(RequestError, match="The server is stopping"):
        batcher.submit("y", noise(1.0), small_model(), PLAN)
