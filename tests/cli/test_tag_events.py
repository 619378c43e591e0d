"""`torchbeats tag --events` and the annotation formats: what a file says is what the model heard."""

import csv
import json

import numpy as np
import pytest
import torch

import torchbeats
from helpers import noise, small_model, tone, write_sound, write_sounds
from torchbeats.data.annotations.reading import read_annotations
from torchbeats.extras import is_installed
from torchbeats.tables.events import events

NAMES = ["Größe", "犬", "c"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = small_model(finetuned_model=True, predictor_class=3)
    with torch.no_grad():
        model.predictor.weight.mul_(10)
    model.label_dict = dict(enumerate(NAMES))
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    torchbeats.save(model, path)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = write_sounds(tmp_path_factory.mktemp("sounds"), {"a.wav": 3.0})
    samples = noise(9.0)
    samples[3 * 16_000 : 6 * 16_000] = tone(3)
    write_sound(folder / "b.wav", samples, 16_000)
    return folder


def expected(saved, sounds, **settings):
    rows = torchbeats.tag(sounds, saved, every=1.0, threshold=0.5, top=3)
    return list(events(rows, **settings))


def brief(found):
    return [(one.path, pytest.approx(one.start), pytest.approx(one.end), one.label) for one in found]


@pytest.mark.parametrize("ending", ["raven.txt", "kaleidoscope.csv", "birdnet.csv", "csv", "jsonl", "json"])
@pytest.mark.parametrize("settings", [{}, {"min_gap": 2.5, "min_length": 1.5}])
def test_events_in_every_format(run, saved, sounds, tmp_path, ending, settings):
    options = [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", value)]
    output = tmp_path / f"e.{ending}"
    status, out, _ = run("tag", sounds, "-m", saved, "--events", *options, "-o", output)
    assert (status, out) == (0, "")
    found, wanted = read_annotations(output), expected(saved, sounds, **settings)
    assert wanted
    assert brief(found) == brief(wanted)
    assert [one.peak for one in found] == pytest.approx([one.peak for one in wanted], abs=1e-5)


def test_events_of_one_recording_for_audacity(run, saved, sounds, tmp_path):
    track = sounds / "b.audacity.txt"
    try:
        assert run("tag", sounds / "b.wav", "-m", saved, "--events", "-o", track)[0] == 0
        assert brief(read_annotations(track)) == brief(expected(saved, sounds / "b.wav"))
        other = tmp_path / "other.csv"
        assert run("tag", sounds / "b.wav", "-m", saved, "--events", "-o", other, "--format", "audacity")[0] == 0
        assert other.read_text("utf-8") == track.read_text("utf-8")
    finally:
        track.unlink(missing_ok=True)


def test_timelines_in_annotation_formats(run, saved, sounds, tmp_path):
    assert run("tag", sounds, "-m", saved, "--top", 3, "-o", tmp_path / "t.raven.txt")[0] == 0
    assert brief(read_annotations(tmp_path / "t.raven.txt")) == brief(expected(saved, sounds))
    assert run("tag", sounds, "-m", saved, "--top", 3, "-o", tmp_path / "t.txt", "--format", "raven")[0] == 0
    assert (tmp_path / "t.txt").read_bytes() == (tmp_path / "t.raven.txt").read_bytes()


def test_events_on_standard_output(run, saved, sounds):
    wanted = expected(saved, sounds)
    _, out, _ = run("tag", sounds, "-m", saved, "--events")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(one["path"], one["start"], one["end"], one["label"]) for one in found] == brief(wanted)
    assert [one["mean"] for one in found] == pytest.approx([one.mean for one in wanted], abs=1e-5)
    _, out, _ = run("tag", sounds, "-m", saved, "--events", "--format", "csv")
    assert out.splitlines()[0] == "path,start,end,label,peak,mean"
    assert len(list(csv.reader(out.splitlines()))) == len(wanted) + 1
    _, out, _ = run("tag", sounds, "-m", saved, "--events", "--format", "table")
    assert out.count("peak") == len(wanted)
    assert "b.wav" in out


def test_thresholds_that_a_class_was_fitted_with(run, saved, sounds, tmp_path):
    model = torchbeats.load(saved)
    rows = list(torchbeats.tag(sounds / "b.wav", saved, every=1.0, top=3))
    scores = np.array([dict(row.labels)[NAMES[0]] for row in rows])
    model.cfg.update({"thresholds": [float(np.median(scores)), 1.1, None]})
    torchbeats.save(model, tmp_path / "fitted.safetensors")
    _, out, err = run("tag", sounds / "b.wav", "-m", tmp_path / "fitted.safetensors", "--events")
    found = [json.loads(line) for line in out.splitlines()]
    heard = sum(one["end"] - one["start"] for one in found if one["label"] == NAMES[0])
    assert heard == pytest.approx((scores >= np.float32(np.median(scores))).sum(), abs=1)
    assert NAMES[1] not in {one["label"] for one in found}
    assert "No threshold was fitted for 'c': 0.5 is used." in err
    _, out, err = run("tag", sounds / "b.wav", "-m", tmp_path / "fitted.safetensors", "--events", "--threshold", 0)
    assert {json.loads(line)["label"] for line in out.splitlines()} == set(NAMES)
    assert "No threshold" not in err


def test_files_that_fail_have_no_events(run, saved, sounds, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    output = tmp_path / "e.csv"
    inputs = [sounds / "a.wav", tmp_path / "bad.wav", sounds / "b.wav"]
    status, _, err = run("tag", *inputs, "-m", saved, "--events", "--min-gap", 99, "-o", output)
    assert status == 1
    assert "bad.wav" in err
    assert brief(read_annotations(output)) == brief(expected(saved, sounds, min_gap=99))


def test_a_picture_of_events(run, saved, sounds, tmp_path):
    if not is_installed("matplotlib"):
        pytest.skip("needs matplotlib")
    for name, options in (("rows.png", []), ("events.png", ["--events"])):
        assert run("tag", sounds / "b.wav", "-m", saved, "-o", tmp_path / name, *options, "--threshold", 0.5)[0] == 0
    assert (tmp_path / "events.png").read_bytes() != (tmp_path / "rows.png").read_bytes()
    assert (tmp_path / "events.png").stat().st_size > 10_000
