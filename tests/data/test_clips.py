"""Clips: what is cut is what lies there, sample by sample; names that never collide; runs that go on."""

import csv
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers import cut_short, noise, write_av, write_sound
from torchbeats.audio import AudioWarning
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.clips import MANIFEST, cut_clips, safe_name
from torchbeats.data.labelled import read_labelled
from torchbeats.errors import SettingsError

RATE = 44_100


def stereo(seconds, rate=RATE):
    return np.stack([noise(seconds, rate, seed=1), noise(seconds, rate, seed=2)], axis=1)


def manifest(folder):
    with (folder / MANIFEST).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def only(folder):
    (path,) = [path for path in folder.rglob("*") if path.suffix in (".wav", ".flac")]
    return path


@pytest.mark.parametrize("format", ["wav", "flac"])
@pytest.mark.parametrize(
    ("subtype", "clip_subtype"),
    [
        ("PCM_U8", {"wav": "PCM_16", "flac": "PCM_16"}),
        ("PCM_16", {"wav": "PCM_16", "flac": "PCM_16"}),
        ("PCM_24", {"wav": "PCM_24", "flac": "PCM_24"}),
        ("FLOAT", {"wav": "FLOAT", "flac": "PCM_24"}),
    ],
)
def test_a_clip_is_what_lies_there(tmp_path, format, subtype, clip_subtype):
    path = write_sound(tmp_path / "r.wav", stereo(3.0), RATE, subtype)
    cut_clips([Annotation(str(path), 0.5, 1.75, "x")], tmp_path / "out", format=format)
    clip = only(tmp_path / "out")
    about = soundfile.info(clip)
    assert (about.samplerate, about.channels, about.subtype) == (RATE, 2, clip_subtype[format])
    found, _ = soundfile.read(clip, dtype="float64")
    wanted, _ = soundfile.read(path, dtype="float64", start=round(0.5 * RATE), frames=round(1.25 * RATE))
    np.testing.assert_allclose(found, wanted, atol=0 if subtype != "FLOAT" else 1e-7)


def test_clips_of_flac_and_of_lossy_sound(tmp_path):
    flac = write_sound(tmp_path / "r.flac", stereo(2.0), RATE, "PCM_16")
    mp3 = write_av(tmp_path / "r.mp3", noise(2.0, RATE), RATE, "libmp3lame")
    rows = [Annotation(str(flac), 0.25, 1.0, "x"), Annotation(str(mp3), 0.25, 1.0, "y")]
    result = cut_clips(rows, tmp_path / "out")
    assert (result.written, result.failures) == (2, [])
    found, _ = soundfile.read(only(tmp_path / "out/x"), dtype="int16")
    wanted, _ = soundfile.read(flac, dtype="int16", start=round(0.25 * RATE), frames=round(0.75 * RATE))
    np.testing.assert_array_equal(found, wanted)
    about = soundfile.info(only(tmp_path / "out/y"))
    assert (about.subtype, about.duration) == ("PCM_16", pytest.approx(0.75, abs=1e-3))


def test_padding_reaches_as_far_as_the_recording(tmp_path):
    path = str(write_sound(tmp_path / "r.wav", noise(3.0), 16_000))
    rows = [Annotation(path, 0.5, 1.0, "a"), Annotation(path, 1.5, 1.5, "point"), Annotation(path, 2.5, 3.0, "z")]
    result = cut_clips(rows, tmp_path / "out", padding=1.0)
    assert (result.written, result.failures) == (3, [])
    lengths = {path.parent.name: soundfile.info(path).duration for path in (tmp_path / "out").rglob("*.wav")}
    assert lengths == {"a": 2.0, "point": 2.0, "z": 1.5}


