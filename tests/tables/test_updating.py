"""A table is brought up to date: what has changed is computed, the rest stays as it is."""

import importlib.util
import json
import os
import shutil
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers import noise, small_model, write_sound, write_sounds
from torchbeats import EmbeddingPlan, TokenPlan, write_table
from torchbeats.audio import AudioWarning
from torchbeats.data.inputs import Piece
from torchbeats.errors import SettingsError, StoreError
from torchbeats.inference import Position
from torchbeats.tables import store, unfinished
from torchbeats.tables.formats import read_about, summary
from torchbeats.tables.reading import Table

PLAN = EmbeddingPlan("mean", window=1.0, batch_seconds=2.0)
needs_lance = pytest.mark.skipif(importlib.util.find_spec("lance") is None, reason="needs the extra search")
every_format = pytest.mark.parametrize(
    "name", ["t.parquet", "t.npz", pytest.param("t.lance", marks=needs_lance)], ids=["parquet", "npz", "lance"]
)
LENGTHS = {f"{number:02}.wav": 0.6 + 0.37 * number for number in range(12)}


@pytest.fixture(scope="module")
def model():
    return small_model().eval()


@pytest.fixture
def sounds(tmp_path):
    (tmp_path / "sounds").mkdir()
    write_sounds(tmp_path / "sounds", LENGTHS)
    return tmp_path / "sounds"


def rows(path):
    """``{(file, start, end): embedding}``, in order."""
    result = {}
    for part in Table(path).rows():
        for name, times, values in zip(part.paths, part.times.tolist(), part.values, strict=True):
            result[(os.path.basename(name), *times)] = values
    return result


