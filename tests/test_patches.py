"""The arithmetic of the patch grid, against the numbers of the papers and against counting."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchbeats.patches import PatchGrid, frames, mask_behind

GRID = PatchGrid()
ROWS = [  # samples, frames, steps, patches
    (399, 0, 0, 0),
    (400, 1, 0, 0),
    (559, 1, 0, 0),
    (560, 2, 0, 0),
    (2_799, 15, 0, 0),
    (2_800, 16, 1, 8),
    (5_359, 31, 1, 8),
    (5_360, 32, 2, 16),
    (10_000, 61, 3, 24),  # the example of `extract_features`
    (16_000, 98, 6, 48),
    (158_959, 991, 61, 488),
    (158_960, 992, 62, 496),
    (160_000, 998, 62, 496),  # 10 s
]


@pytest.mark.parametrize(("samples", "n_frames", "steps", "patches"), ROWS)
def test_counts_of_a_clip(samples, n_frames, steps, patches):
    assert (frames(samples), GRID.steps(samples), GRID.patches(samples)) == (n_frames, steps, patches)


def test_counts_of_a_batch():
    samples, n_frames, steps, patches = torch.tensor(ROWS).unbind(1)
    counted = (frames(samples), GRID.steps(samples), GRID.patches(samples))
    for actual, expected in zip(counted, (n_frames, steps, patches), strict=True):
        assert actual.dtype == torch.int64
        assert torch.equal(actual, expected)


@given(st.integers(0, 1_000_000))
def test_frames_are_windows_that_fit(samples):
    assert max(frames(samples), 0) == len(range(0, samples - 400 + 1, 160))


@given(st.integers(1, 10_000), st.sampled_from([8, 16, 32]))
def test_samples_is_the_fewest_that_hold_the_steps(steps, patch_size):
    grid = PatchGrid(patch_size)
    fewest = grid.samples(steps)
    assert grid.steps(fewest) == steps
    assert grid.steps(fewest - 1) == steps - 1


@given(st.integers(1, 300), st.integers(1, 300))
def test_windows_of_whole_steps_join_without_a_gap(first, second):
    """Two windows, one starting where the other's last step ends, hold the steps of the whole."""
    assert GRID.samples(first + second) == GRID.step_samples * first + GRID.samples(second)


def test_numbers_of_the_published_models():
    assert (GRID.bands, GRID.step_samples, GRID.step_seconds, GRID.min_samples) == (8, 2_560, 0.16, 2_800)
    assert GRID.samples(62) == 158_960
    assert 62 * GRID.step_samples == 158_720


def test_numbers_of_smaller_patches():
    grid = PatchGrid(8)
    assert (grid.bands, grid.step_samples, grid.step_seconds, grid.min_samples) == (16, 1_280, 0.08, 1_520)
    assert grid.patches(160_000) == 16 * (998 // 8)


def test_a_grid_cannot_be_changed():
    with pytest.raises(AttributeError):
        GRID.patch_size = 8


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(0, 9))
def test_mask_behind_marks_what_a_row_does_not_own(counts, size):
    mask = mask_behind(torch.tensor(counts, dtype=torch.int64), size)
    assert mask.dtype == torch.bool
    assert mask.shape == (len(counts), size)
    assert mask.tolist() == [[position >= count for position in range(size)] for count in counts]
