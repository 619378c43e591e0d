"""Columns in, columns out: what Ray, datasets and data frames call, and what a bad sound costs."""

import pathlib
import pickle

import numpy as np
import pyarrow as pa
import pytest
import soundfile

import torchbeats
from helpers import noise, small_model
from torchbeats import Embedder, InputError, SettingsError, Tagger

RATE = 16_000


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three sounds of different lengths, one that is missing, and one that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate((1.0, 2.5, 0.3)):
        soundfile.write(folder / f"{number}.wav", noise(seconds, seed=number), RATE, "FLOAT")
    (folder / "text.wav").write_text("no sound")
    return [str(folder / name) for name in ("0.wav", "text.wav", "1.wav", "none.wav", "2.wav")]


def test_rows_are_those_of_embed_and_bad_sounds_are_rows_with_an_error(files, model):
    columns = Embedder(model, pool="bands", window=2.0)({"path": files})
    assert list(columns) == ["path", "start", "end", "embedding", "error"]
    with pytest.warns(torchbeats.AudioWarning):
        expected = list(torchbeats.embed(files, model, pool="bands", window=2.0))
    good = [i for i, embedding in enumerate(columns["embedding"]) if embedding is not None]
    assert [columns["path"][i] for i in good] == [row.path for row in expected]
    for i, row in zip(good, expected, strict=True):
        assert (columns["start"][i], columns["end"][i], columns["error"][i]) == (row.start, row.end, None)
        np.testing.assert_array_equal(columns["embedding"][i], row.embedding)
    bad = [(columns["path"][i], columns["error"][i]) for i in range(len(columns["path"])) if i not in good]
    assert [path for path, _ in bad] == [files[1], files[3]]
    assert "no sound file" in bad[0][1]
    assert "cannot be opened" in bad[1][1]
    assert columns["path"].index(files[2]) < columns["path"].index(files[4])  # the order of the inputs


@pytest.mark.parametrize(
    "of",
    [
        lambda path: {"bytes": [pathlib.Path(path).read_bytes()], "path": [path]},
        lambda path: {"audio": [{"bytes": pathlib.Path(path).read_bytes(), "path": path}]},
        lambda path: {"audio": [{"path": path, "bytes": None}]},
        lambda path: {"audio": [{"array": soundfile.read(path)[0], "sampling_rate": RATE}], "path": [path]},
        lambda path: {"audio": [soundfile.read(path)[0]], "path": [path]},
    ],
)
def test_every_kind_of_column(files, model, of):
    (expected,) = torchbeats.embed(files[0], model)
    columns = Embedder(model)(of(files[0]))
    assert (columns["path"], columns["error"]) == ([files[0]], [None])
    np.testing.assert_allclose(columns["embedding"][0], expected.embedding, atol=1e-5)  # double or float samples


def test_pieces(files, model):
    columns = Embedder(model)({"path": [files[2], files[2]], "start": [0.5, float("nan")], "end": [1.5, None]})
    assert list(zip(columns["start"], columns["end"], strict=True)) == [(0.5, 1.5), (0.0, 2.5)]


def test_arrow_and_pandas_come_back_as_such(files, model):
    table = Embedder(model)(pa.table({"path": files[:2]}))
    assert isinstance(table, pa.Table)
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    only_bad = Embedder(model)(pa.table({"path": files[1:2]}))
    assert only_bad.schema == table.schema  # what parts of a data set must agree on
    pandas = pytest.importorskip("pandas")
    frame = Embedder(model)(pandas.DataFrame({"path": files[:2]}))
    assert frame["error"].isna().tolist() == [True, False]


def test_pickles_by_name_and_loads_once(files):
    worker = Embedder("beats-nano")
    worker({"path": files[:1]})
    data = pickle.dumps(worker)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again.model() is worker.model()  # one a process
    np.testing.assert_array_equal(again({"path": files[:1]})["embedding"], worker({"path": files[:1]})["embedding"])


def test_tagger(files):
    columns = Tagger(top=2)({"path": files})
    with pytest.warns(torchbeats.AudioWarning):
        expected = list(torchbeats.tag(files, "beats-nano-tagger", top=2))
    good = [i for i, labels in enumerate(columns["labels"]) if labels is not None]
    assert [list(zip(columns["labels"][i], columns["probabilities"][i], strict=True)) for i in good] == [
        row.labels for row in expected
    ]
    assert sum(error is not None for error in columns["error"]) == 2


def test_what_cannot_be(files, model):
    with pytest.raises(SettingsError, match="no pooling called 'max'"):
        Embedder(model, pool="max")
    with pytest.raises(InputError, match="needs a column path, bytes or audio"):
        Embedder(model)({"file": files})
    with pytest.raises(torchbeats.ModelError, match="no label head"):
        Tagger(model)({"path": files[:1]})
    assert Embedder(model)({"path": []})["embedding"] == []
    empty = Embedder(model)({"audio": [None], "path": ["x"]})
    assert (empty["path"], empty["error"]) == (["x"], ["the file is empty (0 bytes)."])
