"""Many sounds to rows: what each holds, in which order, and that nothing depends on batching, threads or restarts.

Rows of a batch equal those of the clip alone to 1e-4 (outputs are of unit scale); of repeated runs, bitwise.
"""

import itertools
import math
import threading
import warnings

import numpy as np
import pytest
import soundfile
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer, tone
from torchbeats import AudioWarning, audio, embed, tokenize
from torchbeats.decoding_ahead import BUNDLE_INPUTS
from torchbeats.inference import GROUP_BATCHES, Embedding, Position, groups
from torchbeats.patches import SAMPLE_RATE
from torchbeats.plans import EmbeddingPlan
from torchbeats.pooling import POOLINGS

RAGGED = [3.0, 0.05, 1.0, 0.16, 7.3, 0.175, 2.999, 0.0001, 5.0, 0.5, 1.001]  # seconds; a step takes 0.175


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Clips of RAGGED lengths, ``00.wav`` on, and one of 44.1 kHz stereo below."""
    top = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate(RAGGED):
        soundfile.write(top / f"{number:02}.wav", clip(seconds, number), SAMPLE_RATE, "FLOAT")
    (top / "sub").mkdir()
    soundfile.write(top / "sub" / "stereo.wav", noise(2 * 1.5, 44_100, seed=99).reshape(-1, 2), 44_100, "FLOAT")
    return top


def clip(seconds, seed=0):
    """Something different in each."""
    return noise(seconds, seed=seed) + tone(seconds, hertz=200 + 37 * seed)


def alone(model, samples, pool, layer=None):
    """The rows of one window, computed by itself."""
    wav = torch.from_numpy(samples)
    wav = torch.nn.functional.pad(wav, (0, max(0, model.grid.min_samples - len(wav)))).unsqueeze(0)
    with torch.no_grad():
        x = model.encode(wav, layer=layer).x[0].numpy()  # (8 * steps, C)
    by_step = x.reshape(-1, 8, x.shape[-1])
    return {
        "mean": x.mean(0)[None],
        "bands": by_step.mean(0).reshape(1, -1),
        "statistics": np.concatenate([by_step.mean(0), by_step.std(0)]).reshape(1, -1),
        "steps": by_step.mean(1),
        "patches": by_step.reshape(len(by_step), -1),
    }[pool]


def stacked(rows):
    return np.stack([row.embedding for row in rows])


def same(one, other):
    """Bitwise."""
    one, other = list(one), list(other)
    return [r[:3] for r in one] == [r[:3] for r in other] and np.array_equal(stacked(one), stacked(other))


# --- what goes in


def test_folder(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that a clip is short is no news here
        rows = list(embed(folder, model=model))
    assert [row.path for row in rows] == [*(str(folder / f"{i:02}.wav") for i in range(len(RAGGED))),
                                          str(folder / "sub" / "stereo.wav")]  # fmt: skip
    for number, (row, seconds) in enumerate(zip(rows, RAGGED, strict=False)):
        assert isinstance(row, Embedding)
        assert row.embedding.dtype == np.float32
        assert (row.start, row.end) == (0.0, round(seconds * SAMPLE_RATE) / SAMPLE_RATE)
        expected = alone(model, clip(seconds, number), "mean")[0]
        np.testing.assert_allclose(row.embedding, expected, atol=1e-4, err_msg=str(seconds))
    expected = alone(model, audio.load(folder / "sub" / "stereo.wav"), "mean")[0]
    np.testing.assert_allclose(rows[-1].embedding, expected, atol=1e-4)
    spread = stacked(rows).std(0).mean()
    assert spread > 0.05  # the clips differ by far more than the tolerance


def test_mixed_inputs(model, folder, tmp_path):
    file, eight = folder / "02.wav", tone(1, 8000)
    (tmp_path / "list.txt").write_text(str(file))
    channels = np.stack([clip(0.4), clip(0.4, 1)])
    rows = list(
        embed(
            [str(file), clip(1, 2), torch.from_numpy(clip(1, 2)), folder, (eight, 8000), (torch.from_numpy(eight), 8e3),
             channels, channels.T, (clip(1) * 32767).astype(np.int16), file, tmp_path / "list.txt"],
            model=model,
        )
    )  # fmt: skip
    inside = len(RAGGED) + 1
    names = [row.path for row in rows]
    assert names[:3] + names[-7:] == [str(file), "[1]", "[2]", "[4]", "[5]", "[6]", "[7]", "[8]", str(file), str(file)]
    assert names[3 : 3 + inside] == [row.path for row in embed(folder, model=model)]
    values = stacked(rows)
    for index in (1, 2, 5, -2, -1):
        np.testing.assert_allclose(values[index], values[0], atol=1e-4)
    by_hand = audio.from_array(eight, 8000)
    for index, samples in ((-7, by_hand), (-6, by_hand), (-5, channels.mean(0)), (-4, channels.mean(0))):
        np.testing.assert_allclose(values[index], alone(model, samples, "mean")[0], atol=1e-4)
    np.testing.assert_allclose(values[-3], alone(model, clip(1), "mean")[0], atol=1e-2)  # 16 bits


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("single", "names"),
    [
        (lambda f: clip(1), ["[0]"]),
        (lambda f: torch.from_numpy(clip(1)), ["[0]"]),
        (lambda f: (clip(1), 16000), ["[0]"]),
        (lambda f: (clip(1), 16000.0), ["[0]"]),
        (lambda f: (clip(1), np.int64(16000)), ["[0]"]),
        (lambda f: (clip(1), clip(1)), ["[0]", "[1]"]),
        (lambda f: (clip(1) for _ in range(3)), ["[0]", "[1]", "[2]"]),
        (lambda f: f / "00.wav", ["00.wav"]),
        (lambda f: str(f / "00.wav"), ["00.wav"]),
        (lambda f: [f / "00.wav", f / "00.wav"], ["00.wav", "00.wav"]),
    ],
)
def test_one_or_many(model, folder, single, names):
    rows = list(embed(single(folder), model=model))
    assert [row.path.rpartition("/")[2] for row in rows] == names


def test_model_by_path_and_dtype(model, folder, tmp_path):
    torchbeats.save(model, tmp_path / "m.safetensors")
    exact = list(embed(folder, model=model))
    assert same(embed(folder, model=tmp_path / "m.safetensors", device="cpu"), exact)
    half = stacked(embed(folder, model=str(tmp_path / "m.safetensors"), dtype=torch.bfloat16))
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - stacked(exact)).max() < 0.1


def test_training_mode_changes_nothing(model, folder):
    exact = list(embed(folder, model=model))
    torch.manual_seed(0)
    training = small_model(dropout=0.5, encoder_layerdrop=0.5).unfreeze()
    training.load_state_dict(model.state_dict())
    assert same(embed(folder, model=training), exact)
    assert training.training


def test_lazy(model, folder, monkeypatch):
    read, stream = [], audio.stream
    monkeypatch.setattr(audio, "stream", lambda path: read.append(path) or stream(path))
    rows = embed([folder / "02.wav"] * 300, model=model, batch_seconds=1, jobs=1)
    assert read == []
    next(rows)
    # A group of 8 × 1 s, the rest of what one thread does at a time, and a few such bundles ahead.
    assert GROUP_BATCHES <= len(read) <= GROUP_BATCHES + 5 * BUNDLE_INPUTS
    rows.close()
    total = len(read)
    assert total <= GROUP_BATCHES + 5 * BUNDLE_INPUTS


def test_small_files_are_decoded_together(model, tmp_path, monkeypatch):
    worker, stream = {}, audio.stream

    def watched(path):
        worker[path] = threading.get_ident()
        return stream(path)

    monkeypatch.setattr(audio, "stream", watched)
    names = [str(tmp_path / f"{number:02}.wav") for number in range(40)]
    for number, name in enumerate(names):
        soundfile.write(name, clip(20.0 if number == 20 else 0.2, number), SAMPLE_RATE)
    (tmp_path / "25.wav").write_bytes(b"no sound")
    with pytest.warns(AudioWarning, match=r"25\.wav was left out"):
        rows = list(embed(tmp_path, model=model, jobs=4))
    assert list(dict.fromkeys(row.path for row in rows)) == [name for name in names if name != names[25]]
    for first, last in ((0, 16), (16, 20), (21, 37)):  # a large file is another's, and ends a bundle
        assert len({worker[name] for name in names[first:last]}) == 1


# --- what comes out


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
@pytest.mark.parametrize("pool", POOLINGS)
def test_pool_and_layer(model, folder, pool, layer):
    rows = embed(folder, model=model, pool=pool, layer=layer)
    by_path = {path: stacked(list(found)) for path, found in itertools.groupby(rows, lambda row: row.path)}
    for number, seconds in enumerate(RAGGED):
        expected = alone(model, clip(seconds, number), pool, layer)
        found = by_path[str(folder / f"{number:02}.wav")]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("pool", POOLINGS)
def test_pools_are_what_the_model_says(model, pool):
    """Against `Encoded` itself, in a batch with padding."""
    sounds = [clip(2.0), clip(1.2, 1)]
    wav = torch.zeros(2, 32_000)
    for row, samples in zip(wav, sounds, strict=True):
        row[: len(samples)] = torch.from_numpy(samples)
    encoded = model.encode(wav, torch.tensor([len(samples) for samples in sounds]))
    steps = encoded.step_counts().tolist()
    expected = {
        "mean": encoded.pooled(),
        "bands": encoded.pooled_bands(),
        "statistics": encoded.pool("statistics"),
        "steps": torch.cat([x[:n] for x, n in zip(encoded.steps(), steps, strict=True)]),
        "patches": torch.cat([x[:n].flatten(1) for x, n in zip(encoded.by_step(), steps, strict=True)]),
    }[pool]
    found = stacked(embed(sounds, model=model, pool=pool))
    assert found.shape == expected.shape == ({"steps": 12 + 7, "patches": 12 + 7}.get(pool, 2), expected.shape[1])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


WINDOWS = {  # (seconds, window, hop): (start, end) of each row
    (25.0, 10.0, None): [(0, 10), (10, 20), (20, 25)],
    (20.499, 10.0, None): [(0, 10), (10, 20.499)],  # the tail joins
    (20.5, 10.0, None): [(0, 10), (10, 20), (20, 20.5)],
    (10.0, 10.0, None): [(0, 10)],
    (10.3, 10.0, None): [(0, 10.3)],
    (0.05, 10.0, None): [(0, 0.05)],
    (2.0, 0.5, None): [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2)],
    (7.0, 3.0, 2.0): [(0, 3), (2, 5), (4, 7)],
    (7.4, 3.0, 2.0): [(0, 3), (2, 5), (4, 7.4)],
    (7.5, 3.0, 2.0): [(0, 3), (2, 5), (4, 7), (6, 7.5)],
    (4.0, 3.0, 3.0): [(0, 3), (3, 4)],
}


@pytest.mark.parametrize(("setting", "times"), WINDOWS.items(), ids=map(str, WINDOWS))
def test_windows(model, setting, times):
    seconds, window, hop = setting
    samples = clip(seconds)
    rows = list(embed(samples, model=model, window=window, hop=hop))
    assert [(row.start, row.end) for row in rows] == times
    for row in rows:
        piece = samples[round(row.start * SAMPLE_RATE) : round(row.end * SAMPLE_RATE)]
        np.testing.assert_allclose(row.embedding, alone(model, piece, "mean")[0], atol=1e-4)


@pytest.mark.parametrize("pool", POOLINGS)
def test_a_window_may_be_the_whole_sound(model, pool):
    sounds = [clip(33.3), clip(0.05, 1), clip(61.0, 2)]
    rows = list(embed(sounds, model=model, pool=pool, window=None))
    expected = np.concatenate([alone(model, samples, pool) for samples in sounds])
    np.testing.assert_allclose(stacked(rows), expected, atol=1e-4)
    assert [row.start for row in rows if row.start == 0] == [0] * 3
    if pool == "mean":
        assert [(row.start, row.end) for row in rows] == [(0, 33.3), (0, 0.05), (0, 61)]


@pytest.mark.parametrize("seconds", [25.0, 9.935, 9.93, 10.4, 19.85, 30.3, 0.1, 0.335])
def test_steps_join_over_windows(model, seconds):
    samples = clip(seconds)
    grid = model.grid
    rows = list(embed(samples, model=model, pool="steps", window=10.0))
    count = grid.steps(max(len(samples), grid.min_samples))
    assert len(rows) == count
    starts, ends = np.array([row.start for row in rows]), np.array([row.end for row in rows])
    np.testing.assert_allclose(starts, 0.16 * np.arange(count), atol=1e-9)
    np.testing.assert_allclose(ends[:-1], starts[1:], atol=1e-9)  # no gap
    assert ends[-1] == pytest.approx(min(0.16 * count, seconds))
    patches = stacked(embed(samples, model=model, pool="patches", window=10.0))
    assert patches.shape == (count, 8 * model.cfg.encoder_embed_dim)
    np.testing.assert_allclose(patches.reshape(count, 8, -1).mean(1), stacked(rows), atol=1e-5)
    first = alone(model, samples[: grid.samples(62)] if count > 62 + 2 else samples, "steps")
    np.testing.assert_allclose(stacked(rows)[: len(first)], first, atol=1e-4)


def test_many_windows_of_long_and_many_short_sounds(model):
    sounds = [clip(0.1 + 0.01 * (i % 7), i) for i in range(300)]
    sounds[150] = clip(40, 150)
    rows = list(embed(sounds, model=model, window=2.0, batch_seconds=5))
    assert [row.path for row in rows] == [name for i in range(300) for name in [f"[{i}]"] * (20 if i == 150 else 1)]
    for i in (0, 149, 299):
        row = next(row for row in rows if row.path == f"[{i}]")
        np.testing.assert_allclose(row.embedding, alone(model, sounds[i], "mean")[0], atol=1e-4)


# --- mishaps


def test_bad_inputs_are_left_out(model, folder, tmp_path):
    (tmp_path / "zero.wav").touch()
    (tmp_path / "text.wav").write_text("not a sound at all\n" * 50)
    data = (folder / "00.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    good = folder / "02.wav"
    broken = clip(1)
    broken[7] = np.nan
    inputs = [tmp_path / "zero.wav", good, tmp_path / "none.wav", tmp_path / "text.wav", broken, tmp_path / "cut.wav",
              np.zeros((2, 3, 4), np.float32), good]  # fmt: skip
    with pytest.warns(AudioWarning) as caught:
        rows = list(embed(inputs, model=model, jobs=1))
    assert [row.path for row in rows] == [str(good), str(tmp_path / "cut.wav"), str(good)]
    np.testing.assert_allclose(rows[2].embedding, rows[0].embedding, atol=1e-5)
    assert rows[1].end == pytest.approx(1.5, abs=0.01)
    said = [str(warning.message) for warning in caught]
    assert all(message.endswith(".") and not message.endswith("..") for message in said)
    left_out = [message for message in said if "was left out: " in message]
    assert [message.partition(" was")[0] for message in left_out] == [
        *(str(tmp_path / f"{name}.wav") for name in ("zero", "none", "text")), "[4]", "[6]"
    ]  # fmt: skip
    assert "empty (0 bytes)" in left_out[0]
    assert "Sample 7 is not a finite" in left_out[3]
    assert any("cut.wav: the file breaks off" in message for message in said)


def test_only_bad_inputs(model, tmp_path):
    with pytest.warns(AudioWarning, match="none.wav was left out: it cannot be opened"):
        assert list(embed(tmp_path / "none.wav", model=model)) == []


def test_error_of_the_model_reaches_the_caller_and_threads_end(folder):
    model = small_model()
    model.encode = None
    with pytest.raises(TypeError):
        list(embed(folder, model=model))
    assert not decoders()


SETTINGS = [
    ({"pool": "max"}, "no pooling called 'max'; choose one of mean, bands, statistics, steps, patches"),
    ({"window": 0.4}, "at least 0.5 s, not 0.4"),
    ({"window": float("nan")}, "at least 0.5 s, not nan"),
    ({"window": float("inf")}, "[Ww]indow"),
    ({"window": None, "hop": 5}, "each sound is one window, leave it out"),
    ({"window": -1}, "at least 0.5 s, not -1"),
    ({"hop": 0}, "hop must lie between 0.05 s and the window's 10.0 s"),
    ({"hop": 11}, "hop must lie"),
    ({"hop": float("nan")}, "hop must lie"),
    ({"pool": "steps", "hop": 5}, "leave the hop out"),
    ({"batch_seconds": 0}, "some seconds of audio, not 0"),
    ({"batch_seconds": float("nan")}, "some seconds"),
    ({"layer": 3}, "2 layers; there is no layer 3"),
    ({"layer": -1}, "no layer -1"),
]


@pytest.mark.parametrize(("setting", "said"), SETTINGS, ids=[str(setting) for setting, _ in SETTINGS])
def test_setting_that_makes_no_sense(model, setting, said):
    with pytest.raises(ValueError, match=said):
        embed(clip(1), model=model, **setting)  # at once, not when the first row is asked for


def test_model_that_makes_no_sense(tmp_path):
    torchbeats.save(small_tokenizer(), tmp_path / "t.pt")
    for tokenizer in (tmp_path / "t.pt", small_tokenizer()):
        with pytest.raises(ValueError, match="tokenizer"):
            embed(clip(1), model=tokenizer)
    with pytest.raises(ValueError, match="no sound file in the folder"):
        embed(tmp_path, model=small_model())


# --- the same numbers, whatever happens


def decoders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


PLANS = [
    EmbeddingPlan(window=1.0, batch_seconds=1.0),
    EmbeddingPlan("steps", window=1.0, batch_seconds=1.5),
    EmbeddingPlan(hop=3.0, batch_seconds=2),
]


@pytest.mark.parametrize("plan", PLANS, ids=["windows", "steps", "overlap"])
def test_resumed_run_computes_the_very_same(model, folder, plan):
    sounds = [(path.name, path) for path in sorted(folder.glob("*.wav"))] + [("long", clip(23.7)), ("bad", "no such")]
    sounds = [*sounds, *sounds]
    whole = list(groups(sounds, model, plan))
    assert len(whole) > 5
    assert any(group.position.windows for group in whole)  # some end within a sound
    assert whole[-1].position == Position(len(sounds), 0)
    assert [failure[0] for group in whole for failure in group.failures] == ["bad", "bad"]
    for number, group in enumerate(whole):
        rest = list(groups(sounds, model, plan, start=group.position))
        expected = whole[number + 1 :]
        if number + 1 == len(whole):
            assert not any(group.paths or group.failures for group in rest)
            continue
        assert [g.position for g in rest] == [g.position for g in expected]
        for again, once in zip(rest, expected, strict=True):
            assert again.paths == once.paths
            assert again.failures == once.failures
            assert np.array_equal(again.times, once.times)
            assert np.array_equal(again.values, once.values)


def test_threads_change_nothing(model, folder):
    inputs = [folder, "no such", clip(23.7), folder]
    with pytest.warns(AudioWarning):
        one, four, default = (list(embed(inputs, model=model, window=2, jobs=jobs)) for jobs in (1, 4, None))
    assert same(one, four)
    assert same(one, default)


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_closing_early_leaves_no_threads(model, folder, rows):
    found = embed([folder, clip(60)] * 10, model=model, window=1, batch_seconds=1, jobs=4)
    assert len(list(itertools.islice(found, rows))) == rows
    assert bool(decoders()) == bool(rows)
    found.close()
    assert not decoders()


@pytest.mark.parametrize("batch_seconds", [0.1, 3.0, 8.0])
def test_batches_keep_to_their_size_and_waste_little(monkeypatch, batch_seconds):
    model = small_model()
    shapes, encode = [], model.encode
    monkeypatch.setattr(
        model, "encode", lambda wav, *args, **more: shapes.append(wav.shape) or encode(wav, *args, **more)
    )
    lengths = np.random.default_rng(0).uniform(0.2, 3.0, 120)
    heard, done = [], []
    sounds = [(str(number), clip(seconds, number)) for number, seconds in enumerate(lengths)]
    list(
        groups(
            sounds,
            model,
            EmbeddingPlan(batch_seconds=batch_seconds),
            progress=lambda seconds, inputs: (heard.append(seconds), done.append(inputs)),
        )
    )
    for count, samples in shapes:
        assert count == 1 or count * samples <= batch_seconds * SAMPLE_RATE
    total = sum(len(samples) for _, samples in sounds)
    waste = sum(count * samples for count, samples in shapes) / total - 1
    assert waste < 0.15
    if batch_seconds >= 3:
        assert total / len(shapes) > 0.5 * batch_seconds * SAMPLE_RATE  # batches are filled
    assert sum(heard) == pytest.approx(total / SAMPLE_RATE)
    assert sum(done) == pytest.approx(120)


# --- numbers that are not numbers


class Overflowing:
    """A model that does all that another does, but gives an infinite number for windows that begin loudly."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def compute(self, output, wav, lengths=None, layer=None):
        values = self._model.compute(output, wav, lengths, layer)
        loud = wav[:, :100].abs().amax(1) > 0.9
        bad = -1 if values.dtype == torch.int64 else math.inf
        return torch.where(loud.view(-1, *[1] * (values.dim() - 1)), torch.full_like(values, bad), values)