def update(sounds, out, model, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        return write_table(sounds, out, model, PLAN, update=True, **more)


def assert_same(one, other):
    """The same rows; what other sounds shared a batch may show in the last bits."""
    assert list(one) == list(other)
    for key, values in one.items():
        np.testing.assert_allclose(values, other[key], rtol=1e-4, atol=1e-5)


def change(sounds):
    """One file is added at either end, one in the middle; one goes, one is another."""
    write_sounds(sounds, {"005.wav": 1.3, "99.wav": 2.2, "051.wav": 0.7})
    (sounds / "03.wav").unlink()
    write_sounds(sounds, {"07.wav": 4.1})


@every_format
def test_added_changed_and_removed(tmp_path, model, sounds, name):
    out = tmp_path / name
    first = update(sounds, out, model)  # of a table that is not there: all of it
    assert (first.sounds, first.kept, first.dropped, first.complete) == (12, 0, 0, False)
    before = rows(out)
    change(sounds)
    result = update(sounds, out, model)
    assert (result.sounds, result.kept, result.dropped, result.complete) == (14, 10, 2, False)
    after = rows(out)
    assert result.rows == sum(key[0] in {"005.wav", "051.wav", "07.wav", "99.wav"} for key in after)
    for key in set(before) & set(after) - {key for key in after if key[0] == "07.wav"}:
        np.testing.assert_array_equal(after[key], before[key])  # bit for bit: it was not computed again
    write_table(sounds, tmp_path / f"new-{name}", model, PLAN)
    assert_same(after, rows(tmp_path / f"new-{name}"))
    assert read_about(out) == read_about(tmp_path / f"new-{name}")
    assert summary(out) == summary(tmp_path / f"new-{name}")
    assert not unfinished.folder_of(out).exists()
    assert write_table(sounds, out, model, PLAN).complete  # the same as a run without the option
    again = update(sounds, out, model)
    assert (again.complete, again.rows, again.kept) == (True, 0, 14)


def test_nothing_changed_touches_nothing(tmp_path, model, sounds):
    out = tmp_path / "t.parquet"
    update(sounds, out, model)
    before = out.stat()
    assert update(sounds, out, model).complete
    assert out.stat() == before
    assert sorted(os.listdir(tmp_path)) == ["sounds", "t.parquet"]


@every_format
@pytest.mark.parametrize("bad", [np.nan, 1e30])
def test_a_sound_whose_samples_are_no_longer_finite(tmp_path, model, sounds, name, bad):
    """Its rows go, also those of its good beginning; the errors file says why, until it is mended."""
    out = tmp_path / name
    update(sounds, out, model)
    before = rows(out)
    samples = noise(3.2, seed=1)
    samples[-9] = bad
    write_sound(sounds / "07.wav", samples, 16_000, "FLOAT")
    result = update(sounds, out, model)
    assert (result.kept, result.dropped, result.rows, result.failures) == (11, 1, 0, 1)
    after = rows(out)
    assert list(after) == [key for key in before if key[0] != "07.wav"]
    assert all(np.array_equal(after[key], before[key]) for key in after)
    errors = [json.loads(line) for line in (tmp_path / f"{name}.errors.jsonl").read_text().splitlines()]
    assert [os.path.basename(error["path"]) for error in errors] == ["07.wav"]
    assert "the sample at 3.199 s is" in errors[0]["error"]
    write_sounds(sounds, {"07.wav": 3.2})
    assert update(sounds, out, model).kept == 11
    assert {key[0] for key in rows(out)} == set(LENGTHS)
    assert not (tmp_path / f"{name}.errors.jsonl").exists()


@every_format
def test_all_new_and_none_left(tmp_path, model, sounds, name):
    out = tmp_path / name
    update(sounds / "00.wav", out, model)
    update(sounds / "05.wav", out, model)
    assert {key[0] for key in rows(out)} == {"05.wav"}
    update([sounds / "05.wav", sounds / "00.wav"], out, model)
    assert list(dict.fromkeys(key[0] for key in rows(out))) == ["05.wav", "00.wav"]
    result = update([sounds / "00.wav", sounds / "05.wav"], out, model)  # the order alone
    assert (result.rows, result.kept, result.complete) == (0, 2, False)
    assert list(dict.fromkeys(key[0] for key in rows(out))) == ["00.wav", "05.wav"]
    update(sounds / "00.wav", out, model)  # nothing to compute, but one to drop
    assert {key[0] for key in rows(out)} == {"00.wav"}


def test_pieces_of_one_file(tmp_path, model, sounds):
    out = tmp_path / "t.parquet"
    path = str(sounds / "11.wav")
    update([Piece(path, 0.0, 1.5), Piece(path, 1.5, 3.0), Piece(path, 3.0, 4.0)], out, model)
    result = update([Piece(path, 0.0, 1.5), Piece(path, 2.0, 3.0), Piece(path, 3.0, 4.0)], out, model)
    assert (result.kept, result.dropped) == (2, 1)
    assert [key[1:] for key in rows(out)] == [(0.0, 1.0), (1.0, 1.5), (2.0, 3.0), (3.0, 4.0)]


@every_format
def test_what_could_not_be_read_is_tried_again(tmp_path, model, sounds, name):
    out = tmp_path / name
    good = (sounds / "04.wav").read_bytes()
    about = os.stat(sounds / "04.wav")
    (sounds / "04.wav").write_bytes(bytes(len(good)))
    os.utime(sounds / "04.wav", ns=(about.st_atime_ns, about.st_mtime_ns))
    first = update(sounds, out, model)
    assert (first.failures, first.errors) == (1, tmp_path / f"{name}.errors.jsonl")
    (sounds / "04.wav").write_bytes(good)
    os.utime(sounds / "04.wav", ns=(about.st_atime_ns, about.st_mtime_ns))
    second = update(sounds, out, model)
    assert (second.failures, second.errors, second.kept) == (0, None, 11)
    assert not first.errors.exists()
    assert "04.wav" in {key[0] for key in rows(out)}


class Killed(BaseException):
    pass


@every_format
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_moment(tmp_path, model, sounds, monkeypatch, name, moment):
    monkeypatch.setattr(store, "FLUSH_SECONDS", 0.0)
    old, calm = tmp_path / f"old-{name}", tmp_path / f"calm-{name}"
    update(sounds, old, model)
    shutil.copytree(old, calm) if old.is_dir() else shutil.copy(old, calm)
    before = rows(old)
    change(sounds)
    update(sounds, calm, model)
    after, left, sync = rows(calm), [1000], os.fsync

    def stop_at(*arguments):
        left[0] -= 1
        if left[0] < 0 and moment == "before":
            raise Killed
        sync(*arguments)
        if left[0] < 0:
            raise Killed

    monkeypatch.setattr(os, "fsync", stop_at)
    for stop in range(60):
        out = tmp_path / str(stop) / name
        out.parent.mkdir()
        shutil.copytree(old, out) if old.is_dir() else shutil.copy(old, out)
        left[0] = stop
        try:
            update(sounds, out, model)
        except Killed:
            left[0] = 1000
            now = rows(out)
            assert list(now) in (list(before), list(after))  # whole, the old or the new
            update(sounds, out, model)
        else:
            break
        finally:
            left[0] = 1000
        assert list(rows(out)) == list(after)
        for key, values in rows(out).items():
            np.testing.assert_array_equal(values, after[key])
        assert read_about(out) == read_about(calm)
        assert os.listdir(out.parent) == [name]
    assert stop > 4


def test_a_killed_update_goes_on_where_it_was(tmp_path, model, sounds, monkeypatch):
    monkeypatch.setattr(store, "FLUSH_SECONDS", 0.0)
    out = tmp_path / "t.parquet"
    update(sounds / "00.wav", out, model)

    def killed_at_the_end():
        with monkeypatch.context() as patch:
            patch.setattr(store.Store, "finish", stop)
            with pytest.raises(Killed):
                update(sounds, out, model)

    def stop(*_):
        raise Killed

    killed_at_the_end()
    run = unfinished.read_run(unfinished.folder_of(out))
    assert Position(*run["position"]) == Position(11, 0)
    result = update(sounds, out, model)
    assert (result.rows, result.continued, result.kept) == (0, 11, 1)
    # A file that changes in between makes it begin anew.
    change(sounds)
    killed_at_the_end()
    write_sounds(sounds, {"005.wav": 2.9})
    result = update(sounds, out, model)
    assert result.continued == 0
    write_table(sounds, tmp_path / "new.parquet", model, PLAN)
    assert_same(rows(out), rows(tmp_path / "new.parquet"))


def test_refused(tmp_path, model, sounds):
    out = tmp_path / "t.parquet"
    update(sounds / "00.wav", out, model)
    before = out.read_bytes()
    with pytest.raises(StoreError, match=r"cannot be updated, .* pool is mean there and bands here.*--overwrite"):
        write_table(sounds, out, model, EmbeddingPlan("bands", window=1.0, batch_seconds=2.0), update=True)
    with pytest.raises(SettingsError, match="either updated or overwritten"):
        update(sounds, out, model, overwrite=True)
    assert out.read_bytes() == before
    table = pq.read_table(out)
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"torchbeats.inputs"}
    pq.write_table(table.replace_schema_metadata(metadata), out)  # as versions before 0.3 did
    with pytest.raises(StoreError, match=r"does not tell which files it was made of\. Use --overwrite once"):
        update(sounds, out, model)


