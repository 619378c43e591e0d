"""A fine-tuning begins with a linear head on frozen embeddings, and is never worse on held-out sounds than that."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml

import torchbeats
from helpers import small_model
from torchbeats.data.folds import split
from torchbeats.data.labelled import Example, Labelled, read_labelled
from torchbeats.errors import SettingsError
from torchbeats.evaluation.metrics import average_precision
from torchbeats.evaluation.regression import regressions
from torchbeats.evaluation.rows import rows_of
from torchbeats.plans import EmbeddingPlan, ScorePlan
from torchbeats.training import linear_head
from torchbeats.training.configuring import finetune_settings
from torchbeats.training.finetune_run import Finetune
from torchbeats.training.finetuning import with_head
from torchbeats.training.folder import RunFolder
from torchbeats.training.linear_head import drawn, linear_model
from torchbeats.training.listener import Listener
from torchbeats.training.validation import Validate, noise_of_difference

pytest.importorskip("sklearn")
RATE = 16_000
HERTZ = {"high": 3_000.0, "low": 200.0, "middle": 900.0}
QUICK = ["data.seconds=1", "data.batch_seconds=8", "data.workers=0", "trainer.accelerator=cpu", "trainer.save_every=1"]


class Notes(Listener):
    """Keeps what it is told."""

    def __init__(self):
        self.noted, self.warned = [], []

    def note(self, message):
        self.noted.append(message)

    def warn(self, message):
        self.warned.append(message)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    for name, hertz in HERTZ.items():
        (folder / name).mkdir()
        for seed in range(8):
            random = np.random.default_rng([seed, int(hertz)])
            n = np.arange(round(0.5 * RATE))
            tone = 0.2 * np.sin(2 * np.pi * hertz * random.uniform(0.8, 1.25) * n / RATE)
            soundfile.write(folder / name / f"{seed}.wav", tone + 0.05 * random.standard_normal(len(n)), RATE)
    return folder


def plain_model():
    torch.manual_seed(0)
    return small_model(dropout=0.0, attention_dropout=0.0)


def settings_with(*assignments):
    return finetune_settings(None, [*QUICK, *assignments])


def fitted(labelled, settings):
    """A model whose head is the fitted one."""
    return linear_model(plain_model(), labelled, None, settings, Listener()).model


def embeddings(model, labelled, pool):
    return rows_of(labelled.examples, model.eval(), EmbeddingPlan(pool, window=1.0)).values


@pytest.mark.parametrize("pool", ["mean", "statistics"])
def test_the_head_says_of_the_training_sounds_what_the_regression_says(folder, pool, monkeypatch):
    monkeypatch.setattr(linear_head, "SEARCH_WORK", 0)  # so that the regularisation is known
    labelled = read_labelled([folder])
    model = fitted(labelled, settings_with(f"model.pool={pool}"))
    x = embeddings(model, labelled, pool)
    ((_, expected),) = regressions(x, labelled.targets(), x, 3, [linear_head.USUAL_C])
    scores = rows_of(labelled.examples, model.eval(), ScorePlan(window=1.0)).values
    assert (scores.argmax(1) == expected.argmax(1)).all()
    assert (expected.argmax(1) == labelled.targets()).mean() > 0.8  # it has something to say


def test_several_labels_a_sound_are_a_regression_each(folder, monkeypatch):
    monkeypatch.setattr(linear_head, "SEARCH_WORK", 0)
    examples = read_labelled([folder]).examples
    examples = [e._replace(labels=("odd", *e.labels) if i % 2 else e.labels) for i, e in enumerate(examples)]
    labelled = Labelled(examples, ["high", "low", "middle", "odd"], "multi_label")
    model = fitted(labelled, settings_with("model.pool=mean"))
    x, truth = embeddings(model, labelled, "mean"), labelled.targets() > 0
    ((_, expected),) = regressions(x, truth, x, 4, [linear_head.USUAL_C])
    scores = rows_of(labelled.examples, model.eval(), ScorePlan(window=1.0)).values
    for k in range(3):  # calibration keeps the order; two neighbours may change places, as the fits end apart
        assert np.corrcoef(expected[:, k].argsort().argsort(), scores[:, k].argsort().argsort())[0, 1] > 0.99
    assert average_precision(truth, scores)[:3].min() > 0.7  # shares of the sounds are 0.33


def test_the_linear_head_is_kept_if_no_epoch_does_better(folder, tmp_path):
    training, held_out, _ = split(read_labelled([folder]), 0.4, 0)
    start, notes = plain_model(), Notes()
    settings = settings_with(
        "model.lr=0.3", "model.patience=0", "model.epochs=2", "model.average=0", "model.warmup=0", "model.pool=bands"
    )
    result = torchbeats.load(Finetune(tmp_path / "run", start, training, held_out, settings, {}, notes).train())
    (sentence,) = notes.noted
    assert sentence.endswith("; the linear head is kept.")
    found = json.loads((tmp_path / "run" / "validation.json").read_text("utf-8"))
    assert found["linear_head"]["kept"]
    assert found["figures"]["accuracy"] == found["linear_head"]["accuracy"]
    for name, weight in start.state_dict().items():
        assert torch.equal(result.state_dict()[name], weight), name
    assert result.labels == training.classes
    assert result.predictor.weight.any()


def test_a_run_from_before_the_setting_goes_on_without_it_only(folder, tmp_path):
    labelled = read_labelled([folder])
    Finetune(tmp_path / "run", plain_model(), labelled, None, settings_with("model.head_first=false"), {})
    file = tmp_path / "run" / "run.yaml"
    about = yaml.safe_load(file.read_text("utf-8"))
    del about["model"]["head_first"], about["tune"]
    file.write_text(yaml.safe_dump(about, allow_unicode=True), "utf-8")
    with pytest.raises(SettingsError, match=r"model\.head_first was False and is now True"):
        Finetune(tmp_path / "run", plain_model(), labelled, None, settings_with(), {})
    run = Finetune(tmp_path / "run", plain_model(), labelled, None, settings_with("model.head_first=false"), {})
    assert not run.fits_head


def test_embeddings_are_computed_where_training_is(folder, monkeypatch):
    devices, ready = [], linear_head.ready

    def called(model, device):
        devices.append(device)
        return ready(model)  # this machine may have none

    monkeypatch.setattr(linear_head, "ready", called)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    labelled = read_labelled([folder])
    for more in ("trainer.accelerator=gpu", "trainer.accelerator=cpu"):
        linear_model(plain_model(), labelled, None, settings_with(more, "model.pool=mean"), Listener())
    assert devices == ["cuda", None]
    assert linear_head.device_of(settings_with("trainer.accelerator=auto", "trainer.devices='2,'").trainer) == "cuda:2"
    assert linear_head.device_of(settings_with("trainer.accelerator=auto", "trainer.devices=2").trainer) == "cuda"


def test_a_head_for_the_same_classes_stays(folder, tmp_path):
    labelled, settings = read_labelled([folder]), settings_with()
    begun = with_head(plain_model(), labelled.classes, "single_label", settings.model)
    assert not Finetune(tmp_path / "a", begun, labelled, None, settings, {}).fits_head
    assert Finetune(tmp_path / "b", begun, labelled, None, settings_with("model.pool=bands"), {}).fits_head


def test_what_was_measured_with_the_old_head_does_not_go_with_the_new_one():
    model = plain_model()
    model.cfg.update({"abstention": {"threshold": 0.9}, "thresholds": [0.8, None], "fitted": {"hop": 1}})
    model.label_dict = {0: "high", 1: "low"}
    for classes in (["a", "b"], ["high", "low"]):
        tuned = with_head(model, classes, "single_label", settings_with().model)
        assert not {"abstention", "thresholds", "fitted"} & tuned.cfg.to_dict().keys()
    assert model.cfg.abstention["threshold"] == 0.9  # the model to begin with is as it was


def test_sounds_that_do_not_suffice_leave_the_head_untrained(tmp_path):
    (tmp_path / "junk.wav").write_text("junk")
    labelled = Labelled([Example(str(tmp_path / "junk.wav"), (name,)) for name in "ab"], ["a", "b"], "single_label")
    notes, start = Notes(), plain_model()
    assert linear_model(start, labelled, None, settings_with(), notes) is None
    assert "The head begins untrained" in notes.warned[0]
    run = Finetune(tmp_path / "run", start, labelled, None, settings_with(), {})
    assert run._begun()[0].cfg.predictor_pool == "statistics"  # training may still do


def test_the_pooling_is_the_one_that_tells_held_out_sounds_apart(tmp_path):
    """Steady tones and the same tones switched on and off have one mean at full loudness, and another deviation."""
    folder, random = tmp_path / "d", np.random.default_rng(0)
    for name in ("steady", "broken"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            n = np.arange(2 * RATE)
            on = 1.0 if name == "steady" else (n // (RATE // 4)) % 2
            tone = 0.3 * np.sin(2 * np.pi * random.uniform(300, 3_000) * n / RATE) * on
            soundfile.write(folder / name / f"{i}.wav", tone + 1e-3 * random.standard_normal(len(n)), RATE)
    training, held_out, _ = split(read_labelled([folder]), 0.3, 0)
    fitted = linear_model(plain_model(), training, held_out, settings_with(), Listener())
    assert fitted.compared.keys() == {"mean", "bands", "statistics"}
    assert fitted.compared[fitted.pool] == max(fitted.compared.values())
    assert fitted.model.cfg.predictor_pool == fitted.pool
    for pool, function in linear_head._FROM_STATISTICS.items():  # of one embedding, all three
        x = embeddings(fitted.model, training, "statistics")
        x = x.reshape(len(x), 2, fitted.model.grid.bands, -1)
        np.testing.assert_allclose(function(x), embeddings(fitted.model, training, pool), atol=1e-5)


def test_noise_is_that_of_the_pairs_that_differ():
    truth = np.zeros(100, int)
    right, wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    a = np.array([right] * 60 + [wrong] * 40)
    b = np.array([right] * 50 + [wrong] * 40 + [right] * 10)  # 10 that only a has, 10 that only b has
    none = [None] * 100
    # McNemar: (10 + 10 - 0) / 100² of a difference of zero
    assert noise_of_difference(truth, a, b, none) == pytest.approx(np.sqrt(20) / 100, rel=0.01)
    assert noise_of_difference(truth, a, a, none) == 0
    groups = [str(i // 10) for i in range(100)]  # the ten of either kind come from one recording each
    assert noise_of_difference(truth, a, b, groups) == pytest.approx(np.sqrt(200) / 100, rel=0.1)
    assert noise_of_difference(truth, a, b, ["one", *["two"] * 99]) < 0.1  # too few groups to count by
    several = np.random.default_rng(0).random((100, 3)) < 0.4
    assert noise_of_difference(several, several * 1.0, several * 1.0, none) == 0
    assert 0 < noise_of_difference(several, several * 1.0, np.random.default_rng(1).random((100, 3)), none) < 0.1


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (3, 1), (6, 3)])
def test_a_gain_as_large_as_its_noise_is_none_however_it_is_rounded(gained, lost, tmp_path):
    """The square of the gain is then the number of pairs that differ, whatever the number of sounds."""
    verdicts = set()
    for count in range(gained + lost + 1, 60):
        after, before = np.zeros((2, count))
        after[:gained], before[gained : gained + lost] = 1, 1
        scores = {
            name: (torch.arange(count), torch.from_numpy(np.stack([right, 1 - right], 1)))
            for name, right in {"tuned": after, "linear": before}.items()
        }
        labelled = Labelled([Example(f"{i}.wav", ("high",)) for i in range(count)], ["high", "low"], "single_label")
        validate = Validate(plain_model, labelled, settings_with(), 1, RunFolder(tmp_path), tmp_path / "best")
        validate.scores = scores
        verdicts.add(validate.verdict().linear)
    assert verdicts == {True}


def test_pieces_of_a_file_count_together(tmp_path):
    """Of 100 pieces of ten recordings the ten of one are right only after training: one thing, not ten, is better."""
    right = np.repeat(np.eye(2)[0][np.newaxis], 100, 0)
    wrong = right.copy()
    wrong[:10] = [0, 1]
    scores = {
        name: (torch.arange(100), torch.from_numpy(values))
        for name, values in {"tuned": right, "linear": wrong}.items()
    }
    for pieces, kept in ((10, True), (1, False)):
        examples = [Example(f"{i // pieces}.wav", ("high",), i % pieces, i % pieces + 1.0) for i in range(100)]
        labelled = Labelled(examples, ["high", "low"], "single_label")
        validate = Validate(plain_model, labelled, settings_with(), 1, RunFolder(tmp_path), tmp_path / "best")
        validate.scores = scores
        assert validate.verdict().linear == kept


def test_of_many_sounds_a_part_is_drawn_with_all_rare_ones():
    examples = [Example(f"{i}.wav", ("rare" if i % 1000 == 7 else "often",)) for i in range(12_000)]
    labelled = Labelled(examples, ["often", "rare"], "single_label")
    rows = drawn(labelled, 100, 0)
    assert len(rows) == len(set(rows)) == linear_head.MOST_SOUNDS
    assert {i for i in range(12_000) if i % 1000 == 7} <= set(rows)
    assert rows == drawn(labelled, 100, 0) != drawn(labelled, 100, 1)
    assert len(drawn(labelled, 100_000, 0)) == linear_head.MOST_VALUES / 100_000
    assert drawn(labelled.subset([7, 8, 9]), 100, 0) == [0, 1, 2]