def with_a_loud_window(seconds, number):
    """Noise whose window of two seconds with this number begins loudly."""
    samples = clip(seconds)
    samples[2 * number * SAMPLE_RATE :][:100] = 1
    return samples


NAMES = ["[0]", "[1]", "[2]", "[3]"]


def overflowing_sounds():
    return [clip(3), with_a_loud_window(9, 2), with_a_loud_window(1, 0), clip(1, 1)]


@pytest.mark.parametrize("batch_seconds", [1, 40])  # a group for two windows, and one for all
def test_no_row_that_is_not_finite(model, batch_seconds):
    settings = {"window": 2, "batch_seconds": batch_seconds}
    with pytest.warns(AudioWarning) as caught:
        rows = list(embed(overflowing_sounds(), model=Overflowing(model), **settings))
    # the long sound ends before its third window, and the good ones beside it lose nothing
    places = [("[0]", 0), ("[0]", 2), ("[1]", 0), ("[1]", 2), ("[3]", 0)]
    assert [(row.path, row.start) for row in rows] == places
    assert all(np.isfinite(row.embedding).all() for row in rows)
    assert [str(warning.message) for warning in caught] == [
        "[1] was left out: the model gives numbers for it that are not finite; what comes before it was kept, in 2 "
        "windows.",
        "[2] was left out: the model gives numbers for it that are not finite.",
    ]
    good = {(row.path, row.start): row.embedding for row in embed(overflowing_sounds(), model=model, **settings)}
    for row in rows:
        np.testing.assert_allclose(row.embedding, good[row.path, row.start], atol=1e-5)


