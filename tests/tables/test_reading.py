"""Some rows of a finished table, and all of them, a piece at a time."""

import importlib.util
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers import about_embeddings, noise, small_model, write_sound
from torchbeats import write_table
from torchbeats.errors import InputError
from torchbeats.inference import Group, Position
from torchbeats.plans import Row
from torchbeats.tables import reading, store
from torchbeats.tables.formats import METADATA_KEY, read_about
from torchbeats.tables.parts import Parts, Summary
from torchbeats.tables.reading import Table

FORMATS = ["t.parquet", "t.npz"] + ["t.lance"] * (importlib.util.find_spec("lance") is not None)


def in_parts(one, folder):
    """The same table in parts of 30 rows, in groups of 7."""
    rows = pq.read_table(one)
    parts, summaries = Parts(str(folder)), []
    for number, first in enumerate(range(0, len(rows), 30)):
        part = rows.slice(first, 30)
        summaries.append(Summary(f"part-{number:06}-x.parquet", len(part), 6, 30.0, []))
        groups = (part.slice(begin, 7) for begin in range(0, len(part), 7))
        parts.write(summaries[-1].name, rows.schema, groups, iter([{}]))
    parts.complete(rows.schema, read_about(one), summaries)
    return folder


@pytest.fixture(params=[*FORMATS, "parts"])
def table(request, tmp_path, monkeypatch):
    """100 rows of 20 files, in many pieces however they are read; and their embeddings."""
    monkeypatch.setattr(store, "FLUSH_BYTES", 700)
    monkeypatch.setattr(reading, "ROWS", 8)
    values = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)
    times = np.stack([np.arange(100) % 5, np.arange(100) % 5 + 1], 1) * 1.0
    paths = [f"{row // 5}.wav" for row in range(100)]
    name = "t.parquet" if request.param == "parts" else request.param
    if request.param == "parts":
        pytest.importorskip("fsspec", reason="the extra ray is not installed")
        if not hasattr(pq.ParquetWriter, "add_key_value_metadata"):
            pytest.skip("pyarrow is older than the extra ray has it")
    written = store.Store(tmp_path / name, Row("embedding", (6,), np.dtype(np.float32), "window"), about_embeddings(6))
    written.append(Group(paths, times, values, times[:, 0] == 0, position=Position(20)))
    written.finish()
    if request.param == "parts":
        return Table(in_parts(tmp_path / name, tmp_path / "parts.parquet")), values
    return Table(tmp_path / name), values


@pytest.mark.parametrize(
    "indices", [[], [0], [99], [3, 3, 1], [*range(100)], [*range(99, -1, -1)], [12, 70, 11, 13, 12]], ids=str
)
def test_some_rows(table, indices):
    opened, values = table
    np.testing.assert_array_equal(opened.take(np.array(indices, np.int64)), values[indices].reshape(-1, 6))
    places = [(f"{row // 5}.wav", row % 5 * 1.0, row % 5 + 1.0) for row in indices]
    assert opened.places(np.array(indices, np.int64)) == places


def test_all_rows(table):
    opened, values = table
    np.testing.assert_array_equal(np.concatenate(list(opened.vectors(7))), values)
    rows = list(opened.rows(7))
    np.testing.assert_array_equal(np.concatenate([part.values for part in rows]), values)
    assert np.concatenate([part.begins for part in rows]).sum() == 20


def test_rows_of_files(table):
    opened, _ = table
    assert opened.rows_of(["3.wav", "19.wav", "none.wav"]).tolist() == [*range(15, 20), *range(95, 100)]
    assert opened.rows_of([]).tolist() == []


def test_a_table_at_a_url_is_refused_with_a_reason():
    with pytest.raises(InputError, match=r"s3:/+b/t.parquet is a URL, and a table is read from this machine"):
        Table("s3://b/t.parquet")


LIES = [
    ("shape", None), ("shape", 7), ("shape", [47]), ("shape", [-48]), ("shape", [48.0]), ("shape", [None]),
    ("pool", 7), ("pool", "most"), ("layer", True), ("layer", "top"), ("hop", "1"), ("window", -1.0),
    ("window", [1]), ("batch_seconds", True), ("dtype", "load"), ("dtype", 32), ("model", None),
    ("weights", ["sha256:"]), ("engine", {}),
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_table_that_lies_about_itself_is_damaged(tmp_path, suffix):
    path = write_table(
        [write_sound(tmp_path / "a.wav", noise(1.0), 16_000)], tmp_path / f"a{suffix}", small_model()
    ).path
    about = read_about(path)
    for name, value in LIES:
        lie = {**about, name: value}
        if value is None:
            del lie[name]
        write_about(path, lie)
        if (suffix, name, value) == (".npz", "shape", [47]):  # its array has a width of its own
            with pytest.raises(InputError, match="is damaged"):
                list(Table(path).rows())
            continue
        with pytest.raises(InputError, match=f"says of itself makes no sense .*{name if value != 'most' else 'most'}"):
            Table(path)


def test_what_breaks_in_the_middle_is_told_by_every_reader(tmp_path):
    sounds = [write_sound(tmp_path / f"{i}.wav", noise(0.5, seed=i), 16_000) for i in range(3)]
    path = write_table(sounds, tmp_path / "a.parquet", small_model()).path
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little") + 8  # says where things are, and stays as it is
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + bytes(len(data) - footer - 4) + data[-footer:])
    for read in (
        lambda table: list(table.rows()),
        lambda table: list(table.vectors()),
        lambda table: table.take(np.arange(3)),
        lambda table: table.places(np.arange(3)),
        lambda table: table.rows_of([str(sounds[0])]),
    ):
        with pytest.raises(InputError, match="is damaged"):
            read(Table(path))


def write_about(path, about):
    """The same table that says something else of itself."""
    text = json.dumps(about)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        np.savez(path, **{**content, "about": np.array(text)})
    else:
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, METADATA_KEY: text.encode()}), path)
