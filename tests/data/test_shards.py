"""WebDataset shards as inputs of a run: what is in them, where they break off, and what an update makes of them."""

import io
import json
import warnings

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import torchbeats
from helpers import noise, shard_bytes, small_model
from torchbeats import AudioWarning, EmbeddingPlan, InputError, audio, remote, write_table
from torchbeats.data import shards
from torchbeats.data.inputs import find_audio, find_sounds
from torchbeats.errors import AudioError

PLAN = EmbeddingPlan("mean", window=1.0, batch_seconds=2.0)
CONTENTS = {"a.wav": noise(1.0, seed=0), "b.wav": noise(2.0, seed=1), "c.wav": noise(0.7, seed=2)}


def encoded(samples):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture
def sounds():
    return {name: encoded(samples) for name, samples in CONTENTS.items()}


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


@pytest.fixture(params=["here", "at a URL"])
def place(request, tmp_path, memory):
    """A function that puts a shard somewhere, and the start of the names there."""
    if request.param == "here":
        return lambda name, content: (tmp_path / name).write_bytes(content), f"{tmp_path}/"
    return lambda name, content: memory.pipe(f"/bucket/{name}", content), "memory://bucket/"


def rows(path):
    table = pq.read_table(path)
    return table["path"].to_pylist(), np.stack(table["embedding"].to_numpy())


def test_a_shard_gives_what_its_files_give(place, sounds, tmp_path, model):
    put, start = place
    put("s.tar", shard_bytes({**sounds, "a.json": b"{}", "b.txt": b"text"}))
    for name, content in sounds.items():
        (tmp_path / name).write_bytes(content)
    files = [tmp_path / name for name in sounds]
    away = rows(write_table(f"{start}s.tar", tmp_path / "away.parquet", model, PLAN).path)
    here = rows(write_table(files, tmp_path / "here.parquet", model, PLAN).path)
    assert away[0] == [f"{start}s.tar#{path.rpartition('/')[2]}" for path in here[0]]
    np.testing.assert_array_equal(away[1], here[1])
    named = list(dict.fromkeys(row.path for row in torchbeats.embed(f"{start}s.tar", model)))
    assert named == [f"{start}s.tar#{name}" for name in sounds]


@pytest.mark.parametrize("pattern", ["s-*.tar", "s-{00..02}.tar", "s-0[012].tar"])
def test_patterns(place, sounds, pattern):
    put, start = place
    for number, (name, content) in enumerate(sounds.items()):
        put(f"s-{number:02}.tar", shard_bytes({name: content}))
    pieces = find_sounds([start + pattern])
    assert [piece.path for piece in pieces] == [f"{start}s-{i:02}.tar#{name}" for i, name in enumerate(sounds)]
    for piece, samples in zip(pieces, CONTENTS.values(), strict=True):
        np.testing.assert_allclose(audio.load(piece.content.open()), samples, atol=1e-4)
    with pytest.raises(InputError, match=r"There are no shards .*t-\*\.tar"):
        find_sounds([f"{start}t-*.tar"])


