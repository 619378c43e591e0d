"""The command as people run it: results, exit status, what it says, and that no kill ever costs a row.

Most tests call `main` in this process (`run`); the ones that need a process of their own fork one (`fork`). Both are
fixtures of conftest.py.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors import safe_open

import torchbeats
from helpers import small_model, small_tokenizer, write_sounds
from hub_server import HubServer
from torchbeats import RandomProjectionTokenizer
from torchbeats.cli import convert
from torchbeats.tables import unfinished
from torchbeats.weights import hub

RATE = 16_000
GOOD = {"a.wav": 1.0, "b.flac": 0.05, "sub/c.wav": 2.3, "sub/d.wav": 1.7}  # seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    torchbeats.save(small_model(), path)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("sounds"), GOOD)


@pytest.fixture
def mixed(sounds, tmp_path):
    """The good ones, and of the bad: one empty, one text, one without its sound, and one cut short."""
    folder = tmp_path / "mixed"
    shutil.copytree(sounds, folder)
    data = (folder / "a.wav").read_bytes()
    (folder / "zero.wav").touch()
    (folder / "text.wav").write_text("not a sound\n" * 100)
    (folder / "stub.wav").write_bytes(data[:30])
    (folder / "cut.wav").write_bytes(data[: len(data) // 2])
    (folder / "notes.txt").touch()
    return folder


BAD = {"stub.wav", "text.wav", "zero.wav"}


def start(*arguments, env=None, **more):
    """The real thing, from nothing."""
    command = [sys.executable, "-m", "torchbeats", *map(str, arguments)]
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**clean, "OMP_NUM_THREADS": "1", **(env or {})},
        check=False,
        **more,
    )


def table(path):
    found = pq.read_table(path)
    return found["path"].to_pylist(), np.stack(found["embedding"].to_numpy())


# --- embed


def test_embed_by_hub_name_with_bad_files(model, mixed, tmp_path):
    """In one process of its own: what it writes, its status, and that it says nothing but what went wrong."""
    out = tmp_path / "t.parquet"
    with HubServer() as server:
        server.add("owner/model", {"small.safetensors": model.read_bytes()})
        done = start("embed", mixed, "-o", out, "-m", "owner/model", env=server.env(tmp_path / "hf"))
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert not re.search(r"\x1b|Traceback|%|real time", done.stderr)
    assert {line for line in lines if line.startswith("Skipped: ")} == {
        f"Skipped: {mixed / row['path']}: {row['error']}." for row in errors(out, mixed)
    }
    assert [line for line in lines if line.startswith("Warning")] == [
        line for line in lines if "cut.wav: the file breaks off" in line and line.endswith("0.50 s were read.")
    ]
    assert lines[-1] == f"Error: {out} has 5 of 8 files; {out}.errors.jsonl lists those that could not be read."
    assert len(lines) == 5
    assert {row["path"] for row in errors(out, mixed)} == BAD
    paths, values = table(out)
    assert paths == [str(mixed / name) for name in ("a.wav", "b.flac", "cut.wav", "sub/c.wav", "sub/d.wav")]
    rows = list(torchbeats.embed([p for p in paths if "cut" not in p], model=small_model()))
    np.testing.assert_allclose(np.delete(values, 2, 0), np.stack([row.embedding for row in rows]), atol=1e-5)
    about = json.loads(pq.read_schema(out).metadata[b"torchbeats"])
    assert {"model": "owner/model", "pool": "mean", "window": 10.0, "failed": 3}.items() <= about.items()
    assert about["weights"].startswith("sha256:")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "mixed", "t.parquet", "t.parquet.errors.jsonl"]


def errors(out, folder):
    lines = out.with_name(out.name + ".errors.jsonl").read_text("utf-8").splitlines()
    return [{**row, "path": os.path.relpath(row["path"], folder)} for row in map(json.loads, lines)]


def test_paths_on_standard_input_to_npz(model, sounds, tmp_path):
    paths = [str(sounds / name) for name in ("sub/c.wav", "a.wav")]
    done = start("embed", "-", "-o", tmp_path / "t.npz", "-m", model, "--pool", "bands", input="\n".join(paths))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    arrays = np.load(tmp_path / "t.npz")
    assert arrays["path"].tolist() == paths
    assert arrays["embedding"].shape == (2, 8 * 48)
    assert arrays["end"].tolist() == [2.3, 1.0]


def test_usage_error_in_a_process_of_its_own(tmp_path):
    done = start("embed", tmp_path, "-o", tmp_path / "t.parquet", "-m", "beats-iter3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: There is no sound file in the folder {tmp_path}, nor in any below it.\n"


@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.jsonl"])
def test_list(run, model, sounds, tmp_path, name):
    entries = {
        "csv": "path\nsub/c.wav\na.wav\n",
        "txt": "sub/c.wav\na.wav\n",
        "jsonl": '"sub/c.wav"\n{"file": "a.wav"}',
    }
    shutil.copytree(sounds, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(entries[name[5:]])
    assert run("embed", tmp_path / name, "-o", tmp_path / "t.parquet", "-m", model) == (0, "", "")
    assert table(tmp_path / "t.parquet")[0] == [str(tmp_path / "sub/c.wav"), str(tmp_path / "a.wav")]


def test_options_reach_the_result(run, model, sounds, tmp_path):
    settings = {"pool": "steps", "layer": 1, "window": 1.0, "batch_seconds": 2.0, "jobs": 2}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    out = tmp_path / "t.parquet"
    assert run("embed", sounds, "-o", out, "-m", model, *options, "--device=cpu", "--dtype=bfloat16")[0] == 0
    rows = list(torchbeats.embed(sounds, model=str(model), dtype=torch.bfloat16, **settings))
    paths, values = table(out)
    assert paths == [row.path for row in rows]
    np.testing.assert_array_equal(values, np.stack([row.embedding for row in rows]))
    assert run("embed", sounds, "-o", tmp_path / "h.npz", "-m", model, "--window=1", "--hop=0.5")[0] == 0
    starts = np.load(tmp_path / "h.npz")["start"]
    assert starts.tolist() == [0, 0, *(0, 0.5, 1), *(0, 0.5)]


def test_window_full(run, model, tmp_path):
    folder, out = write_sounds(tmp_path / "sounds", {"a.wav": 25.0, "b.wav": 1.0}), tmp_path / "t.parquet"
    assert run("embed", folder, "-o", out, "-m", model, "--window=full")[0] == 0
    rows = pq.read_table(out).to_pylist()
    assert [(row["start"], row["end"]) for row in rows] == [(0, 25), (0, 1)]
    wav = torch.from_numpy(soundfile.read(folder / "a.wav", dtype="float32")[0]).unsqueeze(0)
    expected = torchbeats.load(model).encode(wav).pooled()[0]
    np.testing.assert_allclose(rows[0]["embedding"], expected.numpy(), atol=1e-4)


def test_complete_output(run, model, mixed, tmp_path):
    command = ("embed", mixed, "-o", tmp_path / "t.parquet", "-m", model)
    assert run(*command)[0] == 1
    before = (tmp_path / "t.parquet").stat().st_mtime_ns
    status, out, said = run(*command)
    assert (status, out) == (1, "")
    assert said == f"Note: {tmp_path / 't.parquet'} is complete already; there is nothing to do."
    status, _, said = run(*command, "--pool", "bands")
    assert status == 2
    assert "pool is mean there and bands here; " in said
    (mixed / "more.wav").touch()
    assert run(*command)[0] == 2
    assert (tmp_path / "t.parquet").stat().st_mtime_ns == before
    for name in (*BAD, "more.wav"):
        (mixed / name).unlink()
    assert run(*command, "--pool", "bands", "--overwrite")[0] == 0
    assert table(tmp_path / "t.parquet")[1].shape == (5, 8 * 48)
    assert not (tmp_path / "t.parquet.errors.jsonl").exists()
    assert run(*command, "--pool", "bands")[0] == 0


@pytest.fixture(scope="module")
def faulty(tmp_path_factory, sounds):
    """What can be given that should not."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "empty").mkdir()
    (folder / "page.pt").write_text("<!DOCTYPE html><html>404</html>")
    (folder / "bad.csv").write_text("name\na.wav\n")
    torchbeats.save(small_tokenizer(), folder / "tokenizer.pt")
    return folder


