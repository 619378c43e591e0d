"""What is fuzzed: for each kind of file, good ones to begin with, and what must be true of any.

A target reads a file. An error of ours says that it cannot be used; whatever else is raised, a value that is not finite
and a size that the file cannot account for are faults.
"""

import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer, tone, write_av, write_sound
from torchbeats import audio
from torchbeats.data.annotations import plain
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.annotations.audacity import write_audacity
from torchbeats.data.annotations.birdnet import write_birdnet
from torchbeats.data.annotations.kaleidoscope import write_kaleidoscope
from torchbeats.data.annotations.raven import write_raven
from torchbeats.data.annotations.reading import read_annotations
from torchbeats.data.inputs import find_sounds
from torchbeats.data.labelled import read_labelled
from torchbeats.data.windows import LONGEST_SECONDS, Windows
from torchbeats.patches import SAMPLE_RATE
from torchbeats.tables.reading import Table
from torchbeats.training.configuring import finetune_settings, settings
from torchbeats.weights import checkpoint

LARGEST_SAMPLE = audio.LARGEST_SAMPLE
SAMPLES_PER_BYTE = 20_000  # of the densest codecs, and of a rate that was damaged


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        seeds: makes good files in a folder.
        check: reads a file, and asserts what must be true of it.
    """

    seeds: Callable[[Path], Iterator[Path]]
    check: Callable[[Path], None]


# --- sounds


def sound_seeds(folder):
    for name, rate, subtype in [("a.wav", 16_000, "PCM_16"), ("b.wav", 8_000, "FLOAT"), ("c.flac", 44_100, "PCM_24"),
                                ("d.ogg", 22_050, "VORBIS"), ("e.aiff", 16_000, "PCM_16"), ("f.au", 16_000, "ULAW"),
                                ("g.caf", 16_000, "PCM_16"), ("h.mp3", 16_000, None)]:  # fmt: skip
        yield write_sound(folder / name, tone(0.2, rate), rate, subtype)
    for name, codec in [("i.m4a", "aac"), ("j.opus", "libopus"), ("k.webm", "libopus")]:
        yield write_av(folder / name, tone(0.2, 48_000), 48_000, codec)


def check_sound(path):
    count = 0
    for block in audio.stream(path):
        assert block.dtype == np.float32
        assert np.isfinite(block).all()
        count += len(block)
        assert count <= SAMPLE_RATE + SAMPLES_PER_BYTE * path.stat().st_size, "a sound out of nothing"
    seconds = audio.duration(path)
    assert seconds is None or 0 <= seconds < math.inf


# --- lists


def list_seeds(folder):
    rows = [("a.wav", "cat", 0.0, 1.5), ("b/c.wav", "dog;cat", 2.0, None), ("é.wav", "", 0.5, 0.75)]
    lines = [f"{path},{label},{start},{'' if end is None else end}" for path, label, start, end in rows]
    text = "\n".join(["path,label,start,end", *lines]) + "\n"
    objects = [dict(zip(("path", "label", "start", "end"), row, strict=True)) for row in rows]
    texts = {
        "a.csv": text.encode(),
        "b.tsv": text.replace(",", "\t").encode("utf-16"),
        "c.csv": text.replace(",", ";").encode("latin-1"),
        "d.txt": b'# sounds\na.wav\n"b c.wav"\n',
        "e.jsonl": "".join(json.dumps(row) + "\n" for row in objects).encode(),
        "f.jsonl": b'{"audio_filepath": "a.wav", "duration": 1.5, "label": ["x", "y"]}\n',
        "g.scp": b"one a.wav\ntwo b.wav\n",
        "h.csv": b"path,cat,dog\na.wav,1,0\nb.wav,0,1\n",
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
        yield folder / name
    pq.write_table(pa.Table.from_pylist(objects), folder / "i.parquet")
    yield folder / "i.parquet"
    stored = io.BytesIO()
    soundfile.write(stored, noise(0.05), SAMPLE_RATE, format="WAV")
    row = {"audio": {"bytes": stored.getvalue(), "path": "x.wav"}, "label": "cat"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "j.parquet")
    yield folder / "j.parquet"


def check_list(path):
    for read in (lambda: find_sounds([path]), lambda: read_labelled([str(path)]).examples):
        try:
            rows = read()
        except torchbeats.TorchbeatsError:
            continue
        for row in rows:
            assert isinstance(row.path, str)
            assert math.isfinite(row.start)
            assert row.end is None or math.isfinite(row.end)
            assert row.start >= 0


# --- annotations


def annotation_seeds(folder):
    for name in ("one.wav", "two.wav"):
        write_sound(folder / name, noise(0.1), SAMPLE_RATE)
    annotations = [
        Annotation(str(folder / "one.wav"), 0.0, 0.05, "cat", 200.0, 4_000.0, 0.9, 0.5),
        Annotation(str(folder / "one.wav"), 0.02, 0.1, "Bär; klein", None, None, None, None),
        Annotation(str(folder / "two.wav"), 0.0, 0.08, "dog", None, None, 0.25, None),
    ]
    for name, write, some in [
        ("one.Table.1.selections.txt", write_raven, annotations),
        ("one.txt", write_audacity, annotations[:2]),
        ("kaleidoscope.csv", write_kaleidoscope, annotations),
        ("birdnet.csv", write_birdnet, annotations),
        ("plain.csv", plain.write_csv, annotations),
        ("plain.jsonl", plain.write_jsonl, annotations),
    ]:
        (folder / name).write_text("".join(write(some)), encoding="utf-8")
        yield folder / name


def check_annotations(path):
    recordings = [path.parent / "seeds"]
    for one in read_annotations([path], sounds=recordings):
        assert not math.isnan(one.start)  # what is no time of a recording is named by whoever cuts it
        assert one.label
    labelled = read_labelled([path], sounds=recordings, windows=Windows(0.05, plain_lists=True))
    for window in labelled.examples:
        if window.end is None:  # of a list whose times are no longer understood
            assert window.start == 0
        else:
            assert 0 <= window.start < window.end < LONGEST_SECONDS
        assert set(window.labels) <= set(labelled.classes)


# --- checkpoints


def checkpoint_seeds(folder):
    tagger = small_model(finetuned_model=True, predictor_class=2, problem_type="multi_label")
    tagger.label_dict = {0: "cat", 1: "dog"}
    for name, model in {"a.safetensors": tagger, "b.safetensors": small_tokenizer(), "c.pt": small_model()}.items():
        checkpoint.save(model, folder / name)
        yield folder / name


def check_checkpoint(path):
    model = torchbeats.load(path)
    for name, tensor in model.state_dict().items():
        assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name


# --- tables


def table_seeds(folder):
    model = small_model()
    sounds = [write_sound(folder / f"{number}.wav", noise(0.5, seed=number), SAMPLE_RATE) for number in range(3)]
    for name in ("a.parquet", "b.npz"):
        torchbeats.write_table(sounds, folder / name, model)
        yield folder / name


def check_table(path):
    table = Table(path)
    count = 0
    for rows in table.rows():
        assert np.isfinite(rows.values).all()
        assert len(rows.paths) == len(rows.values) == len(rows.times)
        count += len(rows.paths)
    assert count == table.count
    first = np.arange(min(count, 2))
    assert len(table.take(first)) == len(table.places(first)) == len(first)
    assert sum(len(values) for values in table.vectors()) == count
    assert len(table.rows_of(["0.wav"])) == 0


# --- settings


def settings_seeds(folder):
    texts = {
        "a.yaml": "seed: 3\nmodel:\n  lr: 0.001\ntrainer:\n  max_steps: 100\ndata:\n  seconds: 5\n",
        "b.yaml": "model: {epochs: 2, freeze: -1}\ntrainer: {precision: bf16-mixed, devices: 1}\n",
        "c.yaml": "x: &a [1, 2]\ny: [*a, *a]\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        yield folder / name


def check_settings(path):
    for read in (lambda: settings("nano", path), lambda: finetune_settings(path)):
        with suppress(torchbeats.TorchbeatsError):
            json.dumps(read().to_dict())


TARGETS = {
    "sounds": Target(sound_seeds, check_sound),
    "lists": Target(list_seeds, check_list),
    "annotations": Target(annotation_seeds, check_annotations),
    "checkpoints": Target(checkpoint_seeds, check_checkpoint),
    "tables": Target(table_seeds, check_table),
    "settings": Target(settings_seeds, check_settings),
}
