"""Every format, rate and fault that `torchbeats.audio` promises to read or to name."""

import os
import pickle
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import cut_short, load_quietly, write_av, write_sound, writes_variable_bit_rate
from torchbeats.audio import (
    AUDIO_SUFFIXES,
    AudioWarning,
    delay,
    duration,
    excerpt,
    from_array,
    load,
    stream,
    windows,
)
from torchbeats.errors import AudioError

RATE = 16_000
SECONDS = 2.0
LEVEL = 0.5  # peak of the tone: rms 0.354


def tone(rate, seconds=SECONDS, hertz=1000.0, level=LEVEL):
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def spectrum_peak(samples):
    magnitude = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return magnitude.argmax() * RATE / len(samples)


def damage(path, size=3000):
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(data)
    return path


# name: (how it is written, how much longer or shorter than 2 s the codec may make it, in samples at 16 kHz)
FORMATS = {
    "u8.wav": (lambda p: write_sound(p, tone(RATE), RATE, "PCM_U8"), 0),
    "s16.wav": (lambda p: write_sound(p, tone(RATE), RATE, "PCM_16"), 0),
    "s24.wav": (lambda p: write_sound(p, tone(RATE), RATE, "PCM_24"), 0),
    "s32.wav": (lambda p: write_sound(p, tone(RATE), RATE, "PCM_32"), 0),
    "float.wav": (lambda p: write_sound(p, tone(RATE), RATE, "FLOAT"), 0),
    "double.wav": (lambda p: write_sound(p, tone(RATE), RATE, "DOUBLE"), 0),
    "ulaw.wav": (lambda p: write_sound(p, tone(RATE), RATE, "ULAW"), 0),
    "raw-by-name.raw": (lambda p: write_sound(p, tone(RATE), RATE, "PCM_16", format="WAV"), 0),
    "rf64.rf64": (lambda p: write_sound(p, tone(RATE), RATE, format="RF64"), 0),
    "w64.w64": (lambda p: write_sound(p, tone(RATE), RATE), 0),
    "aiff.aiff": (lambda p: write_sound(p, tone(RATE), RATE), 0),
    "au.au": (lambda p: write_sound(p, tone(RATE), RATE), 0),
    "caf.caf": (lambda p: write_sound(p, tone(RATE), RATE), 0),
    "s16.flac": (lambda p: write_sound(p, tone(RATE), RATE, "PCM_16"), 0),
    "s24.flac": (lambda p: write_sound(p, tone(RATE), RATE, "PCM_24"), 0),
    "vorbis.ogg": (lambda p: write_sound(p, tone(RATE), RATE), 0),
    "opus.opus": (lambda p: write_sound(p, tone(48_000), 48_000, "OPUS", format="OGG"), 0),
    "lame.mp3": (lambda p: write_sound(p, tone(44_100), 44_100), 1),
    "aac.m4a": (lambda p: write_av(p, tone(44_100), 44_100, "aac"), 1100),
    "aac.aac": (lambda p: write_av(p, tone(44_100), 44_100, "aac"), 1200),
    "opus.webm": (lambda p: write_av(p, tone(48_000), 48_000, "libopus"), 200),
    "picture.mp4": (lambda p: write_av(p, tone(44_100), 44_100, "aac", video=True), 1100),
    "picture.mkv": (lambda p: write_av(p, tone(48_000), 48_000, "libopus", video=True), 200),
    "colon 12:00 ü.m4a": (lambda p: write_av(p, tone(44_100), 44_100, "aac"), 1100),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_tone_survives_every_format(tmp_path, name):
    make, tolerance = FORMATS[name]
    samples = load_quietly(make(tmp_path / name))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - SECONDS * RATE) <= tolerance
    middle = samples[RATE // 4 : -RATE // 4]
    assert spectrum_peak(middle) == pytest.approx(1000, abs=1)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(LEVEL / np.sqrt(2), rel=0.02)  # lossy codecs: 0.2 dB
    assert Path(name).suffix in AUDIO_SUFFIXES | {".raw"}


@pytest.mark.parametrize(("subtype", "bits"), [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("FLOAT", 32)])
@pytest.mark.parametrize("container", ["wav", "flac"])
def test_16_khz_passes_through_untouched(tmp_path, subtype, bits, container):
    if (container, bits) in {("flac", 8), ("flac", 32)}:
        container = "aiff" if bits == 32 else "rf64"  # FLAC holds neither
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, RATE).astype(np.float32)
    if bits < 32:
        noise = np.round(noise * 2 ** (bits - 1)) / np.float32(2 ** (bits - 1))
    path = write_sound(tmp_path / f"clip.{container}", noise, RATE, subtype)
    np.testing.assert_array_equal(load_quietly(path), noise)