USAGE = {
    "suffix": ("{s} -o {t}/t.csv -m {m}", "must be named .parquet, .npz or .lance; .*t.csv is not"),
    "no suffix": ("{s} -o {t}/t -m {m}", "must be named .parquet, .npz or .lance"),
    "unknown model": ("{s} -o {t}/t.npz -m beats-itr3", "no model named 'beats-itr3'. Did you mean beats-iter3"),
    "missing model": ("{s} -o {t}/t.npz -m {f}/none.pt", "no checkpoint at .*none.pt"),
    "web page": ("{s} -o {t}/t.npz -m {f}/page.pt", "page.pt: this is a web page, not a checkpoint"),
    "tokenizer": ("{s} -o {t}/t.npz -m {f}/tokenizer.pt", "This is a tokenizer; embeddings need a BEATs model"),
    "pool": (
        "{s} -o {t}/t.npz -m {m} --pool max",
        "'max' is not one of 'mean', 'bands', 'statistics', 'steps'",
    ),
    "window": ("{s} -o {t}/t.npz -m {m} --window 0.1", "window must have at least 0.5 s, not 0.1"),
    "window nan": ("{s} -o {t}/t.npz -m {m} --window nan", "window must have"),
    "window infinite": ("{s} -o {t}/t.npz -m {m} --window inf", "window must have"),
    "window no number": ("{s} -o {t}/t.npz -m {m} --window ten", "Invalid value for '--window': 'ten' is neither"),
    "hop for whole sounds": ("{s} -o {t}/t.npz -m {m} --window full --hop 5", "leave it out"),
    "hop": ("{s} -o {t}/t.npz -m {m} --hop 20", "hop must lie between 0.05 s and the window's 10.0 s"),
    "hop for steps": ("{s} -o {t}/t.npz -m {m} --hop 5 --pool steps", "leave the hop out"),
    "batch": ("{s} -o {t}/t.npz -m {m} --batch-seconds 0", "batch must hold some seconds"),
    "layer": ("{s} -o {t}/t.npz -m {m} --layer 3", "model has 2 layers; there is no layer 3"),
    "jobs": ("{s} -o {t}/t.npz -m {m} --jobs 0", "Invalid value for '--jobs'"),
    "device": ("{s} -o {t}/t.npz -m {m} --device abacus", "abacus"),
    "dtype": ("{s} -o {t}/t.npz -m {m} --dtype int8", "'int8' is not one of"),
    "no inputs": ("-o {t}/t.npz -m {m}", "Missing argument 'INPUT...'"),
    "no output": ("{s} -m {m}", "Missing option '--output'"),
    "empty folder": ("{f}/empty -o {t}/t.npz -m {m}", "no sound file in the folder .*empty"),
    "bad list": ("{f}/bad.csv -o {t}/t.npz -m {m}", "bad.csv cannot be read: it needs a column called path"),
    "missing list": ("{f}/none.csv -o {t}/t.npz -m {m}", "no list .*none.csv"),
}


