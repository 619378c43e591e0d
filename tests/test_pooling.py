"""Every pooling against what NumPy makes of each clip by itself."""

import numpy as np
import pytest
import torch

import torchbeats
from helpers import small_model
from torchbeats.backbone import Encoded
from torchbeats.patches import mask_behind
from torchbeats.pooling import POOLINGS, WINDOW_POOLINGS

BANDS, WIDTH = 8, 6
STEPS = (1, 2, 7, 30)


def ragged(dtype=torch.float32, shift=0.0):
    """Clips of `STEPS`, with what means nothing behind them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(STEPS), BANDS * max(STEPS), WIDTH, generator=generator) + shift
    counts = BANDS * torch.tensor(STEPS)
    mask = mask_behind(counts, x.size(1))
    return Encoded(x.masked_fill(mask.unsqueeze(-1), torch.nan).to(dtype), mask, counts, BANDS)


def by_hand(pool, clip):
    """A clip's rows from its own patches, ``(steps, bands, C)`` float64."""
    return {
        "mean": lambda: clip.mean((0, 1)),
        "bands": lambda: clip.mean(0).reshape(-1),
        "statistics": lambda: np.concatenate([clip.mean(0), clip.std(0)]).reshape(-1),
        "steps": lambda: clip.mean(1),
        "patches": lambda: clip.reshape(len(clip), -1),
    }[pool]()


@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("pool", POOLINGS)
def test_every_pooling_is_that_of_a_clips_own_steps(pool, shift):
    encoded = ragged(shift=shift)
    found = encoded.pool(pool)
    shape = POOLINGS[pool].shape(BANDS, WIDTH)
    for row, x, steps in zip(found, encoded.x, STEPS, strict=True):
        row = row[:steps] if POOLINGS[pool].by_step else row
        assert row.shape[-1] == np.prod(shape)
        expected = by_hand(pool, x[: BANDS * steps].double().numpy().reshape(steps, BANDS, WIDTH))
        np.testing.assert_allclose(row, expected, atol=1e-5 if shift == 0 else 3e-5)


@pytest.mark.parametrize("pool", WINDOW_POOLINGS)
def test_gradients_are_finite_at_one_step_and_of_a_constant(pool):
    x = torch.cat([torch.randn(1, 4 * BANDS, WIDTH), torch.ones(1, 4 * BANDS, WIDTH)]).requires_grad_()
    counts = torch.tensor([BANDS, 4 * BANDS])
    Encoded(x, mask_behind(counts, 4 * BANDS), counts, BANDS).pool(pool).square().sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0, :BANDS].abs().sum() > 0
    assert x.grad[0, BANDS:].abs().sum() == 0


def test_deviation_has_the_gradient_of_torchs_own():
    x = torch.randn(1, 5 * BANDS, WIDTH, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([5 * BANDS])
    pool = Encoded(x, mask_behind(counts, 5 * BANDS), counts, BANDS).pool("statistics")
    weight = torch.randn_like(pool)
    (found,) = torch.autograd.grad((pool * weight).sum(), x)
    by_step = x.view(5, -1)
    other = torch.cat([by_step.mean(0), by_step.std(0, unbiased=False)])
    (expected,) = torch.autograd.grad((other * weight[0]).sum(), x)
    torch.testing.assert_close(found, expected)


def test_half_precision_sums_in_single():
    """The deviation about a large mean, which half precision alone would lose."""
    encoded = ragged(torch.bfloat16, shift=10.0)
    found = encoded.pool("statistics")
    assert found.dtype == torch.bfloat16
    exact = encoded._replace(x=encoded.x.float()).pool("statistics")
    torch.testing.assert_close(found.float(), exact, atol=0, rtol=2**-8)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("pool", WINDOW_POOLINGS)
def test_alone_and_in_a_ragged_batch(pool, layer):
    model = small_model()
    lengths = torch.tensor([2800, 6000, 16_000, 40_000])
    wav = torch.randn(4, 40_000)
    together = model.compute(pool, wav, lengths, layer)
    for row, clip, length in zip(together, wav, lengths.tolist(), strict=True):
        alone = model.compute(pool, clip[None, :length], layer=layer)[0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool", WINDOW_POOLINGS)
def test_a_head_over_any_pooling_is_saved_and_loaded(pool, tmp_path):
    model = small_model(finetuned_model=True, predictor_class=3, predictor_pool=pool)
    torchbeats.save(model, tmp_path / "m.safetensors")
    wav = torch.randn(2, 9000)
    again = torchbeats.load(tmp_path / "m.safetensors")
    assert again.cfg.predictor_pool == pool
    torch.testing.assert_close(again.logits(wav), model.logits(wav), atol=0, rtol=0)
