"""Acoustic labels as people ask for them: a grid a file, the same in every batch, format and after every kill.

Labels are compared with those that the tokenizer itself gives. Up to one in a hundred may differ, where two codes are
equally near but for rounding; of repeated runs, none.
"""

import json
import os
import random
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import torchbeats
from helpers import small_model, small_tokenizer, write_sounds
from torchbeats import (
    AudioWarning,
    RandomProjectionConfig,
    RandomProjectionTokenizer,
    TokenGrid,
    Tokenizers,
    TokenizersConfig,
    audio,
    tokenize,
)
from torchbeats.inference import Group, Position, groups
from torchbeats.plans import Row, TokenPlan
from torchbeats.tables import store, unfinished
from torchbeats.tables.store import Store

GOOD = {"a.wav": 1.0, "b.flac": 0.05, "long.wav": 23.7, "sub/c.wav": 2.3, "sub/d.wav": 10.4}  # seconds
KINDS = ["random", "self"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def random_projection(**fields):
    """Labels of a patch depend on that patch alone, so windows make no difference."""
    return RandomProjectionTokenizer(
        RandomProjectionConfig(**{"quant_n": 60, "quant_dim": 16, "normalisation": "patch", **fields})
    )


@pytest.fixture(scope="module")
def models():
    return {"random": random_projection(), "self": small_tokenizer()}


@pytest.fixture(scope="module")
def files(models, tmp_path_factory):
    """The tokenizers as files, and a model that is none."""
    folder = tmp_path_factory.mktemp("models")
    for kind, model in {**models, "beats": small_model()}.items():
        torchbeats.save(model, folder / f"{kind}.safetensors")
    return {kind: folder / f"{kind}.safetensors" for kind in (*KINDS, "beats")}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return write_sounds(tmp_path_factory.mktemp("sounds"), GOOD)


def grid(model, samples):
    """The labels ``(steps, bands)`` of one window, computed by itself."""
    wav = torch.from_numpy(samples)
    wav = torch.nn.functional.pad(wav, (0, max(0, model.grid.min_samples - len(wav))))
    with torch.no_grad():
        return model.encode(wav.unsqueeze(0)).labels[0].numpy()


def grid_of_windows(model, path, window=10.0):
    plan = TokenPlan(window=window)
    return np.concatenate([grid(model, samples) for *_, samples in plan.windows(audio.stream(path), model.grid)])


def assert_labels(found, expected):
    assert found.shape == expected.shape
    assert (found != expected).mean() <= 0.01


def frame(path):
    """``{path: (start, end, labels)}``."""
    return {row["path"]: tuple(np.array(row[name]) for name in ("start", "end", "labels")) for row in rows_of(path)}


def rows_of(path):
    return pq.read_table(path).to_pylist()


# --- what is in the table


@every_kind
def test_grid_of_each_file(run, models, files, sounds, tmp_path, kind):
    out = tmp_path / "t.parquet"
    assert run("tokens", sounds, "-o", out, "-t", files[kind], "--device", "cpu", "--jobs", 2) == (0, "", "")
    rows = frame(out)
    assert list(rows) == [str(sounds / name) for name in GOOD]
    for (path, (start, end, labels)), seconds in zip(rows.items(), GOOD.values(), strict=True):
        expected = grid_of_windows(models[kind], path)
        assert_labels(labels, expected)
        edges = 0.16 * np.arange(len(expected) + 1)
        np.testing.assert_allclose(start, edges[:-1], atol=1e-9)
        np.testing.assert_allclose(end, np.minimum(edges[1:], seconds), atol=1e-9)
    assert len(np.unique(np.concatenate([labels for *_, labels in rows.values()]))) > 5
    assert [len(rows[str(sounds / name)][2]) for name in GOOD] == [6, 1, 148, 14, 64]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.parquet"]


def test_windows_join_to_the_grid_of_the_whole(models, sounds):
    """Steps are where they were: a label of the whole sound is the label of the window it falls into."""
    model = models["random"]
    whole = grid(model, audio.load(sounds / "long.wav"))
    for window in (0.5, 1.7, 10.0, 60.0):
        (row,) = tokenize(sounds / "long.wav", model, window=window)
        assert_labels(row.labels, whole)
        np.testing.assert_allclose(row.start[1:], row.end[:-1], atol=1e-9)


def test_schema_and_metadata(run, files, sounds, tmp_path):
    run("tokens", sounds, "-o", tmp_path / "t.parquet", "-t", files["random"], "--window=2", "--batch-seconds=3")
    schema = pq.read_schema(tmp_path / "t.parquet")
    times = pa.list_(pa.float64())
    assert schema.names == ["path", "start", "end", "labels"]
    assert schema.types == [pa.string(), times, times, pa.list_(pa.list_(pa.int16(), 8))]
    about = json.loads(schema.metadata[b"torchbeats"])
    expected = {"tokenizer": str(files["random"]), "codes": 60, "bands": 8, "window": 2.0, "batch_seconds": 3.0}
    assert {**expected, "failed": 0}.items() <= about.items()


def test_read_with_pandas(run, files, sounds, tmp_path):
    pandas = pytest.importorskip("pandas")
    run("tokens", sounds, "-o", tmp_path / "t.parquet", "-t", files["random"])
    table = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(table.columns) == ["path", "start", "end", "labels"]
    for row, values in zip(table.itertuples(), frame(tmp_path / "t.parquet").values(), strict=True):
        for value, expected in zip((row.start, row.end, np.stack(row.labels)), values, strict=True):
            np.testing.assert_array_equal(value, expected)
    assert np.stack(row.labels).dtype == np.int16


def test_npz_is_the_parquet(run, files, sounds, tmp_path):
    for name in ("t.parquet", "t.npz"):
        assert run("tokens", sounds, "-o", tmp_path / name, "-t", files["random"])[0] == 0
    rows = frame(tmp_path / "t.parquet")
    with np.load(tmp_path / "t.npz") as arrays:
        assert arrays["path"].tolist() == list(rows)
        assert (arrays["labels"].dtype, arrays["start"].dtype) == (np.int16, np.float64)
        for index, values in enumerate(rows.values()):
            own = arrays["file"] == index
            for name, value in zip(("start", "end", "labels"), values, strict=True):
                np.testing.assert_array_equal(arrays[name][own], value)
        assert len(arrays["file"]) == len(arrays["labels"]) == sum(len(labels) for *_, labels in rows.values())


def test_large_codebook_and_other_patches(run, sounds, tmp_path):
    model = random_projection(quant_n=40_000, quant_dim=4, input_patch_size=32)
    torchbeats.save(model, tmp_path / "t.safetensors")
    run("tokens", sounds / "sub", "-o", tmp_path / "t.parquet", "-t", tmp_path / "t.safetensors")
    assert pq.read_schema(tmp_path / "t.parquet").types[-1] == pa.list_(pa.list_(pa.int32(), 4))
    for path, (start, _, labels) in frame(tmp_path / "t.parquet").items():
        assert_labels(labels, grid_of_windows(model, path))
        np.testing.assert_allclose(np.diff(start), 0.32)
    assert labels.max() > np.iinfo(np.int16).max


# --- in Python


@every_kind
def test_tokenize_is_the_command(run, models, files, sounds, tmp_path, kind):
    run("tokens", sounds, "-o", tmp_path / "t.parquet", "-t", files[kind], "--window=3", "--batch-seconds=5")
    rows = frame(tmp_path / "t.parquet")
    for tokenizer in (models[kind], files[kind], str(files[kind])):
        found = list(tokenize(sounds, tokenizer, window=3, batch_seconds=5))
        assert [row.path for row in found] == list(rows)
        for row in found:
            assert isinstance(row, TokenGrid)
            assert row.labels.dtype == np.int16
            for value, expected in zip(row[1:], rows[row.path], strict=True):
                np.testing.assert_array_equal(value, expected)


def test_one_sound_twice_is_two_rows(models, sounds):
    samples = audio.load(sounds / "a.wav")
    rows = list(tokenize([sounds / "a.wav"] * 2 + [samples, samples], models["random"]))
    assert [row.path for row in rows] == [str(sounds / "a.wav")] * 2 + ["[2]", "[3]"]
    assert all(np.array_equal(row.labels, rows[0].labels) for row in rows)


def test_tokenize_gives_a_file_once_it_is_complete(models, sounds, monkeypatch):
    read, stream = [], audio.stream
    monkeypatch.setattr(audio, "stream", lambda path: read.append(path) or stream(path))
    rows = tokenize([sounds / "a.wav"] * 300, models["random"], batch_seconds=1, jobs=1)
    assert not read
    next(rows)
    assert len(read) <= 80  # five times as many small files as a thread decodes together
    rows.close()


def test_training_mode_changes_nothing(sounds):
    model = small_tokenizer(dropout=0.5)
    calm = list(tokenize(sounds / "sub", model))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = list(tokenize(sounds / "sub", model.unfreeze()))
    assert all(np.array_equal(one.labels, other.labels) for one, other in zip(calm, training, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_nothing_to_tokenize(models, tmp_path):
    with pytest.warns(AudioWarning, match="none.wav was left out: it cannot be opened"):
        assert list(tokenize(tmp_path / "none.wav", models["random"])) == []


# --- what cannot be done


def test_a_model_that_is_no_tokenizer_is_refused(run, files, sounds, tmp_path):
    status, out, said = run("tokens", sounds, "-o", tmp_path / "t.parquet", "-t", files["beats"])
    assert (status, out) == (2, "")
    assert "This is a BEATs model; tokens need a tokenizer." in said
    assert not list(tmp_path.iterdir())
    for model in (files["beats"], small_model()):
        with pytest.raises(ValueError, match="is a BEATs model; tokens need a tokenizer"):
            tokenize(sounds, model)
    for tokenizer in (small_tokenizer(), random_projection()):
        with pytest.raises(ValueError, match="This is a tokenizer; embeddings need a BEATs model"):
            torchbeats.embed(sounds, tokenizer)


def test_a_tokenizer_without_codes_is_refused(run, sounds, tmp_path):
    torchbeats.save(Tokenizers(TokenizersConfig(small_tokenizer().cfg.to_dict())), tmp_path / "t.safetensors")
    status, _, said = run("tokens", sounds, "-o", tmp_path / "t.parquet", "-t", tmp_path / "t.safetensors")
    assert status == 2
    assert "no codes yet" in said
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--window", "0.1"], "window must have at least 0.5 s, not 0.1"),
        (["--batch-seconds", "0"], "batch must hold some seconds"),
        (["--device", "abacus"], "abacus"),
        (["--pool", "mean"], "No such option"),
    ],
)
def test_settings_that_make_no_sense(run, files, sounds, tmp_path, options, said):
    status, _, err = run("tokens", sounds, "-o", tmp_path / "t.parquet", "-t", files["random"], *options)
    assert status == 2
    assert said in err
    assert not list(tmp_path.iterdir())


def test_output_that_is_there(run, files, sounds, tmp_path):
    out = tmp_path / "t.parquet"
    command = ("tokens", sounds, "-o", out, "-t", files["random"])
    assert run("embed", sounds, "-o", out, "-m", files["beats"])[0] == 0
    status, _, said = run(*command)
    assert status == 2
    assert "exists and holds something else: tokenizer is None there" in said
    assert run(*command, "--overwrite")[0] == 0
    before = out.read_bytes()
    assert run(*command) == (0, "", f"Note: {out} is complete already; there is nothing to do.")
    assert run(*command, "--window", 5)[0] == 2
    assert out.read_bytes() == before


# --- mishaps


def test_broken_files(run, models, files, sounds, tmp_path):
    """What cannot be read is listed; what breaks off keeps the steps before that."""
    folder, out = tmp_path / "sounds", tmp_path / "t.parquet"
    write_sounds(folder_at(folder), {"a.wav": 1.0, "cut.wav": 30.0, "z.wav": 0.3})
    data = (folder / "cut.wav").read_bytes()
    (folder / "cut.wav").write_bytes(data[: len(data) // 2])
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not a sound\n" * 100)
    status, _, said = run("tokens", folder, "-o", out, "-t", files["random"])
    assert status == 1
    assert f"Skipped: {folder}/empty.wav: the file is empty (0 bytes)." in said
    assert said.endswith(f"{out} has 3 of 5 files; {out}.errors.jsonl lists those that could not be read.")
    lines = (tmp_path / "t.parquet.errors.jsonl").read_text().splitlines()
    assert [os.path.basename(json.loads(line)["path"]) for line in lines] == ["empty.wav", "text.wav"]
    rows = frame(out)
    assert list(rows) == [str(folder / name) for name in ("a.wav", "cut.wav", "z.wav")]
    assert [len(labels) for *_, labels in rows.values()] == [6, 93, 1]
    assert run("tokens", folder, "-o", out, "-t", files["random"])[0] == 1


def folder_at(path):
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.npz", "t.lance"])
def test_of_broken_files_alone_there_is_no_table(run, files, tmp_path, name):
    (tmp_path / "a.wav").touch()
    status, _, error = run("tokens", tmp_path / "a.wav", "-o", tmp_path / name, "-t", files["random"])
    assert status == 2
    assert "The file could not be read, so there is no table" in error
    assert {path.name for path in tmp_path.iterdir()} == {"a.wav", f"{name}.errors.jsonl"}


# --- stopping and going on


def step_group(paths, starts, position=0):
    """Rows a step, each different, of files of which each begins at 0 s."""
    starts = np.array(starts, float)
    labels = np.random.default_rng(len(paths)).integers(0, 999, (len(paths), 8)).astype(np.int16)
    times = np.stack([starts, starts + 1], 1)
    return Group(list(paths), times, labels, starts == 0, position=Position(position))


PARTS = [
    step_group("aab", [0, 1, 0]),
    step_group("bbbb", [1, 2, 3, 4]),
    step_group("b", [5]),
    Group(failures=[("x", "no sound")], position=Position(2, 1)),
    step_group("bbb", [0, 0, 1]),  # the same name, and yet other files
    step_group("cc", [0, 1]),
]
FILES = {0: "a", 1: "b", 2: "b", 3: "b", 4: "c"}
STEPS = [2, 6, 1, 2, 2]


@pytest.mark.parametrize("size", [1, 100, 2**24])
@pytest.mark.parametrize("name", ["t.parquet", "t.npz"])
def test_files_that_lie_in_many_parts(tmp_path, monkeypatch, name, size):
    monkeypatch.setattr(store, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(store, "FLUSH_BYTES", size)
    table = Store(tmp_path / name, Row("labels", (8,), np.dtype(np.int16), "file"), {})
    for part in PARTS:
        table.append(part)
    table.finish()
    labels = np.concatenate([part.values for part in PARTS if part.paths])
    if name.endswith("npz"):
        with np.load(tmp_path / name) as arrays:
            assert arrays["path"].tolist() == list(FILES.values())
            assert arrays["file"].tolist() == np.repeat(list(FILES), STEPS).tolist()
            np.testing.assert_array_equal(arrays["labels"], labels)
        return
    rows = rows_of(tmp_path / name)
    assert [row["path"] for row in rows] == list(FILES.values())
    assert [row["start"] for row in rows] == [list(range(steps)) for steps in STEPS]
    assert [row["end"] for row in rows] == [list(range(1, steps + 1)) for steps in STEPS]
    np.testing.assert_array_equal(np.concatenate([row["labels"] for row in rows]), labels)


def test_a_run_begun_again_at_any_group_computes_the_very_same(models, sounds):
    plan = TokenPlan(window=1.0, batch_seconds=1.0)
    named = [(path.name, path) for path in sorted(sounds.rglob("*.*"))]
    whole = list(groups(named, models["self"], plan))
    assert any(group.position.windows for group in whole)  # some end within a sound
    for number, group in enumerate(whole[:-1]):
        rest = list(groups(named, models["self"], plan, start=group.position))
        for again, once in zip(rest, whole[number + 1 :], strict=True):
            assert again.paths == once.paths
            assert np.array_equal(again.times, once.times)
            assert np.array_equal(again.values, once.values)


def written(folder):
    """Number of parts, of a run that may be done and clear them away at any moment."""
    try:
        return len(list(unfinished.parts(folder)))
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("name", ["t.parquet", "t.npz"])
def test_killed_again_and_again(fork, files, tmp_path, name):
    folder, chance = tmp_path / "sounds", random.Random(0)
    lengths = {f"{i:02}.wav": 60.0 if i == 7 else chance.uniform(0.1, 3) for i in range(15)}
    write_sounds(folder_at(folder), lengths)
    (folder / "07x.wav").touch()
    command = ["tokens", folder, "-t", files["self"], "--window", "2", "--batch-seconds", "1", "-o"]
    calm, out = tmp_path / "calm" / name, tmp_path / "killed" / name
    process = fork([*command, calm], tmp_path / "calm.log")
    process.join(60)
    assert process.exitcode == 1

    parts, kills, within = out.with_name(f"{name}.parts"), 0, 0
    for _ in range(50):
        enough = written(parts) + chance.randint(0, 3)
        process = fork([*command, out], tmp_path / "killed.log")
        while process.is_alive() and written(parts) < enough:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.join(60)
        if process.exitcode != -signal.SIGKILL:
            break
        kills += 1
        within += (unfinished.read_run(parts) or {"position": (0, 0)})["position"][1] > 0
    assert process.exitcode == 1
    assert kills >= 3
    assert within >= 1  # the middle of the long sound
    assert (
        out.read_bytes() == calm.read_bytes()
        if name.endswith("npz")
        else pq.read_table(out).equals(pq.read_table(calm), check_metadata=True)
    )
    errors = f"{name}.errors.jsonl"
    assert out.with_name(errors).read_bytes() == calm.with_name(errors).read_bytes()
    assert not parts.exists()
    assert "Traceback" not in (tmp_path / "killed.log").read_text()


def contents(path):
    with np.load(path) as arrays:
        return {name: (arrays[name].dtype, arrays[name].shape, arrays[name].tobytes()) for name in arrays}
