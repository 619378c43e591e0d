"""Nothing in a file's name or a label reaches the screen raw; names that are not UTF-8 stay apart: in every command."""

import csv
import io
import json
import os
import re
import sys

import pyarrow.parquet as pq
import pytest
import soundfile

import torchbeats
from helpers import noise, small_model, small_tokenizer
from torchbeats.files import from_readable

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="names of files are text there")

EVIL = "\x1b[31mred\r\x07\x9b2J[bold]\u202e!"  # escape codes, a bell, markup of Rich, a turn of direction
LABELS = {0: f"cat {EVIL}", 1: "[/]dog"}
OBEYED = re.compile("\x1b\\[31mred|[\x07\x7f-\x9f\u202e\ud800-\udfff]")  # what is not of our own bars and colours


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tagger = small_model(finetuned_model=True, predictor_class=2, problem_type="single_label")
    tagger.label_dict = dict(LABELS)
    torchbeats.save(tagger, folder / "model.safetensors")
    torchbeats.save(small_tokenizer(), folder / "tokenizer.safetensors")
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Four sounds of each class, and two that are none: all with evil names."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number in range(8):
        path = folder / f"{number}{EVIL}.wav"
        soundfile.write(os.fspath(path), noise(0.5, seed=number), 16_000, format="WAV")
        rows.append((os.fspath(path), LABELS[number % 2]))
    for name in (f"bad{EVIL}.wav", os.fsdecode(b"bad\xe9.wav")):
        (folder / name).write_text("no sound")
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows, (os.fspath(folder / f"bad{EVIL}.wav"), LABELS[0])])
    return folder


@pytest.fixture
def terminal(monkeypatch):
    """Standard output counts as a terminal, so that tables are printed."""

    def pretend():
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)

    return pretend


def arguments(command, models, sounds, out):
    model = ["-m", models / "model.safetensors"]
    return {
        "embed": ["embed", sounds, *model, "-o", out / "t.parquet"],
        "tokens": ["tokens", sounds, "-t", models / "tokenizer.safetensors", "-o", out / "t.parquet"],
        "tag": ["tag", sounds, *model],
        "tag csv": ["tag", sounds, *model, "--format", "csv"],
        "tag json": ["tag", sounds, *model, "--format", "json"],
        "tag timeline": ["tag", sounds, *model, "--every", "0.25"],
        "evaluate": ["evaluate", sounds / "labels.csv", *model],
        "evaluate json": ["evaluate", sounds / "labels.csv", *model, "--format", "json"],
        "probe": ["probe", sounds / "labels.csv", *model, "--no-cache", "--folds", "2"],
        "probe json": ["probe", sounds / "labels.csv", *model, "--no-cache", "--folds", "2", "--format", "json"],
        "search": ["search", out / "t.parquet", "row:0"],
        "search json": ["search", out / "t.parquet", "row:0", "--format", "jsonl"],
        "show": ["show", models / "model.safetensors"],
        "show json": ["show", models / "model.safetensors", "--format", "json"],
        "no such file": ["show", f"none{EVIL}.safetensors"],
        "no such command": [f"none{EVIL}"],
        "no such option": ["embed", f"--none{EVIL}"],
        "a wrong ending": ["convert", models / "model.safetensors", f"out{EVIL}.txt"],
        "a wrong window": ["embed", sounds, "-o", out / "t.parquet", "--window", f"2{EVIL}"],
    }[command]