def test_float_samples_beyond_full_scale_keep_their_values(tmp_path):
    loud = tone(RATE, level=3.0)
    np.testing.assert_array_equal(load_quietly(write_sound(tmp_path / "loud.wav", loud, RATE, "FLOAT")), loud)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("suffix", ["wav", "flac"])  # libsndfile's way and FFmpeg's
def test_rates_equal_resampling_in_one_piece(tmp_path, rate, suffix):
    noise = np.random.default_rng(rate).normal(0, 0.1, int(2.7 * rate)).astype(np.float32)
    path = write_sound(tmp_path / f"clip.{suffix}", noise, rate, "PCM_24")
    whole = soxr.resample(soundfile.read(path, dtype="float32")[0], rate, RATE, "HQ")
    samples = load_quietly(path)
    assert len(samples) == len(whole)
    np.testing.assert_allclose(samples, whole, atol=2e-6)  # soxr computes in float32 and blocks fall differently


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 6, 8, 12])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_channels_are_averaged(tmp_path, channels, suffix):
    if suffix == "flac" and channels > 8:
        suffix = "caf"  # FLAC ends at 8
    noise = np.random.default_rng(channels).uniform(-0.9, 0.9, (RATE, channels))
    path = write_sound(tmp_path / f"clip.{suffix}", noise, RATE, "PCM_16")
    expected = soundfile.read(path, always_2d=True)[0].mean(axis=1)
    np.testing.assert_allclose(load_quietly(path), expected, atol=3e-7)


@pytest.mark.parametrize("block_seconds", [0.01, 0.3, 1.0, 30.0])
@pytest.mark.parametrize("name", ["clip.wav", "clip.mp3"])
def test_blocks_join_to_the_whole(tmp_path, name, block_seconds):
    path = write_sound(tmp_path / name, np.random.default_rng(0).normal(0, 0.1, 44_100 * 3), 44_100)
    blocks = list(stream(path, block_seconds))
    np.testing.assert_array_equal(np.concatenate(blocks), load(path))
    assert {len(block) for block in blocks[:-1]} <= {round(block_seconds * RATE)}
    assert 0 < len(blocks[-1]) <= round(block_seconds * RATE)


def test_a_block_must_have_a_length(tmp_path):
    path = write_sound(tmp_path / "clip.wav", tone(RATE), RATE)
    with pytest.raises(ValueError, match="positive number of seconds"):
        next(stream(path, 0))


def test_a_change_of_rate_and_channels_on_the_way(tmp_path):
    """As when a radio station sends one recording behind the other."""
    first = write_av(tmp_path / "1.aac", tone(44_100), 44_100, "aac")
    second = write_av(tmp_path / "2.aac", tone(22_050), 22_050, "aac")
    both = tmp_path / "both.aac"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    samples = load_quietly(both)
    assert len(samples) == pytest.approx(2 * SECONDS * RATE, abs=4000)
    assert spectrum_peak(samples[-RATE:]) == pytest.approx(1000, abs=1)


