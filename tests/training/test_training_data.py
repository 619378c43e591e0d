"""From inputs to batches: what is found, what is drawn, and that a batch depends on the seed and its number alone."""

import dataclasses
import functools
import http.server
import io
import json
import math
import threading
import time
from itertools import islice

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import noise, shard_bytes, tone
from torchbeats import AudioWarning, audio
from torchbeats.errors import CorpusError, InputError
from torchbeats.fbank import Fbank
from torchbeats.patches import PatchGrid, frames
from torchbeats.training.augmentation import (
    DECIBEL,
    augment_waveform,
    equalise,
    lay_next_over,
    low_pass,
    shift_mel,
)
from torchbeats.training.batches import Batches, Draw
from torchbeats.training.corpus import Corpus, Failure, index
from torchbeats.training.crops import Collate, Crop, Crops, collate, inverse_block_mask, random_mask
from torchbeats.training.feed import loader
from torchbeats.training.settings import DataSettings
from torchbeats.training.statistics import fbank_statistics

RATE = 16_000
GRID = PatchGrid()
SECONDS = [0.05, 0.3, 1.0, 1.2, 1.9, 2.0, 3.1, 5.0, 7.5, 0.5, 2.2]
DATA = DataSettings(crop_seconds=[0.5, 2.0], batch_seconds=6.0, workers=0)


