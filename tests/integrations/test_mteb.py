"""MTEB's encoder: the numbers of `torchbeats.embed`, MTEB's own mock tasks, tasks of one's own, metadata."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import torchbeats
from helpers import cut_short, noise, small_model, small_tokenizer, tone, write_sound
from torchbeats import BEATs, BEATsConfig
from torchbeats.weights import hub

mteb = pytest.importorskip("mteb")

import datasets  # noqa: E402 - which mteb brings
from mteb.mocks import MOCK_MAEB_TASK_GRID  # noqa: E402
from mteb.models import ModelMeta  # noqa: E402

from torchbeats.integrations.mteb import METAS, BEATsEncoder, classification_task  # noqa: E402
from torchbeats.integrations.mteb.metadata import AUDIOSET, FACTS, PARAMETERS, Metadata  # noqa: E402

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples" / "audio").iterdir() if path.suffix != ".md")
WITH_TEXT = {"MockAudioZeroshotClassification", "MockAny2AnyRetrievalT2A", "MockAny2AnyRetrievalA2T"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    torchbeats.save(small_model(), path)
    return path


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return BEATsEncoder(checkpoint)


@pytest.fixture(autouse=True)
def without_torchaudio(monkeypatch, tmp_path):
    """Importing it fails, whether it is installed or not; and results of other runs are out of sight."""
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))


@pytest.fixture
def writer(monkeypatch):
    """The mock tasks make files of their arrays, with torchcodec; where that does not run, with soundfile."""
    try:
        from torchcodec.encoders import AudioEncoder  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        encoders = types.ModuleType("torchcodec.encoders")
        encoders.AudioEncoder = Writer
        monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)


class Writer:
    def __init__(self, samples, *, sample_rate):
        self.samples, self.rate = samples, sample_rate

    def to_file_like(self, file, format, num_channels=None):
        soundfile.write(file, self.samples.numpy().T, self.rate, "FLOAT", format=format)


def encode(encoder, dataset, **options):
    """As MTEB calls it."""
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)
    about = types.SimpleNamespace(name="Sounds")
    return encoder.encode(loader, task_metadata=about, hf_split="test", hf_subset="default", **options)


def files(paths):
    """A column of files as data sets on the Hub have it, which decodes when it is read."""
    rows = [{"bytes": None, "path": str(path)} for path in paths]
    return datasets.Dataset.from_dict({"audio": rows}).cast_column("audio", datasets.Audio())


def score(encoder, task, **options):
    (result,) = mteb.evaluate(encoder, task, show_progress_bar=False, **{"cache": None, **options}).task_results
    return result.get_score()


# --- numbers


def test_numbers_are_those_of_embed(encoder, tmp_path):
    """Files of many formats, rates and lengths; of more than the window's 10 s the mean by seconds."""
    paths = [*EXAMPLES, write_sound(tmp_path / "long.wav", noise(23), 16_000)]
    result = encode(encoder, files(paths), batch_size=4)
    assert result.shape == (len(paths), 48)
    assert result.dtype == np.float32
    for path, row in zip(paths, result, strict=True):
        windows = list(torchbeats.embed(path, encoder.model))
        weights = [window.end - window.start for window in windows]
        expected = np.average([window.embedding for window in windows], axis=0, weights=weights)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    assert weights == pytest.approx([10, 10, 3])


def test_numbers_are_those_of_the_model(encoder):
    samples = noise(2.5)
    dataset = datasets.Dataset.from_dict({"audio": [{"array": samples, "sampling_rate": 16_000}]})
    expected = encoder.model.encode(torch.from_numpy(samples)[None]).pooled()
    np.testing.assert_allclose(encode(encoder, dataset), expected.numpy(), atol=1e-5)


def test_arrays_of_any_rate_and_channels(encoder):
    stereo = np.stack([tone(1, 44_100), noise(1, 44_100)])
    rows = [{"array": list(stereo), "sampling_rate": 44_100}]
    (row,) = encode(encoder, datasets.Dataset.from_dict({"audio": rows}))
    (expected,) = torchbeats.embed([(stereo, 44_100)], encoder.model)
    np.testing.assert_allclose(row, expected.embedding, atol=1e-5)


