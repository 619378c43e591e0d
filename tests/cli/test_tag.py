"""`torchbeats tag`: labels of sounds and timelines, in every form; values are the model's own."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer, tone, write_sounds
from torchbeats import tagging
from torchbeats.extras import is_installed
from torchbeats.inference import Group, Position
from torchbeats.patches import PatchGrid
from torchbeats.plots import timeline

RATE = 16_000
EXAMPLES = Path(__file__).parents[2] / "examples" / "audio"
LABELS = {0: "/m/04rlf", 1: "犬の鳴き声", 2: "Größe $x^2$", 3: "a\tb\x1b[31m"}
NAMES = ["Music", "犬の鳴き声", "Größe $x^2$", "a\tb\x1b[31m"]
GOOD = {"a.wav": 1.0, "long.wav": 23.7, "sub/c.wav": 2.3}  # seconds


@pytest.fixture(scope="module")
def model():
    model = small_model(finetuned_model=True, predictor_class=4)
    with torch.no_grad():
        model.predictor.weight.mul_(10)
    model.label_dict = LABELS
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    torchbeats.save(model, path)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """The second one changes on its way: noise, a tone, noise."""
    folder = tmp_path_factory.mktemp("sounds")
    write_sounds(folder, GOOD)
    samples = noise(GOOD["long.wav"])
    samples[8 * RATE : 16 * RATE] = tone(8)
    soundfile.write(folder / "long.wav", samples, RATE)
    return folder


def probabilities(model, samples):
    return model(torch.from_numpy(samples)[None])[1][0].numpy()


def read(path):
    return soundfile.read(path, dtype="float32")[0]


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def of(row):
    """Label to probability."""
    return {entry["label"]: entry["probability"] for entry in row["labels"]}


# --- rows a file


def test_a_row_a_file(run, model, saved, sounds):
    status, out, err = run("tag", sounds, "-m", saved)
    assert (status, err) == (0, "")
    rows = objects(out)
    assert [row["path"] for row in rows] == [str(sounds / name) for name in GOOD]
    assert [(row["start"], row["end"]) for row in rows] == [(0.0, seconds) for seconds in GOOD.values()]
    for row in rows:
        assert set(of(row)) == set(NAMES)
        samples = read(row["path"])
        pieces = [samples[start : start + 10 * RATE] for start in range(0, len(samples), 10 * RATE)]
        expected = sum(len(piece) * probabilities(model, piece) for piece in pieces) / len(samples)
        np.testing.assert_allclose([of(row)[name] for name in NAMES], expected, atol=1e-5)
        assert list(of(row).values()) == sorted(of(row).values(), reverse=True)


def test_top_and_threshold(run, saved, sounds):
    every = objects(run("tag", sounds, "-m", saved)[1])
    limit = every[0]["labels"][1]["probability"]
    chosen = objects(run("tag", sounds, "-m", saved, "--top", "2", "--threshold", limit - 1e-5)[1])
    for all_, some in zip(every, chosen, strict=True):
        assert some["labels"] == [entry for entry in all_["labels"][:2] if entry["probability"] > limit - 1e-5]
    assert len(chosen[0]["labels"]) == 2
    assert all(row["labels"] == [] for row in objects(run("tag", sounds, "-m", saved, "--threshold", "1")[1]))


def test_csv_and_files_hold_the_same(run, saved, sounds, tmp_path):
    rows = objects(run("tag", sounds, "-m", saved)[1])
    tidy = [(row["path"], row["start"], row["end"], *entry.values()) for row in rows for entry in row["labels"]]
    status, text, _ = run("tag", sounds, "-m", saved, "--format", "csv")
    assert status == 0
    for name in ("t.csv", "t.json", "new/t.jsonl"):
        assert run("tag", sounds, "-m", saved, "-o", tmp_path / name) == (0, "", "")
    assert (tmp_path / "t.csv").read_bytes().decode() == text
    table = list(csv.reader(io.StringIO(text, newline="")))
    assert table[0] == ["path", "start", "end", "label", "probability"]
    assert [(path, float(a), float(b), label, float(p)) for path, a, b, label, p in table[1:]] == tidy
    assert json.loads((tmp_path / "t.json").read_text("utf-8")) == rows
    assert objects((tmp_path / "new/t.jsonl").read_text("utf-8")) == rows


def test_table(run, saved, sounds, monkeypatch):
    status, out, err = run("tag", sounds, "-m", saved, "--format", "table")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{sounds / 'a.wav'}  1.0 s"
    assert len(lines) == 3 * 5
    assert {line.split("  ")[-1] for line in lines[1:5]} == {"Music", "犬の鳴き声", "Größe $x^2$", "a b [31m"}
    timed = run("tag", sounds / "a.wav", "-m", saved, "--format", "table", "--every", "0.5", "--top", "1")[1]
    assert [line.split("  ")[0] or line.split()[0] for line in timed.splitlines()] == [
        str(sounds / "a.wav"), "0:00.00", "0:00.50",
    ]  # fmt: skip
    empty = run("tag", sounds / "a.wav", "-m", saved, "--format", "table", "--threshold", "1")[1]
    assert empty.splitlines()[1] == "  no label reaches the threshold"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_table(saved, sounds):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "torchbeats", "tag", sounds / "a.wav", "-m", saved]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    subprocess.run(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment, check=True)
    said = os.read(ours, 10_000).decode("ascii")
    assert "a.wav  1.0 s" in said
    assert "Music" in said


# --- timelines


@pytest.mark.parametrize(("every", "window"), [(1.0, None), (1.0, 3.0), (0.5, 0.6), (2.5, None), (2.5, 2.5), (7.9, 10)])
def test_timeline(run, model, saved, sounds, every, window):
    """Rows join; each is scored by the window around its middle, as far as there is sound."""
    path = sounds / "long.wav"
    options = [] if window is None else ["--window", window]
    rows = objects(run("tag", path, "-m", saved, "--every", every, *options, "--top", 4)[1])
    samples, around = read(path), ((window or max(every, 2)) - every) / 2
    seconds = len(samples) / RATE
    assert rows[0]["start"] == 0
    assert rows[-1]["end"] == seconds
    assert all(row["end"] == after["start"] for row, after in pairwise(rows))
    np.testing.assert_allclose([row["start"] for row in rows], every * np.arange(len(rows)), atol=1e-9)
    assert len(rows) - 1 < seconds / every <= len(rows) + 0.5
    for row in (rows[0], rows[1], rows[len(rows) // 2], rows[-2], rows[-1]):
        begin, end = max(0.0, row["start"] - around), min(seconds, row["start"] + every + around)
        end = max(end, row["end"])
        expected = probabilities(model, samples[round(begin * RATE) : round(end * RATE)])
        np.testing.assert_allclose([of(row)[name] for name in NAMES], expected, atol=1e-5)


@pytest.mark.parametrize("window", [1.0, 1.1, 2.0, 5.0])
@pytest.mark.parametrize("blocks", [1000, 50_000])
def test_rows_of_a_timeline_join_at_any_length(window, blocks):
    plan = tagging.TimelinePlan(1.0, window=window)
    around = round((window - 1) / 2 * RATE)
    for length in (1, 100, 7999, 8000, 15_999, 16_000, 16_800, 17_601, 24_000, 31_999, 40_000, 72_345):
        samples = np.arange(1, length + 1, dtype=np.float32)
        cut = list(plan.windows(np.split(samples, range(blocks, length, blocks)), PatchGrid()))
        starts, ends = [window.start for window in cut], [window.end for window in cut]
        assert starts == list(range(0, starts[-1] + 1, RATE))
        assert ends == [*starts[1:], length]
        for start, _, heard in cut:
            end = length if start == starts[-1] else min(length, start + RATE + around)
            np.testing.assert_array_equal(heard, samples[max(0, start - around) : end])


def test_several_files_in_one_timeline(run, saved, sounds):
    rows = objects(run("tag", sounds, "-m", saved, "--every", "1", "--batch-seconds", "3")[1])
    for name, seconds in GOOD.items():
        mine = [row for row in rows if row["path"] == str(sounds / name)]
        assert mine[-1]["end"] == seconds
        assert len(mine) == max(1, round(seconds))


def test_label_track(run, saved, sounds, tmp_path):
    path, out = sounds / "long.wav", tmp_path / "t.txt"
    rows = objects(run("tag", path, "-m", saved, "--every", "1", "--threshold", "0.5", "--top", "2")[1])
    assert run("tag", path, "-m", saved, "-o", out, "--top", "2") == (0, "", "")  # 1 s and 0.5 are the defaults
    found = [line.split("\t") for line in out.read_text("utf-8").splitlines()]
    assert {label for *_, label in found} <= {"Music", "犬の鳴き声", "Größe $x^2$", "a b [31m"}
    covered = {(label, row["start"]) for row in rows for label in of(row)}
    assert 0 < len(found) < len(covered)
    again = set()
    for start, end, label in found:
        name = label.replace("a b [31m", NAMES[3])
        again |= {(name, row["start"]) for row in rows if float(start) <= row["start"] < float(end)}
        assert (name, float(end)) not in covered  # else the region would go on
    assert again == covered


def test_regions():
    def rows(*labels):
        return [tagging.Tags("x", i, i + 1, [(label, 0.9) for label in names]) for i, names in enumerate(labels)]

    assert list(tagging.regions(rows("ab", "b", "", "ba", "a"))) == [
        (0, 1, "a"), (0, 2, "b"), (3, 4, "b"), (3, 5, "a"),
    ]  # fmt: skip
    assert list(tagging.regions([])) == []


def test_a_track_without_labels_says_so(run, saved, sounds, tmp_path):
    status, _, err = run("tag", sounds / "a.wav", "-m", saved, "-o", tmp_path / "t.txt", "--threshold", "1")
    assert (status, (tmp_path / "t.txt").read_text()) == (0, "")
    assert "No label has a probability of 1; try a lower --threshold." in err


# --- pictures


def picture(path):
    from matplotlib import image

    return image.imread(path)[..., :3]


def test_picture(run, saved, sounds, tmp_path):
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, options in {"all": [], "one": ["--top", "1"], "none": ["--threshold", "1"]}.items():
            status, _, err = run("tag", sounds / "long.wav", "-m", saved, "-o", tmp_path / f"{name}.png", *options)
            assert (status, err) == (0, "")
    shown = {name: picture(tmp_path / f"{name}.png") for name in ("all", "one", "none")}
    assert shown["all"].shape[1] == 1440
    assert shown["all"].shape[0] > shown["none"].shape[0]
    pixels = (shown["all"] * 255).astype(np.uint8).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 250  # colours
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.png", "none.png", "one.png"]


def test_picture_of_next_to_nothing(run, saved, tmp_path):
    pytest.importorskip("matplotlib")
    soundfile.write(tmp_path / "x.wav", noise(0.01), RATE)
    (tmp_path / "bad.wav").write_text("no sound")
    assert run("tag", tmp_path / "x.wav", "-m", saved, "-o", tmp_path / "x.png") == (0, "", "")
    assert picture(tmp_path / "x.png").shape[1] == 1440
    assert run("tag", tmp_path / "bad.wav", "-m", saved, "-o", tmp_path / "bad.png")[0] == 2
    assert not (tmp_path / "bad.png").exists()


def test_where_no_file_can_be_read_there_is_no_output(run, saved, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    status, _, said = run("tag", tmp_path / "bad.wav", "-m", saved, "-o", tmp_path / "bad.csv")
    assert status == 2
    assert "The file could not be read" in said
    assert [path.name for path in tmp_path.iterdir()] == ["bad.wav"]
    assert run("tag", tmp_path / "bad.wav", "-m", saved)[0] == 2


def test_without_matplotlib(run, saved, sounds, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = run("tag", sounds / "a.wav", "-m", saved, "-o", tmp_path / "t.png")
    assert status == 2
    assert "pip install 'torchbeats[plots]'" in err


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 1000])
def test_summary(count):
    values = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    summary = timeline.Summary(3, np.maximum, columns=8)
    for part in np.array_split(values, 7):
        summary.add(part)
    columns, each = summary.columns(), summary.per_column
    assert len(columns) <= 8
    assert count < 8 or len(columns) >= 4
    assert summary.counts().sum() == count
    np.testing.assert_array_equal(columns, [values[i : i + each].max(0) for i in range(0, count, each)])


def test_spectrogram_is_the_front_ends():
    samples = noise(8)
    spectrogram = timeline.Spectrogram()
    for part in np.split(samples, [100, 500, 7000, 30_001]):
        spectrogram.add(part)
    expected = 10 / np.log(10) * torchbeats.fbank.Fbank()(torch.from_numpy(samples)[None])[0].numpy()
    np.testing.assert_allclose(spectrogram.decibels(), expected - expected.max(), atol=1e-3)
    assert spectrogram.seconds == 0.01


# --- an hour


HOUR = """
import resource, sys
from torchbeats import cli

