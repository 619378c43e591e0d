"""The attentive probe on made-up features: what it finds, and that it finds the same again."""

import numpy as np
import pytest
import soundfile
import torch

from helpers import noise, small_model
from torchbeats.data.folds import design
from torchbeats.data.labelled import Example, Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation import attentive as module
from torchbeats.evaluation.attentive import AttentiveHead, Training, attentive, pieces_of, predict, total_epochs, train
from torchbeats.evaluation.features import Features, plan_of, read_features, stored_features, write_features
from torchbeats.evaluation.probe import probe
from torchbeats.inference import groups
from torchbeats.plans import EmbeddingPlan

LAYERS, BANDS, WIDTH = 3, 2, 16
QUICK = Training(epochs=25, steps=0, batch=32, dropout=0.1, lr=3e-3)
BRIEF = Training(epochs=2, steps=0)


def labelled(rows, kind="single_label"):
    classes = sorted({label for row in rows for label in row})
    return Labelled([Example(f"{i}.wav", tuple(row)) for i, row in enumerate(rows)], classes, kind)


def one_patch_tells(sounds=240, classes=3, steps=30, seed=0):
    """Features of noise, but for one patch, of the middle layer: a mark that it counts, and which class it is.

    The same directions are in other patches without the mark, and cancel out or drown in a mean over time.
    """
    random = np.random.default_rng(seed)
    counts = random.integers(steps // 2, steps + 1, sounds)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    x = random.standard_normal((int(counts.sum()), LAYERS, BANDS, WIDTH))
    labels = np.arange(sounds) % classes
    for i in range(sounds):
        own = x[starts[i] : starts[i] + counts[i], 1, 0]
        own[:, 0] = 0
        own[:, 1 : 1 + classes] = 3 * np.eye(classes)[random.integers(classes, size=len(own))]
        place = random.integers(len(own))
        own[place, 0] = 8
        own[place, 1 : 1 + classes] = 3 * np.eye(classes)[labels[i]]
    return Features(x.astype(np.float16), starts, counts, []), labels


@pytest.fixture(scope="module")
def task():
    features, labels = one_patch_tells()
    data = labelled([("abc"[label],) for label in labels])
    plan = design(data, 3)
    return features, data, plan, attentive(features, data, plan, training=QUICK)


def test_it_finds_the_patch_that_a_mean_drowns(task):
    features, data, plan, (found, weights) = task
    means = np.stack([features.of(i)[:, 1].astype(np.float32).mean(0).ravel() for i in range(len(data.examples))])
    linear = probe(means, data, plan).figures["accuracy"]
    assert linear < 0.75
    assert found.figures["accuracy"] > 0.9
    assert found.classifier == "attentive"
    assert found.tested == 240
    assert sum(weights) == pytest.approx(1, abs=1e-6)
    assert int(np.argmax(weights)) == 1  # the layer that knows


def test_the_same_seed_gives_the_same_figures(task):
    features, data, plan, (first, weights) = task
    before = torch.get_rng_state()
    again, same = attentive(features, data, plan, training=QUICK)
    assert torch.equal(torch.get_rng_state(), before)  # a caller's random numbers stay as they are
    assert (again.figures, again.by_fold, again.interval) == (first.figures, first.by_fold, first.interval)
    assert same == weights


def test_another_seed_is_another_training():
    features, labels = one_patch_tells(40)
    data = labelled([("abc"[label],) for label in labels])
    first, other = (attentive(features, data, design(data, 2), seed, BRIEF)[1] for seed in (0, 1))
    assert first != other


def test_nothing_is_learned_from_what_is_held_out():
    features, labels = one_patch_tells(60)
    data = labelled([("abc"[label],) for label in labels])
    plan = design(data, 2)
    torch.manual_seed(0)
    alone = train(features, data.targets(), 3, plan.folds[0], BRIEF, 0, lambda: None)
    changed = features.values.copy()
    for i in plan.folds[0].test:
        changed[features.starts[i] : features.starts[i] + features.counts[i]] = 99
    torch.manual_seed(0)
    other = train(
        Features(changed, features.starts, features.counts, []), data.targets(), 3, plan.folds[0], BRIEF,
        0, lambda: None,
    )  # fmt: skip
    for one, two in zip(alone.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_several_labels():
    features, labels = one_patch_tells(180)
    data = labelled([("a", "x") if label == 0 else ("b",) if label == 1 else ("x",) for label in labels], "multi_label")
    epochs = []
    found, _ = attentive(features, data, design(data, 3), training=QUICK, on_epoch=lambda: epochs.append(1))
    assert found.figures["mAP"] > 0.85 > found.chance
    assert found.confusion is None
    assert len(epochs) == 3 * QUICK.epochs


def test_few_sounds_are_looked_at_more_often():
    features, labels = one_patch_tells(40)
    plan = design(labelled([("abc"[label],) for label in labels]), 2)
    assert total_epochs(features, plan, Training(epochs=3, steps=40, batch=10)) == 2 * 20
    assert total_epochs(features, plan, Training(epochs=30, steps=40, batch=10)) == 2 * 30


def test_before_it_has_learned_it_is_the_mean_over_time():
    head = AttentiveHead(LAYERS, BANDS, WIDTH, 4)
    x, mask = torch.randn(2, 5, LAYERS, BANDS, WIDTH), torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    pooled = head.pool(x, mask)
    torch.testing.assert_close(pooled[0], x[0].mean((0, 1)).flatten())
    torch.testing.assert_close(pooled[1], x[1, :3].mean((0, 1)).flatten())


def test_a_clip_is_the_same_alone_and_in_a_batch():
    torch.manual_seed(0)
    head = AttentiveHead(LAYERS, BANDS, WIDTH, 4).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    x, mask = torch.randn(2, 7, LAYERS, BANDS, WIDTH), torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 4:] = True
    torch.testing.assert_close(head(x, mask)[1], head(x[1:, :4], mask[1:, :4])[0], atol=1e-5, rtol=1e-5)
    assert head.attention(x[:, :, 0], mask)[1, 4:].abs().max() == 0


@pytest.mark.parametrize(("steps", "firsts"), [(1, [0]), (63, [0]), (64, [0, 1]), (126, [0, 63]), (150, [0, 44, 87])])
def test_pieces_of_a_long_sound_cover_it(steps, firsts):
    assert pieces_of(steps).tolist() == pytest.approx(firsts, abs=1)


def test_a_long_sound_has_the_mean_of_its_pieces(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 10)
    torch.manual_seed(0)
    head = AttentiveHead(LAYERS, BANDS, WIDTH, 4).eval()
    torch.nn.init.normal_(head.predictor.weight)
    x = np.random.default_rng(0).standard_normal((24, LAYERS, BANDS, WIDTH)).astype(np.float16)
    features = Features(x, np.array([0, 20]), np.array([20, 4]), [])
    found = predict(head, features, np.array([1, 0]), single=True)
    mask = torch.zeros(1, 10, dtype=torch.bool)
    halves = [head(torch.from_numpy(x[None, k : k + 10]).float(), mask).softmax(1) for k in (0, 10)]
    np.testing.assert_allclose(found[1], ((halves[0] + halves[1]) / 2)[0].detach(), atol=1e-5)


def test_one_class_is_refused():
    features, labels = one_patch_tells(12)
    data = labelled([("ab"[int(label > 1)],) for label in labels])
    plan = design(data, 2)
    plan.folds[0] = plan.folds[0]._replace(train=np.flatnonzero(labels < 2))
    with pytest.raises(InputError, match="only the class 'a' to learn from"):
        attentive(features, data, plan, training=QUICK)


def test_a_sound_without_features_is_named():
    features, labels = one_patch_tells(12)
    data = labelled([("abc"[label],) for label in labels])
    features.counts[3] = 0
    with pytest.raises(InputError, match=r"^3\.wav has no features"):
        attentive(features, data, design(data, 2), training=BRIEF)


@pytest.mark.parametrize("train_sounds", [2, 3])
def test_two_or_three_sounds_to_learn_from(train_sounds):
    features, labels = one_patch_tells(8)
    data = labelled([("ab"[label % 2],) for label in labels])
    plan = design(data, 2)
    plan.folds = [plan.folds[0]._replace(train=np.arange(train_sounds), test=np.arange(4, 8))]
    assert attentive(features, data, plan, training=QUICK)[0].tested == 4


# --- the features


@pytest.fixture
def sounds(tmp_path):
    seconds = (0.5, 1.3, 2.0)
    for i, length in enumerate(seconds):
        soundfile.write(tmp_path / f"{i}.wav", noise(length, seed=i), 16_000)
    return [Example(str(tmp_path / f"{i}.wav"), ("x",)) for i in range(len(seconds))]


def test_stored_features_are_the_models(sounds, tmp_path):
    model = small_model()
    sounds.insert(1, Example(str(tmp_path / "gone.wav"), ("x",)))
    plan = plan_of(1.0, 40.0)
    write_features(tmp_path / "f.f16", sounds, model, plan)
    features = read_features(tmp_path / "f.f16")
    assert [path for path, _ in features.failures] == [str(tmp_path / "gone.wav")]
    assert features.counts[1] == 0
    for layer in range(3):
        single = EmbeddingPlan("patches", layer, window=1.0)
        pieces = ((str(i), example.path) for i, example in enumerate(sounds) if i != 1)
        rows = [(int(name), row) for group in groups(pieces, model, single) for name, row in
                zip(group.paths, group.values, strict=True)]  # fmt: skip
        for i in (0, 2, 3):
            expected = torch.from_numpy(np.stack([row for name, row in rows if name == i])).view(-1, 8, 48)
            expected = torch.nn.functional.layer_norm(expected, (48,))
            np.testing.assert_allclose(features.of(i)[:, layer], expected, atol=4e-3)
    assert features.subset([3]).of(0).shape == features.of(3).shape
    assert features.of(3, 2, 3).shape[0] == 3


def test_features_are_kept_and_made_anew_where_damaged(sounds, tmp_path):
    calls = []

    def write(path):
        calls.append(path)
        write_features(path, sounds, small_model(), plan_of(10.0, 40.0))

    first, kept = stored_features(tmp_path / "cache", sounds, "w", {}, write)
    assert not kept
    again, kept = stored_features(tmp_path / "cache", sounds, "w", {}, write)
    assert kept
    assert np.array_equal(first.values, again.values)
    assert isinstance(again.values, np.memmap)
    stored_features(tmp_path / "cache", sounds, "other", {}, write)
    assert len(calls) == 2
    for damage in (".f16", ".npz"):
        calls[0].with_suffix(damage).write_bytes(b"damaged")
        assert not stored_features(tmp_path / "cache", sounds, "w", {}, write)[1]
    assert len(calls) == 4


def test_values_that_are_not_finite_leave_a_sound_out(sounds, tmp_path, monkeypatch):
    model = small_model()
    compute = type(model).compute

    def overflowing(self, output, wav, lengths=None, layer=None):
        values = compute(self, output, wav, lengths, layer)
        values[int(wav.abs().sum(1).argmax()), 0, 5] = np.inf  # the longest
        return values

    monkeypatch.setattr(type(model), "compute", overflowing)
    write_features(tmp_path / "f.f16", sounds, model, plan_of(10.0, 40.0))
    features = read_features(tmp_path / "f.f16")
    assert features.counts.tolist()[:2] != [0, 0]
    assert (features.counts == 0).sum() >= 1
    assert "not finite" in features.failures[0][1]
    assert np.isfinite(features.values).all()