def wav_bytes(samples, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(samples))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Noise of `SECONDS`, so that no two crops are alike."""
    folder = tmp_path_factory.mktemp("corpus")
    for i, seconds in enumerate(SECONDS):
        write(folder / f"{i:02}.wav", noise(seconds, seed=i))
    return folder


@pytest.fixture(scope="module")
def corpus(folder):
    return index([str(folder)])


@pytest.fixture
def sounds():
    return {f"{name}.wav": wav_bytes(noise(1, seed=seed)) for seed, name in enumerate("abc")}


def samples_of(content):
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


# --- what there is ----------------------------------------------------------------------------------------------------


def test_folders_are_searched_and_lengths_known(folder, corpus):
    assert [corpus.path(row) for row in range(len(corpus))] == sorted(map(str, folder.iterdir()))
    np.testing.assert_allclose(corpus.seconds, SECONDS, atol=1e-4)  # float32
    assert corpus.hours == pytest.approx(sum(SECONDS) / 3600)


@pytest.mark.parametrize("kind", ["csv", "txt", "jsonl", "parquet"])
def test_lists(tmp_path, kind):
    names = ["sub/a.wav", "b.wav"]
    for name in names:
        write(tmp_path / name, tone(0.5))
    text = {
        "csv": "path,label\n" + "".join(f"{name},x\n" for name in names),
        "txt": "\n".join(names),
        "jsonl": "\n".join(json.dumps({"audio": name}) for name in names),
    }
    if kind == "parquet":
        pq.write_table(pa.table({"label": ["x", "y"], "file": names}), tmp_path / "list.parquet")
    else:
        (tmp_path / f"list.{kind}").write_text(text[kind])
    corpus = index([str(tmp_path / f"list.{kind}")])
    assert [corpus.path(row) for row in range(2)] == [str(tmp_path / name) for name in names]


def test_an_index_is_read_back_as_it_was(tmp_path, corpus):
    corpus.save(tmp_path / "corpus.parquet")
    again = Corpus.load(tmp_path / "corpus.parquet")
    assert again.table.equals(corpus.table)
    assert [again.path(row) for row in range(len(again))] == [corpus.path(row) for row in range(len(corpus))]


def test_sounds_in_a_shard(tmp_path, sounds):
    (tmp_path / "some.tar").write_bytes(shard_bytes({**sounds, "a.json": b"{}", "b.txt": b"text"}))
    corpus = index([str(tmp_path / "some.tar")])
    assert [corpus.path(row).rpartition("#")[2] for row in range(len(corpus))] == list(sounds)
    assert np.isnan(corpus.seconds).all()
    for row, content in enumerate(sounds.values()):
        np.testing.assert_array_equal(corpus.read(row, 0.25, 0.5), samples_of(content)[4000:12_000])


@pytest.mark.parametrize("where", ["in a sound", "behind a header", "in a header"])
def test_a_shard_that_breaks_off_keeps_what_is_before(tmp_path, where):
    contents = {f"{number}.wav": wav_bytes(noise(0.3, seed=number)) for number in range(4)}
    whole = shard_bytes(contents)
    padded = -(-len(contents["0.wav"]) // 512) * 512
    third = 2 * (512 + padded)  # where the third member's header begins
    size = third + {"in a sound": 512 + padded // 2, "behind a header": 512, "in a header": 100}[where]
    (tmp_path / "some.tar").write_bytes(whole[:size])
    with pytest.warns(AudioWarning, match=r"some\.tar: it breaks off.*; the 2 sounds before are used"):
        corpus = index([str(tmp_path / "some.tar")])
    assert [corpus.path(row).rpartition("#")[2] for row in range(len(corpus))] == ["0.wav", "1.wav"]
    assert len(corpus.read(1, 0.0, 1.0)) == round(0.3 * RATE)


def test_a_shard_that_breaks_off_within_its_first_sound_is_of_no_use(tmp_path):
    (tmp_path / "some.tar").write_bytes(shard_bytes({"a.wav": wav_bytes(noise(0.3))})[:2000])
    with pytest.raises(CorpusError, match=r"it breaks off within a\.wav"):
        index([str(tmp_path / "some.tar")])


def test_a_hash_in_the_name_of_a_sound_in_a_shard(tmp_path, sounds):
    """As sounds of musical notes have."""
    (tmp_path / "notes.tar").write_bytes(shard_bytes({"F#/C#4.wav": sounds["a.wav"]}))
    corpus = index([str(tmp_path / "notes.tar")])
    np.testing.assert_array_equal(corpus.read(0, 0, 1), samples_of(sounds["a.wav"]))


def test_a_shard_that_is_gone_later_is_a_failure(tmp_path, sounds):
    path = tmp_path / "some.tar"
    path.write_bytes(shard_bytes(sounds))
    corpus = index([str(path)])
    path.unlink()
    failure = Crops(corpus, DATA, GRID)[Draw(1, 1.0, (0, 0, 0))]
    assert isinstance(failure, Failure)
    assert failure.path == f"{path}#b.wav"
    assert "shard cannot be read" in failure.reason


def test_crops_from_anywhere_in_a_sound_of_unknown_length(tmp_path):
    samples = noise(5)
    (tmp_path / "some.tar").write_bytes(shard_bytes({"a.wav": wav_bytes(samples), "b.wav": wav_bytes(noise(0.3))}))
    crops = Crops(index([str(tmp_path / "some.tar")]), DATA, GRID)
    whole, starts = samples_of(wav_bytes(samples)), []
    for number in range(30):
        crop = crops[Draw(0, 0.5, (0, 0, number))].samples
        (start,) = [i for i in np.flatnonzero(whole == crop[0]) if np.array_equal(whole[i : i + 8000], crop)]
        starts.append(start / RATE)
    assert min(starts) < 1
    assert max(starts) > 3.5
    assert len(crops[Draw(1, 0.5, (0, 0, 0))].samples) == 4800  # all that there is


@pytest.mark.parametrize("pattern", ["s-*.tar", "s-{00..02}.tar", "s-0[012].tar", "s-{00,01}*{,x}.tar"])
def test_patterns_of_local_shards(tmp_path, sounds, pattern):
    for number, (name, content) in enumerate(sounds.items()):
        (tmp_path / f"s-{number:02}.tar").write_bytes(shard_bytes({name: content}))
    if "x" in pattern:  # of two alternatives, one names nothing: said, not passed over
        with pytest.raises(CorpusError, match=r"no shards .*s-00\*x\.tar"):
            index([str(tmp_path / pattern)])
        return
    corpus = index([str(tmp_path / pattern)])
    assert [corpus.path(row).rpartition("#")[2] for row in range(len(corpus))] == list(sounds)


def test_shards_in_another_file_system_by_pattern(sounds):
    files = fsspec.filesystem("memory")
    for number, (name, content) in enumerate(sounds.items()):
        files.pipe(f"/corpus/s-{number:02}.tar", shard_bytes({name: content}))
    try:
        for pattern in ("memory://corpus/s-*.tar", "memory://corpus/s-{00..02}.tar"):
            corpus = index([pattern])
            assert [corpus.path(row).rpartition("#")[2] for row in range(len(corpus))] == list(sounds)
            np.testing.assert_array_equal(corpus.read(2, 0, 2), samples_of(sounds["c.wav"]))
    finally:
        files.rm("/corpus", recursive=True)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Files, and parts of them, as shards on the web are read."""

    protocol_version = "HTTP/1.1"
    asked: list  # set by the test

    def log_message(self, *args):
        pass

    def do_GET(self):
        wanted = self.headers.get("Range")
        path = self.translate_path(self.path)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            self.send_error(404)
            return
        status, extra = 200, {}
        if wanted:
            first, _, last = wanted.partition("=")[2].partition("-")
            end = min(int(last) if last else len(content) - 1, len(content) - 1)
            extra = {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
            self.asked.append((int(first), end + 1))
            content, status = content[int(first) : end + 1], 206
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def test_shards_on_the_web(tmp_path, sounds):
    (tmp_path / "s-00.tar").write_bytes(shard_bytes(sounds))
    handler = functools.partial(RangeHandler, directory=str(tmp_path))
    RangeHandler.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        failures = []
        corpus = index([f"http://127.0.0.1:{server.server_port}/s-{{00..01}}.tar"], on_file=failures.append)
        assert len(corpus) == 3
        assert [f is None or f.path.endswith("/s-01.tar") for f in failures] == [True, True]
        assert sum(f is not None for f in failures) == 1
        RangeHandler.asked.clear()
        np.testing.assert_array_equal(corpus.read(1, 0.5, 1), samples_of(sounds["b.wav"])[8000:])
        assert sum(end - start for start, end in RangeHandler.asked) == len(sounds["b.wav"])  # that sound and no more
    finally:
        server.shutdown()
        server.server_close()


# --- what is wrong with it --------------------------------------------------------------------------------------------


def test_broken_files_are_named_and_left_out(tmp_path):
    good = write(tmp_path / "good.wav", tone(1))
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.mp3").write_text("no sound\n" * 99)
    (tmp_path / "broken.tar").write_bytes(b"no archive" * 99)
    (tmp_path / "none.tar").write_bytes(shard_bytes({"readme.txt": b"no sound"}))
    failures = []
    inputs = [str(tmp_path), str(tmp_path / "missing.wav"), str(tmp_path / "broken.tar"), str(tmp_path / "none.tar")]
    corpus = index(inputs, on_file=lambda failure: failures.append(failure) if failure else None)
    assert [corpus.path(0)] == [good]
    reasons = {failure.path.removeprefix(f"{tmp_path}/"): failure.reason for failure in failures}
    assert sorted(reasons) == ["broken.tar", "empty.wav", "missing.wav", "none.tar", "text.mp3"]
    assert "0 bytes" in reasons["empty.wav"]
    assert "holds no sounds" in reasons["none.tar"]


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no sound file"):
        index([str(tmp_path)])


def test_nothing_readable_is_an_error_that_names_one(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    with pytest.raises(CorpusError, match=r"none of the 2 files .*a\.wav: the file is empty"):
        index([str(tmp_path)])


def test_a_corpus_of_one_file(tmp_path):
    corpus = index([write(tmp_path / "a.wav", noise(1))])
    batches = Batches(corpus, DATA, 0, GRID)
    batch = collate([Crops(corpus, DATA, GRID, mask=0.75)[draw] for draw in next(iter(batches))], GRID)
    assert len(batch.wav) >= 1
    assert not batch.failures


def test_very_short_clips_have_one_step(tmp_path):
    corpus = index([write(tmp_path / f"{i}.wav", noise(0.05, seed=i)) for i in range(5)])
    draws = next(iter(Batches(corpus, DATA, 0, GRID)))
    batch = collate([Crops(corpus, DATA, GRID, mask=0.75)[draw] for draw in draws], GRID)
    assert batch.samples.tolist() == [GRID.min_samples] * len(draws)
    assert batch.visible_counts.tolist() == [2] * len(draws)
    assert len(batch.target_indices) == 6 * len(draws)


def test_crops_from_deep_inside_a_very_long_file(tmp_path):
    """Three hours of 8 kHz, 8 bit: all silence but its third hour's value says where it is."""
    rate, hours = 8000, 3
    head = bytearray(wav_bytes(np.zeros(4), rate)[:44])
    size = rate * 3600 * hours
    head[4:8], head[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    head[28:32], head[32:34], head[34:36] = rate.to_bytes(4, "little"), b"\x01\0", b"\x08\0"  # a byte a sample
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(44 + size)  # zero bytes, -1 as sound, take no room on the disk
        file.seek(44 + rate * 7200)
        file.write(b"\xc0" * rate * 60)  # +0.5
    began = time.process_time()
    corpus = index([str(path)])
    assert corpus.seconds.tolist() == [3600.0 * hours]
    piece = corpus.read(0, 7200 + 20, 2)
    assert len(piece) == 2 * RATE
    np.testing.assert_allclose(piece[1000:-1000], 0.5, atol=1e-3)  # away from the resampler's ends
    crops = Crops(corpus, DATA, GRID)
    draws = list(islice((draw for batch in Batches(corpus, DATA, 0, GRID) for draw in batch), 200))
    assert not [crop for crop in map(crops.__getitem__, draws[:20]) if isinstance(crop, Failure)]
    assert time.process_time() - began < 5  # to decode what lies before 20 crops would take longer
    starts = [np.random.default_rng(draw.seed).uniform(0, 3600 * hours - draw.seconds) for draw in draws]
    assert min(starts) < 600
    assert max(starts) > 3600 * hours - 600


# --- which crops make a batch -----------------------------------------------------------------------------------------


def test_batches_depend_on_seed_alone(corpus):
    def some(seed):
        return list(islice(Batches(corpus, DATA, seed, GRID), 20))

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_every_sound_is_in_every_epoch(corpus):
    """As often as a crop has room in it; a corpus as small as this several times over."""
    drawn: dict[int, list[int]] = {}
    for draw in (draw for batch in islice(Batches(corpus, DATA, 0, GRID), 200) for draw in batch):
        drawn.setdefault(draw.seed[1], []).append(draw.row)
    mean = np.mean(DATA.crop_seconds)
    room = np.array([max(1, round(seconds / mean)) for seconds in SECONDS])
    for epoch in range(3):
        assert drawn[epoch + 1]  # so that this one is complete
        counts = np.bincount(drawn[epoch], minlength=len(corpus))
        assert counts.tolist() == (room * counts.sum() // room.sum()).tolist()
        assert counts.min() >= 1


def test_no_two_crops_of_an_epoch_share_a_seed(corpus):
    seeds = [draw.seed for batch in islice(Batches(corpus, DATA, 0, GRID), 50) for draw in batch]
    assert len(set(seeds)) == len(seeds)


def test_batches_keep_within_their_seconds(corpus):
    crops = Crops(corpus, DATA, GRID)
    for draws in islice(Batches(corpus, DATA, 3, GRID), 30):
        batch = collate([crops[draw] for draw in draws], GRID)
        assert batch.wav.numel() <= DATA.batch_seconds * RATE


def test_crops_of_like_length_come_together(corpus):
    """Little of what is computed is padding."""
    crops = Crops(corpus, DATA, GRID)
    batches = [collate([crops[d] for d in draws], GRID) for draws in islice(Batches(corpus, DATA, 3, GRID), 30)]
    assert sum(int(b.samples.sum()) for b in batches) / sum(b.wav.numel() for b in batches) > 0.8


@pytest.mark.parametrize("first", [1, 5, 23])
def test_going_on_at_a_batch_is_skipping_those_before(corpus, first):
    whole = list(islice(Batches(corpus, DATA, 0, GRID), first + 10))
    assert list(islice(Batches(corpus, DATA, 0, GRID, first=first), 10)) == whole[first:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(corpus, world):
    data = dataclasses.replace(DATA, batch_seconds=2.0)  # some batches have fewer crops than there are processes
    whole = islice(Batches(corpus, data, 0, GRID), 30)
    ranks = [islice(Batches(corpus, data, 0, GRID, rank=rank, world=world), 30) for rank in range(world)]
    shares = zip(*ranks, strict=True)
    idle = 0
    for batch, parts in zip(whole, shares, strict=True):
        counted = [draw for part in parts for draw in part if draw.counts]
        assert sorted(counted) == sorted(batch)
        assert all(parts)  # none is left without work
        idle += sum(not draw.counts for part in parts for draw in part)
    assert idle  # the case has occurred


# --- the crops themselves ---------------------------------------------------------------------------------------------


def test_crops_are_the_same_in_any_process(corpus):
    data = DataSettings(crop_seconds=[0.5, 2.0], batch_seconds=6.0, gain_db=6.0, band_limited=0.5)
    crops = Crops(corpus, data, GRID, mask=0.75, mel_shift=4)
    alone, workers = (islice(loader(crops, Batches(corpus, data, 0, GRID), Collate(GRID), n), 8) for n in (0, 2))
    for here, there in zip(alone, workers, strict=True):
        for a, b in zip(here[:-1], there[:-1], strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_a_crop_is_a_piece_of_its_sound(corpus, folder):
    crops = Crops(corpus, DATA, GRID)
    for number in range(5):
        draw = Draw(7, 0.5, (0, 0, number))
        start = np.random.default_rng(draw.seed).uniform(0, 4.5)
        whole = audio.load(str(folder / "07.wav"))
        np.testing.assert_array_equal(crops[draw].samples, whole[round(start * RATE) :][:8000])


def test_a_file_that_breaks_after_the_index_is_a_failure(tmp_path):
    paths = [write(tmp_path / f"{i}.wav", noise(3, seed=i)) for i in range(2)]
    corpus = index(paths)
    (tmp_path / "0.wav").write_bytes(b"RIFF no more")
    items = [Crops(corpus, DATA, GRID)[Draw(row, 0.5, (0, 0, row))] for row in range(2)]
    assert isinstance(items[0], Failure)
    batch = collate(items, GRID)
    assert [failure.path for failure in batch.failures] == paths[:1]
    assert len(batch.wav) == 1


def test_a_file_shorter_than_its_header_says(tmp_path):
    """What would begin behind its end begins at its start."""
    path = write(tmp_path / "a.wav", noise(10))
    corpus = index([path])
    with open(path, "r+b") as file:
        file.truncate(44 + 2 * 5 * RATE)
    items = [Crops(corpus, DATA, GRID)[Draw(0, 0.5, (0, 0, i))] for i in range(40)]
    assert not [item for item in items if isinstance(item, Failure)]
    begin = audio.excerpt(path, 0, 0.5)
    assert 5 < sum(np.array_equal(item.samples, begin) for item in items) < 35  # half of them on average


def test_a_surprise_of_the_decoder_does_not_end_the_run(corpus, monkeypatch):
    monkeypatch.setattr(audio, "excerpt", lambda *_: 1 / 0)
    failure = Crops(corpus, DATA, GRID)[Draw(0, 0.5, (0, 0, 0))]
    assert failure.path == corpus.path(0)
    assert "ZeroDivisionError" in failure.reason


def test_where_all_fail_silence_stands_in_and_nothing_is_asked():
    batch = collate([Failure("a", "broken"), Failure("b", "broken")], GRID)
    assert len(batch.failures) == 2
    assert batch.wav.abs().sum() == 0
    assert len(batch.target_indices) == 0


@given(
    st.lists(
        st.tuples(st.integers(100, 30_000), st.sampled_from([0.0, 0.3, 0.75, 0.99]), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_kept_hidden_and_asked_agree(clips, seed):
    random = np.random.default_rng(seed)
    crops = []
    for samples, share, counts in clips:
        hidden = random_mask(int(GRID.patches(max(samples, GRID.min_samples))), share, random)
        crops.append(Crop(random.standard_normal(samples).astype(np.float32), hidden, counts=counts))
    batch = collate(crops, GRID)
    B, T = batch.hidden.shape
    assert int(GRID.patches(batch.samples).max()) == T
    assert batch.wav.shape == (B, int(batch.samples.max()))
    asked = torch.zeros(B * T, dtype=torch.bool)
    asked[batch.target_indices] = True
    assert int(asked.sum()) == len(batch.target_indices)  # none twice
    asked = asked.view(B, T)
    for row, crop in enumerate(crops):
        kept = batch.visible[row, : batch.visible_counts[row]].tolist()
        hidden = batch.hidden[row].nonzero().squeeze(1).tolist()
        own = int(GRID.patches(batch.samples[row]))
        assert sorted(kept + hidden) == list(range(own))  # every patch of the clip is one of both
        assert kept == sorted(kept)
        assert kept
        expected = (hidden or list(range(own))) if crop.counts else []
        assert asked[row].nonzero().squeeze(1).tolist() == expected
        assert batch.wav[row, : len(crop.samples)].tolist() == crop.samples.tolist()
        assert not batch.wav[row, len(crop.samples) :].any()


def test_share_of_patches_that_are_hidden():
    random = np.random.default_rng(0)
    masks = np.stack([random_mask(496, 0.75, random) for _ in range(400)])
    assert (masks.sum(1) == 372).all()
    # Any patch is as likely as any other: 400 draws have a standard deviation of 0.022, and 496 of them stay within 5.
    assert np.abs(masks.mean(0) - 0.75).max() < 0.11


def test_never_all_patches_are_hidden():
    assert random_mask(8, 0.99, np.random.default_rng(0)).sum() == 7
    assert inverse_block_mask(8, 8, 0.99, 3, np.random.default_rng(0)).sum() == 7


@pytest.mark.parametrize(
    ("patches", "bands", "share", "block"), [(496, 8, 0.75, 5), (48, 8, 0.75, 3), (64, 16, 0.2, 9)]
)
def test_patches_seen_in_blocks(patches, bands, share, block):
    random = np.random.default_rng(0)
    masks = np.stack([inverse_block_mask(patches, bands, share, block, random) for _ in range(600)])
    assert (masks.sum(1) == round(share * patches)).all()
    # Within 5 deviations of 600 draws: the edges are no rarer.
    assert np.abs(masks.mean(0) - share).max() < 5 * (share * (1 - share) / 600) ** 0.5
    single = np.stack([random_mask(patches, share, random) for _ in range(600)])

    def neighbours_alike(masks):
        grid = masks.reshape(len(masks), -1, bands)
        return (grid[:, 1:] == grid[:, :-1]).mean()

    assert neighbours_alike(masks) > neighbours_alike(single) + 0.1


def test_nothing_is_hidden_in_blocks_where_nothing_is_to_be():
    assert not inverse_block_mask(48, 8, 0.0, 3, np.random.default_rng(0)).any()


def test_several_masks_of_a_crop(corpus):
    draw = next(iter(Batches(corpus, DATA, 0, GRID)))[0]
    one = Crops(corpus, DATA, GRID, mask=0.75)[draw]
    crop = Crops(corpus, DATA, GRID, mask=0.75, masks=3)[draw]
    assert np.array_equal(crop.samples, one.samples)
    assert np.array_equal(crop.hidden[:1], one.hidden)
    assert len({mask.tobytes() for mask in crop.hidden}) == 3
    batch = collate([crop, crop._replace(counts=False), one._replace(hidden=np.repeat(one.hidden, 3, 0))], GRID)
    assert (len(batch.wav), len(batch.hidden), batch.draws) == (3, 9, 3)
    assert torch.equal(batch.hidden[:3], torch.from_numpy(crop.hidden))
    T = batch.hidden.size(1)
    assert set((batch.target_indices // T).tolist()) == {0, 1, 2, 6, 7, 8}  # none of the crop that does not count
    for row in range(3):
        seen = batch.visible[row, : batch.visible_counts[row]]
        assert torch.equal(seen, (~batch.hidden[row]).nonzero().squeeze(1))


def test_where_all_fail_there_is_one_mask():
    assert collate([Failure("a", "broken")], GRID).draws == 1


# --- changes to sounds ------------------------------------------------------------------------------------------------


def test_augmentation_is_off_by_default():
    samples = noise(1)
    assert augment_waveform(samples, np.random.default_rng(0), 0.0, 0.0) is samples


def test_loudness_changes_within_its_range():
    random, samples = np.random.default_rng(0), noise(0.1)
    gains = [20 * np.log10(augment_waveform(samples, random, 6.0, 0.0)[0] / samples[0]) for _ in range(200)]
    assert -6.001 < min(gains) < -5
    assert 5 < max(gains) < 6.001


def test_band_limited_sound_keeps_what_is_below_and_nothing_above():
    low, high = tone(1, hertz=1000), tone(1, hertz=6000)
    np.testing.assert_allclose(low_pass(low + high, 4000), low, atol=1e-5)  # rounding of the FFT
    random = np.random.default_rng(0)
    changed = [np.abs(augment_waveform(high, random, 0.0, 0.3)).max() < 0.01 for _ in range(300)]
    assert 60 < sum(changed) < 120  # 90 expected, standard deviation 8


def test_shift_moves_bins_and_repeats_the_edge():
    fbank = torch.arange(5.0).expand(3, 2, 5)
    shifted = shift_mel(fbank, torch.tensor([0, 2, -1]))
    assert shifted[:, 0].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 1, 2], [1, 2, 3, 4, 4]]
    assert torch.equal(shifted[:, 0], shifted[:, 1])


# --- the corpus's loudness --------------------------------------------------------------------------------------------


def test_statistics_are_those_of_all_frames(tmp_path):
    """With sounds no longer than the crop each is seen once, and whole: the result can be computed directly."""
    clips = [noise(seconds, seed=i, level=10.0**-i) for i, seconds in enumerate([0.3, 0.9, 1.0, 0.7])]
    corpus = index([write(tmp_path / f"{i}.wav", clip) for i, clip in enumerate(clips)])
    heard = []
    mean, std = fbank_statistics(corpus, DataSettings(crop_seconds=[1.0], batch_seconds=5.0), 0, heard.append)
    features = torch.cat([Fbank()(torch.from_numpy(audio.load(corpus.path(i)))[None])[0] for i in range(4)]).double()
    assert len(features) == sum(frames(len(clip)) for clip in clips)
    # float32 features, which round differently in a batch: 1e-4 is a thousand times that.
    assert mean == pytest.approx(float(features.mean()), abs=1e-4)
    assert std == pytest.approx(float(features.std(correction=0)), abs=1e-4)
    assert sum(float(batch.samples.sum()) for batch in heard) == sum(map(len, clips))


def test_statistics_stop_when_enough_is_heard(corpus):
    heard = []
    data = DataSettings(crop_seconds=[2.0], batch_seconds=4.0, statistics_seconds=1.0)
    fbank_statistics(corpus, data, 0, heard.append)
    assert len(heard) == 1


def test_statistics_of_silence_are_an_error(tmp_path):
    corpus = index([write(tmp_path / "a.wav", np.zeros(RATE, np.float32))])
    with pytest.raises(CorpusError, match="silence"):
        fbank_statistics(corpus, DATA, 0, lambda batch: None)


def test_statistics_where_nothing_can_be_decoded(tmp_path):
    path = write(tmp_path / "a.wav", noise(1))
    corpus = index([path])
    (tmp_path / "a.wav").unlink()
    with pytest.raises(CorpusError, match=r"no sound could be decoded.*a\.wav"):
        fbank_statistics(corpus, DATA, 0, lambda batch: None)


def test_an_equaliser_adds_a_smooth_curve_and_leaves_loudness():
    fbank = torch.randn(2, 5, 128)
    changed = equalise(fbank, torch.tensor([[0.0, 0.0], [6.0, -3.0]])) - fbank
    assert torch.equal(changed[0], torch.zeros(5, 128))
    curve = changed[1, 0]
    torch.testing.assert_close(changed[1], curve.expand(5, 128), atol=1e-5, rtol=0)  # the same at every time
    assert curve.mean().abs() < 1e-4
    assert curve[0] == pytest.approx((6 - 3) * DECIBEL, abs=0.01)  # both cosines begin at one
    assert curve.diff().abs().max() < 0.1


def test_the_next_clip_is_laid_over():
    """Two sounds at once, as their sum has it; and each clip's own level decides, whatever the padding is."""
    clips = [noise(1.0, seed=1, level=0.2), np.pad(noise(0.6, seed=2, level=0.003), (0, 6400)), noise(1.0, seed=3)]
    wav, lengths = torch.from_numpy(np.stack(clips)), torch.tensor([16_000, 9_600, 16_000])
    fbank = Fbank()
    heard = lay_next_over(fbank(wav), frames(lengths), torch.tensor([6.0, math.inf, 0.0]))
    assert torch.equal(heard[1], fbank(wav)[1])
    levels = [float(np.square(clip[:length]).mean()) ** 0.5 for clip, length in zip(clips, lengths, strict=True)]
    summed = clips[0] + clips[1] * np.float32(levels[0] / levels[1] * 10 ** (-6 / 20))
    expected = fbank(torch.from_numpy(summed)[None])[0]
    # Powers of independent sounds add on average; in a single bin the phase decides.
    power = [float(features[:58].exp().mean()) for features in (heard[0], expected, fbank(wav)[0])]
    assert power[0] == pytest.approx(power[1], rel=0.02)
    assert power[1] > 1.2 * power[2]
    assert float((heard[0] - expected)[:58].abs().mean()) < 0.7
    assert torch.equal(heard[0, 60:], fbank(wav)[0, 60:])  # nothing of the other's padding
    assert float(heard[2].exp().mean() / fbank(wav)[2].exp().mean()) == pytest.approx(2, rel=0.02)  # the first, as loud


def test_a_clip_without_another_stays_as_it_is():
    alone = Fbank()(torch.from_numpy(noise(1.0, seed=1)[None]))
    assert torch.equal(lay_next_over(alone, torch.tensor([98]), torch.tensor([0.0])), alone)


def test_share_of_clips_that_are_mixed(corpus):
    draws = list(islice((draw for batch in Batches(corpus, DATA, 0, GRID) for draw in batch), 150))
    plain, mixed = Crops(corpus, DATA, GRID), Crops(corpus, DATA, GRID, mix=0.5)
    assert {plain[draw].softer for draw in draws} == {math.inf}
    softer = np.array([mixed[draw].softer for draw in draws])
    assert 0.35 < np.isinf(softer).mean() < 0.65
    chosen = softer[np.isfinite(softer)]
    assert (chosen.min() >= 0, chosen.max() <= 15, chosen.max() - chosen.min() > 10) == (True, True, True)


def test_masks_do_not_depend_on_other_changes(corpus):
    draw = next(iter(Batches(corpus, DATA, 0, GRID)))[0]
    plain = Crops(corpus, DATA, GRID, mask=0.75)[draw]
    changed = Crops(corpus, DATA, GRID, mask=0.75, mel_shift=6, equaliser_db=5.0)[draw]
    assert np.array_equal(plain.hidden, changed.hidden)
    assert np.array_equal(plain.samples, changed.samples)
    assert (len(changed.curve), changed.curve != plain.curve) == (4, True)