def test_names_never_collide(tmp_path):
    sites = [tmp_path / site / "r.wav" for site in "ab"]
    for seed, site in enumerate(sites):
        site.parent.mkdir()
        write_sound(site, noise(2.0, seed=seed), 16_000)
    labels = ["x/y", "x_y", "x%2Fy", "..", ".hidden", "犬" * 200, "犬" * 201, "X", "x", "a:b*c?"]
    rows = [
        Annotation(str(site), start, start + 0.5, label) for site in sites for start in (0.0, 1.0) for label in labels
    ]
    for flat in (False, True):
        out = tmp_path / f"out{flat}"
        result = cut_clips(rows, out, class_folders=not flat)
        clips = list(out.rglob("*.wav"))
        assert result.written == len(rows) == len(clips) == len(manifest(out))
        assert len({str(path).lower() for path in clips}) == len(rows)
    folders = [path.name for path in (tmp_path / "outFalse").iterdir() if path.is_dir()]
    assert all(len(name.encode()) < 130 and not name.startswith(".") for name in folders)
    assert len({safe_name(label) for label in labels}) == len(labels)


def test_the_list_of_clips_has_the_labels_as_they_are(tmp_path):
    path = str(write_sound(tmp_path / "r.wav", noise(2.0), 16_000))
    cut_clips([Annotation(path, 0.0, 0.5, "Größe/2", peak=0.75), Annotation(path, 1.0, 1.5, "犬")], tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labelled = read_labelled([tmp_path / "out" / MANIFEST])
    assert labelled.classes == ["Größe/2", "犬"]
    assert all(Path(example.path).is_file() and example.end is None for example in labelled.examples)
    assert sorted(row["peak"] for row in manifest(tmp_path / "out")) == ["", "0.75"]
    assert read_labelled([tmp_path / "out"]).classes == ["Größe%2F2", "犬"]


def test_a_run_that_was_stopped_goes_on(tmp_path):
    path = str(write_sound(tmp_path / "r.wav", noise(4.0), 16_000))
    rows = [Annotation(path, float(n), n + 0.5, "x") for n in range(4)]

    def stop(seconds, count):
        if len(list((tmp_path / "out/x").iterdir())) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_clips(rows, tmp_path / "out", progress=stop)
    before = {clip: clip.stat().st_mtime_ns for clip in (tmp_path / "out/x").iterdir()}
    result = cut_clips(rows, tmp_path / "out")
    assert (result.written, result.existing) == (2, 2)
    assert all(clip.stat().st_mtime_ns == time for clip, time in before.items())
    assert len(manifest(tmp_path / "out")) == 4
    other = cut_clips([Annotation(path, 0.25, 0.5, "y")], tmp_path / "out")
    assert (other.written, len(manifest(tmp_path / "out"))) == (1, 5)
    assert cut_clips(rows, tmp_path / "out", overwrite=True).written == 4


def test_bad_recordings_and_stretches_are_told_and_left_out(tmp_path):
    good = str(write_sound(tmp_path / "good.wav", noise(2.0), 16_000))
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    broken = str(cut_short(write_sound(tmp_path / "broken.flac", noise(4.0), 16_000)))
    holes = noise(2.0)
    holes[5] = np.nan
    holes = str(write_sound(tmp_path / "holes.wav", holes, 16_000, "FLOAT"))
    rows = [
        Annotation(str(tmp_path / "bad.wav"), 0.0, 1.0, "x"),
        Annotation(str(tmp_path / "bad.wav"), 1.0, 2.0, "x"),
        Annotation(str(tmp_path / "gone.wav"), 0.0, 1.0, "x"),
        Annotation(broken, 0.5, 1.0, "x"),
        Annotation(broken, 3.0, 3.5, "x"),
        Annotation(holes, 0.0, 1.0, "x"),
        Annotation(good, 9.0, 10.0, "x"),
        Annotation(good, 1.0, 0.5, "x"),
        Annotation(good, 1.0, 1.0, "x"),
        Annotation(good, math.inf, math.inf, "x"),
        Annotation(good, 0.0, 1.0, "x"),
    ]
    told = []
    result = cut_clips(rows, tmp_path / "out", on_failure=lambda path, reason: told.append((Path(path).name, reason)))
    assert [name for name, _ in told] == ["bad.wav", "gone.wav", "broken.flac", "holes.wav", *["good.wav"] * 4]
    assert len(result.failures) == 8
    assert result.written == len(manifest(tmp_path / "out")) == 2
    assert "recording has ended" in told[4][1]
    assert "ends at 0.5 s, but starts at 1 s" in told[5][1]
    assert "is a point" in told[6][1]
    assert "starts at inf s" in told[7][1]


def test_a_stretch_that_goes_over_the_end_is_cut_there(tmp_path):
    path = str(write_sound(tmp_path / "r.wav", noise(2.0), 16_000))
    with pytest.warns(AudioWarning, match="ends at 5 s, and the recording at 2.00 s"):
        cut_clips([Annotation(path, 1.0, 5.0, "x")], tmp_path / "out")
    assert soundfile.info(only(tmp_path / "out")).duration == 1.0


def test_settings(tmp_path):
    with pytest.raises(SettingsError, match="one of wav, flac"):
        cut_clips([], tmp_path, format="mp3")
    with pytest.raises(SettingsError, match="padding"):
        cut_clips([], tmp_path, padding=-1.0)


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT"])
def test_a_clip_of_a_recording_at_a_url_loses_nothing(tmp_path, monkeypatch, subtype):
    pytest.importorskip("fsspec", reason="the extra remote is not installed")
    path = write_sound(tmp_path / "r.wav", stereo(2.0), RATE, subtype)
    cut_clips([Annotation(path.as_uri(), 0.5, 1.25, "x")], tmp_path / "out")
    clip = only(tmp_path / "out")
    assert soundfile.info(clip).subtype == subtype
    clip_samples, _ = soundfile.read(clip, dtype="float64")
    recording, _ = soundfile.read(path, dtype="float64", start=round(0.5 * RATE), frames=round(0.75 * RATE))
    np.testing.assert_array_equal(clip_samples, recording)  # no arithmetic lies between
    monkeypatch.chdir(tmp_path / "out")  # the same clip from anywhere
    assert cut_clips([Annotation(path.as_uri(), 0.5, 1.25, "x")], tmp_path / "out").existing == 1


def test_clips_of_one_recording_are_a_group_in_the_folder_and_in_its_list(tmp_path):
    """They sound alike: held out apart, they would be recognised by their recording."""
    recordings = [
        str(write_sound(tmp_path / f"{name}.wav", noise(3.0, RATE, seed=k), RATE)) for k, name in enumerate("ab")
    ]
    stretches = [
        Annotation(path, at, at + 0.5, label) for path in recordings for at, label in ((0, "x"), (1, "y"), (2, "x"))
    ]
    cut_clips(stretches, tmp_path / "out")
    for source in (tmp_path / "out", tmp_path / "out" / MANIFEST):
        found = read_labelled([source]).examples
        assert sorted(example.group for example in found) == sorted(recordings * 3)
        assert all(Path(example.path).name.startswith(Path(example.group).stem) for example in found)
    own = write_sound(tmp_path / "out" / "y" / "own.wav", noise(0.5, RATE), RATE)  # of no recording that is known
    groups = {Path(example.path).name: example.group for example in read_labelled([tmp_path / "out"]).examples}
    assert groups["own.wav"] == str(own)


HEAD = b"path,label,recording,from_second,to_second,low,high,peak\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"path,label\nx/1.wav,\xff\xfe\n",
        HEAD,
        HEAD + b"x/1.wav,x\n",
        HEAD + b"\xff\n",
        HEAD + b'"' + b"a" * 200_000,
    ],
)
def test_a_folder_whose_list_tells_nothing_has_no_groups(tmp_path, content):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_sound(tmp_path / name / "1.wav", noise(0.5, RATE), RATE)
    (tmp_path / MANIFEST).write_bytes(content)
    assert [example.group for example in read_labelled([tmp_path]).examples] == [None, None]


def test_a_class_may_be_called_as_the_list_is(tmp_path):
    for name in ("x", MANIFEST):
        (tmp_path / name).mkdir()
        write_sound(tmp_path / name / "1.wav", noise(0.5, RATE), RATE)
    assert read_labelled([tmp_path]).classes == [MANIFEST, "x"]