def test_a_row_a_file_is_refused(tmp_path, sounds):
    from helpers import small_tokenizer

    with pytest.raises(SettingsError, match="a row a file cannot be updated"):
        write_table(sounds, tmp_path / "t.parquet", small_tokenizer(), TokenPlan(), update=True)


def test_metadata_is_text(tmp_path, model, sounds):
    """Other readers of Parquet refuse metadata that is not."""
    update(sounds, tmp_path / "t.parquet", model)
    for value in pq.read_metadata(tmp_path / "t.parquet").metadata.values():
        value.decode("utf-8")
    assert json.loads(pq.read_metadata(tmp_path / "t.parquet").metadata[b"torchbeats"])["inputs"].startswith(
        "12 sounds"
    )


@every_format
def test_the_command(tmp_path, run, name):
    (tmp_path / "s").mkdir()
    write_sounds(tmp_path / "s", {"a.wav": 1.0, "b.wav": 1.5})
    command = ["embed", tmp_path / "s", "-o", tmp_path / name, "-m", "beats-nano", "--update"]
    assert run(*command)[0] == 0
    write_sounds(tmp_path / "s", {"c.wav": noise(1.0).size / 16_000})
    assert run(*command)[0] == 0
    assert {key[0] for key in rows(tmp_path / name)} == {"a.wav", "b.wav", "c.wav"}
    status, _, said = run(*command)
    assert (status, "is complete already" in said) == (0, True)