@pytest.mark.parametrize("where", ["in a sound", "behind a header", "in a header"])
def test_a_shard_that_breaks_off(place, sounds, tmp_path, model, where):
    """What lies before is embedded; the shard is among the failures; once it is whole, an update has the rest."""
    put, start = place
    whole = shard_bytes(sounds)
    third = sum(512 + -(-len(sounds[name]) // 512) * 512 for name in ("a.wav", "b.wav"))
    put("s.tar", whole[: third + {"in a sound": 5_000, "behind a header": 512, "in a header": 100}[where]])
    out = tmp_path / "t.parquet"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        result = write_table(f"{start}s.tar", out, model, PLAN)
    assert (result.sounds, result.failures) == (3, 1)
    (failure,) = map(json.loads, result.errors.read_text().splitlines())
    assert failure["path"] == f"{start}s.tar"
    assert "it breaks off" in failure["error"]
    assert failure["error"].endswith("; the 2 sounds before are used")
    assert list(dict.fromkeys(rows(out)[0])) == [f"{start}s.tar#a.wav", f"{start}s.tar#b.wav"]
    put("s.tar", whole)
    result = write_table(f"{start}s.tar", out, model, PLAN, update=True)
    assert (result.failures, len(set(rows(out)[0]))) == (0, 3)


@pytest.mark.parametrize("behind", ["nothing", "an empty block", "many empty blocks", "another archive"])
def test_what_lies_behind_an_end_is_not_passed_over_silently(place, sounds, behind):
    put, start = place
    whole = shard_bytes(sounds)
    second = 512 + -(-len(sounds["a.wav"]) // 512) * 512
    holes = {"an empty block": bytes(512), "many empty blocks": bytes(10**5)}
    hole = holes.get(behind)
    content = (
        whole[:second] + hole + whole[second:] if hole else whole + (whole if "archive" in behind else bytes(10**6))
    )
    put("s.tar", content)
    *good, last = find_sounds([f"{start}s.tar"])
    if behind == "nothing":
        assert [sound.content.name for sound in (*good, last)] == list(sounds)
        return
    assert [sound.content.name for sound in good] == list(sounds)[: 1 if hole else 3]
    with pytest.raises(
        AudioError, match=r"it ends at byte \d+, and what lies behind is not read; the \d sounds before"
    ):
        last.content.open()


@pytest.mark.parametrize(
    ("content", "reason"), [(b"no archive" * 99, "breaks off"), (None, "is no such|cannot be"), ("none", "no sounds")]
)
def test_a_shard_of_no_use_costs_no_other(place, sounds, tmp_path, model, content, reason):
    put, start = place
    put("good.tar", shard_bytes(sounds))
    if content is not None:
        put("bad.tar", shard_bytes({"readme.txt": b"text"}) if content == "none" else content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        result = write_table([f"{start}bad.tar", f"{start}good.tar"], tmp_path / "t.parquet", model, PLAN)
    assert (result.sounds, result.failures) == (4, 1)
    failure = json.loads(result.errors.read_text())
    assert failure["path"] == f"{start}bad.tar"
    assert any(words in failure["error"] for words in reason.split("|"))


def test_an_update_notices_another_shard(place, sounds, tmp_path, model):
    put, start = place
    for name in ("one", "two"):
        put(f"{name}.tar", shard_bytes(sounds))
    given, out = [f"{start}one.tar", f"{start}two.tar"], tmp_path / "t.parquet"
    write_table(given, out, model, PLAN)
    assert write_table(given, out, model, PLAN, update=True).complete
    put("two.tar", shard_bytes({**sounds, "d.wav": sounds["a.wav"]}))
    result = write_table(given, out, model, PLAN, update=True)
    assert (result.kept, result.dropped, result.sounds) == (3, 3, 7)


def test_large_shards_are_read_in_blocks(memory, sounds, monkeypatch):
    """No more than some blocks of a shard are in memory, and a sound is read alone."""
    memory.pipe("/bucket/s.tar", shard_bytes(sounds))
    monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 2_000)
    monkeypatch.setattr(type(memory), "async_impl", True, raising=False)  # as stores on the net have it
    asked = []
    read = type(memory).cat_file

    def counted(self, path, start=None, end=None, **more):
        asked.append(end - start)
        return read(self, path, start, end, **more)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    found = list(shards.sounds_in("memory://bucket/s.tar"))
    assert [sound.name for sound in found] == list(sounds)
    assert max(asked) == 2_000
    assert sum(asked) < 20_000  # headers, not the sounds between
    asked.clear()
    np.testing.assert_allclose(audio.excerpt(found[1].open(), 0.0, 9.0), CONTENTS["b.wav"], atol=1e-4)
    assert asked == [len(sounds["b.wav"])]
    monkeypatch.setattr(shards, "MOST_BYTES", 1_000)
    with pytest.raises(AudioError, match=r"s\.tar#a\.wav: a sound in a shard may have"):
        found[0].open()


def test_labels_need_files(tmp_path, sounds):
    (tmp_path / "s.tar").write_bytes(shard_bytes(sounds))
    with pytest.raises(InputError, match="holds sounds in itself"):
        find_audio([tmp_path / "s.tar"])


def test_the_command(run, tmp_path, sounds):
    (tmp_path / "s.tar").write_bytes(shard_bytes(sounds))
    status, out, _ = run("tag", tmp_path / "s.tar", "--top", 1, "--format", "jsonl")
    assert status == 0
    assert [json.loads(line)["path"] for line in out.splitlines()] == [f"{tmp_path}/s.tar#{name}" for name in sounds]
