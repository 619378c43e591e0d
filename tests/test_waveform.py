import warnings

import pytest
import torch

from torchbeats.waveform import prepare

MIN = 2800


def ready(wav, **lengths):
    return prepare(wav, MIN, **lengths)


@pytest.mark.parametrize(
    ("dtype", "full", "silence"),
    [(torch.int16, 2**15, 0), (torch.int32, 2**31, 0), (torch.uint8, 2**7, 128), (torch.int8, 2**7, 0)],
)
def test_integer_pcm_is_scaled(dtype, full, silence):
    wav = torch.full((1, 4000), silence, dtype=dtype)
    wav[0, 1] = silence - full  # the most negative value
    wav[0, 2] = silence + full // 2
    scaled, _ = ready(wav)
    assert scaled[0, :3].tolist() == [0, -1, 0.5]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_types_without_a_full_scale_are_refused(dtype):
    with pytest.raises(ValueError, match="no agreed full scale"):
        ready(torch.zeros(1, 4000, dtype=dtype))


@pytest.mark.parametrize(
    "given",
    [
        {"wav_lens": torch.tensor([1.0, 0.6, 0.3])},
        {"lengths": torch.tensor([19000, 11400, 5700])},
        {"lengths": torch.tensor([19000, 11400, 5700], dtype=torch.int32)},
        {"padding_mask": torch.arange(19000) >= torch.tensor([[19000], [11400], [5700]])},
    ],
)
def test_three_forms_of_length_mean_the_same(given):
    wav, lengths = ready(torch.ones(3, 19000), **given)
    assert lengths.tolist() == [19000, 11400, 5700]
    assert wav.sum(1).tolist() == [19000, 11400, 5700]  # what lies behind a row is silenced


def test_relative_lengths_of_long_clips_round_to_the_sample():
    samples = 16_000 * 600
    share = torch.tensor([1.0, 1_234_567 / samples])
    assert ready(torch.zeros(2, samples), wav_lens=share)[1].tolist() == [samples, 1_234_567]


def test_samples_behind_a_row_may_be_anything():
    wav = torch.ones(2, 8000)
    wav[1, 4000:] = torch.nan
    assert ready(wav, lengths=torch.tensor([8000, 4000]))[0].isfinite().all()
    with pytest.raises(ValueError, match=r"Row 1 .* NaN or infinite"):
        ready(wav)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_named(value):
    wav = torch.zeros(3, 4000)
    wav[2, 100] = value
    with pytest.raises(ValueError, match="Row 2"):
        ready(wav)


def test_large_finite_values_pass():
    wav = torch.full((1, 4000), torch.finfo(torch.float32).max)
    assert ready(wav)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(4000,), (1, 1, 4000), ()])
def test_wrong_rank(shape):
    with pytest.raises(ValueError, match=r"\(batch, samples\)"):
        ready(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 4000), (2, 0)])
def test_empty(shape):
    with pytest.raises(ValueError, match="no samples"):
        ready(torch.zeros(shape))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lengths": torch.tensor([4000, 0])}, "Row 1 has a length of 0"),
        ({"lengths": torch.tensor([4000, 4001])}, "Row 1 has a length of 4001"),
        ({"lengths": torch.tensor([-5, 4000])}, "Row 0 has a length of -5"),
        ({"lengths": torch.tensor([4000.0, 100.0])}, "must be integer"),
        ({"lengths": torch.tensor([4000])}, "has the shape"),
        ({"wav_lens": torch.tensor([1.0, 0.0])}, "Row 1"),
        ({"wav_lens": torch.tensor([1.0, 1.5])}, "Row 1"),
        ({"wav_lens": torch.tensor([torch.nan, 1.0])}, "row 0"),
        ({"padding_mask": torch.ones(2, 4000, dtype=torch.bool)}, "Row 0 has a length of 0"),
        ({"padding_mask": torch.arange(4000).expand(2, -1) < 100}, "not at the end of row 0"),
        ({"padding_mask": torch.zeros(2, 100, dtype=torch.bool)}, "has the shape"),
        ({"wav_lens": torch.ones(2), "lengths": torch.tensor([1, 2])}, "one form"),
    ],
)
def test_lengths_that_make_no_sense(given, said):
    with pytest.raises(ValueError, match=said):
        ready(torch.zeros(2, 4000), **given)


def test_short_rows_are_filled_up_with_one_warning():
    wav = torch.ones(3, 2000)
    with pytest.warns(UserWarning, match="3 of 3 clips are shorter than 2800") as caught:
        filled, lengths = ready(wav, lengths=torch.tensor([2000, 100, 5]))
    assert len(caught) == 1
    assert filled.shape == (3, MIN)
    assert filled.sum(1).tolist() == [2000, 100, 5]
    assert lengths.tolist() == [MIN] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(torch.ones(3, MIN))


def test_samples_given_as_shares_are_told_apart():
    with pytest.raises(ValueError, match=r"Row 1 has 6400\. For lengths in samples use lengths="):
        ready(torch.zeros(2, 16_000), wav_lens=torch.tensor([1.0, 6400.0]))
