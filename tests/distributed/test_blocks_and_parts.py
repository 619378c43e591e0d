"""A run in parts without a cluster: this process computes the blocks that actors would."""

import contextlib
import json
from contextlib import suppress

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import torchbeats
from helpers import noise, small_model, small_tokenizer
from torchbeats import EmbeddingPlan, SettingsError, StoreError, TokenPlan, write_table
from torchbeats.data import blocks
from torchbeats.distributed import cluster
from torchbeats.distributed.computing import Computing
from torchbeats.distributed.running import write_table_on_ray
from torchbeats.tables.parts import Parts
from torchbeats.tables.reading import Ranges, Table


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Blocks of three inputs, computed last block first; how many were is in the list."""
    count = []

    def compute(ray, job, waiting, actors):
        computing = Computing(job)
        for block in reversed(waiting):
            count.append(block.name)
            yield computing.compute(block, {})

    monkeypatch.setattr(blocks, "BLOCK_INPUTS", 3)
    monkeypatch.setattr(cluster, "compute", compute)
    monkeypatch.setattr(cluster, "connected", lambda address: contextlib.nullcontext())
    return count


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tagger = small_model(finetuned_model=True, predictor_class=3, problem_type="multi_label")
    tagger.label_dict = {0: "cat", 1: "dog", 2: "rain"}
    torchbeats.save(tagger, folder / "tagger.safetensors")
    torchbeats.save(small_model(), folder / "model.safetensors")
    torchbeats.save(small_tokenizer(), folder / "tokenizer.safetensors")
    return folder


@pytest.fixture
def sounds(tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(7):
        soundfile.write(folder / f"{number}.wav", noise(0.4 + 0.3 * number, seed=number), 16_000)
    (folder / "4x.wav").write_text("no sound")
    return folder


def local(folder, out, model, plan):
    with pytest.warns(torchbeats.AudioWarning):
        return write_table(folder, out, model, plan)


def on_ray(folder, out, model, plan, **options):
    return write_table_on_ray(folder, out, model, plan, on_failure=lambda path, reason: None, **options)


@pytest.mark.parametrize(
    ("name", "plan"),
    [("model", EmbeddingPlan(window=1.0)), ("model", EmbeddingPlan("patches")), ("tokenizer", TokenPlan())],
)
def test_parts_have_the_rows_of_one_table(here, models, sounds, tmp_path, name, plan):
    one, many = tmp_path / "one.parquet", tmp_path / "many.parquet"
    model = models / f"{name}.safetensors"
    local(sounds, one, model, plan)
    result = on_ray(sounds, many, model, plan)
    assert (result.sounds, result.failures, len(here)) == (8, 1, 3)
    assert pq.read_table(many).replace_schema_metadata(None).equals(pq.read_table(one).replace_schema_metadata(None))
    assert result.errors.read_text() == one.with_suffix(".parquet.errors.jsonl").read_text()
    assert torchbeats.describe(many)["settings"] == torchbeats.describe(one)["settings"]
    assert on_ray(sounds, many, model, plan).complete
    if name == "model":
        sizes = [[(row.paths, row.begins.tolist()) for row in Table(table).rows(1)] for table in (one, many)]
        assert sizes[0] == sizes[1]
        take = np.array([5, 0, 3])
        np.testing.assert_array_equal(Table(many).take(take), Table(one).take(take))
        for first, last in ((0, Table(one).count), (2, 5)):
            with Ranges(many) as ranges, Ranges(one) as expected:
                paths = [
                    [path for t in r.read(first, last) for path in t["path"].to_pylist()] for r in (ranges, expected)
                ]
            assert paths[0] == paths[1]


def test_a_url(here, models, sounds, tmp_path):
    files = fsspec.filesystem("memory")
    url = "memory://tables/out.parquet"
    try:
        result = on_ray(sounds, url, models / "model.safetensors", EmbeddingPlan())
        assert (result.path, result.errors) == (url, f"{url}.errors.jsonl")
        assert json.loads(files.cat("/tables/out.parquet.errors.jsonl"))["path"] == str(sounds / "4x.wav")
        with fsspec.open(f"{url}/_common_metadata") as file:
            assert pq.read_metadata(file).metadata[b"torchbeats"]
        one = local(sounds, tmp_path / "one.parquet", models / "model.safetensors", EmbeddingPlan()).path
        rows = pq.read_table("/tables/out.parquet", filesystem=files)
        assert rows.replace_schema_metadata(None).equals(pq.read_table(one).replace_schema_metadata(None))
        assert on_ray(sounds, url, models / "model.safetensors", EmbeddingPlan()).complete
        assert len(here) == 3
    finally:
        files.rm("/tables", recursive=True)


def test_a_part_that_is_not_completed_is_none(tmp_path):
    for folder in (str(tmp_path / "out.parquet"), "memory://broken.parquet"):
        parts = Parts(folder)
        with suppress(InterruptedError), parts.create("part-000000-x.parquet") as file:
            file.write(b"half")
            raise InterruptedError
        assert parts.names() == set()


def test_lance(here, models, sounds, tmp_path):
    pytest.importorskip("lance")
    model, out = models / "model.safetensors", tmp_path / "out.lance"
    assert on_ray(sounds, out, model, EmbeddingPlan()).failures == 1
    one = local(sounds, tmp_path / "one.lance", model, EmbeddingPlan()).path
    np.testing.assert_array_equal(np.concatenate([*Table(out).vectors()]), np.concatenate([*Table(one).vectors()]))
    assert Table(out).about == Table(one).about
    assert not (tmp_path / "out.lance.blocks").exists()
    again = on_ray(sounds, out, model, EmbeddingPlan())
    assert (again.complete, again.failures, len(here)) == (True, 1, 3)
    with pytest.raises(StoreError, match="pool is mean there and bands here"):
        on_ray(sounds, out, model, EmbeddingPlan("bands"))
    on_ray(sounds, out, model, EmbeddingPlan("bands"), overwrite=True)
    assert Table(out).about["pool"] == "bands"


def test_what_has_changed_since(here, models, sounds, tmp_path):
    model, out = models / "model.safetensors", tmp_path / "out.parquet"
    on_ray(sounds, out, model, EmbeddingPlan())
    soundfile.write(sounds / "9.wav", noise(0.5), 16_000)
    with pytest.raises(StoreError, match="files were added, removed or changed"):
        on_ray(sounds, out, model, EmbeddingPlan())
    here.clear()
    torn = sorted(out.glob("part-*"))[0]  # by a store that shows what is not complete
    torn.write_bytes(torn.read_bytes()[:-9])
    assert on_ray(sounds, out, model, EmbeddingPlan(), update=True).sounds == 9
    assert len(here) == 2  # the first block and the last
    one = local(sounds, tmp_path / "one.parquet", model, EmbeddingPlan()).path
    assert pq.read_table(out).replace_schema_metadata(None).equals(pq.read_table(one).replace_schema_metadata(None))
    assert len(list(out.glob("part-*"))) == 3
    with pytest.raises(StoreError, match="pool is mean there and bands here"):
        on_ray(sounds, out, model, EmbeddingPlan("bands"), update=True)
    on_ray(sounds, out, model, EmbeddingPlan("bands"), overwrite=True)
    assert len(list(out.glob("part-*"))) == 3


def test_what_cannot_be(models, sounds, tmp_path):
    model = models / "model.safetensors"
    with pytest.raises(StoreError, match=r"must be named \.parquet or \.lance"):
        on_ray(sounds, tmp_path / "out.npz", model, EmbeddingPlan())
    (tmp_path / "file.parquet").touch()
    with pytest.raises(StoreError, match="is a file"):
        on_ray(sounds, tmp_path / "file.parquet", model, EmbeddingPlan())
    for sound in sounds.glob("*.wav"):
        sound.write_text("no sound")
    assert on_ray(sounds, tmp_path / "none.parquet", model, EmbeddingPlan()).failures == 8
    assert not (tmp_path / "none.parquet").exists()
    with pytest.raises(SettingsError, match="either updated or overwritten"):
        on_ray(sounds, tmp_path / "out.parquet", model, EmbeddingPlan(), update=True, overwrite=True)


@pytest.mark.parametrize("options", [[], ["--every", "0.5"], ["--events", "--threshold", "0.1"]])
def test_tag(here, run, models, sounds, tmp_path, options):
    command = ["tag", sounds, "-m", models / "tagger.safetensors", *options]
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    assert run(*command, "-o", one)[0] == 1
    assert run(*command, "-o", many, "--ray", "local")[0] == 1
    assert many.read_text() == one.read_text()
    assert len(here) == 3
    assert not (tmp_path / "many.csv.blocks").exists()
    assert run(*command, "--ray", "local")[0] == 2  # to standard output