def test_bytes_in_a_data_set(encoder, tmp_path):
    path = write_sound(tmp_path / "a.flac", noise(1), 16_000)
    rows = [{"bytes": path.read_bytes(), "path": None}, {"bytes": path.read_bytes(), "path": "gone.flac"}]
    dataset = datasets.Dataset.from_dict({"audio": rows}).cast_column("audio", datasets.Audio())
    (expected,) = torchbeats.embed(path, encoder.model)
    np.testing.assert_allclose(encode(encoder, dataset), [expected.embedding] * 2, atol=1e-5)


def test_the_same_file_twice_keeps_its_place(encoder, tmp_path):
    a, b = (write_sound(tmp_path / f"{seed}.wav", noise(1, seed=seed), 16_000) for seed in (1, 2))
    result = encode(encoder, files([a, b, a]))
    np.testing.assert_array_equal(result[0], result[2])
    assert np.abs(result[0] - result[1]).max() > 1e-3


def test_pooling_layer_and_window(checkpoint, tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(5), 16_000)
    encoder = BEATsEncoder(checkpoint, pool="bands", layer=1, window=None)
    (row,) = encode(encoder, files([path]))
    (expected,) = torchbeats.embed(path, encoder.model, pool="bands", layer=1, window=None)
    np.testing.assert_allclose(row, expected.embedding.reshape(-1), atol=1e-5)
    meta = encoder.mteb_model_meta
    assert meta.embed_dim == 8 * 48
    assert meta.experiment_kwargs == {"pool": "bands", "layer": 1, "window": None}


def test_a_file_that_cannot_be_read_is_named(encoder, tmp_path):
    good = write_sound(tmp_path / "good.wav", noise(1), 16_000)
    (tmp_path / "bad.wav").write_text("no sound")
    with pytest.raises(torchbeats.AudioError, match=r"bad\.wav \(number 2 of Sounds\)"):
        encode(encoder, files([good, good, tmp_path / "bad.wav"]))


def test_of_a_file_that_breaks_off_what_there_is(encoder, tmp_path):
    path = cut_short(write_sound(tmp_path / "short.flac", noise(30), 16_000))
    with pytest.warns(torchbeats.AudioWarning, match=r"short\.flac"):
        (row,) = encode(encoder, files([path]))
    assert np.isfinite(row).all()


def test_texts_are_refused(encoder):
    with pytest.raises(torchbeats.ModelError, match="Sounds has a part without any: its columns are text"):
        encode(encoder, datasets.Dataset.from_dict({"text": ["a dog"]}))


def test_a_tokenizer_is_refused(tmp_path):
    torchbeats.save(small_tokenizer(), tmp_path / "tokenizer.safetensors")
    with pytest.raises(torchbeats.ModelError, match="tokenizer"):
        BEATsEncoder(tmp_path / "tokenizer.safetensors")


# --- MTEB's mock tasks


@pytest.mark.parametrize("task", MOCK_MAEB_TASK_GRID, ids=lambda task: task.metadata.name)
def test_mock_tasks_of_sounds(encoder, task, writer):
    """Seven of sounds alone run. Three compare sounds with texts, which MTEB itself refuses a model without texts."""
    if task.metadata.name in WITH_TEXT:
        with pytest.raises(ValueError, match=r"supports \['audio'\], but none overlap"):
            score(encoder, task)
    else:
        assert 0 <= score(encoder, task) <= 1


def test_mteb_finds_no_fault(encoder, writer):
    """Its own check of a model, `mteb mock-run`, takes the tasks of the model's modalities."""
    results = mteb.mock_run(encoder)
    assert results.all_passed
    ran = {name for name, status in results.items() if isinstance(status, mteb.TaskResult)}
    assert ran == {task.metadata.name for task in MOCK_MAEB_TASK_GRID} - WITH_TEXT
    assert len(ran) == 7


def test_a_sound_is_most_like_itself(encoder):
    rows = encode(encoder, files(EXAMPLES[:5]))
    likeness = np.asarray(encoder.similarity(rows, rows[::-1].copy()))
    assert likeness.argmax(1).tolist() == [4, 3, 2, 1, 0]
    np.testing.assert_allclose(likeness.max(1), 1, atol=1e-5)


