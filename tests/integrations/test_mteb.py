"""An encoder for mteb: its mock tasks, a task of one's own, and what it writes beside the results."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer, tone, write_sound
from torchbeats import BEATs, BEATsConfig, CheckpointError, InputError, audio
from torchbeats.weights import hub

pytest.importorskip("mteb", minversion="2.26")
import datasets
import mteb
from mteb.abstasks import AbsTaskClassification
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.mocks import MOCK_MAEB_TASK_GRID

from torchbeats.integrations import mteb as ours

AUDIO_TASKS = [task for task in MOCK_MAEB_TASK_GRID if task.metadata.modalities == ["audio"]]
UPSTREAM = Path(__file__).parents[2] / "docs" / "integrations" / "mteb_beats_models.py"


@pytest.fixture
def checkpoint(tmp_path):
    torchbeats.save(small_model(), tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.fixture
def plain_sounds(monkeypatch):
    """Mock sounds stay arrays: without torchcodec, datasets can make no column of audio of them."""
    for kind in (datasets.Dataset, datasets.DatasetDict):
        monkeypatch.setattr(kind, "cast_column", lambda self, *_args, **_more: self)


class Loader:
    """What `encode` needs of a data loader."""

    def __init__(self, rows, size=2):
        self.dataset = datasets.Dataset.from_dict({"audio" if "audio" in rows[0] else "text": [0] * len(rows)})
        self.rows, self.size = rows, size

    def __iter__(self):
        return (self.collate_fn(self.rows[i : i + self.size]) for i in range(0, len(self.rows), self.size))


def encode(encoder, rows):
    return encoder.encode(Loader(rows), task_metadata=None, hf_split="test", hf_subset="default")


def test_there_are_audio_tasks():
    """The other three of the grid ask for texts too, and mteb does not give those to a model of sounds."""
    assert (len(AUDIO_TASKS), len(MOCK_MAEB_TASK_GRID)) == (7, 10)


@pytest.mark.parametrize("task", MOCK_MAEB_TASK_GRID, ids=lambda task: task.metadata.name)
def test_mock_tasks(task, plain_sounds):
    encoder = ours.load("beats-nano", device="cpu")
    if task not in AUDIO_TASKS:
        with pytest.raises(ValueError, match="none overlap"):
            mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
        return
    (result,) = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False).task_results
    assert all(np.isfinite(row["main_score"]) for rows in result.scores.values() for row in rows)
    assert "torchaudio" not in sys.modules


def test_embeddings_are_those_of_torchbeats(checkpoint, tmp_path):
    encoder = ours.load(checkpoint, device="cpu")
    short, other, long = noise(1.3), tone(1, 44_100), noise(25, seed=2)
    path = write_sound(tmp_path / "other.wav", other, 44_100, "FLOAT")
    rows = [
        {"audio": {"array": short, "sampling_rate": 16_000}},
        {"audio": {"array": other, "sampling_rate": 44_100}},
        {"audio": {"array": long, "sampling_rate": 16_000}},
        {"audio": {"path": str(path), "bytes": None}},
        {"audio": {"path": None, "bytes": path.read_bytes()}},
    ]
    embeddings = encode(encoder, rows)
    assert embeddings.shape == (5, 48)
    assert embeddings.dtype == np.float32
    for row, sound in ((0, short), (1, audio.from_array(other, 44_100)), (3, audio.load(path)), (4, audio.load(path))):
        expected = encoder.model.encode(torch.from_numpy(sound).unsqueeze(0)).pooled()[0]
        np.testing.assert_allclose(embeddings[row], expected, atol=1e-5)
    windows = list(torchbeats.embed(long, encoder.model))
    assert len(windows) == 3
    expected = np.average([row.embedding for row in windows], axis=0, weights=[row.end - row.start for row in windows])
    np.testing.assert_allclose(embeddings[2], expected, atol=1e-5)


def test_bands_are_wider_and_are_said(checkpoint):
    encoder = ours.load(checkpoint, device="cpu", pool="bands")
    assert encode(encoder, [{"audio": {"array": noise(1), "sampling_rate": 16_000}}]).shape == (1, 384)
    assert encoder.mteb_model_meta.embed_dim == 384
    assert encoder.mteb_model_meta.experiment_kwargs == {"pool": "bands"}


def test_what_it_refuses(checkpoint, tmp_path):
    encoder = ours.load(checkpoint, device="cpu")
    with pytest.raises(InputError, match="sounds only"):
        encode(encoder, [{"text": "a dog"}])
    broken = {"audio": {"array": np.full(16_000, np.nan), "sampling_rate": 16_000}}
    with pytest.raises(ValueError, match=r"not a finite number|cannot be embedded|NaN"):
        encode(encoder, [{"audio": {"array": noise(1), "sampling_rate": 16_000}}, broken])
    torchbeats.save(small_tokenizer(), tmp_path / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match="tokenizer"):
        ours.load(tmp_path / "tokenizer.safetensors")


# --- what mteb writes beside the results


def test_every_name_that_gives_embeddings_is_described():
    tokenizers = {"beats-tokenizer-iter3", "beats-tokenizer-as2m-iter1"}
    assert ours.METAS.keys() == {*hub.BUILT_INS, *hub.MODELS} - tokenizers
    names = [meta.name for meta in ours.METAS.values()]
    assert len(set(names)) == len(names)
    for name, meta in ours.METAS.items():
        assert meta.modalities == ["audio"]
        assert meta.revision
        assert meta.license
        source = hub.MODELS.get(name)
        size = "large" if "large" in name else "nano" if "nano" in name else "base"
        with torch.device("meta"):
            model = BEATs(BEATsConfig(torchbeats.SIZES[size]))
        assert meta.n_parameters == sum(parameter.numel() for parameter in model.parameters())
        assert meta.embed_dim == model.cfg.encoder_embed_dim
        if source and source.size:
            assert 4 * meta.n_parameters == pytest.approx(source.size, rel=0.02)


def test_what_a_file_is_called(checkpoint):
    meta = ours.load(checkpoint, device="cpu").mteb_model_meta
    assert meta.name == "local/mine"
    assert meta.embed_dim == 48
    assert isinstance(meta.loader(meta.name, revision=meta.revision, device="cpu"), ours.BEATsEncoder)
    assert ours.METAS["beats-nano"].loader("torchbeats/beats-nano", device="cpu").model.cfg.encoder_embed_dim == 256


def test_the_file_for_mteb_says_the_same(checkpoint, plain_sounds):
    spec = importlib.util.spec_from_file_location("mteb_beats_models", UPSTREAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    proposed = {value.name: value for value in vars(module).values() if isinstance(value, mteb.models.ModelMeta)}
    published = [meta for name, meta in ours.METAS.items() if name in hub.MODELS]
    assert proposed.keys() == {meta.name for meta in published}
    for meta in published:
        said = proposed[meta.name].model_dump(exclude={"loader", "loader_kwargs", "extra_requirements_groups"})
        assert said == meta.model_dump(exclude={"loader", "loader_kwargs", "extra_requirements_groups"})
        assert proposed[meta.name].loader_kwargs == {"checkpoint": ours.torchbeats_name(meta.name)}
    model = module.BEATsWrapper("local/mine", checkpoint=str(checkpoint), device="cpu")
    rows = [{"audio": {"array": sound, "sampling_rate": 16_000}} for sound in (noise(1), noise(12, seed=1))]
    np.testing.assert_allclose(encode(model, rows), encode(ours.load(checkpoint, device="cpu"), rows), atol=1e-6)


# --- a task of one's own


class Tones(AbsTaskClassification):
    """Folders of tones, low and high: two classes that any model of sounds tells apart."""

    input_column_name = "audio"
    metadata = TaskMetadata(
        name="Tones", description="Low and high tones.", dataset={"path": "local/tones", "revision": "1"},
        type="AudioClassification", category="a2c", modalities=["audio"], eval_splits=["test"], eval_langs=["zxx-Zxxx"],
        main_score="accuracy", reference=None, date=None, domains=None, task_subtypes=None, license=None,
        annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
    )  # fmt: skip
    folder: Path

    def load_data(self, **_more):
        splits = {}
        for split in ("train", "test"):
            paths = sorted((self.folder / split).glob("*/*.wav"))
            table = datasets.Dataset.from_dict(
                {"audio": [str(path) for path in paths], "label": [int(path.parent.name == "high") for path in paths]}
            )
            splits[split] = table.cast_column("audio", datasets.Audio(decode=False))
        self.dataset = datasets.DatasetDict(splits)
        self.data_loaded = True


def test_a_task_of_class_folders(tmp_path):
    for split in ("train", "test"):
        for name, hertz in (("low", 200.0), ("high", 3000.0)):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(10 if split == "train" else 4):
                sound = tone(0.6, 8000, hertz + 20 * number) + noise(0.6, 8000, seed=number, level=0.01)
                write_sound(tmp_path / split / name / f"{number}.wav", sound, 8000)
    task = Tones()
    task.folder = tmp_path
    (result,) = mteb.evaluate(
        ours.load("beats-nano", device="cpu"), task, cache=None, show_progress_bar=False
    ).task_results
    assert result.scores["test"][0]["main_score"] > 0.9
