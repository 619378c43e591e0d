"""`torchbeats probe` as people run it, and what it holds out."""

import json
import re
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import torchbeats
from helpers import noise, small_model
from torchbeats.data.folds import design
from torchbeats.data.labelled import Example, Labelled
from torchbeats.errors import InputError
from torchbeats.evaluation import attentive as attending
from torchbeats.evaluation import probe as probing
from torchbeats.evaluation.metrics import bootstrap
from torchbeats.evaluation.rows import rows_of
from torchbeats.plans import EmbeddingPlan
from torchbeats.pooling import WINDOW_POOLINGS

RATE = 16_000


def examples(labels, **columns):
    """Labelled examples without sounds: ``labels`` a string each, split at ;."""
    rows = []
    for i, cell in enumerate(labels):
        more = {name: values[i] for name, values in columns.items()}
        rows.append(Example(f"{i}.wav", tuple(label for label in cell.split(";") if label), **more))
    single = all(len(row.labels) == 1 for row in rows)
    classes = sorted({label for row in rows for label in row.labels})
    return Labelled(rows, classes, "single_label" if single else "multi_label")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    torchbeats.save(small_model(), path)
    return path


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Noise through a band: low or high, eight sounds each by four speakers, as {band}_{speaker}_{number}.wav."""
    folder = tmp_path_factory.mktemp("sounds")
    for seed in range(16):
        band, speaker = ("low", "high")[seed % 2], "abcd"[seed // 4]
        spectrum = np.fft.rfft(noise(0.5, seed=seed))
        edge = len(spectrum) // 4
        spectrum[edge:] *= 0.02 if band == "low" else 1
        spectrum[:edge] *= 0.02 if band == "high" else 1
        soundfile.write(folder / f"{band}_{speaker}_{seed}.wav", np.fft.irfft(spectrum), RATE)
    return folder


@pytest.fixture
def listed(sounds, tmp_path):
    """A list of them, with what is asked for of group, split and fold."""

    def write(*columns, rows=()):
        lines = [",".join(("path", "label", *columns))]
        for i, path in enumerate(sorted(sounds.glob("*.wav"))):
            band, speaker, _ = path.stem.split("_")
            known = {"group": speaker, "split": "test" if speaker == "d" else "train", "fold": str(i % 3)}
            lines.append(",".join((str(path), band, *(known[name] for name in columns))))
        (tmp_path / "list.csv").write_text("\n".join([*lines, *rows]) + "\n")
        return tmp_path / "list.csv"

    return write


@pytest.fixture
def run(run, monkeypatch, tmp_path):
    """Run this command: its exit status, and what it wrote to standard output and error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return partial(run, "probe")


# --- the command


def test_groups_of_a_list(run, model, listed, tmp_path):
    given = listed("group")
    status, out, err = run(given, "-m", model)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["held_out"] == "each of 4 groups left out in turn"
    assert found["interval_over"] == "groups"
    linear, neighbours = found["results"]
    assert (linear["classifier"], neighbours["classifier"]) == ("linear", "k-NN")
    assert linear["layer"] == 2
    assert linear["accuracy"] == 1
    assert linear["interval"] == [1, 1]
    assert linear["chance"] == 0.5
    assert linear["tested"] == 16
    assert len(linear["c"]) == len(linear["by_fold"]) == 4
    assert neighbours["accuracy"] > 0.5
    assert neighbours["c"] == []


def test_embeddings_are_kept(run, model, listed, tmp_path, monkeypatch):
    given = listed("group")
    _, first, _ = run(given, "-m", model, "--c", "0.1")
    (kept,) = (tmp_path / "cache/torchbeats/probe").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr("torchbeats.cli.probe.rows_of", None)  # is not called again
        assert run(given, "-m", model, "--c", "0.1")[:2] == (0, first)
    for more in (("--pool", "mean"), ("--layer", "all"), ("--window", "5"), ("--no-cache",)):
        assert run(given, "-m", model, "--c", "0.1", *more)[0] == 0
    assert len(list(kept.parent.iterdir())) == 4
    kept.write_bytes(b"damaged")
    assert run(given, "-m", model, "--c", "0.1")[:2] == (0, first)
    assert kept.stat().st_size > 1000


