import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch

from helpers import golden, under
from torchbeats.fbank import LOG_FLOOR, PCM_SCALE, Fbank, mel_filters
from torchbeats.patches import frames

NUMBERS = golden("fbank")[1]
NAMES = sorted(under(NUMBERS, "wave"))


def kaldi(wave):
    """The same features from Kaldi's own code, ``(frames, 128)``."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 128
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(16_000, (wave * PCM_SCALE).tolist())
    computer.input_finished()
    return torch.from_numpy(np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)]))


def rounding(wave):
    """What rounding may do to a log-mel value, ``(frames, 128)``.

    A float32 FFT errs by a few ulp of the frame's loudest part in every bin; beside a loud tone that is most of a quiet
    band. So Kaldi and the reference, on two processors, differ by 0.13 on the sweep, and by under 1e-3 elsewhere.
    """
    spectrum = torch.fft.rfft((wave.double() * PCM_SCALE).unfold(0, 400, 160) * Fbank().window.double(), n=512)
    noise = (4 * torch.finfo(torch.float32).eps * spectrum.abs().amax(-1, keepdim=True)) ** 2
    energy = Fbank()(wave[None])[0].double().exp()
    return (1e-3 + 2 * (noise / energy).sqrt()).clamp_max(0.25)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("oracle", ["reference", "kaldi"])
def test_equals_other_implementations(name, oracle):
    wave = NUMBERS[f"wave.{name}"]
    expected = NUMBERS[f"fbank.{name}"] if oracle == "reference" else kaldi(wave)
    ours = Fbank()(wave[None])[0]
    assert ours.shape == expected.shape == (frames(len(wave)), 128)
    tolerance = rounding(wave) if name == "sweep" else torch.tensor(1e-3)
    assert ((ours - expected).abs() <= tolerance).all()
    # The allowance is for quiet bands only: where sound is, the sweep agrees as the others do.
    if name == "sweep":
        loud = expected > expected.amax(-1, keepdim=True) - 12
        assert (ours - expected).abs()[loud].max() < 1e-3


def test_silence_is_the_floor():
    assert torch.equal(Fbank()(torch.zeros(1, 4000)), torch.full((1, 23, 128), LOG_FLOOR).log())


def test_rows_are_independent():
    wav = torch.randn(4, 8000) * 0.1
    together = Fbank()(wav)
    for row in range(4):
        torch.testing.assert_close(Fbank()(wav[row : row + 1])[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stays_float32_in_a_half_precision_model_and_under_autocast(dtype):
    wav = (torch.randn(2, 8000) * 0.1).to(dtype)
    expected = Fbank()(wav.float())
    front_end = torch.nn.Sequential(Fbank()).to(dtype)
    assert torch.equal(front_end(wav), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Fbank()(wav.float()), expected)
    assert front_end(wav).dtype == torch.float32


def test_differentiable():
    # In float32, so against finite differences along one direction, with a step that rounding bears.
    torch.manual_seed(0)
    wav = (torch.randn(1, 1200) * 0.1).requires_grad_()
    direction = torch.randn_like(wav)
    Fbank()(wav).sum().backward()
    step = 1e-3
    with torch.no_grad():
        ahead, behind = (Fbank()(wav + sign * step * direction).double().sum() for sign in (1, -1))
    assert (wav.grad * direction).sum().item() == pytest.approx((ahead - behind).item() / (2 * step), rel=0.02)


def test_gradient_is_finite_in_silence():
    wav = torch.zeros(1, 4000, requires_grad=True)
    Fbank()(wav).sum().backward()
    assert wav.grad.isfinite().all()


def test_filters_are_triangles_that_leave_nyquist_out():
    filters = mel_filters()
    assert filters.shape == (257, 128)
    assert filters[-1].max() == 0
    assert filters.min() == 0
    # Filter 3 is so narrow that it falls between two bins of the FFT; every other one has energy.
    assert (filters.amax(0) == 0).nonzero().flatten().tolist() == [3]
