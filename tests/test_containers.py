"""Headers that say something else than the file: sizes, rates, lengths, and what stands before and behind the sound."""

import re
import struct
import subprocess
import sys
import warnings
from contextlib import suppress

import numpy as np
import pytest
import soundfile

from fuzz.mutations import damaged
from helpers import cut_short, load_quietly, tone, write_av, write_sound, writes_variable_bit_rate
from torchbeats.audio import AudioWarning, duration, excerpt, from_array, load
from torchbeats.errors import AudioError

RATE = 16_000
CLIP = tone(2)
PCM = (CLIP * 32_767).astype("<i2").tobytes()


def wav_format(rate=RATE, channels=1):
    return b"fmt " + struct.pack("<IHHIIHH", 16, 1, channels, rate, 2 * channels * rate % 2**32, 2 * channels, 16)


def wav(data=PCM, rate=RATE, declared=None, before=b"", behind=b""):
    body = (
        b"WAVE" + wav_format(rate) + before + b"data" + struct.pack("<I", len(data) if declared is None else declared)
    )
    return b"RIFF" + struct.pack("<I", len(body + data + behind)) + body + data + behind


def rf64(magic, declared):
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 0, declared, 0, 0)
    return magic + b"\xff" * 4 + b"WAVE" + sizes + wav_format() + b"data" + b"\xff" * 4 + PCM


def changed(suffix, place, distance, number):
    """A file of libsndfile's with another number behind a word of its header."""

    def make(path):
        data = bytearray(write_sound(path.with_suffix(suffix), CLIP, RATE).read_bytes())
        at = data.index(place) + distance
        data[at : at + len(number)] = number
        return bytes(data)

    return make


LONGER = {
    "wrapped.wav": lambda p: wav(declared=16_000),
    "wrapped by a little.wav": lambda p: wav(declared=63_000),
    "wrapped.rf64": lambda p: rf64(b"RF64", 10),
    "wrapped.bw64.wav": lambda p: rf64(b"BW64", 10),
    "wrapped.aiff": changed(".aiff", b"SSND", 4, struct.pack(">I", 16_008)),
    "wrapped.au": changed(".au", b".snd", 8, struct.pack(">I", 16_000)),
    "wrapped.caf": changed(".caf", b"data", 4, struct.pack(">Q", 16_004)),
}