# --- tasks of one's own


@pytest.fixture
def folder(tmp_path):
    """Two classes that every model tells apart, seven files of each."""
    makers = {"tone": lambda seed: tone(1, hertz=200 + 50 * seed), "noise": lambda seed: noise(1, seed=seed)}
    for name, make in makers.items():
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for seed in range(7):
            write_sound(tmp_path / "sounds" / name / f"{seed}.wav", make(seed), 16_000)
    return tmp_path / "sounds"


def test_a_folder_of_classes_is_cross_validated(encoder, folder):
    task = classification_task(folder)
    assert re.fullmatch("sounds-[0-9a-f]{8}", task.metadata.name)
    assert task.is_cross_validation
    assert score(encoder, task) == 1


def test_wrong_labels_score_worse(encoder, folder):
    """The score is about the labels: with half of the files in the wrong folder it is no longer perfect."""
    for seed in (0, 2, 4):
        a, b = folder / "tone" / f"{seed}.wav", folder / "noise" / f"{seed}.wav"
        held = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(held)
    assert score(encoder, classification_task(folder)) < 0.9


def test_folders_of_splits(encoder, folder, tmp_path):
    for split, seeds in (("train", range(4)), ("test", range(4, 7))):
        for name in ("tone", "noise"):
            (tmp_path / "split" / split / name).mkdir(parents=True)
            for seed in seeds:
                (folder / name / f"{seed}.wav").rename(tmp_path / "split" / split / name / f"{seed}.wav")
    task = classification_task(tmp_path / "split", name="ToneOrNoise")
    assert (task.metadata.name, task.metadata.eval_splits) == ("ToneOrNoise", ["test"])
    assert score(encoder, task) == 1
    task.load_data()
    assert {split: len(rows) for split, rows in task.dataset.items()} == {"train": 8, "test": 6}


def test_a_list_of_pieces(encoder, tmp_path):
    """One recording, second by second a tone or noise."""
    parts = [tone(1, hertz=440 + 20 * second) if second % 2 else noise(1, seed=second) for second in range(14)]
    write_sound(tmp_path / "all.wav", np.concatenate(parts), 16_000)
    lines = [f"all.wav,{second},{second + 1},{'tone' if second % 2 else 'noise'}" for second in range(14)]
    (tmp_path / "pieces.csv").write_text("\n".join(["path,start,end,label", *lines]))
    task = classification_task(tmp_path / "pieces.csv")
    assert score(encoder, task) == 1
    task.load_data()
    stored = soundfile.read(tmp_path / "all.wav", dtype="float32")[0].reshape(14, -1)
    for row, part in zip(encode(encoder, task.dataset["train"]), stored, strict=True):
        (expected,) = torchbeats.embed([part], encoder.model)
        np.testing.assert_allclose(row, expected.embedding, atol=1e-5)


def test_splits_without_one_to_train_on(folder, tmp_path):
    (tmp_path / "split").mkdir()
    folder.rename(tmp_path / "split" / "test")
    with pytest.raises(torchbeats.InputError, match="no split called train"):
        classification_task(tmp_path / "split")


# --- results that are kept


def test_results_are_kept_by_weights_and_by_files(checkpoint, folder, tmp_path, monkeypatch):
    cache = mteb.ResultCache(tmp_path / "results")
    seen = []
    encode_really = BEATsEncoder.encode
    monkeypatch.setattr(BEATsEncoder, "encode", lambda *a, **k: seen.append(1) or encode_really(*a, **k))

    def runs(**settings):
        before = len(seen)
        score(BEATsEncoder(checkpoint, **settings), classification_task(folder), cache=cache)
        return len(seen) > before

    assert runs()
    assert not runs()  # the same
    assert runs(pool="bands")
    assert not runs(pool="bands")
    write_sound(folder / "tone" / "new.wav", tone(1), 16_000)
    assert runs()
    torchbeats.save(small_model(seed=1), checkpoint.with_name("other.safetensors"))
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(checkpoint.with_name("other.safetensors").read_bytes())
    try:
        assert runs()
    finally:
        checkpoint.write_bytes(content)