@pytest.mark.parametrize(("line", "said"), USAGE.values(), ids=USAGE)
def test_what_cannot_be_done(run, model, sounds, faulty, tmp_path, line, said):
    words = line.format(s=sounds, t=tmp_path, m=model, f=faulty).split()
    status, out, err = run("embed", *words)
    assert (status, out) == (2, "")
    assert re.search(said, err), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_such_gpu(run, model, sounds, tmp_path):
    status, _, said = run("embed", sounds, "-o", tmp_path / "t.npz", "-m", model, "--device", "cuda")
    assert status == 2
    assert "There is no device cuda here" in said


# --- convert and models


def test_convert_round_trip(run, model, tmp_path):
    there, back = tmp_path / "m.pt", tmp_path / "back.safetensors"
    assert run("convert", model, there) == (0, "", "")
    assert set(torch.load(there, weights_only=True)) == {"cfg", "model"}
    assert run("convert", there, back) == (0, "", "")
    assert stored(back) == stored(model)
    small = tmp_path / "half.safetensors"
    assert run("convert", model, small, "--half")[0] == 0
    assert small.stat().st_size < 0.6 * there.stat().st_size
    halves, wholes = torchbeats.load(small).state_dict(), torchbeats.load(there).state_dict()
    for name, whole in wholes.items():
        torch.testing.assert_close(halves[name], whole, rtol=2**-11, atol=2**-24)  # float16 has 11 bits
    status, _, said = run("convert", model, there)
    assert status == 2
    assert f"{there} exists; use --overwrite" in said.replace("- ", "-")
    assert run("convert", back, back, "--overwrite")[0] == 0
    assert stored(back) == stored(model)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (RandomProjectionTokenizer, "random-projection tokenizer with 1,024 codes, 1 MB."),
        (small_tokenizer, r"tokenizer with 2 layers of 48, [\d,]+ codes, \d MB\."),
        (small_model, r"2 layers of 48, \d MB\."),
    ],
)
def test_convert_says_what_it_wrote(run, monkeypatch, tmp_path, make, said):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torchbeats.save(make(), source)
    remarks = []
    monkeypatch.setattr(convert, "remark", remarks.append)
    assert run("convert", source, target)[0] == 0
    assert stored(target) == stored(source)
    assert [re.fullmatch(f"{re.escape(str(target))}: {said}", remark) is not None for remark in remarks] == [True]