def test_vorbis_recordings_in_a_row_are_all_read(tmp_path):
    both = tmp_path / "both.ogg"
    parts = [write_sound(tmp_path / f"{hertz}.ogg", tone(RATE, hertz=hertz), RATE) for hertz in (500, 1000)]
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    samples = load_quietly(both)
    assert len(samples) == pytest.approx(2 * SECONDS * RATE, abs=600)
    assert spectrum_peak(samples[:RATE]) == pytest.approx(500, abs=1)
    assert spectrum_peak(samples[-RATE:]) == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("declared", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_from_a_pipe_declares_no_length(tmp_path, declared):
    data = bytearray(write_sound(tmp_path / "clip.wav", tone(RATE), RATE).read_bytes())
    data[4:8] = data[40:44] = struct.pack("<I", declared)
    (tmp_path / "clip.wav").write_bytes(data)
    np.testing.assert_allclose(load_quietly(tmp_path / "clip.wav"), tone(RATE), atol=2**-15)


def test_a_flac_from_a_pipe_declares_no_length(tmp_path):
    path = write_sound(tmp_path / "clip.flac", tone(RATE), RATE)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO's total samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    np.testing.assert_allclose(load_quietly(path), tone(RATE), atol=2**-15)


@writes_variable_bit_rate
@pytest.mark.parametrize("order", ["loud first", "loud last"])
def test_an_mp3_of_variable_bit_rate_without_a_header_is_read_to_its_end(tmp_path, order):
    """Its length, guessed from the first bit rate, is too short (libsndfile stops there) or too long (no warning)."""
    loud, silence = np.random.default_rng(0).normal(0, 0.2, 44_100), np.zeros(3 * 44_100)
    clip = np.concatenate([loud, silence] if order == "loud first" else [silence, loud])
    path = write_sound(tmp_path / "clip.mp3", clip, 44_100, bitrate_mode="VARIABLE")
    data = path.read_bytes()
    assert b"Xing" in data[:200]
    second_frame = data.index(data[:2], data.index(b"LAME"))
    path.write_bytes(data[second_frame:])
    assert len(load_quietly(path)) == pytest.approx(4 * RATE, abs=2000)


BREAKS = {
    "clip.wav": lambda p: cut_short(write_sound(p, tone(RATE), RATE)),
    "clip.aiff": lambda p: cut_short(write_sound(p, tone(RATE), RATE)),
    "clip.w64": lambda p: cut_short(write_sound(p, tone(RATE), RATE)),
    "clip.rf64": lambda p: cut_short(write_sound(p, tone(RATE), RATE, format="RF64")),
    "clip.flac": lambda p: cut_short(write_sound(p, tone(RATE), RATE)),
    "clip.mp3": lambda p: cut_short(write_sound(p, tone(44_100), 44_100)),
    "clip.ogg": lambda p: cut_short(write_sound(p, np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)),
    "clip.opus": lambda p: cut_short(write_sound(p, tone(48_000, 4), 48_000, "OPUS", format="OGG")),
    "clip.m4a": lambda p: cut_short(write_av(p, tone(44_100), 44_100, "aac", options={"movflags": "faststart"})),
    "clip.aac": lambda p: cut_short(write_av(p, tone(44_100), 44_100, "aac")),  # no length: known by its last packet
    "clip.webm": lambda p: cut_short(write_av(p, tone(48_000), 48_000, "libopus")),
    "picture.mkv": lambda p: cut_short(write_av(p, tone(48_000), 48_000, "libopus", video=True)),
    "damaged.flac": lambda p: damage(write_sound(p, tone(RATE), RATE)),
    "damaged.mp3": lambda p: damage(write_sound(p, tone(44_100), 44_100)),
    "damaged.ogg": lambda p: damage(write_sound(p, np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)),
    "damaged.m4a": lambda p: damage(write_av(p, tone(44_100), 44_100, "aac")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_file_that_breaks_off_gives_what_it_has_and_says_so(tmp_path, name):
    path = BREAKS[name](tmp_path / name)
    with pytest.warns(AudioWarning) as caught:
        samples = load(path)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert message.startswith(f"{path}: ")
    assert message.endswith(f"{len(samples) / RATE:.2f} s were read.")
    assert 0.3 * RATE < len(samples) < (3 if "ogg" in name or "opus" in name else SECONDS) * RATE


def text(path):
    path.write_text("no sound at all\n" * 400)


def image(path):
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])


def unknown_codec(path):
    write_av(path, tone(48_000), 48_000, "libopus")
    path.write_bytes(path.read_bytes().replace(b"A_OPUS", b"A_NONE"))


def playlist(path):
    other = write_av(path.with_name("secret.aac"), tone(44_100), 44_100, "aac")
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{other}\n#EXT-X-ENDLIST\n")


def not_a_number(path):
    samples = tone(44_100)
    samples[66_150] = np.nan
    write_sound(path, samples, 44_100, "FLOAT")


FAULTS = {
    "missing.wav": (lambda p: None, "cannot be opened: No such file"),
    "folder.wav": (lambda p: p.mkdir(), "a folder, not a file"),
    "zero-bytes.wav": (lambda p: p.touch(), r"empty \(0 bytes\)"),
    "text.txt": (text, "no audio stream|no sound file"),
    "text.wav": (text, "no sound file"),
    "text.au": (text, "no sound file"),
    "image.png": (image, "no audio stream"),
    "image.mp3": (image, "no audio stream"),
    "random.wav": (lambda p: p.write_bytes(np.random.default_rng(1).bytes(50_000)), "no sound file"),
    "random.mp3": (lambda p: p.write_bytes(np.random.default_rng(2).bytes(50_000)), "no sound file"),
    "nul.flac": (lambda p: p.write_bytes(bytes(50_000)), "no sound file|holds no samples"),
    "no-samples.wav": (lambda p: write_sound(p, np.zeros(0), RATE), "holds no samples"),
    "no-samples.aiff": (lambda p: write_sound(p, np.zeros(0), RATE), "holds no samples"),
    "no-samples.ogg": (lambda p: write_sound(p, np.zeros(0), RATE), "holds no samples"),
    "picture-only.mp4": (lambda p: write_av(p, None, 0, "", video=True, sound=False), "no audio stream"),
    "unknown-codec.webm": (unknown_codec, "no decoder"),
    "playlist.m3u8": (playlist, "no sound file"),
    "header-broken.wav": (lambda p: cut_short(write_sound(p, tone(RATE), RATE), 0.0004), "header is broken"),
    "header-only.wav": (
        lambda p: cut_short(write_sound(p, tone(RATE), RATE), 44.5 / 64_044),
        "64000 bytes, 0 are there",
    ),
    "header-broken.flac": (lambda p: cut_short(write_sound(p, tone(RATE), RATE), 0.01), r"declares at least 2\.00 s"),
    "header-broken.ogg": (lambda p: cut_short(write_sound(p, tone(RATE), RATE), 0.01), "header is broken"),
    "index-lost.m4a": (lambda p: cut_short(write_av(p, tone(44_100), 44_100, "aac")), "header is broken"),
    "not-a-number.wav": (not_a_number, r"sample at 1\.500 s is not a finite number"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(tmp_path, name):
    make, reason = FAULTS[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(AudioError, match=reason) as caught:
        load_quietly(path)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}."
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = write_sound(tmp_path / "clip.wav", tone(RATE), RATE)
    path.chmod(0)
    with pytest.raises(AudioError, match="cannot be opened: Permission denied"):
        load(path)


def test_a_refusal_to_open_is_named(tmp_path, monkeypatch):
    def refuse(*_, **settings):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioError, match="cannot be opened: Permission denied"):
        load(tmp_path / "clip.wav")


def test_threads_do_not_disturb_each_other(tmp_path):
    paths = []
    for i, name in enumerate(["a.wav", "b.flac", "c.mp3", "d.ogg", "e.m4a", "f.webm"] * 3):
        hertz, rate = 200.0 + 100 * i, 48_000
        make = write_av if name.endswith(("m4a", "webm")) else write_sound
        codec = {"m4a": ("aac",), "webm": ("libopus",)}.get(name.split(".")[1], ())
        paths.append(make(tmp_path / f"{i}{name}", tone(rate, hertz=hertz), rate, *codec))
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(load, paths))
    for i, (path, samples) in enumerate(zip(paths, together, strict=True)):
        np.testing.assert_array_equal(samples, load(path))
        assert spectrum_peak(samples) == pytest.approx(200 + 100 * i, abs=1)


def test_nothing_is_written_to_stderr(tmp_path):
    paths = [make(tmp_path / name) for name, make in BREAKS.items()]
    code = "import sys, warnings; warnings.simplefilter('ignore'); from torchbeats.audio import load\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}for path in sys.argv[1:]: load(path)", *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""


LONG = """
import resource, sys
from torchbeats.audio import stream, windows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = count = 0
for start, samples in windows(stream(sys.argv[1]), 160_000, 160_000, 2_800):
    total, count = max(total, start + len(samples)), count + 1
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(total, count, grown // (1024 if sys.platform == "darwin" else 1))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource is for Unix")
def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path):
    path = tmp_path / "hour.wav"
    size = 8_000 * 3_600
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", size
    )
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + size)  # sparse: no disk is used
    out = subprocess.run([sys.executable, "-c", LONG, str(path)], capture_output=True, text=True, check=True).stdout
    samples, count, kibibytes = map(int, out.split())
    assert samples == 3_600 * RATE  # 220 MB as float32
    assert count == 360
    assert kibibytes < 60_000


def test_the_import_is_free_of_decoders():
    code = "import sys, torchbeats.audio; print([m for m in ('soundfile', 'soxr', 'av') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_arrays_of_every_kind_become_float32_mono():
    expected = tone(RATE)
    same = {
        "float32": expected,
        "float64": expected.astype(np.float64),
        "list": expected.tolist(),
        "row": expected[None],
        "column": expected[:, None],
        "stereo rows": np.stack([expected * 2, expected * 0]),
        "stereo columns": np.stack([expected * 2, expected * 0], axis=1),
        "tensor": torch.from_numpy(expected),
        "tensor with gradient": torch.from_numpy(expected).requires_grad_(),
        "backwards twice": expected[::-1].copy()[::-1],
    }
    for name, samples in same.items():
        result = from_array(samples)
        assert result.dtype == np.float32, name
        np.testing.assert_array_equal(result, expected, err_msg=name)
        torch.from_numpy(result)  # refuses negative strides
    np.testing.assert_allclose(from_array(torch.from_numpy(expected).bfloat16()), expected, atol=2**-9)


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("int16", [-32_768, 0, 16_384], [-1, 0, 0.5]),
        (">i2", [-32_768, 0, 16_384], [-1, 0, 0.5]),
        ("int32", [-(2**31), 0, 2**30], [-1, 0, 0.5]),
        ("uint8", [0, 128, 192], [-1, 0, 0.5]),
    ],
)
def test_pcm_arrays_are_scaled(dtype, values, expected):
    np.testing.assert_array_equal(from_array(np.array(values, dtype)), np.array(expected, np.float32))


def test_arrays_are_resampled():
    np.testing.assert_allclose(
        from_array(tone(44_100), 44_100), soxr.resample(tone(44_100), 44_100, RATE, "HQ"), atol=1e-6
    )
    stereo = (np.stack([tone(8_000), tone(8_000)], axis=1) * 32_768).astype(np.int16)
    np.testing.assert_allclose(from_array(stereo, 8_000), soxr.resample(tone(8_000), 8_000, RATE), atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "rate", "reason"),
    [
        (np.zeros(100, np.int64), RATE, "int64"),
        (np.zeros(100, np.uint16), RATE, "uint16"),
        (np.zeros(100, np.int8), RATE, "int8"),
        (np.zeros(100, bool), RATE, "bool"),
        (np.zeros(100, complex), RATE, "complex"),
        (np.array(["a"]), RATE, "<U1"),
        (np.zeros(0), RATE, "no samples"),
        (np.zeros((2, 0)), RATE, "no samples"),
        (np.float32(1), RATE, r"shape \(\)"),
        (np.zeros((2, 3, 4)), RATE, r"shape \(2, 3, 4\)"),
        (np.array([0, 1, np.nan]), RATE, "Sample 2 is not a finite"),
        (np.array([[0, 1, 2], [0, np.inf, 2]]), RATE, "Sample 1 is not a finite"),
        (np.array([[np.inf, 1, 2], [-np.inf, 1, 2]]), RATE, "Sample 0 is not a finite"),
        (np.array([1e300]), RATE, "Sample 0 is not a finite"),
        (np.array([[0, 1e30, 2], [0, -1e30, 2]]), RATE, r"Sample 1 is -?1e\+30, far beyond"),
        (np.zeros(100), 0, "rate is 0"),
        (np.zeros(100), float("nan"), "rate is nan"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(samples, rate, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=reason):
            from_array(samples, rate)


def test_channels_that_would_cancel_are_no_sound(tmp_path):
    samples = np.full((2, RATE), 0.1, np.float32)
    samples[:, 100] = 1e30, -1e30
    soundfile.write(tmp_path / "a.wav", samples.T, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"the sample at 0\.006 s is -?1e\+30, far beyond full scale"):
        load(tmp_path / "a.wav")


def test_a_later_clip_has_its_own_quiet_before_it():
    random = np.random.default_rng(0)
    hum = 0.01 * np.sin(2 * np.pi * 120 * np.arange(4_000) / 16_000)
    samples = np.concatenate([random.normal(0, 0.5, 4_000), hum]).astype(np.float32)
    later = delay(samples, 25_000, random)
    assert later.dtype == np.float32
    np.testing.assert_array_equal(later[25_000:], samples)
    before = later[:25_000]
    assert before.std() == pytest.approx(hum.std(), rel=0.5)  # narrow noise comes and goes
    spectrum = np.abs(np.fft.rfft(before * np.hanning(25_000))) ** 2
    assert spectrum[: 25_000 * 240 // 16_000].sum() > 0.95 * spectrum.sum()
    for short in (np.zeros(0, np.float32), np.ones(399, np.float32)):  # too short to have a quiet moment
        np.testing.assert_array_equal(delay(short, 100, random), np.pad(short, (100, 0)))


@given(st.data())
def test_windows_cut_any_stream_as_if_it_were_one_array(data):
    length = data.draw(st.integers(1, 40), "length")
    hop = data.draw(st.integers(1, length), "hop")
    shortest = data.draw(st.integers(0, hop), "shortest")
    sizes = data.draw(st.lists(st.integers(0, 60), max_size=12), "sizes")
    whole = np.arange(sum(sizes), dtype=np.float32)
    starts = np.cumsum([0, *sizes])
    taken = 0
    scratch = np.empty(60, np.float32)

    def blocks():  # through one buffer that is used again and again
        nonlocal taken
        for start, size in zip(starts, sizes, strict=False):
            scratch[:size] = whole[start : start + size]
            taken += size
            yield scratch[:size]
            scratch[:] = -1

    # The rule as it is told, on the whole array: a window for every hop that brings something new …
    expected = [(s, min(s + length, len(whole))) for s in range(0, len(whole), hop)]
    expected = [w for i, w in enumerate(expected) if i == 0 or w[1] > expected[i - 1][1]]
    # … and too little that is new joins the window before
    if len(expected) > 1 and expected[-1][1] - expected[-2][1] < shortest:
        end = expected.pop()[1]
        expected[-1] = (expected[-1][0], end)

    seen = []
    for start, samples in windows(blocks(), length, hop, shortest):
        np.testing.assert_array_equal(samples, whole[start : start + len(samples)])
        seen.append((start, start + len(samples)))
        assert taken - start <= length + max(shortest, 1) + max(sizes) + hop  # nothing waits longer than it must
        samples[:] = -2  # a window is the caller's to spoil
    assert seen == expected


def test_windows_of_the_steps_pooling_share_a_frame_less_a_shift():
    whole = np.arange(160_000 * 3, dtype=np.float32)
    cut_up = list(windows(np.array_split(whole, 7), 158_960, 158_720, 2_560))
    assert [(start, len(samples)) for start, samples in cut_up] == [
        (0, 158_960),
        (158_720, 158_960),
        (317_440, 158_960),
        (476_160, 3_840),
    ]


@pytest.mark.parametrize(("length", "hop", "shortest"), [(10, 0, 1), (10, 11, 1), (0, 0, 0), (10, 5, -1)])
def test_windows_refuse_to_skip_samples(length, hop, shortest):
    with pytest.raises(ValueError, match=r"Windows of|shortest window"):
        list(windows([np.zeros(5, np.float32)], length, hop, shortest))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path, kind in ((tmp_path / "pipe.wav", "a named pipe"), ("/dev/zero", "a device")):
        for read in (load, duration, lambda path: excerpt(path, 0, 1)):
            with pytest.raises(AudioError, match=f"it is {kind}, not a file"):
                read(path)


def test_a_name_with_a_nul_is_refused(tmp_path):
    with pytest.raises(AudioError, match="cannot be opened"):
        load(f"{tmp_path}/a\0.wav")


@pytest.mark.parametrize("name", ["piano-2.mp3", "siren.mp3", "flute.ogg"])
@pytest.mark.parametrize("start", [0.25, 1.25])
def test_a_piece_of_a_compressed_file_is_that_of_the_whole(name, start):
    """FFmpeg's time of an MP3's first sample is the encoder's delay, here 25 and 69 ms."""
    path = Path(__file__).parents[1] / "examples" / "audio" / name
    whole = load(path)[round(RATE * start) :]
    piece = excerpt(path, start, np.inf)
    assert len(piece) == len(whole)
    middle = slice(1_000, -1_000)  # resampling has edges
    np.testing.assert_allclose(piece[middle], whole[middle], atol=2e-3)