COMMANDS = [
    "embed", "tokens", "tag", "tag csv", "tag json", "tag timeline", "evaluate", "evaluate json", "probe", "probe json",
    "search", "search json", "show", "show json", "no such file",
    "no such command", "no such option", "a wrong ending", "a wrong window",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_that_a_terminal_obeys_is_printed(run, terminal, models, sounds, tmp_path, command):
    if command.startswith("search"):
        assert run(*arguments("embed", models, sounds, tmp_path))[0] == 1
    terminal()
    status, out, err = run(*arguments(command, models, sounds, tmp_path))
    assert status == (0 if command.startswith(("show", "search")) else 2 if command.startswith(("no ", "a ")) else 1), (
        err
    )
    assert not OBEYED.search(out), ascii(out)
    assert not OBEYED.search(err), ascii(err)
    if command.startswith(("tag", "evaluate", "show", "search")):
        assert "[/]dog" in out or command.startswith("search")  # Rich's markup is text like any other
        assert "[31mred" in out
    if command in ("evaluate json", "show json"):
        assert LABELS[0] in strings(json.loads(out))  # whole, as JSON has escapes


def strings(value):
    """All texts in a value of JSON."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    inside = value if isinstance(value, list) else []
    return [value] if isinstance(value, str) else [text for one in inside for text in strings(one)]


def test_a_warning_too(run, models, sounds, tmp_path):
    cut = tmp_path / f"cut{EVIL}.wav"
    data = (sounds / f"0{EVIL}.wav").read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    _, _, err = run("embed", cut, "-m", models / "model.safetensors", "-o", tmp_path / "t.parquet")
    assert "breaks off" in err
    assert not OBEYED.search(err)


ODD = [b"\xe9.wav", b"\xe8.wav", rb"\xe9.wav", "\u00e9.wav".encode()]


@pytest.fixture
def odd(tmp_path):
    """Four sounds whose names are alike, and four that are none."""
    (tmp_path / "odd").mkdir()
    for number, name in enumerate(ODD):
        path = os.fsencode(tmp_path / "odd") + b"/" + name
        with open(path, "wb") as file:
            soundfile.write(file, noise(0.5, seed=number), 16_000, format="WAV")
        with open(os.fsencode(tmp_path / "odd") + b"/x" + name, "wb") as file:
            file.write(b"no sound")
    return tmp_path / "odd"


def names(texts, folder):
    """The bytes of the names that texts stand for."""
    return sorted(os.fsencode(from_readable(text)).removeprefix(os.fsencode(folder) + b"/") for text in texts)


def test_names_that_are_not_utf8_stay_apart_in_tables(run, models, odd, tmp_path):
    for command in ("embed", "tokens"):
        out = tmp_path / f"{command}.parquet"
        wanted = "-t" if command == "tokens" else "-m"
        model = models / ("tokenizer.safetensors" if command == "tokens" else "model.safetensors")
        assert run(command, odd, wanted, model, "-o", out)[0] == 1
        assert names(pq.read_table(out)["path"].to_pylist(), odd) == sorted(ODD)
        lines = out.with_name(f"{out.name}.errors.jsonl").read_text("utf-8").splitlines()
        assert names([json.loads(line)["path"] for line in lines], odd) == sorted(b"x" + name for name in ODD)


def test_names_that_are_not_utf8_stay_apart_in_tags(run, models, odd, tmp_path):
    model = models / "model.safetensors"
    for ending in ("csv", "json", "jsonl"):
        out = tmp_path / f"tags.{ending}"
        assert run("tag", odd, "-m", model, "-o", out, "--top", "1")[0] == 1
        text = out.read_text("utf-8")
        if ending == "csv":
            found = [row["path"] for row in csv.DictReader(io.StringIO(out.read_bytes().decode(), newline=""))]
        else:
            rows = json.loads(text) if ending == "json" else map(json.loads, text.splitlines())
            found = [row["path"] for row in rows]
        assert names(found, odd) == sorted(ODD)
    _, out, _ = run("tag", odd, "-m", model)
    assert names([json.loads(line)["path"] for line in out.splitlines()], odd) == sorted(ODD)


def test_names_that_are_not_utf8_stay_apart_in_figures(run, models, odd, tmp_path):
    """By class folders, whose names say the labels."""
    for number, name in enumerate([*ODD, *(b"x" + name for name in ODD)]):
        folder = os.fsencode(tmp_path / "labelled" / LABELS[number % 2].replace("/", "_"))
        os.makedirs(folder, exist_ok=True)
        os.rename(os.fsencode(odd) + b"/" + name, folder + b"/" + name)
    model = small_model(finetuned_model=True, predictor_class=2, problem_type="single_label")
    model.label_dict = {number: label.replace("/", "_") for number, label in LABELS.items()}
    torchbeats.save(model, tmp_path / "m.safetensors")
    folder, out = tmp_path / "labelled", tmp_path / "figures"
    status, said, err = run("evaluate", folder, "-m", tmp_path / "m.safetensors", "-o", out)
    assert status == 1, err
    base = [os.path.basename(path) for path in pq.read_table(out / "scores.parquet")["path"].to_pylist()]
    assert names(base, odd) == sorted(ODD)
    for text in (said, (out / "metrics.json").read_text("utf-8")):
        failed = [os.path.basename(row["path"]) for row in json.loads(text)["failed"]]
        assert names(failed, odd) == sorted(b"x" + name for name in ODD)
    status, said, err = run("probe", folder, "-m", tmp_path / "m.safetensors", "--no-cache", "--folds", "2")
    assert status == 1, err
    failed = [os.path.basename(row["path"]) for row in json.loads(said)["failed"]]
    assert names(failed, odd) == sorted(b"x" + name for name in ODD)