@pytest.mark.parametrize("name", LONGER)
def test_sound_behind_the_declared_size_is_read_and_told(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(LONGER[name](path))
    with pytest.warns(AudioWarning, match=r"declares \d+ bytes of sound, but 64000 are there; 2\.00 s were read"):
        samples = load(path)
    np.testing.assert_allclose(samples, CLIP, atol=1e-4)
    assert duration(path) == 2.0
    np.testing.assert_array_equal(excerpt(path, 1.5, 0.25), samples[24_000:28_000])
    with open(path, "rb") as file:
        np.testing.assert_array_equal(excerpt(file, 1.5, 0.25), samples[24_000:28_000])


REGULAR = {
    "a chunk behind": wav(behind=b"LIST" + struct.pack("<I", 4) + b"INFO"),
    "an odd chunk before, not filled up": wav(before=b"LIST" + struct.pack("<I", 7) + b"INFOabc"),
    "an odd chunk before, filled up": wav(before=b"LIST" + struct.pack("<I", 7) + b"INFOabc\0"),
    "a chunk behind that is cut off": wav(behind=b"LIST" + struct.pack("<I", 400) + b"INFO"),
    "a chunk of another maker behind": wav(behind=b"Xyz9" + struct.pack("<I", 3) + b"abc\0"),
    "a tag behind": wav() + b"TAG" + bytes(125),
    "zeros behind": wav() + bytes(512),
    "a tag before": b"ID3\x03\0\0\0\0\1\0" + bytes(128) + wav(),
    "two tags before": 2 * (b"ID3\x03\0\0\0\0\0\5" + bytes(5)) + wav(),
    "no size in the header": wav(declared=0),
    "no size, by SoX": wav(declared=0x7FFFF000),
    "no size in ds64": rf64(b"RF64", 0),
    "BW64": rf64(b"BW64", len(PCM)),
}


@pytest.mark.parametrize("name", REGULAR)
def test_what_is_around_the_sound_does_not_disturb(tmp_path, name):
    path = tmp_path / "clip.wav"
    path.write_bytes(REGULAR[name])
    np.testing.assert_allclose(load_quietly(path), CLIP, atol=1e-4)
    assert duration(path) == 2.0


@pytest.mark.parametrize("suffix", ["aiff", "flac", "au", "caf"])
def test_a_tag_before_other_formats(tmp_path, suffix):
    path = write_sound(tmp_path / f"clip.{suffix}", CLIP, RATE)
    path.write_bytes(b"ID3\x03\0\0\0\0\1\0" + bytes(128) + path.read_bytes())
    np.testing.assert_allclose(load_quietly(path), CLIP, atol=1e-4)
    assert duration(path) == 2.0


def test_a_file_of_three_gigabytes_that_breaks_off_says_so(tmp_path):
    (tmp_path / "clip.wav").write_bytes(wav(declared=3 * 10**9))
    with pytest.warns(AudioWarning, match="declares 3000000000 bytes, 64000 are there"):
        assert len(load(tmp_path / "clip.wav")) == 2 * RATE
    assert duration(tmp_path / "clip.wav") == 2.0


ENCODINGS = [
    (suffix, subtype, endian)
    for suffix, subtypes in {
        "wav": ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM"],
        "aiff": ["PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"],
        "au": ["PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"],
        "caf": ["PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"],
        "w64": ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"],
    }.items()
    for subtype in subtypes
    for endian in ("FILE", "LITTLE", "BIG")
    if soundfile.check_format(suffix, subtype, endian)
]


@pytest.mark.parametrize(("suffix", "subtype", "endian"), ENCODINGS)
def test_every_encoding_reads_the_same_behind_a_tag(tmp_path, suffix, subtype, endian):
    """Then the samples are read from where they are known to be, and not by libsndfile's own look at the header."""
    stereo = np.stack([CLIP, 0.5 * CLIP], axis=1)
    path = tmp_path / f"clip.{suffix}"
    soundfile.write(path, stereo, 22_050, subtype, endian)
    expected = load_quietly(path)
    assert duration(path) == pytest.approx(soundfile.info(path).duration)
    if subtype == "IMA_ADPCM":
        return
    path.write_bytes(b"ID3\x03\0\0\0\0\0\5" + bytes(5) + path.read_bytes())
    np.testing.assert_array_equal(load_quietly(path), expected)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le", "libmp3lame"])
@pytest.mark.parametrize("video", [False, True])
@pytest.mark.parametrize("suffix", ["avi", "flv", "mkv"])
def test_videos_that_break_off_say_so(tmp_path, suffix, codec, video):
    if (suffix == "flv" and (video or codec == "pcm_s16le")) or (suffix, codec) == ("mkv", "pcm_s16le"):
        pytest.skip("FLV holds neither PCM of 44.1 kHz nor MPEG-4 video, and PCM in Matroska would be a single packet")
    path = write_av(tmp_path / f"clip.{suffix}", tone(2, 44_100), 44_100, codec, video=video)
    whole = len(load_quietly(path))
    with pytest.warns(AudioWarning, match="breaks off: its header declares"):
        assert len(load(cut_short(path))) < 0.9 * whole


@pytest.mark.parametrize("left", [3, 4, 40, 300])
def test_an_flv_without_a_declared_size_is_known_by_its_last_tag(tmp_path, left):
    path = write_av(tmp_path / "clip.flv", tone(2, 44_100), 44_100, "aac")
    data = path.read_bytes().replace(b"filesize", b"filesyze")
    path.write_bytes(data)
    load_quietly(path)
    path.write_bytes(data[:-4])  # some writers leave out the last tag's size
    load_quietly(path)
    path.write_bytes(data[: -left - 4])
    with pytest.warns(AudioWarning, match="breaks off"):
        load(path)


# --- rates, lengths and values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 1, 7, 99, 4_000_001, 10**9, 2**32 - 1])
def test_rates_that_cannot_be_are_refused_by_name(tmp_path, rate):
    (tmp_path / "clip.wav").write_bytes(wav(rate=rate))
    for read in (load, duration):
        with pytest.raises(AudioError, match=re.escape(f"sample rate is {rate:g} Hz")):
            read(tmp_path / "clip.wav")
    with pytest.raises(ValueError, match="rate"):
        from_array(CLIP, rate)


@pytest.mark.parametrize("rate", [1, 4, 99])
def test_rates_that_cannot_be_are_refused_in_compressed_files(tmp_path, rate):
    (tmp_path / "clip.flac").write_bytes(constant_flac(1, rate))
    for read in (load, duration):
        with pytest.raises(AudioError, match=f"sample rate is {rate} Hz"):
            read(tmp_path / "clip.flac")


@pytest.mark.parametrize("channels", [0, 32_767])
def test_channels_that_cannot_be_are_refused_with_a_sentence(tmp_path, channels):
    content = bytearray(wav())
    content[22:24] = struct.pack("<H", channels)
    content[32:34] = struct.pack("<H", 2 * channels)
    (tmp_path / "clip.wav").write_bytes(content)
    with pytest.raises(AudioError, match="could not be decoded"):
        load(tmp_path / "clip.wav")
    with suppress(AudioError):
        assert duration(tmp_path / "clip.wav") is None


@pytest.mark.parametrize("rate", [100, 4_000_000])
def test_the_lowest_and_the_highest_rate_are_read(tmp_path, rate):
    (tmp_path / "clip.wav").write_bytes(wav(rate=rate))
    assert len(load_quietly(tmp_path / "clip.wav")) == pytest.approx(32_000 * RATE / rate, abs=1)


@pytest.mark.parametrize("value", [1e10, -1e12, 1e30, -3e38])
def test_floats_that_are_no_sound_fail(tmp_path, value):
    samples = CLIP.copy()
    samples[8_000] = value
    with pytest.raises(AudioError, match=r"the sample at 0\.500 s is -?\d+e\+\d+, far beyond full scale"):
        load_quietly(write_sound(tmp_path / "clip.wav", samples, RATE, "FLOAT"))
    with pytest.raises(ValueError, match=r"Sample 8000 is .*far beyond full scale"):
        from_array(samples)


@pytest.mark.parametrize("scale", [1.5, 700.0, 2.0**15, 2.0**31])
def test_loud_floats_and_scaled_integers_are_sound(tmp_path, scale):
    samples = (CLIP / np.abs(CLIP).max() * scale).astype(np.float32)
    np.testing.assert_array_equal(load_quietly(write_sound(tmp_path / "clip.wav", samples, RATE, "FLOAT")), samples)


def checksum(data, width, polynomial):
    value, top, full = 0, 1 << (width - 1), (1 << width) - 1
    for byte in data:
        value ^= byte << (width - 8)
        for _ in range(8):
            value = ((value << 1) ^ polynomial if value & top else value << 1) & full
    return value


def constant_flac(frames, rate, total=None, block=65_535):
    """Frames of one value each, RFC 9639: eleven bytes and more that unfold to 65,535 samples."""
    total = block * frames if total is None else total
    about = struct.pack(">HH", block, block) + bytes(6) + struct.pack(">Q", rate << 44 | 15 << 36 | total) + bytes(16)
    data = b"fLaC\x80\0\0\x22" + about
    for number in range(frames):
        head = b"\xff\xf8\x70\x08" + chr(number).encode() + struct.pack(">H", block - 1)
        frame = head + bytes([checksum(head, 8, 7), 0]) + struct.pack(">h", 1000)
        data += frame + struct.pack(">H", checksum(frame, 16, 0x8005))
    return data


@pytest.mark.parametrize("behind", [0, 5_000])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_flac_that_declares_weeks_lasts_as_long_as_it_sounds(tmp_path, frames, behind):
    path = tmp_path / "clip.flac"
    path.write_bytes(constant_flac(frames, RATE, 2**36 - 1) + bytes(behind))
    if behind and int(pytest.importorskip("av").__version__.split(".")[0]) < 13:
        pytest.skip("FFmpeg 6 takes what stands behind the last frame for a part of it, and drops both")
    assert duration(path) == pytest.approx(frames * 65_535 / RATE)
    with pytest.warns(AudioWarning, match="its header declares at least"):
        assert len(load(path)) == frames * 65_535


@pytest.mark.parametrize("declared", [1, 2 * RATE, 3 * RATE - 100])
def test_a_flac_that_declares_too_little_is_read_to_its_end_with_a_warning(tmp_path, declared):
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE)
    data = bytearray(write_sound(tmp_path / "clip.flac", noise, RATE).read_bytes())
    data[21:26] = (data[21] & 0xF0 | declared >> 32, *struct.pack(">I", declared))  # STREAMINFO's total samples
    (tmp_path / "clip.flac").write_bytes(data)
    with pytest.warns(AudioWarning, match=f"declares {declared / RATE:.2f} s of sound, but more are there; 3.00 s"):
        assert len(load(tmp_path / "clip.flac")) == 3 * RATE
    if declared < 2.5 * RATE:  # so much more than can be that it has to be counted
        assert duration(tmp_path / "clip.flac") == pytest.approx(3)