def test_metadata_in_place_of_a_model(folder, tmp_path, monkeypatch):
    """It is loaded without MTEB's extra for audio; and not at all where there are results."""
    cache = mteb.ResultCache(tmp_path / "results")
    first = score(METAS["beats-nano"], classification_task(folder), cache=cache)
    assert first == score(BEATsEncoder("torchbeats/beats-nano"), classification_task(folder))
    monkeypatch.setattr(Metadata, "load_model", lambda *_, **__: pytest.fail("loaded"))
    assert score(METAS["beats-nano"], classification_task(folder), cache=cache) == first


# --- metadata


def test_every_model_that_embeds_has_metadata():
    names = {*hub.BUILT_INS, *hub.MODELS}
    assert names - set(METAS) == {name for name in names if "tokenizer" in name}
    assert set(METAS) <= names
    for name, meta in METAS.items():
        assert meta.name == f"torchbeats/{name}"
        assert meta.modalities == ["audio"]
        assert meta.license
        assert meta.memory_usage_mb == round(4 * meta.n_parameters / 2**20)
        source = hub.MODELS.get(name)
        if source is not None:
            assert meta.revision == (None if source.revision == "main" else source.revision)
            assert meta.reference == f"https://huggingface.co/{source.repo}"
            if source.size is not None:  # bytes of float32, approximately
                assert 4 * meta.n_parameters == pytest.approx(source.size, rel=0.01)
    assert METAS["beats-iter3"].training_datasets == set(AUDIOSET)


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes(size):
    with torch.device("meta"):
        model = BEATs(BEATsConfig(torchbeats.SIZES[size]))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    names = [name for name, facts in FACTS.items() if facts.size == size]
    assert {METAS[name].embed_dim for name in names} == {model.cfg.encoder_embed_dim}


@pytest.mark.parametrize("name", hub.BUILT_INS)
def test_metadata_before_and_after_loading_agree(name):
    assert BEATsEncoder(name).mteb_model_meta == METAS[name]


def test_metadata_of_a_file_and_of_a_model(checkpoint, encoder):
    meta = encoder.mteb_model_meta
    model = torchbeats.load(checkpoint)
    assert (meta.name, meta.revision) == ("local/small", model.digest()[:40])
    assert meta.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert meta.embed_dim == 48
    assert BEATsEncoder(model).mteb_model_meta.name == "local/BEATs"
    with pytest.raises(torchbeats.ModelError, match="local/small cannot be loaded by its name"):
        meta.load_model()


def test_a_revision_is_what_is_loaded(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "torchbeats.integrations.mteb.encoder.ready", lambda name, device: asked.append(name) or small_model()
    )
    other = "a" * 40
    known = hub.MODELS["beats-iter3"]
    for name, revision, expected in (
        ("beats-iter3", None, known.revision),
        ("torchbeats/beats-iter3", known.revision, known.revision),
        ("beats-iter3", other, other),
        ("openbeats-base-i1", other, other),
        ("owner/repo", other, other),
        ("openbeats-base-i1", "v1", small_model().digest()[:40]),  # a tag may move
    ):
        assert BEATsEncoder(name, revision).mteb_model_meta.revision == expected
    assert asked == [
        "beats-iter3",
        "beats-iter3",
        f"{known.repo}/{known.file}@{other}",
        f"shikhar7ssu/OpenBEATs-Base-i1@{other}",
        f"owner/repo@{other}",
        "shikhar7ssu/OpenBEATs-Base-i1@v1",
    ]


def test_the_file_for_mteb_says_the_same():
    """docs/integrations/mteb/beats_models.py is what MTEB would take in."""
    spec = importlib.util.spec_from_file_location("beats_models", ROOT / "docs/integrations/mteb/beats_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    metas = {meta.name: meta for meta in vars(module).values() if isinstance(meta, ModelMeta)}
    published = {meta.name: meta for name, meta in METAS.items() if name in hub.MODELS}
    assert set(metas) == set(published)
    theirs = {"loader", "extra_requirements_groups"}
    for name, meta in metas.items():
        assert meta.model_dump(exclude=theirs) == published[name].model_dump(exclude=theirs)
    encoder = module.beats_loader("torchbeats/beats-nano", None, device="cpu", pool="bands")
    assert encoder.mteb_model_meta.embed_dim == 8 * 256