def test_every_layer(run, model, listed):
    given = listed("split")
    status, out, _ = run(given, "-m", model, "--layer", "all", "--c", "0.1")
    assert status == 0
    found = json.loads(out)
    assert found["held_out"] == "train and test as given"
    assert [row["layer"] for row in found["results"]] == [0, 0, 1, 1, 2, 2]
    assert {row["tested"] for row in found["results"]} == {4}
    for layer in (0, 1, 2):
        alone = json.loads(run(given, "-m", model, "--layer", layer, "--c", "0.1")[1])["results"]
        assert alone == found["results"][2 * layer : 2 * layer + 2]
    table = run(given, "-m", model, "--c", "0.1", "--format", "table")[1]
    for word in ("linear", "k-NN", "100.0 %", "50.0 %", "4 sounds held out: train and test as given", "over examples"):
        assert word in table


def test_groups_in_names_and_folders_of_classes(run, model, sounds, tmp_path):
    for path in sounds.glob("*.wav"):
        target = tmp_path / "data" / path.name.split("_")[0] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    status, out, _ = run(tmp_path / "data", "-m", model, "--c", "0.1")
    assert status == 0
    assert json.loads(out)["held_out"] == "5 stratified folds"
    pattern = r"_([a-d])_\d+\.wav$"
    found = json.loads(run(tmp_path / "data", "-m", model, "--c", "0.1", "--group-from", pattern)[1])
    assert found["held_out"] == "each of 4 groups left out in turn"
    found = json.loads(run(tmp_path / "data", "-m", model, "--group-from", pattern, "--folds", "2")[1])
    assert found["held_out"] == "2 stratified folds, groups kept together"
    status, _, err = run(tmp_path / "data", "-m", model, "--group-from", "_(x)_")
    assert status == 2
    assert "The pattern '_(x)_' finds no group in" in err