def test_a_flac_of_silence_is_as_long_as_it_says(tmp_path):
    (tmp_path / "clip.flac").write_bytes(constant_flac(100, RATE))
    assert duration(tmp_path / "clip.flac") == pytest.approx(100 * 65_535 / RATE)


@writes_variable_bit_rate
def test_an_mp3_whose_delay_is_longer_than_its_sound(tmp_path):
    data = bytearray(write_sound(tmp_path / "clip.mp3", tone(0.5, RATE), RATE).read_bytes())
    count = data.index(b"Xing" if b"Xing" in data else b"Info") + 8
    data[count : count + 4] = (1).to_bytes(4, "big")  # frames
    delay = data.index(b"LAME") + 21
    data[delay : delay + 3] = b"\xff\xf0\x00"
    (tmp_path / "clip.mp3").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        assert duration(tmp_path / "clip.mp3") == pytest.approx(len(load(tmp_path / "clip.mp3")) / RATE)


@writes_variable_bit_rate
@pytest.mark.parametrize("frames", [1_000, 10**7])
def test_an_mp3_whose_header_counts_too_many_frames(tmp_path, frames):
    path = write_sound(tmp_path / "clip.mp3", tone(2, 44_100), 44_100, bitrate_mode="VARIABLE")
    data = bytearray(path.read_bytes())
    at = data.index(b"Xing") + 8
    data[at : at + 4] = struct.pack(">I", frames)
    path.write_bytes(data)
    assert duration(path) == pytest.approx(2.0, abs=0.1)