def test_a_failure_of_numbers_is_told_once_however_a_run_is_continued(model):
    plan = EmbeddingPlan(window=2, batch_seconds=0.5)
    sounds = list(zip(NAMES, overflowing_sounds(), strict=True))
    whole = list(groups(sounds, Overflowing(model), plan))
    assert [name for group in whole for name, _ in group.failures] == ["[1]", "[2]"]
    assert any(group.position.failed for group in whole)  # some group ends within the sound that failed
    for number, group in enumerate(whole[:-1]):
        rest = list(groups(sounds, Overflowing(model), plan, start=group.position))
        assert [name for g in rest for name, _ in g.failures] == [
            name for g in whole[number + 1 :] for name, _ in g.failures
        ]
        assert [path for g in rest for path in g.paths] == [path for g in whole[number + 1 :] for path in g.paths]
        assert all(np.array_equal(a.values, b.values) for a, b in zip(rest, whole[number + 1 :], strict=True))


def test_no_tokens_of_what_is_not_finite():
    tokenizer = small_tokenizer()
    good = list(tokenize([clip(3)], tokenizer))
    with torch.no_grad():
        tokenizer.encoder.layers[-1].final_layer_norm.weight.fill_(3e38)
    assert (tokenizer.encode(torch.from_numpy(clip(3))[None]).labels == -1).all()
    with pytest.warns(AudioWarning, match="not finite"):
        assert list(tokenize([clip(3)], tokenizer)) == []
    assert len(good) == 1
    assert (good[0].labels >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_callers_own_model_stays_as_it_is(folder, dtype):
    own = small_model()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    rough = stacked(embed([clip(1)], model=own, dtype=dtype))
    exact = stacked(embed([clip(1)], model=own))
    assert not np.array_equal(rough, exact)
    assert own.state_dict().keys() == before.keys()
    assert all(tensor.dtype == torch.float32 for tensor in own.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    tokenizer = small_tokenizer()
    list(tokenize([clip(1)], tokenizer))
    assert all(tensor.dtype == torch.float32 for tensor in tokenizer.parameters())