def stored(path):
    """All that a safetensors file holds; the order in it is not fixed."""
    with safe_open(path, "np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def test_convert_keeps_labels_and_refuses_rubbish(run, faulty, tmp_path):
    labelled = small_model(finetuned_model=True, predictor_class=2)
    labelled.label_dict = {0: "/m/04rlf", 1: "dog"}
    torchbeats.save(labelled, tmp_path / "l.pt")
    assert run("convert", tmp_path / "l.pt", tmp_path / "l.safetensors")[0] == 0
    assert torchbeats.load(tmp_path / "l.safetensors").labels == ["Music", "dog"]
    for source, target, said in (
        (tmp_path / "l.pt", tmp_path / "l.bin", "must end in .safetensors, .pt, .pth"),
        (faulty / "page.pt", tmp_path / "p.pt", "web page"),
        (tmp_path / "none.pt", tmp_path / "p.pt", "no checkpoint at"),
    ):
        status, _, err = run("convert", source, target)
        assert status == 2
        assert said in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.pt", "l.safetensors"]


@pytest.mark.parametrize("command", ["finetune", "probe"])
def test_a_tokenizer_can_be_neither_finetuned_nor_probed(run, faulty, tmp_path, command):
    data = write_sounds(tmp_path / "data", {f"{name}/{number}.wav": 0.5 for name in ("a", "b") for number in range(4)})
    out = ("-o", tmp_path / "run") if command == "finetune" else ("--no-cache",)
    status, _, said = run(command, data, "-m", faulty / "tokenizer.pt", *out)
    assert status == 2
    assert "this is a tokenizer checkpoint; load it with" in said
    assert not (tmp_path / "run").exists()


def test_models_piped(run):
    status, out, err = run("models")
    assert (status, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert rows[0] == ["name", "size", "licence", "cached", "source", "about"]
    assert [row[0] for row in rows[1:]] == [*hub.BUILT_INS, *hub.MODELS]
    assert {len(row) for row in rows} == {6}


# --- processes that end suddenly, and people who watch


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """60 sounds of 0.1 to 3 s, one of 30 s, and three that are none."""
    folder, chance = tmp_path_factory.mktemp("many"), random.Random(0)
    write_sounds(folder, {f"{i:02}.wav": 30.0 if i == 20 else chance.uniform(0.1, 3) for i in range(61)})
    for name in ("03x.wav", "20x.wav", "60x.wav"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("overwrite", [False, True], ids=["new", "overwriting"])
def test_killed_again_and_again(fork, model, many, tmp_path, overwrite):
    command = ["embed", many, "-m", model, "--window", "2", "--batch-seconds", "1", "-o"]
    calm, out = tmp_path / "calm.parquet", tmp_path / "killed.parquet"
    process = fork([*command, calm], tmp_path / "calm.log")
    process.join(60)
    assert process.exitcode == 1

    if overwrite:
        out.write_text("something old")
        command.insert(1, "--overwrite")
    parts, chance, kills = tmp_path / "killed.parquet.parts", random.Random(overwrite), 0

    def written():
        try:
            return len(list(unfinished.parts(parts)))
        except FileNotFoundError:  # not yet; or no longer, as the run has come to its end while this one looks
            return 0

    for _ in range(50):
        enough = written() + chance.randint(0, 3)
        process = fork([*command, out], tmp_path / "killed.log")
        while process.is_alive() and written() < enough:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.join(60)
        if process.exitcode != -signal.SIGKILL:
            break
        kills += 1
        if overwrite and not out.exists():
            pytest.fail("the old output went before the new one came")
    assert kills >= 4
    assert process.exitcode == 1
    # The very same bits, in the same order, with the same metadata; and the same list of errors.
    assert pq.read_table(out).equals(pq.read_table(calm), check_metadata=True)
    name = "{}.parquet.errors.jsonl".format
    assert (tmp_path / name("killed")).read_bytes() == (tmp_path / name("calm")).read_bytes()
    assert not parts.exists()
    assert "Traceback" not in (tmp_path / "killed.log").read_text()


def test_names_that_are_not_utf8(fork, model, sounds, tmp_path):
    odd = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    try:
        shutil.copy(os.fsencode(sounds / "a.wav"), odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    open(os.fsencode(tmp_path) + b"/\xe9mpty.wav", "w").close()
    process = fork(["embed", tmp_path, "-o", tmp_path / "t.parquet", "-m", model], tmp_path / "log")
    process.join(60)
    assert process.exitcode == 1
    assert "mpty.wav: the file is empty (0 bytes)." in (tmp_path / "log").read_text()
    assert table(tmp_path / "t.parquet")[0] == [rf"{tmp_path}/caf\xe9.wav"]
    assert errors(tmp_path / "t.parquet", tmp_path)[0]["error"] == "the file is empty (0 bytes)"
    again = ["embed", tmp_path / "t.parquet", "-o", tmp_path / "again.parquet", "-m", model]
    process = fork(again, tmp_path / "log")
    process.join(60)
    assert process.exitcode == 0  # the table, as a list, names the file
    assert table(tmp_path / "again.parquet")[0] == table(tmp_path / "t.parquet")[0]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_progress_where_somebody_looks(fork, model, sounds, tmp_path, monkeypatch):
    master, terminal = os.openpty()
    process = fork(["embed", sounds, "-m", model, "-o", tmp_path / "t.parquet"], os.ttyname(terminal))
    process.join(60)
    os.close(terminal)
    said = os.read(master, 1 << 20).decode()
    os.close(master)
    assert process.exitcode == 0
    assert "4 of 4 files" in said
    assert "× real time" in said
    assert "embeddings of 4 files." in said