def test_an_m4a_that_is_cut_off_lasts_as_long_as_its_index_allows(tmp_path):
    av = pytest.importorskip("av")
    path = write_av(tmp_path / "clip.m4a", tone(2, 44_100), 44_100, "aac", options={"movflags": "faststart"})
    assert duration(path) == pytest.approx(2.0, abs=0.05)
    cut_short(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if int(av.__version__.split(".")[0]) < 17:  # shows no index, so that the header is believed
            assert duration(path) == pytest.approx(2.0, abs=0.05)
            return
        assert duration(path) == pytest.approx(len(load(path)) / RATE, abs=0.05)


def test_an_ordinary_length_is_not_decoded(tmp_path, monkeypatch):
    paths = [write_sound(tmp_path / f"clip.{suffix}", CLIP, RATE) for suffix in ("wav", "flac", "mp3", "ogg", "caf")]
    paths.append(write_av(tmp_path / "clip.m4a", tone(2, 44_100), 44_100, "aac"))
    monkeypatch.setattr("torchbeats.decoders.read", None)
    for path in paths:
        assert duration(path) == pytest.approx(2.0, abs=0.1), path


GROWN = """
import resource, sys, warnings
from torchbeats.audio import AudioWarning, stream
warnings.simplefilter("ignore", AudioWarning)
for _ in stream(sys.argv[2]): pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(len(block) for block in stream(sys.argv[1]))
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (1024 if sys.platform == "darwin" else 1))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource is for Unix")
@pytest.mark.parametrize("name", ["low rate.flac", "low rate.wav", "many channels.wav"])
def test_memory_stays_flat_where_little_becomes_much(tmp_path, name):
    path, small = tmp_path / name, tmp_path / f"small{name[-5:]}"
    small.write_bytes(constant_flac(1, 8_000) if name.endswith("flac") else wav(rate=8_000))
    if name == "low rate.flac":
        path.write_bytes(constant_flac(40, 100))  # 640 bytes: seven hours, 1.7 GB as float32
        expected = 40 * 65_535 * 160
    elif name == "low rate.wav":
        path.write_bytes(wav(bytes(2 * 400_000), rate=100))
        expected = 400_000 * 160
    else:
        header = wav(b"", declared=2_000 * RATE).replace(wav_format(), wav_format(channels=1_000))
        with open(path, "wb") as file:
            file.write(header)
            file.truncate(len(header) + 2_000 * RATE)  # sparse: no disk is used
        expected = RATE
    out = subprocess.run(
        [sys.executable, "-c", GROWN, str(path), str(small)], capture_output=True, text=True, check=True
    )
    samples, kibibytes = map(int, out.stdout.split())
    assert samples == expected
    assert kibibytes < 80_000


def test_a_header_that_leads_before_the_file(tmp_path, capfd):
    """Found by fuzzing: FFmpeg seeks to a negative place, and that was an error of the system's, without the name."""
    path = write_sound(tmp_path / "x.caf", tone(0.2), 16_000, "PCM_16")
    path.write_bytes(damaged(path.read_bytes(), [("repeat", 0.5, True, 1)]))
    with pytest.raises(AudioError, match=r"x\.caf"):
        load(path)
    assert capfd.readouterr().err == ""
