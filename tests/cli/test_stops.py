"""Commands that are stopped where nothing is saved yet: while they list, look, measure, cluster, score or write."""

import os
import signal

import pytest

import torchbeats
from helpers import small_model, small_tokenizer, write_sounds
from torchbeats.cli import clips, embed, evaluate, fit, probe, tag, tokens
from torchbeats.errors import Stopped
from torchbeats.interrupts import SIGNALS, as_exceptions
from torchbeats.search import searching
from torchbeats.training import cross_validation, finetune_run, loop, validation
from torchbeats.training import run as pretraining
from torchbeats.training.distillation import Distillation
from torchbeats.training.reporter import Reporter

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
GOES_ON = "Stopped: What is done is kept; the same command goes on."
ANEW = "Stopped: Nothing was written; the same command begins anew."
SETTINGS = (
    "config.encoder_layers=1 config.encoder_embed_dim=32 config.embed_dim=32 config.encoder_ffn_embed_dim=64 "
    "config.encoder_attention_heads=2 config.conv_pos=16 config.conv_pos_groups=4 tokens.quant_n=32 tokens.quant_dim=8 "
    "data.crop_seconds=[0.5,1] data.batch_seconds=6 data.statistics_seconds=30 model.steps=2 model.predictor_layers=1 "
    "model.predictor_width=32 distillation.steps=2 distillation.estimator_layers=1 distillation.kmeans_batches=2 "
    "data.workers=0 trainer.accelerator=cpu trainer.devices=1"
)
QUICK = [part for setting in SETTINGS.split(" ") for part in ("--set", setting)]
TUNED = ["--set", "data.seconds=1", "--set", "data.workers=0", "--set", "trainer.accelerator=cpu", "--epochs", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled sounds, and models."""
    folder = tmp_path_factory.mktemp("folder")
    write_sounds(folder / "sounds", {f"{name}/{i}.wav": 0.6 for name in ("cat", "dog") for i in range(6)})
    tagger = small_model(finetuned_model=True, predictor_class=2, problem_type="single_label")
    tagger.label_dict = {0: "cat", 1: "dog"}
    torchbeats.save(tagger, folder / "tagger.safetensors")
    torchbeats.save(small_model(), folder / "model.safetensors")
    torchbeats.save(small_tokenizer(), folder / "tokenizer.safetensors")
    (folder / "l.csv").write_text(f"path,start,end,label\n{folder}/sounds/cat/0.wav,0,0.3,cat\n")
    return folder


def stopping(monkeypatch, where, name, number):
    """Let a signal come when this is called."""
    work = getattr(where, name)

    def stopped(*arguments, **options):
        os.kill(os.getpid(), number)
        return work(*arguments, **options)

    monkeypatch.setattr(where, name, stopped)


PLACES = {
    "looking at a corpus": (pretraining, "index"),
    "measuring": (pretraining, "fbank_statistics"),
    "making a tokenizer": (Distillation, "__init__"),
    "k-means": (Distillation, "begin"),
}


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("place", ["looking at a corpus", "measuring", "making a tokenizer", "k-means"])
def test_pretrain(run, folder, tmp_path, monkeypatch, place, number):
    arguments = ["pretrain", folder / "sounds", "-o", tmp_path / "run", "--size", "nano", "--iterations", "2", *QUICK]
    with monkeypatch.context() as patch:
        stopping(patch, *PLACES[place], number)
        status, _, err = run(*arguments)
    assert (status, err) == (STATUS[number], GOES_ON)
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(*arguments)[0] == 0
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize(
    ("where", "name", "more"),
    [
        (loop, "environment_for", []),
        (finetune_run, "LabelledCorpus", []),
        (validation, "rows_of", []),
        (validation, "rows_of", ["--folds", "2", "--set", "model.patience=1", "--set", "data.validation=0.4"]),
        (cross_validation, "rows_of", ["--folds", "2"]),
    ],
)
def test_finetune(run, folder, tmp_path, monkeypatch, where, name, more, number):
    model = ["-m", folder / "model.safetensors"]
    arguments = ["finetune", folder / "sounds", *model, "-o", tmp_path / "run", *TUNED, *more]
    with monkeypatch.context() as patch:
        stopping(patch, where, name, number)
        status, _, err = run(*arguments)
    assert status == STATUS[number]
    assert "the same command goes on." in err
    assert "Traceback" not in err
    assert run(*arguments)[0] == 0
    assert not list((tmp_path / "run").rglob("*.ckpt"))


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "sounds", "--size", "nano", "--iterations", "2", *QUICK],
        ["finetune", "sounds", "-m", "model.safetensors", *TUNED, "--epochs", "2", "--folds", "2"],
        ["finetune", "sounds", "-m", "model.safetensors", *TUNED, "--epochs", "9", "--set", "model.patience=1",
         "--set", "model.lr=1e-9", "--set", "model.head_first=false"],  # else it ends with the first step
    ],
    ids=["pretrain", "folds", "patience"],
)  # fmt: skip
def test_a_stop_in_any_step_also_in_the_last_changes_nothing(run, folder, tmp_path, monkeypatch, words, step):
    monkeypatch.chdir(folder)
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    assert run(*words, "-o", calm)[0] == 0

    def stop(self, trainer, *_):
        if trainer.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "on_train_batch_start", stop, raising=False)
        status, _, err = run(*words, "-o", stopped)
    assert status == 143
    assert f"Stopped at step {step}; the same command goes on." in err
    assert not (stopped / "model.safetensors").exists()
    assert run(*words, "-o", stopped)[0] == 0
    models = [path.relative_to(calm) for path in calm.rglob("*.safetensors")]
    assert models
    for model in models:
        assert (stopped / model).read_bytes() == (calm / model).read_bytes(), model
    assert not list(stopped.rglob("*.ckpt"))


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize(
    ("where", "name", "words", "said"),
    [
        (embed, "write", ["sounds", "-m", "model.safetensors", "-o", "out/t.npz"], GOES_ON),
        (tokens, "write", ["sounds", "-t", "tokenizer.safetensors", "-o", "out/t.npz"], GOES_ON),
        (clips, "cut_clips", ["l.csv", "-o", "out/clips"], GOES_ON),
        (tag, "find_sounds", ["sounds", "-m", "tagger.safetensors"],
         "Stopped: Nothing but the rows that were printed is kept; the same command begins anew."),
        (evaluate, "read_labelled", ["sounds", "-m", "tagger.safetensors"], ANEW),
        (probe, "read_labelled", ["sounds", "-m", "model.safetensors", "--no-cache"], ANEW),
        (searching, "search", ["t.parquet", "sounds/cat/0.wav"],
         "Stopped: Only what was printed, and whole files, are there; the same command begins anew."),
        (fit, "Table", ["t.parquet", "sounds", "-o", "out/head.safetensors"], ANEW),
    ],
)  # fmt: skip
def test_other_commands(run, folder, tmp_path, monkeypatch, where, name, words, said, number):
    monkeypatch.chdir(folder)
    (tmp_path / "out").mkdir()
    words = [word.replace("out/", f"{tmp_path}/out/") for word in words]
    if "t.parquet" in words and not (folder / "t.parquet").exists():
        assert run("embed", "sounds", "-m", "model.safetensors", "-o", "t.parquet")[0] == 0
    stopping(monkeypatch, where, name, number)
    status, out, err = run(where.__name__.split(".")[-1].replace("searching", "search"), *words)
    assert (status, out, err) == (STATUS[number], "", said)
    assert not list((tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("number", SIGNALS)
def test_after_a_signal_any_other_ends_the_process_at_once(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    handlers = []

    def work():
        with as_exceptions():
            try:
                os.kill(os.getpid(), number)
            finally:
                handlers.extend(signal.getsignal(one) for one in SIGNALS)

    with pytest.raises(Stopped):
        work()
    assert handlers == [signal.SIG_DFL, signal.SIG_DFL]
    assert [signal.getsignal(one) for one in SIGNALS] == before