def test_several_labels(run, model, sounds, tmp_path):
    lines = [f"{path},{path.name.split('_')[0]};{path.name.split('_')[1]}" for path in sorted(sounds.glob("*.wav"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,labels", *lines]) + "\n")
    status, out, err = run(tmp_path / "list.csv", "-m", model, "--c", "1")
    assert status == 0
    assert re.fullmatch(r"Note: A multi-label problem: .*high_a_1\.wav has the labels high, a\.", err)
    found = json.loads(out)
    linear = found["results"][0]
    assert found["problem_type"] == "multi_label"
    assert linear["chance"] == pytest.approx((2 * 0.5 + 4 * 0.25) / 6)
    assert linear["mAP"] > linear["chance"]
    assert linear["interval"][0] <= linear["mAP"] <= linear["interval"][1]
    assert "mAP" in run(tmp_path / "list.csv", "-m", model, "--c", "1", "--format", "table")[1]


def test_bad_files_and_a_class_of_one_sound(run, model, sounds, listed, tmp_path):
    (tmp_path / "text.wav").write_text("not a sound")
    single = sorted(sounds.glob("*.wav"))[0]
    (tmp_path / "one.wav").write_bytes(single.read_bytes())
    given = listed(rows=("text.wav,low", "gone.wav,high", "one.wav,鳥"))
    for _ in range(2):  # the second time from what was kept
        status, out, err = run(given, "-m", model, "--c", "0.1")
        assert status == 1
        assert "Skipped: " + str(tmp_path / "gone.wav") in err
        assert "2 of 19 sounds could not be used" in err
        assert "Warning: One sound only, learned from and never asked about: '鳥'." in err
        found = json.loads(out)
        assert (found["examples"], found["results"][0]["tested"]) == (17, 16)


def test_what_is_refused_before_any_sound_is_read(run, model, listed, tmp_path):
    given = listed()
    (tmp_path / "one").mkdir()
    (tmp_path / "one/dog").mkdir()
    soundfile.write(tmp_path / "one/dog/a.wav", noise(0.2), RATE)
    for arguments, said in (
        ((tmp_path / "one",), "There is one class only, 'dog'; two are needed to tell apart."),
        ((given, "--layer", "last"), "The layer must be a number or all, not 'last'."),
        ((given, "--layer", "3"), "there is no layer 3"),
        ((given, "--c", "0"), "--c must be positive"),
        ((given, "--folds", "1"), "--folds"),
        ((given, "--group-from", "("), "'(' is not a regular expression"),
        ((given, "--group-from", "list|wav"), "All sounds are in one group, 'wav'"),
    ):
        status, out, err = run(*arguments, "-m", model)
        assert (status, out) == (2, "")
        assert said in err


def test_without_scikit_learn(run, model, listed, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    status, _, err = run(listed(), "-m", model)
    assert status == 2
    assert "This needs the package sklearn: pip install 'torchbeats[probe]'." in err


def test_sounds_of_which_a_model_makes_no_numbers_are_left_out(run, model, listed, sounds, monkeypatch):
    """A model that overflows on some sounds; then on all."""
    compute = torchbeats.BEATs.compute
    bad = set()

    def overflowing(self, output, wav, lengths=None, layer=None):
        values = compute(self, output, wav, lengths, layer)
        for i, row in enumerate(wav):
            if round(float(row[100]) * 1e6) in bad:
                values[i, 0] = np.inf
        return values

    for path in sorted(sounds.glob("*.wav"))[:2]:
        bad.add(round(float(np.float32(soundfile.read(path, dtype="float32")[0][100])) * 1e6))
    monkeypatch.setattr(torchbeats.BEATs, "compute", overflowing)
    for _ in range(2):  # the second time from what was kept
        status, out, err = run(listed("group"), "-m", model, "--c", "0.1")
        assert status == 1
        assert err.count("Skipped: ") == 2
        assert "that are not finite" in err
        assert "2 of 16 sounds could not be used" in err
        assert json.loads(out)["examples"] == 14
    monkeypatch.setattr(torchbeats.BEATs, "compute", lambda *a: compute(*a) * np.nan)
    status, out, err = run(listed("group"), "-m", model, "--c", "0.1", "--no-cache")
    assert (status, out) == (2, "")
    assert "finite" in err


def test_one_class_is_left_when_the_others_sounds_cannot_be_read(run, model, listed, sounds, tmp_path):
    rows = [f"{path},low" for path in sorted(sounds.glob("low*.wav"))]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, "gone.wav,high", "lost.wav,high"]) + "\n")
    status, out, err = run(tmp_path / "list.csv", "-m", model)
    assert (status, out) == (2, "")
    assert "There is one class only, 'low'; two are needed to tell apart." in err


# --- embeddings


def test_all_layers_at_once_are_those_of_a_plan_each(sounds):
    model = small_model(layer_norm_first=True, deep_norm=False)  # has a norm behind its last layer
    rows = [Example(str(path), ("x",)) for path in sorted(sounds.glob("*.wav"))[:5]]
    rows[1] = rows[1]._replace(start=0.1, end=0.3)
    for pool in WINDOW_POOLINGS:
        found = rows_of(rows, model, EmbeddingPlan(pool=pool, layer="all"))
        together = found.values.reshape(5, 3, -1)
        for layer in (0, 1, 2):
            alone = rows_of(rows, model, EmbeddingPlan(pool, layer)).values
            np.testing.assert_allclose(together[:, layer], alone, atol=1e-5)


def test_attentive_beside_the_others(run, model, listed, tmp_path, monkeypatch):
    monkeypatch.setattr(attending, "Training", partial(attending.Training, steps=60))
    command = (listed("group"), "-m", model, "--c", "0.1", "--head", "attentive")
    status, out, err = run(*command)
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [(row["layer"], row["classifier"]) for row in found["results"]] == [
        (2, "linear"),
        (2, "k-NN"),
        ("all", "attentive"),
    ]
    last = found["results"][-1]
    assert last["tested"] == 16
    assert last["accuracy"] >= 0.8
    assert last["c"] == []
    assert len(found["layer_weights"]) == 3
    assert sum(found["layer_weights"]) == pytest.approx(1)
    with monkeypatch.context() as patch:
        patch.setattr("torchbeats.cli.probe.write_features", None)  # is not called again
        assert run(*command)[:2] == (0, out)  # with the same figures
    table = run(*command, "--no-cache", "--format", "table")[1]
    assert re.search(r"all\s+│ attentive", table)
    assert len(list((tmp_path / "cache/torchbeats/probe").iterdir())) == 3


# --- what is held out


def test_every_example_once_and_classes_spread():
    data = examples(["a"] * 20 + ["b"] * 10 + ["c"])
    plan = design(data, 5)
    tested = np.concatenate([fold.test for fold in plan.folds])
    assert sorted(tested.tolist()) == list(range(30))  # c's only one is not among them
    for fold in plan.folds:
        assert sorted(np.concatenate([fold.train, fold.test]).tolist()) == list(range(31))
        labels = [data.examples[i].labels[0] for i in fold.test]
        assert (labels.count("a"), labels.count("b")) == (4, 2)
    assert plan.warnings == ["One sound only, learned from and never asked about: 'c'."]
    other = design(data, 5, seed=1)
    assert any((a.test.tolist() != b.test.tolist()) for a, b in zip(plan.folds, other.folds, strict=True))


def test_fewer_sounds_than_folds():
    plan = design(examples(["a", "a", "a", "b", "b"]))
    assert plan.name == "3 stratified folds"
    with pytest.raises(InputError, match="Every class has one sound only"):
        design(examples(["a", "b"]))


def test_groups_stay_together():
    groups = [str(i // 3) for i in range(30)]
    data = examples(["a", "b", "c"] * 10, group=groups)
    plan = design(data, 3)
    assert plan.name == "3 stratified folds, groups kept together"
    for fold in plan.folds:
        assert not {groups[i] for i in fold.train} & {groups[i] for i in fold.test}
    assert plan.unit == "groups"
    assert len(np.unique(plan.units)) == 10


def test_order_of_precedence():
    columns = {"split": ["train", "test", "valid"] * 4, "fold": ["1", "2"] * 6, "group": list("xxxyyyzzzwww")}
    data = examples(["a", "b"] * 6, **columns)
    assert design(data).name == "train and test as given"
    assert design(data).warnings == ["4 sounds are in other splits than train and test, and left out."]
    assert design(data, by_group=True).name == "each of 4 groups left out in turn"
    assert design(data, 3, by_group=True).name == "3 stratified folds, groups kept together"
    del columns["split"]
    assert design(examples(["a", "b"] * 6, **columns)).name == "2 folds as given"


@pytest.mark.parametrize(
    "words", [("Train", "Test"), ("training", "testing"), ("train", "eval"), ("train", "validation")]
)
def test_splits_by_other_names(words):
    plan = design(examples(["a", "b"] * 6, split=[*words, *words, words[0], words[0]] * 2))
    assert (plan.name, plan.warnings) == ("train and test as given", [])
    assert plan.folds[0].test.tolist() == [1, 3, 7, 9]


def test_splits_that_are_no_use_are_told():
    plan = design(examples(["a", "b"] * 6, split=["s1", "s2"] * 6))
    assert plan.name == "5 stratified folds"
    assert plan.warnings == ["No train and test among the splits 's1', 's2': they play no part."]


def test_ten_folds_come_in_order():
    folds = [str(1 + i % 10) for i in range(40)]
    plan = design(examples(["a", "b"] * 20, fold=folds))
    assert plan.names == [str(number) for number in range(1, 11)]
    for name, fold in zip(plan.names, plan.folds, strict=True):
        assert {folds[i] for i in fold.test} == {name}


def test_a_label_that_comes_with_rarer_ones_is_asked_about():
    data = examples(["x;z", "x;y", "y", "y", "", "q;y"])
    plan = design(data, 2)
    asked = {label for fold in plan.folds for i in fold.test for label in data.examples[i].labels}
    assert "x" in asked
    assert plan.warnings[0] == "One sound only, learned from and never asked about: 'q', 'z'."


def test_a_class_in_one_group_only_is_said():
    plan = design(examples(["a", "b", "a", "c"], group=list("xxyy")))
    assert plan.warnings == ["Held out without an example to learn from, so never right: 'b', 'c'."]


def test_gaps_in_columns():
    with pytest.raises(InputError, match=r"2\.wav has no group, and others have\."):
        design(examples(["a", "b", "a"], group=["x", "y", None]))
    with pytest.raises(InputError, match=r"1\.wav has no fold, and others have\."):
        design(examples(["a", "b", "a"], fold=["1", None, "2"]))


def test_a_fold_with_one_class_to_learn_from():
    data = examples(["a", "a", "b", "b"], group=list("xxyy"))
    with pytest.raises(InputError, match="A fold leaves only the class 'b' to learn from"):
        probing.probe(np.eye(4), data, design(data))


def test_a_fold_without_sounds_to_learn_from():
    data = examples(["a;b", "", ""])
    plan = design(data, 2)
    plan.folds[0] = plan.folds[0]._replace(train=np.array([], int))
    with pytest.raises(InputError, match="A fold leaves nothing to learn from"):
        probing.probe(np.eye(3), data, plan)


@pytest.mark.parametrize("labels", [["a", "a", "b", "b"], ["a;b", "a", "", "b"], ["a", "", "", ""]])
@pytest.mark.parametrize("classifier", probing.CLASSIFIERS)
def test_very_few_sounds(labels, classifier):
    """Too few for folds within folds: the figures are what they are, and nothing fails."""
    data = examples(labels)
    plan = design(data, 2)
    count = []
    outcome = probing.probe(np.eye(len(labels), 9), data, plan, classifier, on_fit=lambda: count.append(1))
    assert outcome.tested <= len(labels)
    assert len(count) == probing.fits(classifier, plan)


@pytest.mark.parametrize("classifier", probing.CLASSIFIERS)
def test_values_that_are_not_finite_are_said(classifier):
    data = examples(["a", "b"] * 6)
    x = np.random.default_rng(0).standard_normal((12, 5))
    x[[4, 7], 2] = np.nan, np.inf
    with pytest.raises(InputError, match=r"of 4\.wav has values that are not finite, and 1 more have"):
        probing.probe(x, data, design(data, 2), classifier)


@pytest.mark.parametrize("classifier", probing.CLASSIFIERS)
def test_large_values_are_values(classifier):
    """Squares of them are beyond what a float holds."""
    data = examples(["a", "b"] * 10)
    x = np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)
    x[::2] += 3
    small, large = (probing.probe(part, data, design(data, 2), classifier) for part in (x, x * np.float32(1e30)))
    assert large.figures == small.figures


# --- figures


def test_linear_is_scikit_learns():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 90)
    x = (generator.standard_normal((90, 8)) + 1.5 * np.eye(8)[labels]).astype(np.float32)
    data = examples(["abc"[label] for label in labels])
    plan = design(data, 3)
    right = 0
    for fold in plan.folds:
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(x[fold.train], labels[fold.train])
        right += int((pipeline.predict(x[fold.test]) == labels[fold.test]).sum())
    outcome = probing.probe(x, data, plan, c=0.1)
    assert outcome.figures["accuracy"] == pytest.approx(right / 90, abs=1.5 / 90)  # float32 here and there
    low, high = outcome.interval
    assert low < outcome.figures["accuracy"] < high
    # a normal approximation of the same interval
    p = outcome.figures["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 90), rel=0.25)


def test_noise_is_at_chance_and_c_is_chosen():
    generator = np.random.default_rng(0)
    data = examples(["a", "b"] * 100)
    outcome = probing.probe(generator.standard_normal((200, 20)), data, design(data))
    assert outcome.figures["accuracy"] == pytest.approx(0.5, abs=0.1)
    assert set(outcome.c) <= set(probing.CS)
    assert outcome.chance == 0.5


def test_bootstrap_over_groups_is_wider():
    """Ten groups of ten that are right or wrong as a whole know as much as ten examples."""
    truth, units = np.zeros(100, int), np.arange(100) // 10
    scores = np.eye(2)[(units % 2)]
    alone = bootstrap(truth, scores, np.arange(100))
    grouped = bootstrap(truth, scores, units)
    assert alone[0] == pytest.approx(0.4, abs=0.03)
    assert grouped[0] == pytest.approx(0.2, abs=0.06)
