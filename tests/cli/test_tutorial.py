"""docs/tutorials/detector.md: all of it runs, in order, and its figures are those that come out.

They may be off by a few calls where another processor rounds differently; the bounds here are what the page is worth.
"""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from torchbeats.data.annotations.reading import read_annotations
from torchbeats.data.example import Example
from torchbeats.data.labelled import Labelled, read_labelled
from torchbeats.evaluation.metrics import average_precision
from torchbeats.fbank import Fbank
from torchbeats.heads.fitting import fit_head
from torchbeats.heads.labelling import label_windows
from torchbeats.tables.reading import Table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "detector.md").read_text("utf-8")
KINDS = ["croak", "trill", "whistle"]


def found(table, truth):
    """Calls that some event of their kind overlaps, events that overlap such a call, and all events."""
    events = read_annotations(table)

    def hits(event, call):
        same = (event.path.endswith(call["path"]), event.label) == (True, call["label"])
        return same and min(event.end, call["end"]) > max(event.start, call["start"])

    calls = sum(any(hits(event, call) for event in events) for call in truth)
    return calls, sum(any(hits(event, call) for call in truth) for event in events), len(events)


def statistics_of_spectrograms(places):
    """``(N, 256)``: mean and standard deviation over time of the log-mel bands of each window."""
    fbank, rows = Fbank(), []
    sounds = {path: soundfile.read(path, dtype="float32")[0] for path in {path for path, _, _ in places}}
    for path, start, end in places:
        bands = fbank(torch.from_numpy(sounds[path][round(16_000 * start) : round(16_000 * end)])[None])[0]
        rows.append(torch.cat([bands.mean(0), bands.std(0)]).numpy())
    return np.stack(rows)


def test_the_tutorial(run, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    names, printed = {"__name__": "page"}, []
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, "detector.md", "exec"), names)
            continue
        for program, *arguments in map(shlex.split, block.splitlines()):
            if program == "python":
                subprocess.run([sys.executable, ROOT / arguments[0], *arguments[1:]], check=True, timeout=300)
            elif program == "torchbeats":
                status, out, err = run(*arguments)
                assert status == 0, (arguments, err)
                printed.append((arguments[0], out, err))
            else:
                assert program == "pip"
    truth = names["truth"]
    assert len(truth) == 60

    # what the search brings
    matches = read_annotations("trills.raven.txt")
    trills = [call for call in truth if call["label"] == "trill"]
    right = sum(
        any(
            match.path.endswith(call["path"]) and min(match.end, call["end"]) > max(match.start, call["start"])
            for call in trills
        )
        for match in matches
    )
    assert len(matches) == 20 == len(list(Path("trills").glob("*.wav")))
    searched = int(re.search(r"(\d+) of the 20 are trills", PAGE)[1])
    assert right == pytest.approx(searched, abs=2)

    # what is detected
    for table, calls, precision in (("calls.raven.txt", 42, 0.9), ("more-calls.raven.txt", 50, 0.85)):
        heard, correct, events = found(table, truth)
        assert heard >= calls, table
        assert correct / events >= precision, table
    rows = re.findall(r"^\| with .*\| (\d+) \| (\d+) of (\d+) \|$", PAGE, re.MULTILINE)
    for table, row in zip(("calls.raven.txt", "more-calls.raven.txt"), rows, strict=True):
        assert found(table, truth) == tuple(pytest.approx(int(number), abs=3) for number in row)
    with Path("clips/clips.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == found("more-calls.raven.txt", truth)[2]
    assert Path("map.html").stat().st_size > 100_000

    # how the windows that nobody has labelled are ranked
    table = Table("soundscape.parquet")
    everything = Labelled(
        [Example(call["path"], (call["label"],), call["start"], call["end"]) for call in truth], KINDS, "multi_label"
    )
    targets = label_windows(table, everything, fully_annotated=True).labelled.targets() > 0
    assert len(targets) == table.count == 900
    windows = label_windows(table, read_labelled(["call-labels.csv"], "multi_label"))
    assert list(windows.labelled.counts().values()) == [5, 5, 5]
    rest = np.setdiff1d(np.arange(table.count), windows.indices)
    stored, places = table.take(np.arange(table.count)), table.places(np.arange(table.count))
    means = []
    for values in (stored, statistics_of_spectrograms(places)):
        head = fit_head(values[windows.indices], windows.labelled)
        scores = head.probabilities(values[rest].astype(np.float64))
        means.append(average_precision(targets[rest], scores))
    assert means[0].mean() >= 0.8
    patterns = r"(0\.\d+) in the mean", r"model, has (0\.\d+)"
    in_the_mean, plain = (float(re.search(pattern, PAGE)[1]) for pattern in patterns)
    assert [mean.mean() for mean in means] == pytest.approx([in_the_mean, plain], abs=0.02)
