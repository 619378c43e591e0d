"""What is found, by every kind of query and in every format of a table; and what is refused."""

import csv
import importlib.util
import json
import os
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import torchbeats
from helpers import about_embeddings, noise, small_model, tone
from torchbeats import EmbeddingPlan, InputError, ModelError, SettingsError, write_table
from torchbeats.data.inputs import Piece
from torchbeats.search import index as search_index
from torchbeats.search import queries, vectors
from torchbeats.tables.reading import Table

FORMATS = ["t.parquet", "t.npz"] + ["t.lance"] * (importlib.util.find_spec("lance") is not None)
needs_lance = pytest.mark.skipif("t.lance" not in FORMATS, reason="needs the extra search")
WIDTH = 12


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Two long recordings: noise with tones in it, at 5 s and at 12 s, and at 3 s; and three short ones."""
    folder = tmp_path_factory.mktemp("sounds")

    def mixed(seconds, seed, tones):
        samples = noise(seconds, seed=seed, level=0.02)
        for start, hertz in tones:
            samples[start * 16_000 : (start + 1) * 16_000] += tone(1.0, hertz=hertz)
        return samples

    written = {
        "long": mixed(15, 0, [(5, 440.0), (12, 3000.0)]),
        "other": mixed(8, 1, [(3, 440.0)]),
        "low": mixed(1, 2, [(0, 440.0)]),
        "hiss": noise(1.0, seed=9, level=0.02),
    }
    for name, samples in written.items():
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
    return folder


@pytest.fixture(scope="module")
def tables(sounds, tmp_path_factory):
    """``{name: table}`` of the long recordings, by the built-in model."""
    folder, plan = tmp_path_factory.mktemp("tables"), EmbeddingPlan("mean", window=1.0)
    inputs = [sounds / "long.wav", sounds / "other.wav"]
    return {name: write_table(inputs, folder / name, "beats-nano", plan).path for name in FORMATS}


def places(matches):
    return [(os.path.basename(match.path), match.start) for match in matches]


# --- what is found


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_finds_its_like(tables, sounds, name):
    matches = torchbeats.search(tables[name], sounds / "low.wav", n=2)
    assert set(places(matches)) == {("long.wav", 5.0), ("other.wav", 3.0)}
    assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)


@pytest.mark.parametrize("name", FORMATS[1:])
def test_formats_agree_bit_for_bit(tables, sounds, name):
    for options in ({}, {"unlike": ["row:3"]}, {"not_same_file": True, "n": 4}):
        once = torchbeats.search(tables["t.parquet"], [sounds / "low.wav", "row:7"], **options)
        assert torchbeats.search(tables[name], [sounds / "low.wav", "row:7"], **options) == once


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_and_a_piece_of_a_file(tables, sounds, name):
    table = Table(tables[name])
    by_row = torchbeats.search(tables[name], "row:5", n=table.count)
    assert (len(by_row), places(by_row)[0]) == (table.count - 1, ("other.wav", 3.0))
    assert ("long.wav", 5.0) not in places(by_row)  # the row itself
    by_piece = torchbeats.search(tables[name], f"{sounds / 'long.wav'}@5-6.0", n=2)
    assert places(by_piece)[0] == ("long.wav", 5.0)
    assert by_piece[0].score == pytest.approx(1.0, abs=1e-4)
    assert torchbeats.search(tables[name], 5, n=3) == by_row[:3]
    assert torchbeats.search(tables[name], Piece(str(sounds / "long.wav"), 5.0, 6.0), n=2) == by_piece


@pytest.mark.parametrize("name", FORMATS)
def test_not_the_same_file(tables, sounds, name, monkeypatch):
    query = f"{sounds / 'long.wav'}@5.0-6.0"
    assert places(torchbeats.search(tables[name], query, n=1)) == [("long.wav", 5.0)]
    matches = torchbeats.search(tables[name], query, n=100, not_same_file=True)
    assert places(matches)[0] == ("other.wav", 3.0)
    assert {os.path.basename(match.path) for match in matches} == {"other.wav"}
    assert torchbeats.search(tables[name], "row:5", n=100, not_same_file=True)[0][2:] == matches[0][2:]
    monkeypatch.chdir(sounds)  # the table has absolute paths
    assert torchbeats.search(tables[name], "long.wav@5.0-6.0", n=100, not_same_file=True) == matches


def made(path, embeddings, paths=None):
    """A table with these embeddings."""
    rows, width = embeddings.shape
    about = about_embeddings(width)
    times = [np.arange(rows) * 1.0, np.arange(rows) + 1.0]
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), width)
    columns = [paths or [f"{row // 10}.wav" for row in range(rows)], *times, values]
    table = pa.table(columns, ["path", "start", "end", "embedding"])
    pq.write_table(table.replace_schema_metadata({"torchbeats": json.dumps(about)}), path, row_group_size=700)
    return path


@pytest.mark.parametrize("block", [500, 2**24])
@pytest.mark.parametrize("cached", [0, 2**40], ids=["cached", "direct"])
def test_exact_against_numpy(tmp_path, monkeypatch, block, cached):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vectors, "BLOCK_BYTES", block)
    monkeypatch.setattr(vectors, "CACHED_BYTES", cached)
    embeddings = np.random.default_rng(0).standard_normal((2503, WIDTH)).astype(np.float32)
    embeddings[17] = 0  # silence may give that; it is like nothing
    embeddings[[40, 900, 2000]] = embeddings[1]  # equal scores come in the table's order
    path = made(tmp_path / "t.parquet", embeddings)
    units = embeddings.astype(np.float64) / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-30)
    for row, n in ((1, 5), (100, 40), (2502, 5000)):
        scores = units @ units[row]
        wanted = [index for index in np.argsort(-scores, kind="stable").tolist() if index != row][:n]
        for _ in range(2):  # the second time from what the first has kept
            matches = torchbeats.search(path, row, n=n)
            np.testing.assert_allclose([match.score for match in matches], scores[wanted], atol=1e-6)
            if n < 50:
                assert [match.row for match in matches] == wanted
            assert all(match.path == f"{match.row // 10}.wav" for match in matches)
    assert (tmp_path / "cache").exists() == (cached == 0)


def test_the_cache_is_bounded_and_what_was_searched_longest_ago_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vectors, "CACHED_BYTES", 0)
    embeddings = np.random.default_rng(0).standard_normal((100, WIDTH)).astype(np.float32)
    monkeypatch.setattr(vectors, "KEPT_BYTES", 2 * embeddings.nbytes)
    one, two, three = (made(tmp_path / f"{name}.parquet", embeddings) for name in ("one", "two", "three"))

    def kept():
        return {path.name.split("-")[0] for path in vectors.cache_folder().glob("*.f32")}

    def searched(path, seconds):
        """Search; the names that came. Pretend that it was so many seconds after 1970."""
        before = kept()
        torchbeats.search(path, 1)
        for file in vectors.cache_folder().glob("*.f32"):
            if time.time() - file.stat().st_mtime < 1000:
                os.utime(file, (seconds, seconds))
        return kept() - before

    of_one, of_two = searched(one, 1), searched(two, 2)
    assert searched(one, 3) == set()
    of_three = searched(three, 4)
    assert (len(of_one), len(of_two), len(of_three)) == (1, 1, 1)
    assert kept() == of_one | of_three  # two was searched longest ago
    monkeypatch.setattr(vectors, "KEPT_BYTES", embeddings.nbytes - 1)
    torchbeats.search(two, 1)
    assert kept() == of_one | of_three  # what is too large alone moves nothing
    monkeypatch.setattr(vectors, "KEPT_BYTES", 2**30)
    monkeypatch.setattr(vectors.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    torchbeats.search(two, 1)
    assert kept() == of_one | of_three  # nor is a disk filled


def test_a_score_does_not_depend_on_what_is_beside_it():
    draw = np.random.default_rng(3)
    block, target = draw.standard_normal((37, 771)).astype(np.float32), draw.standard_normal(771).astype(np.float32)
    whole = vectors.products(block, target)
    np.testing.assert_allclose(whole, block.astype(np.float64) @ target, rtol=1e-4, atol=1e-4)
    for first in range(0, 37, 5):
        np.testing.assert_array_equal(vectors.products(block[first : first + 5], target), whole[first : first + 5])


@needs_lance
def test_an_index_proposes_what_an_exact_search_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(search_index, "LEAST_ROWS", 2000)
    monkeypatch.setattr(search_index, "PARTITION_ROWS", 200)
    draw = np.random.default_rng(0)
    width = 16
    embeddings = draw.standard_normal((30, width)).repeat(100, 0) + 0.5 * draw.standard_normal((3000, width))
    embeddings = embeddings.astype(np.float32)
    embeddings[5] = 0  # silence may give that
    rows = pq.read_table(made(tmp_path / "t.parquet", embeddings))
    lance = pytest.importorskip("lance")
    lance.write_dataset(rows, str(tmp_path / "t.lance"), max_rows_per_file=700)
    shared = 0
    for row in range(0, 3000, 100):
        exact = torchbeats.search(tmp_path / "t.parquet", row, n=20)
        assert torchbeats.search(tmp_path / "t.lance", row, n=20) == exact
        fast = torchbeats.search(tmp_path / "t.lance", row, n=20, index=True)
        assert [match.score for match in fast] == sorted((match.score for match in fast), reverse=True)
        scores = {match.row: match for match in exact}
        assert all(scores[match.row] == match for match in fast if match.row in scores)
        assert row not in {match.row for match in fast}
        shared += len({match.row for match in fast} & set(scores))
    assert shared / 20 / 30 >= 0.95
    indices = lance.dataset(str(tmp_path / "t.lance")).describe_indices()
    assert [name for index in indices for name in index.field_names] == ["embedding"]  # one, though asked for often
    matches = torchbeats.search(tmp_path / "t.lance", 100, n=20, index=True, not_same_file=True)
    assert "10.wav" not in {match.path for match in matches}
    assert len(matches) == 20


@needs_lance
def test_an_index_of_few_rows_or_of_another_format(tables, run):
    exact = torchbeats.search(tables["t.lance"], "row:5")
    assert torchbeats.search(tables["t.lance"], "row:5", index=True) == exact
    with pytest.raises(SettingsError, match=r"Only Lance tables have an index: embed to \.lance, or search .* without"):
        torchbeats.search(tables["t.parquet"], "row:5", index=True)
    status, out, _ = run("search", tables["t.lance"], "row:5", "--index")
    assert status == 0
    assert len(out.splitlines()) == len(exact)


def test_several_and_unlike(tmp_path):
    embeddings = np.random.default_rng(2).standard_normal((300, WIDTH)).astype(np.float32)
    embeddings[:4] *= [[1], [50], [1], [50]]  # each query counts the same, however long its vector is
    path = made(tmp_path / "t.parquet", embeddings)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for unlike in ([], [2], [2, 3]):
        target = units[[0, 1]].mean(0) - (units[unlike].mean(0) if unlike else 0)
        scores = units @ (target / np.linalg.norm(target))
        wanted = [row for row in np.argsort(-scores).tolist() if row not in (0, 1, *unlike)][:20]
        matches = torchbeats.search(path, [0, "row:1"], unlike=[f"row:{row}" for row in unlike])
        assert [match.row for match in matches] == wanted
        np.testing.assert_allclose([match.score for match in matches], scores[wanted], atol=1e-6)


def test_what_is_kept_follows_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vectors, "CACHED_BYTES", 0)
    draw = np.random.default_rng(1).standard_normal
    for rows in (50, 50, 90):
        embeddings = draw((rows, WIDTH)).astype(np.float32)
        embeddings[7] = -3 * embeddings[0]
        path = made(tmp_path / "t.parquet", embeddings)
        matches = torchbeats.search(path, 0, n=rows)
        assert matches[-1].row == 7
        assert matches[-1].score == pytest.approx(-1, abs=1e-6)
        assert len(list(vectors.cache_folder().iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vectors, "CACHED_BYTES", 0)
    path = made(tmp_path / "t.parquet", np.eye(WIDTH, dtype=np.float32))
    assert len(torchbeats.search(path, 0)) == WIDTH - 1


def test_all_rows_left_out(tmp_path):
    path = made(tmp_path / "t.parquet", np.eye(5, dtype=np.float32))
    assert torchbeats.search(path, "row:0", not_same_file=True) == []


# --- queries


def test_names_that_look_like_other_queries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert queries.parse("row:7") == queries.QuerySource(row=7)
    assert queries.parse("a@b@1.5-2") == queries.QuerySource(sound=Piece("a@b", 1.5, 2.0))
    for name in ("row:7", "a@1-2"):
        (tmp_path / name).touch()
        assert queries.parse(name) == queries.QuerySource(sound=Piece(name))
    assert queries.parse("a@1-") == queries.QuerySource(sound=Piece("a@1-"))


def test_a_long_query_is_the_mean_of_its_windows(tables, sounds):
    table = Table(tables["t.parquet"])
    vector = queries.vectors_of([queries.parse(sounds / "other.wav")], table, None, None)[0]
    stored = queries.unit(table.take(np.arange(15, 23)))
    np.testing.assert_allclose(vector, queries.unit(stored.mean(0)), atol=1e-4)


def test_refused(tables, sounds, tmp_path):
    table = tables["t.parquet"]
    with pytest.raises(InputError, match="has the rows 0 to 22, and no row 23"):
        torchbeats.search(table, "row:23")
    with pytest.raises(InputError, match=r"gone\.wav cannot be used"):
        torchbeats.search(table, "gone.wav")
    with pytest.raises(InputError, match=r"long\.wav cannot be used: it holds no samples behind 99"):
        torchbeats.search(table, f"{sounds / 'long.wav'}@99-100")
    with pytest.raises(InputError, match="needs a query"):
        torchbeats.search(table, [])
    with pytest.raises(SettingsError, match="At least one row"):
        torchbeats.search(table, 0, n=0)
    with pytest.raises(InputError, match="no table that torchbeats wrote"):
        torchbeats.search(sounds / "low.wav", 0)


def test_another_model_is_refused_by_name(tables, sounds, tmp_path):
    torchbeats.save(small_model(), tmp_path / "other.safetensors")
    said = r"was computed by beats-nano .*other\.safetensors has other weights.*cannot be compared"
    with pytest.raises(ModelError, match=said):
        torchbeats.search(tables["t.parquet"], sounds / "low.wav", model=tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"beats-nano .* BEATs has other weights"):
        torchbeats.search(tables["t.parquet"], sounds / "low.wav", model=small_model())
    assert torchbeats.search(tables["t.parquet"], "row:0", model=small_model())  # no sound is computed


def test_a_model_that_is_gone(sounds, tmp_path):
    model = tmp_path / "m.safetensors"
    torchbeats.save(small_model(), model)
    table = write_table(sounds / "long.wav", tmp_path / "t.parquet", model, EmbeddingPlan(window=1.0)).path
    model.rename(tmp_path / "moved.safetensors")
    with pytest.raises(ModelError, match=r"m\.safetensors, which cannot be had here.*--model"):
        torchbeats.search(table, sounds / "low.wav")
    assert torchbeats.search(table, sounds / "low.wav", model=tmp_path / "moved.safetensors")


# --- the command


def test_csv_and_jsonl_and_standard_output(run, tables, sounds, tmp_path):
    command = ["search", tables["t.parquet"], sounds / "low.wav", "-n", "3"]
    status, out, _ = run(*command)
    printed = [json.loads(line) for line in out.splitlines()]
    assert (status, [list(line) for line in printed]) == (0, [["score", "path", "start", "end"]] * 3)
    assert run(*command, "-o", tmp_path / "m.jsonl")[:2] == (0, "")
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").open(encoding="utf-8")] == printed
    assert run(*command, "-o", tmp_path / "m.csv")[0] == 0
    with (tmp_path / "m.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [{**row, **{name: float(row[name]) for name in ("score", "start", "end")}} for row in rows] == printed
    status, out, _ = run(*command, "--format", "table", "--unlike", "row:0", "--not-same-file")
    assert (status, out.split()[:4]) == (0, ["score", "path", "start", "end"])
    assert [piece.path for piece in torchbeats.data.inputs.find_sounds([tmp_path / "m.csv"])]  # a list of pieces
