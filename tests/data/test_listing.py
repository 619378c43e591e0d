"""Sounds are listed while a run goes on, and kept in few bytes."""

import itertools
import os
import tracemalloc

import pytest

import torchbeats
from helpers import small_model, write_sounds
from torchbeats import EmbeddingPlan, InputError, StoreError, write_table
from torchbeats.data.inputs import Piece, iterate_sounds
from torchbeats.data.listing import CHUNK, Listing
from torchbeats.data.stored import MemorySound
from torchbeats.tables import store, unfinished, writing

PLAN = EmbeddingPlan("mean", window=1.0, batch_seconds=0.25)  # a group of two seconds


def counted(pieces, taken):
    for piece in pieces:
        taken.append(piece)
        yield piece


def test_a_source_is_gone_through_once_and_no_further_than_needed():
    pieces = [Piece(f"{number}.wav") for number in range(3 * CHUNK + 5)]
    pieces[7] = Piece(os.fsdecode(b"caf\xe9.wav"), 1.5, None)
    pieces[8] = Piece("a", 0.0, 2.0, MemorySound("a", b"RIFF"))
    listing = Listing(counted(pieces, taken := []))
    assert (listing.total, taken) == (None, [])
    assert list(itertools.islice(listing, 3)) == pieces[:3]
    assert len(taken) == CHUNK
    ahead = iter(listing)
    assert list(itertools.islice(ahead, CHUNK + 1)) == pieces[: CHUNK + 1]
    assert list(listing) == pieces
    assert list(ahead) == pieces[CHUNK + 1 :]
    assert (listing.total, len(taken)) == (len(pieces), len(pieces))
    assert list(listing) == pieces


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1])
def test_total(count):
    listing = Listing(Piece(str(number)) for number in range(count))
    listing.advance(0.0)
    assert listing.total is None
    listing.advance(60.0)
    assert listing.total == count


def test_a_path_takes_few_bytes():
    tracemalloc.start()
    listing = Listing(Piece(f"/recordings/site-{n // 9999}/recording-{n:09}.wav") for n in range(100_000))
    listing.advance(600.0)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert listing.total == 100_000
    assert size < 20 * 100_000


def test_what_is_wrong_with_an_input_is_said_when_it_is_reached(tmp_path):
    write_sounds(tmp_path, {"a.wav": 1.0})
    sounds = iterate_sounds([tmp_path, tmp_path / "none.csv"])
    assert os.path.basename(next(sounds).path) == "a.wav"
    with pytest.raises(InputError, match=r"no list .*none\.csv"):
        next(sounds)


def test_rows_are_computed_before_all_is_listed(tmp_path, monkeypatch):
    write_sounds(tmp_path, {"a.wav": 1.0})
    monkeypatch.setattr(writing, "LIST_SECONDS", 0.0)
    monkeypatch.setattr(writing, "LIST_SHARE", 0.0)
    piece, count, listed, at_first = Piece(str(tmp_path / "a.wav"), 0.0, 0.6), 2 * CHUNK, [], []
    source = (Piece(piece.path, 0.0, 0.5 + number / 10_000) for number in range(count))
    monkeypatch.setattr(writing, "sounds_of", lambda *_: counted(source, listed))

    class Seen(BaseException):
        pass

    def append(*_):
        at_first.append(len(listed))
        raise Seen

    monkeypatch.setattr(store.Store, "append", append)
    with pytest.raises(Seen):
        write_table(["anything"], tmp_path / "t.parquet", small_model(), PLAN)
    assert at_first == [CHUNK]


class Killed(BaseException):
    pass


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run over eight sounds that was killed after five; the folder, the output, and how to go on."""
    monkeypatch.setattr(store, "FLUSH_SECONDS", 0.0)
    folder, out, model = tmp_path / "s", tmp_path / "t.parquet", small_model()
    folder.mkdir()
    write_sounds(folder, {f"{number}.wav": 1.0 for number in range(8)})
    append = store.Store.append

    def some(self, group, states):
        append(self, group, states)
        if self.position.inputs >= 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "append", some)
        with pytest.raises(Killed):
            write_table(folder, out, model, PLAN)
    done = unfinished.read_run(unfinished.folder_of(out))["position"][0]
    assert 5 <= done < 8
    return folder, done, lambda **more: write_table(folder, out, model, PLAN, **more)


def test_files_behind_the_point_that_was_reached_may_change(stopped, tmp_path):
    folder, done, again = stopped
    write_sounds(folder, {"7.wav": 1.4, "9.wav": 1.2})
    result = again()
    assert (result.sounds, result.continued) == (9, done)
    whole = write_table(folder, tmp_path / "whole.parquet", small_model(), PLAN)
    assert torchbeats.describe(result.path)["settings"] == torchbeats.describe(whole.path)["settings"]
    assert again().complete


@pytest.mark.parametrize("change", ["changed", "removed", "added", "too few"])
def test_other_files_before_it_are_refused(stopped, change):
    folder, _, again = stopped
    if change == "changed":
        write_sounds(folder, {"1.wav": 1.1})
    elif change == "added":
        write_sounds(folder, {"00.wav": 1.0})
    else:
        for number in [1] if change == "removed" else range(2, 8):
            (folder / f"{number}.wav").unlink()
    with pytest.raises(StoreError, match=r"unfinished run with other settings: files were added, removed or changed"):
        again()
    result = again(overwrite=True)
    assert (result.continued, result.rows) == (0, len(os.listdir(folder)))


def test_a_file_that_changed_under_the_run_is_refused(tmp_path, monkeypatch):
    """It was stopped within a long sound, which is another now."""
    monkeypatch.setattr(store, "FLUSH_SECONDS", 0.0)
    write_sounds(tmp_path, {"a.wav": 20.0})
    append = store.Store.append

    def some(self, group, states):
        append(self, group, states)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "append", some)
        with pytest.raises(Killed):
            write_table(tmp_path / "a.wav", tmp_path / "t.parquet", small_model(), PLAN)
    run = unfinished.read_run(unfinished.folder_of(tmp_path / "t.parquet"))
    assert (run["position"][0], run["under_way"] != 0) == (0, True)
    write_sounds(tmp_path, {"a.wav": 19.0})
    with pytest.raises(StoreError, match="files were added, removed or changed"):
        write_table(tmp_path / "a.wav", tmp_path / "t.parquet", small_model(), PLAN)