def run(path, out):
    sys.argv = ["torchbeats", "tag", path, "-m", model, "-o", out, "--every", "5", "--batch-seconds", "10"]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

model, folder = sys.argv[1:]
before = [run(f"{folder}/minutes.wav", f"{folder}/m.{kind}") for kind in ("csv", "png")][-1]
longer = {"half.wav": "h.png", "hour.wav": "h.csv"}
print([(run(f"{folder}/{name}", f"{folder}/{out}") - before) // 1024 for name, out in longer.items()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts KiB")
def test_an_hour_takes_no_more_memory_than_minutes(saved, tmp_path):
    pytest.importorskip("matplotlib")
    for name, seconds in {"minutes": 120, "half": 1800, "hour": 3600}.items():
        size = 8_000 * seconds
        header = struct.pack(
            "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", size
        )
        with open(tmp_path / f"{name}.wav", "wb") as file:
            file.write(header)
            file.truncate(len(header) + size)  # sparse: no disk is used
    done = subprocess.run(
        [sys.executable, "-c", HOUR, str(saved), str(tmp_path)],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown = json.loads(done.stdout)
    assert max(grown) < 60, grown  # MiB; an hour is 220 as float32
    with open(tmp_path / "h.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["start"] for row in rows}) == 720
    assert rows[-1]["end"] == "3600.0"
    assert (tmp_path / "h.png").stat().st_size > 10_000


# --- what goes wrong


def test_broken_files(run, saved, sounds, tmp_path):
    (tmp_path / "bad.wav").write_text("not a sound\n" * 100)
    for options in ([], ["--every", "1"], ["-o", tmp_path / "t.csv"]):
        status, out, err = run(
            "tag", tmp_path / "bad.wav", sounds / "a.wav", tmp_path / "none.wav", "-m", saved, *options
        )
        assert status == 1
        assert err.count("Skipped: ") == 2
        assert f"Skipped: {tmp_path / 'none.wav'}: it cannot be opened: No such file or directory." in err
        assert "Traceback" not in err
        assert options[:1] == ["-o"] or {row["path"] for row in objects(out)} == {str(sounds / "a.wav")}
    assert "a.wav" in (tmp_path / "t.csv").read_text("utf-8")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
def test_names_that_are_not_utf8(run, saved, tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe, \xe4.wav"
    with open(name, "wb") as file:
        soundfile.write(file, noise(0.5), RATE, format="WAV")
    for form in ("json", "csv", "table"):
        status, out, _ = run("tag", os.fsdecode(name), "-m", saved, "--format", form)
        assert status == 0
        assert r"\xff\xfe, \xe4.wav".replace("\\", "\\\\" if form == "json" else "\\") in out
    if is_installed("matplotlib"):
        assert run("tag", os.fsdecode(name), "-m", saved, "-o", tmp_path / "t.png")[0] == 0


def test_a_pipe_that_closes_early(saved, tmp_path):
    soundfile.write(tmp_path / "x.wav", noise(100), RATE)
    process = subprocess.Popen(
        [sys.executable, "-m", "torchbeats", "tag", tmp_path / "x.wav", "-m", saved, "--every", "0.1",
         "--batch-seconds", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert json.loads(process.stdout.readline())["start"] == 0  # and that long before the end
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141  # as a shell tells of head


def test_models_that_cannot_tag(run, sounds, tmp_path):
    torchbeats.save(small_model(), tmp_path / "plain.safetensors")
    torchbeats.save(small_tokenizer(), tmp_path / "tokens.safetensors")
    refusals = {
        "plain": "This model has no label head; take one that was fine-tuned.",
        "tokens": "This is a tokenizer; labels of classes need a fine-tuned model.",
    }
    for name, said in refusals.items():
        status, out, err = run("tag", sounds, "-m", tmp_path / f"{name}.safetensors")
        assert (status, out) == (2, "")
        assert said in err
    with pytest.raises(ValueError, match="probability, from 0 to 1"):
        torchbeats.tag(noise(1), small_model(), threshold=float("nan"))
    with pytest.raises(ValueError, match="no label head"):
        torchbeats.tag(noise(1), small_model())


def test_the_built_in_tagger_knows_what_the_examples_are(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status, out, err = run("tag", EXAMPLES, "--top", 1)
    assert status == 0
    assert "built-in tagger beats-nano-tagger" in err
    found = {Path(row["path"]).stem: row["labels"][0]["label"] for row in objects(out)}
    called = {"flute": "woodwind", "trumpet": "brass", "engine": "noise", "siren": "effect"}
    right = [name for name, label in found.items() if label == called.get(name, name.split("-")[0])]
    assert len(found) == 15
    assert len(right) >= 13, found
    with pytest.warns(UserWarning, match="built-in tagger"):
        rows = list(torchbeats.tag(EXAMPLES))
    assert len(rows) == 15


def test_the_built_in_tagger_tells_silence_tones_and_noise():
    labels = [
        next(torchbeats.tag(sound, "beats-nano-tagger")).labels[0][0]
        for sound in (np.zeros(32_000, np.float32), tone(2, hertz=700), noise(2))
    ]
    assert labels == ["silence", "tone", "noise"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--every", "3", "--window", "2"], "between 0.05 s and the window's 2.0 s, not 3.0"),
        (["--every", "0"], "between 0.05 s"),
        (["--every", "nan"], "nan"),
        (["--every", "inf"], "inf"),
        (["--window", "0.1"], "at least 0.5 s"),
        (["--top", "0"], "--top"),
        (["--threshold", "2"], "--threshold"),
        (["--threshold", "nan"], "threshold"),
        (["-o", "t.parquet"], " or .png; t.parquet is not"),
        (["-o", "t.csv", "--format", "table"], "A table is for standard output"),
        (["--format", "audacity"], "is of one recording, and the inputs name 3"),
        (["-o", "t.csv", "--format", "audacity"], "is of one recording, and the inputs name 3"),
        (["--events", "--min-gap", "-1"], "The smallest gap is a number of seconds, 0 or more, not -1.0"),
        (["--events", "--min-length", "nan"], "The smallest length is a number of seconds"),
        (["-o", "t.txt"], "A .txt file (label track for Audacity) is of one recording, and the inputs name 3"),
        (["--device", "nowhere"], "nowhere"),
    ],
)
def test_settings_that_make_no_sense(run, saved, sounds, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("tag", sounds, "-m", saved, *options)
    assert (status, out) == (2, "")
    assert said in err
    assert not list(tmp_path.iterdir())


def test_an_input_is_never_overwritten(run, saved, sounds, tmp_path):
    paths = tmp_path / "list.csv"
    paths.write_text(f"path\n{sounds / 'a.wav'}\n")
    status, _, err = run("tag", paths, "-m", saved, "-o", paths)
    assert status == 2
    assert "is one of the inputs" in err
    assert paths.read_text().startswith("path\n")


# --- in Python


def test_python(run, model, saved, sounds, tmp_path):
    rows = list(torchbeats.tag(sounds, model, top=2))
    assert all(isinstance(row, torchbeats.Tags) for row in rows)
    said = objects(run("tag", sounds, "-m", saved, "--top", "2")[1])
    for row, other in zip(rows, said, strict=True):
        assert (row.path, row.start, row.end) == (other["path"], other["start"], other["end"])
        assert [label for label, _ in row.labels] == list(of(other))
        np.testing.assert_allclose([p for _, p in row.labels], list(of(other).values()), atol=1e-5)
    (tmp_path / "bad.wav").touch()
    with pytest.warns(torchbeats.AudioWarning, match="bad.wav was left out"):
        kept = list(torchbeats.tag([noise(1), tmp_path / "bad.wav", (tone(2, 8000), 8000)], str(saved), every=1.0))
    assert [(row.path, row.start, row.end) for row in kept] == [("[0]", 0, 1), ("[2]", 0, 1), ("[2]", 1, 2)]
    for setting in ({"top": 0}, {"threshold": -1}, {"every": 20, "window": 10}):
        with pytest.raises(ValueError, match="not"):
            torchbeats.tag(noise(1), model, **setting)


def test_the_same_sound_twice(model, sounds):
    path = sounds / "a.wav"
    assert len(list(torchbeats.tag([path, path], model))) == 2
    assert len(list(torchbeats.tag([path, path], model, every=0.5))) == 4


def test_views_are_averaged(model, saved, run, tmp_path):
    short, step = noise(0.4, seed=3), model.grid.step_samples
    soundfile.write(tmp_path / "short.wav", short, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "longer.wav", noise(0.7, seed=4), RATE, subtype="FLOAT")
    (row,) = torchbeats.tag(short, model, top=4, views=2)
    later = torchbeats.audio.delay(short, step // 2, np.random.default_rng(step // 2))
    assert len(later) == len(short) + step // 2
    one, other = (dict(next(torchbeats.tag(samples, model, top=4)).labels) for samples in (short, later))
    assert one != pytest.approx(other, abs=1e-3)
    mean = {name: (one[name] + other[name]) / 2 for name in one}
    assert dict(row.labels) == pytest.approx(mean, abs=1e-6)
    # In a batch with a longer clip, and in a timeline, the same noise comes before the same clip.
    together = objects(run("tag", tmp_path, "-m", saved, "--views", "2", "--top", "4")[1])
    assert of(together[1]) == pytest.approx(mean, abs=1e-5)
    (piece,) = torchbeats.tag(short, model, top=4, views=2, every=1.0)
    assert dict(piece.labels) == pytest.approx(mean, abs=1e-6)
    for views in (0, 1.5):
        with pytest.raises(ValueError, match="once or more, not"):
            torchbeats.tag(short, model, views=views)


def test_views_of_a_clip_that_is_too_short_for_the_model(model):
    """It is lengthened with silence, which is not the quiet that it comes from."""
    short = noise(0.1, seed=6)
    one, both = (dict(next(torchbeats.tag(short, model, top=4, views=views)).labels) for views in (1, 2))
    count = model.grid.step_samples // 2
    later = torchbeats.audio.delay(short, count, np.random.default_rng(count))
    later = np.pad(later, (0, model.grid.min_samples - len(short)))
    other = dict(next(torchbeats.tag(later, model, top=4)).labels)
    assert both == pytest.approx({name: (one[name] + other[name]) / 2 for name in one}, abs=1e-6)


def test_a_model_without_names():
    nameless = small_model(finetuned_model=True, predictor_class=2, problem_type="single_label")
    (row,) = torchbeats.tag(noise(1), nameless)
    assert {label for label, _ in row.labels} == {"class 0", "class 1"}
    assert sum(p for _, p in row.labels) == pytest.approx(1)


def test_a_file_comes_as_soon_as_it_is_complete():
    def group(paths, times, values, windows):
        return Group(
            paths,
            np.array(times, float).reshape(-1, 2),
            np.array(values, np.float32).reshape(-1, 1),
            np.array(times, float).reshape(-1, 2)[:, 0] == 0,
            position=Position(0, windows),
        )

    rows = tagging.scored(
        iter([group(["a"], [(0, 10)], [1], 1), group(["a", "b"], [(10, 15), (0, 4)], [0.1, 0.5], 0)]),
        tagging.score_plan(),
    )
    assert [(row.path, row.end, float(row.probabilities[0])) for row in rows] == [
        ("a", 15, pytest.approx(10.5 / 15)), ("b", 4, 0.5),
    ]  # fmt: skip


def test_an_output_that_exists_stays_unless_it_is_to_be_replaced(run, saved, sounds, tmp_path):
    for ending in ("csv", "png"):
        out = tmp_path / f"t.{ending}"
        out.write_text("old")
        status, _, err = run("tag", sounds / "a.wav", "-m", saved, "-o", out)
        assert status == 2
        assert f"{out} exists; use --overwrite to replace it." in err
        assert out.read_text() == "old"
        assert run("tag", sounds / "a.wav", "-m", saved, "-o", out, "--overwrite")[0] == 0
        assert out.read_bytes() != b"old"
