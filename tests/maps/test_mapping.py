"""Maps of tables: which rows are shown, what colour they have, and the command."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import about_embeddings
from torchbeats import InputError, SettingsError
from torchbeats.data.example import Example
from torchbeats.data.labelled import Labelled
from torchbeats.extras import is_installed
from torchbeats.maps.mapping import make_map
from torchbeats.plots.scatter import COLOURS

WIDTH, PER_FILE = 8, 10


def made(path, rows, seed=0, spoil=()):
    """A table with ten rows a file; rows of even and of odd number are of two kinds."""
    random = np.random.default_rng(seed)
    embeddings = 0.1 * random.standard_normal((rows, WIDTH)).astype(np.float32)
    embeddings[np.arange(rows), np.arange(rows) % 2] += 1
    embeddings[list(spoil), 3] = np.nan
    values = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), WIDTH)
    start = np.arange(rows) % PER_FILE * 1.0
    columns = [[f"{row // PER_FILE:04}.wav" for row in range(rows)], start, start + 1, values]
    about = about_embeddings(WIDTH)
    table = pa.table(columns, ["path", "start", "end", "embedding"])
    pq.write_table(table.replace_schema_metadata({"torchbeats": json.dumps(about)}), path, row_group_size=64)
    return path


def labels(*examples):
    classes = sorted({label for example in examples for label in example.labels})
    return Labelled(list(examples), classes, "multi_label")


def test_all_rows_with_their_places_in_the_files(tmp_path):
    shown = make_map(made(tmp_path / "t.parquet", 200), method="pca", clusters=2)
    assert sorted(shown.rows.tolist()) == list(range(200))
    assert shown.stretches == [
        (f"{row // PER_FILE:04}.wav", row % PER_FILE, row % PER_FILE + 1) for row in shown.rows.tolist()
    ]
    assert shown.groups.names == ["cluster 1", "cluster 2"]
    kinds = shown.rows % 2
    assert len(set(zip(kinds.tolist(), shown.groups.of.tolist(), strict=True))) == 2  # each kind is a cluster
    assert len(np.unique(np.sign(shown.places[kinds == 0, 0]))) == 1
    assert shown.note() == "200 windows, placed by two principal components, coloured by cluster."


def test_a_sample_of_a_large_table_is_seeded_and_has_the_labelled_windows(tmp_path):
    path = made(tmp_path / "t.parquet", 3000)
    labelled = labels(Example("0007.wav", ("a", "b"), 2.0, 4.0), Example("0290.wav", ("b",), 0.0, None))
    shown = make_map(path, method="pca", labelled=labelled, points=100)
    assert len(shown.rows) == len(set(shown.rows.tolist())) == 100
    assert sorted(shown.rows[:12].tolist()) == [72, 73, *range(2900, 2910)]
    assert sorted(shown.groups.names) == ["a", "b"]
    assert shown.colour == "label"
    assert (shown.groups.of[12:] == -1).all()
    assert {shown.labels[i] for i in range(12)} == {"a, b", "b"}
    assert "a random sample of 100 of 3,000 windows" in shown.note().lower()
    again = make_map(path, method="pca", labelled=labelled, points=100)
    np.testing.assert_array_equal(again.rows, shown.rows)
    np.testing.assert_array_equal(again.places, shown.places)
    other = make_map(path, method="pca", labelled=labelled, points=100, seed=1)
    assert set(other.rows.tolist()) != set(shown.rows.tolist())
    assert len(make_map(path, method="pca", labelled=labelled, points=5).rows) == 5


def test_colours_for_files_as_far_as_there_are_any(tmp_path):
    few = make_map(made(tmp_path / "few.parquet", 30), method="pca", colour="file")
    assert few.groups.names == ["0000.wav", "0001.wav", "0002.wav"]
    many = make_map(made(tmp_path / "many.parquet", 305), method="pca", colour="file")
    assert len(many.groups.names) == len(COLOURS)
    assert many.groups.names[-1] == f"{31 - len(COLOURS) + 1} other files"
    counts = np.bincount(many.groups.of, minlength=len(COLOURS))
    assert counts.tolist() == [10] * (len(COLOURS) - 1) + [305 - 10 * (len(COLOURS) - 1)]


def test_rows_that_are_not_finite_are_left_out_and_told(tmp_path):
    shown = make_map(made(tmp_path / "t.parquet", 40, spoil=[3, 17]), method="pca")
    assert sorted(set(range(40)) - set(shown.rows.tolist())) == [3, 17]
    assert "2 without finite numbers are left out." in shown.note()
    with pytest.raises(InputError, match="no rows with finite numbers"):
        make_map(made(tmp_path / "n.parquet", 2, spoil=[0, 1]), method="pca")


def test_what_is_refused(tmp_path):
    path = made(tmp_path / "t.parquet", 20)
    for settings, words in (
        ({"colour": "label"}, "name a list with labels"),
        ({"colour": "size"}, "cluster, file or label, not 'size'"),
        ({"method": "tsne"}, "umap or pca"),
        ({"clusters": 0}, "At least one cluster"),
        ({"points": 0}, "at least one cluster and one point"),
    ):
        with pytest.raises(SettingsError, match=f"(?i){words}"):
            make_map(path, **{"method": "pca", **settings})
    with pytest.raises(InputError, match="Not one of the 20 windows"):
        make_map(path, method="pca", labelled=labels(Example("gone.wav", ("a",))))
    with pytest.raises(InputError, match="no rows"):
        make_map(made(tmp_path / "empty.parquet", 0), method="pca")


def test_the_command(run, tmp_path, monkeypatch):
    if not is_installed("matplotlib"):
        pytest.skip("needs matplotlib")
    path = made(tmp_path / "t.parquet", 40)
    monkeypatch.chdir(tmp_path)
    for name in ("0001.wav", "0002.wav"):
        (tmp_path / name).touch()
    (tmp_path / "l.csv").write_text("path,start,end,label\n0001.wav,0,3,wren\n0002.wav,5,9,Zaunkönig\n", "utf-8")
    command = ["map", path, "--method", "pca", "-o", tmp_path / "m.png"]
    assert run(*command) == (0, "", "")
    picture = (tmp_path / "m.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    status, _, said = run(*command)
    assert (status, "use --overwrite" in said) == (2, True)
    assert run(*command, "--overwrite", "--labels", tmp_path / "l.csv")[0] == 0
    assert (tmp_path / "m.png").read_bytes() != picture
    for name, words in (("m.pdf", "must be named .png or .html"), ("t.parquet", "must be named")):
        status, _, said = run("map", path, "-o", tmp_path / name)
        assert (status, words in said) == (2, True)


def test_few_points_are_placed_by_principal_components_and_it_is_told(run, tmp_path):
    if not is_installed("umap"):
        pytest.skip("needs umap-learn")
    status, _, said = run("map", made(tmp_path / "t.parquet", 5), "-o", tmp_path / "m.html")
    assert (status, "5 points are too few for UMAP" in said) == (0, True)


def test_a_row_without_a_label_is_a_window_without_one_and_no_warning(run, tmp_path, monkeypatch):
    """A list with stretches in which there is nothing is what one labels with."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "t.parquet", 20)
    for name in ("0000.wav", "0001.wav"):
        (tmp_path / name).touch()
    rows = ["path,start,end,label", "0000.wav,0,1,a", "0000.wav,3,4,", "0001.wav,5,6,b"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    assert run("map", "t.parquet", "-o", "m.png", "--labels", "l.csv", "--method", "pca") == (0, "", "")
