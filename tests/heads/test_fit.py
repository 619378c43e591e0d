"""From stored embeddings and a few labels to a model: figures, thresholds, and the same answers from table and sounds.

Probabilities from a table and from the sounds agree to 1e-5: both are float32, and batches differ.
"""

import csv
import json

import numpy as np
import pytest
import soundfile

import torchbeats
from helpers import noise, tone
from torchbeats.data.labelled import Example, Labelled, read_labelled
from torchbeats.errors import InputError, ModelError, SettingsError
from torchbeats.heads.fitting import Linear, fit_head, threshold_for
from torchbeats.heads.labelling import label_windows
from torchbeats.heads.suggesting import suggest
from torchbeats.plans import EmbeddingPlan
from torchbeats.tables.reading import Table
from torchbeats.tables.scoring import scored_groups

pytest.importorskip("sklearn")
RATE = 16_000
KINDS = {"low": 300, "high": 2500, "hiss": None}


def sound(kind, seconds, seed):
    quiet = 0.02 * noise(seconds, seed=seed)
    return quiet + (noise(seconds, seed=seed) if KINDS[kind] is None else 0.3 * tone(seconds, hertz=KINDS[kind] + seed))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Twelve files with one kind of sound each, and one with all of them, two seconds each."""
    folder = tmp_path_factory.mktemp("collection")
    for number in range(12):
        kind = list(KINDS)[number % 3]
        soundfile.write(folder / f"{kind}-{number}.wav", sound(kind, 4.0, number), RATE, "FLOAT")
    mixed = np.concatenate([sound(kind, 2.0, 40) for kind in KINDS])
    soundfile.write(folder / "mixed.wav", mixed, RATE, "FLOAT")
    return folder


@pytest.fixture(scope="module", params=["parquet", "npz"])
def table(request, collection, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / f"t.{request.param}"
    plan = EmbeddingPlan("bands", window=1.0)
    torchbeats.write_table(collection, path, "beats-nano", plan)
    return Table(path)


def labels(folder, path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "start", "end"))
        writer.writerows((folder / name, label, start, end) for name, label, start, end in rows)
    return path


@pytest.fixture
def whole(collection, tmp_path):
    """A label for each of the twelve files."""
    rows = [(file.name, file.name.split("-")[0], "", "") for file in sorted(collection.glob("*-*.wav"))]
    return labels(collection, tmp_path / "labels.csv", rows)


def test_the_table_is_what_was_written(table, collection):
    rows = list(table.rows(7))
    assert [len(part.paths) for part in rows] == [7] * (table.count // 7) + [table.count % 7] * (table.count % 7 > 0)
    assert sum(int(part.begins.sum()) for part in rows) == 13
    expected = list(torchbeats.embed(collection, "beats-nano", pool="bands", window=1.0))
    assert [path for part in rows for path in part.paths] == [row.path for row in expected]
    values = np.concatenate([part.values for part in rows])
    np.testing.assert_array_equal(values, np.stack([row.embedding for row in expected]))
    chosen = np.array([30, 2, 2, 17])
    np.testing.assert_array_equal(table.take(chosen), values[chosen])


def test_windows_get_labels_by_overlap(table, collection, tmp_path):
    rows = [("mixed.wav", "low", 0.0, 1.6), ("mixed.wav", "high", 3.4, 3.6), ("mixed.wav", "hiss", 4.45, 5.0)]
    labelled = read_labelled([labels(collection, tmp_path / "l.csv", rows)])
    windows = label_windows(table, labelled)
    assert [(example.start, example.labels) for example in windows.labelled.examples] == [
        (0.0, ("low",)),
        (1.0, ("low",)),
        (3.0, ("high",)),  # all of a short stretch is in it
        (4.0, ("hiss",)),
    ]
    everything = label_windows(table, labelled, fully_annotated=True)
    assert [len(example.labels) for example in everything.labelled.examples] == [1, 1, 0, 1, 1, 0]
    assert everything.labelled.problem_type == "multi_label"
    strict = label_windows(table, labelled, min_overlap=1.0)
    assert [example.start for example in strict.labelled.examples] == [0.0, 3.0, 4.0]
    beyond = read_labelled([labels(collection, tmp_path / "b.csv", [*rows, ("mixed.wav", "low", 90.0, 91.0)])])
    assert [example.start for example in label_windows(table, beyond).unused] == [90.0]
    with pytest.raises(SettingsError, match="more than 0 and at most 1, not 0"):
        label_windows(table, labelled, min_overlap=0.0)
    elsewhere = Labelled([Example("other.wav", ("low",)), Example("x.wav", ("low",))], ["low"], "single_label")
    with pytest.raises(InputError, match="Do both name the same files"):
        label_windows(table, elsewhere)


def test_the_command_makes_a_model_that_tag_takes(run, table, collection, whole, tmp_path):
    head = tmp_path / "head.safetensors"
    status, out, err = run("fit", table.path, whole, "-o", head, "--suggest", 3)
    assert (status, err.count("Traceback")) == (0, 0)
    result = json.loads(out)
    assert result["classes"] == ["high", "hiss", "low"]
    assert result["figures"]["accuracy"] >= 0.95  # the sounds could hardly be more different
    assert all(row["threshold"] is not None and row["precision"] >= 0.9 for row in result["by_class"])
    assert {one["path"] for one in result["suggestions"]} == {str(collection / "mixed.wav")}  # all else has labels
    assert (tmp_path / "head.suggestions.csv").read_text().count("\n") == 4

    model = torchbeats.load(head)
    assert model.labels == result["classes"]
    assert model.cfg.abstention == result["abstention"]
    assert (0 < result["abstention"]["threshold"] < 1, result["abstention"]["false_alarms"] <= 0.05) == (True, True)
    assert model.cfg.thresholds == pytest.approx([row["threshold"] for row in result["by_class"]], abs=1e-6)
    rows = {}
    for source in (table.path, collection):
        status, out, _ = run("tag", source, "-m", head, "--top", 3)
        assert status == 0
        rows[source] = [json.loads(line) for line in out.splitlines()]
    for stored, heard in zip(rows[table.path], rows[collection], strict=True):
        assert (stored["path"], stored["start"], stored["end"]) == (heard["path"], heard["start"], heard["end"])
        found = {one["label"]: one["probability"] for one in stored["labels"]}
        assert found == pytest.approx({one["label"]: one["probability"] for one in heard["labels"]}, abs=1e-5)
    mixed = [json.loads(line) for line in run("tag", table.path, "-m", head, "--every", 1, "--top", 1)[1].splitlines()]
    mixed = [row["labels"][0]["label"] for row in mixed if row["path"].endswith("mixed.wav")]
    assert mixed == ["low", "low", "high", "high", "hiss", "hiss"]


def test_the_command_refuses(run, table, collection, whole, tmp_path):
    head = tmp_path / "head.safetensors"
    assert run("fit", table.path, whole, "-o", head)[0] == 0
    before = head.read_bytes()
    for arguments, said in (
        ((table.path, whole, "-o", head), "exists; use --overwrite"),
        ((table.path, whole, "-o", tmp_path / "h.pt"), "must end in .safetensors"),
        ((whole, whole, "-o", tmp_path / "x.safetensors"), "no table that torchbeats wrote"),
        ((table.path, whole, "-o", tmp_path / "x.safetensors", "-m", "beats-nano-tagger"), "made with other weights"),
        ((table.path, whole, "-o", tmp_path / "x.safetensors", "--precision", 0), "A precision is more than 0"),
    ):
        status, out, err = run("fit", *arguments)
        assert (status, out) == (2, "")
        assert said in err
    assert head.read_bytes() == before
    other = tmp_path / "other.parquet"
    torchbeats.write_table(collection / "mixed.wav", other, "beats-nano", EmbeddingPlan("mean"))
    status, _, err = run("tag", other, "-m", head)
    assert status == 2
    assert "pool is mean in the table and bands for the head" in err
    status, _, err = run("tag", table.path, "-m", "beats-nano-tagger")
    assert status == 2
    assert "Only a head that `torchbeats fit` made scores a table" in err


def rows_of_two_classes(n, seed=0, several=False):
    """Rows whose classes differ in their mean, with a file for every four of them."""
    chance = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    x = chance.standard_normal((n, 30)).astype(np.float32) + 1.2 * truth[:, np.newaxis]
    names = [("b",) if t else ("a",) for t in truth]
    if several:
        names = [("b",) if t else () for t in truth]
    examples = [Example(f"{i // 4}.wav", names[i], i, i + 1, group=str(i // 4)) for i in range(n)]
    return x, Labelled(examples, ["b"] if several else ["a", "b"], "multi_label" if several else "single_label")


@pytest.mark.parametrize("several", [False, True])
def test_probabilities_are_as_often_right_as_they_say(several):
    x, windows = rows_of_two_classes(400, several=several)
    head = fit_head(x, windows)
    new, truth = rows_of_two_classes(4000, seed=1, several=several)
    probabilities = head.probabilities(new.astype(np.float64))
    there = truth.targets()[:, 0] > 0 if several else truth.targets() == 1
    column = probabilities[:, -1]
    for low in (0.1, 0.3, 0.5, 0.7, 0.9):
        inside = (column >= low - 0.1) & (column < low + 0.1)
        if inside.sum() > 100:
            assert abs(there[inside].mean() - column[inside].mean()) < 0.12  # four standard errors of 200 draws
    assert head.figures["mAP"] > 0.9


def test_fewer_rows_than_dimensions_give_the_same_solution():
    from sklearn.linear_model import LogisticRegression

    chance = np.random.default_rng(3)
    truth = np.arange(24) % 3
    x = chance.standard_normal((24, 200)) + np.eye(3)[truth] @ chance.standard_normal((3, 200))
    examples = [Example("a.wav", ("abc"[t],), i, i + 1, group=str(i)) for i, t in enumerate(truth)]
    from torchbeats.heads.fitting import _fits

    ((_, linear),) = _fits(x, truth, 3, (0.1,), balance=False)
    scaled = (x - x.mean(0)) / x.std(0)
    direct = LogisticRegression(C=0.1, max_iter=10_000, tol=1e-8).fit(scaled, truth)
    expected = direct.decision_function(scaled)
    np.testing.assert_allclose(linear.logits(x), expected, atol=2e-3)  # both stop a little before the optimum
    assert len(examples) == 24


def test_two_classes_and_absent_ones():
    x, windows = rows_of_two_classes(40)
    windows = Labelled(windows.examples, ["a", "b", "c"], "single_label")
    probabilities = fit_head(x, windows).probabilities(x.astype(np.float64))
    assert probabilities[:, 2].max() < 1e-3
    assert (probabilities.argmax(1) == windows.targets()).mean() > 0.9


def test_two_sounds_leave_one_class_to_each_fold():
    windows = Labelled([Example(f"{name}.wav", (name,), group=name) for name in "ab"], ["a", "b"], "single_label")
    head = fit_head(np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32), windows)
    assert head.linear.logits(np.array([[-1.0, 0.0], [1.0, 0.0]])).argmax(1).tolist() == [0, 1]


def test_thresholds():
    truth = np.array([1, 1, 0, 1, 0, 0], bool)
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert threshold_for(truth, scores, 1.0) == (0.8, 1.0, pytest.approx(2 / 3))
    assert threshold_for(truth, scores, 0.75) == (0.6, 0.75, 1.0)
    assert threshold_for(~truth, scores, 0.9)[2] == 0
    tied = threshold_for(np.array([1, 0], bool), np.array([0.5, 0.5]), 0.9)
    assert np.isnan(tied[0])  # what has one score stands or falls together


def test_one_class_is_not_enough_and_one_file_is_told():
    x, windows = rows_of_two_classes(8)
    with pytest.raises(InputError, match="of one class"):
        fit_head(x[::2], windows.subset(range(0, 8, 2)))
    same = Labelled([example._replace(group="one") for example in windows.examples], windows.classes, "single_label")
    head = fit_head(x, same)
    assert any("of one file" in warning for warning in head.warnings)
    one_each = Labelled(windows.examples[:2], windows.classes, "single_label")
    head = fit_head(x[:2], one_each)
    assert head.held_out is None
    assert np.isnan(head.thresholds).all()
    assert any("No figures" in warning for warning in head.warnings)


def test_what_few_files_have_is_told_where_no_threshold_does():
    random = np.random.default_rng(0)
    examples = [Example(f"{k % 2}-{k // 2 % 4}.wav", ("ab"[k % 2],), start=float(k)) for k in range(16)]
    x = random.standard_normal((16, 2)).astype(np.float32)  # nothing to tell them by
    head = fit_head(x, Labelled(examples, ["a", "b"], "single_label"), precision=0.999)
    (said,) = [warning for warning in head.warnings if warning.startswith("No threshold")]
    assert "; theirs is 0.5. Labels in more files would help, which few have: " in said
    assert all(f"{name} (4)" in said for name, value in zip("ab", head.thresholds, strict=True) if np.isnan(value))


def test_a_head_follows_an_earlier_layer(collection, whole, run, tmp_path):
    table = tmp_path / "t.parquet"
    torchbeats.write_table(collection, table, "beats-nano", EmbeddingPlan("bands", layer=3, window=1.0))
    assert run("fit", table, whole, "-o", tmp_path / "h.safetensors")[0] == 0
    model = torchbeats.load(tmp_path / "h.safetensors")
    assert model.cfg.encoder_layers == 3
    stored = np.concatenate([group.values for group in scored_groups(Table(table), model)])
    heard = list(torchbeats.tag(collection, model, every=1.0, window=1.0, top=3))
    expected = np.array([[dict(row.labels)[name] for name in model.labels] for row in heard])
    np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_steps_are_refused(collection, whole, run, tmp_path):
    table = tmp_path / "t.parquet"
    torchbeats.write_table(collection, table, "beats-nano", EmbeddingPlan("steps", window=1.0))
    status, _, err = run("fit", table, whole, "-o", tmp_path / "h.safetensors")
    assert status == 2
    assert "the table has steps" in err


def test_suggestions_are_uncertain_or_of_rare_classes_and_not_alike(table, collection, tmp_path):
    rows = [("low-0.wav", "low", "", ""), ("low-3.wav", "low", "", ""), ("low-6.wav", "low", "", ""),
            ("high-1.wav", "high", "", ""), ("high-4.wav", "high", "", "")]  # fmt: skip
    windows = label_windows(table, read_labelled([labels(collection, tmp_path / "l.csv", rows)]))
    head = fit_head(table.take(windows.indices), windows.labelled)
    chosen = suggest(table, head, windows.indices, 6)
    assert len({(one.path, one.start) for one in chosen}) == 6
    assert {one.reason for one in chosen} == {"uncertain", "rare class"}
    named = {row[0] for row in rows}
    assert not named & {one.path.rsplit("/", 1)[1] for one in chosen}
    assert any(one.path.rsplit("/", 1)[1].startswith(("hiss", "mixed")) for one in chosen)  # nothing like the labelled
    assert suggest(table, head, windows.indices, 6) == chosen
    everything = suggest(table, head, windows.indices, 10_000)
    assert len(everything) == table.count - len(windows.indices)


def test_a_linear_head_is_two_numbers_a_class():
    linear = Linear(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([0.5, -0.5]))
    np.testing.assert_allclose(linear.logits(np.array([[1.0, 1.0]])), [[1.5, 1.5]])


def test_a_model_of_the_neighbours_is_refused(table):
    with pytest.raises(ModelError, match="Only a head"):
        list(scored_groups(table, torchbeats.load("beats-nano")))
