"""A whole run as people start it: its files, that no kill changes what it computes, several processes, what it says.

A process of its own costs seconds to import Lightning; so most runs are made within this one, or forked from a server
that has imported everything.
"""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file

import torchbeats
from helpers import forking, noise, pretrain_command, small_model, tiny_run, tone
from torchbeats import cli
from torchbeats.errors import CheckpointError
from torchbeats.tokenizers import NormEMAVectorQuantizer, RandomProjectionTokenizer
from torchbeats.training import saving
from torchbeats.training.configuring import settings
from torchbeats.training.distillation import Distillation
from torchbeats.training.embeddings import COLUMNS
from torchbeats.training.listener import Listener
from torchbeats.training.pretraining import Pretraining
from torchbeats.training.reporter import Reporter
from torchbeats.training.run import Run

EXAMPLES = Path(__file__).parents[2] / "examples" / "audio"
TINY = {
    "distillation__kmeans_batches": 2,
    "trainer__devices": 1,
    "trainer__save_every": 2,
}
PHASES = ["iteration-1/model", "iteration-2/tokenizer", "iteration-2/model"]


def assignments(**over):
    return tiny_run(**{**TINY, **over})


def command(data, out, **over):
    return pretrain_command(data, out, **{**TINY, **over})


def run(data, out, listener=None, teacher=None, **over):
    return Run(out, [str(data)], settings("nano", assignments=assignments(**over)), teacher, listener).train()


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        del row["clips_per_second"]  # a matter of the clock
    return found


def weights(folder):
    return {name: load_file(folder / f"{name}.safetensors") for name in ["iteration-1/tokenizer", *PHASES, "model"]}


def same(a, b):
    """Bit for bit."""
    assert a.keys() == b.keys()
    for file, tensors in a.items():
        assert tensors.keys() == b[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b[file][name]), (file, name)


class Notes(Listener):
    def __init__(self):
        self.said, self.warned = [], []

    def say(self, message):
        self.said.append(message)

    def warn(self, message):
        self.warned.append(message)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A small corpus, some of which is of no use: one file from the start, one only when it is decoded."""
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(9):
        soundfile.write(folder / f"{i}.wav", noise(0.6 + 0.3 * i, seed=i, level=0.03 * (i + 1)), 16_000)
    for i in range(3):
        soundfile.write(folder / f"tone-{i}.flac", tone(1.5, hertz=300.0 * (i + 1)), 16_000)
    (folder / "empty.wav").touch()
    data = (folder / "tone-2.flac").read_bytes()
    (folder / "late.flac").write_bytes(data[:200] + bytes(len(data) - 200))  # its header is whole, what follows is not
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sounds):
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    notes = Notes()
    run(sounds, folder, notes)
    return folder, notes


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_from_sounds_to_embeddings(tmp_path):
    """In a process of its own, on the sounds that come with the package; nothing is said where nobody looks."""
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "torchbeats", *command(EXAMPLES, out)], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    logs = {name for name in files if name.startswith("tensorboard/")}
    assert files - logs == {
        ".lock",
        "run.yaml",
        "corpus.parquet",
        "statistics.json",
        "metrics.csv",
        "model.safetensors",
        "iteration-1/tokenizer.safetensors",
        "iteration-1/model.safetensors",
        "iteration-2/tokenizer.safetensors",
        "iteration-2/model.safetensors",
    }
    assert {name.split("/")[1] for name in logs} == {phase.replace("/", "-") for phase in PHASES}
    model = torchbeats.load(out / "model.safetensors")
    statistics = json.loads((out / "statistics.json").read_text())
    assert (model.cfg.fbank_mean, model.cfg.fbank_std) == (statistics["fbank_mean"], statistics["fbank_std"])
    assert model.extract_features(torch.randn(1, 16_000))[0].shape == (1, 48, 32)
    table = tmp_path / "embeddings.parquet"
    with pytest.raises(SystemExit) as stopped:
        sys_argv(["embed", str(EXAMPLES), "-m", str(out / "model.safetensors"), "-o", str(table)])
    assert stopped.value.code in (0, None)
    assert pq.read_table(table).num_rows == len(list(EXAMPLES.iterdir())) - 1  # one is a README


def sys_argv(arguments):
    """`main` in this process."""
    before, sys.argv = sys.argv, ["torchbeats", *arguments]
    try:
        cli.main()
        sys.exit(0)
    finally:
        sys.argv = before


def main(capsys, *arguments):
    """Exit status, standard output and standard error of the command in this process."""
    with pytest.raises(SystemExit) as stopped:
        sys_argv([str(argument) for argument in arguments])
    return stopped.value.code or 0, *capsys.readouterr()


def test_show_prints_settings_that_can_be_given_again(tmp_path, capsys):
    code, shown, said = main(capsys, *command(tmp_path, tmp_path / "run", seed=5), "--show")
    assert (code, said) == (0, "")
    assert not (tmp_path / "run").exists()
    (tmp_path / "again.yaml").write_text(shown)
    assert settings("base", tmp_path / "again.yaml") == settings("nano", assignments=assignments(seed=5))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--set", "model.learning_rate=1"], "There is no setting model.learning_rate; there are model.steps"),
        (["--set", "model.steps=many"], "model.steps must be of type int"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(tmp_path, sounds, capsys, extra, said):
    code, _, error = main(capsys, *command(sounds, tmp_path / "run"), *extra)
    assert code == 2
    assert said in error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_inputs_without_any_sound_are_told_in_a_sentence(tmp_path, capsys):
    (tmp_path / "sounds").mkdir()
    code, _, error = main(capsys, *command(tmp_path / "sounds", tmp_path / "a"))
    assert code == 2
    assert error.startswith("Error: There is no sound file in the folder")
    (tmp_path / "sounds" / "empty.wav").touch()
    code, _, error = main(capsys, *command(tmp_path / "sounds", tmp_path / "b"))
    assert code == 2
    assert error.splitlines()[-1].startswith("Error: There is nothing to learn from: none of the 1 files could be read")


def test_another_run_in_the_folder_is_refused_in_a_sentence(whole, sounds, capsys):
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    code, _, error = main(capsys, *command(sounds, whole[0], model__lr=1e-2, seed=4))
    assert code == 2
    assert "model.lr was 0.001 and is now 0.01" in error
    assert "seed was 0 and is now 4" in error
    code, _, error = main(capsys, *command(EXAMPLES, whole[0]))
    assert code == 2
    assert "inputs was" in error
    assert {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()} == before


def test_a_folder_with_other_things_is_refused(tmp_path, sounds, capsys):
    (tmp_path / "thesis.txt").write_text("all of it")
    code, _, error = main(capsys, *command(sounds, tmp_path))
    assert code == 2
    assert "not empty" in error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_metrics(whole):
    found = rows(whole[0])
    assert list(found[0]) == [
        *("iteration", "phase", "step", "lr", "loss", "distance", "commitment", "utterance", "accuracy", "majority"),
        *("codes_used", "perplexity", "target_variance", "effective_rank", "mean_cosine", "embedding_norm", "skipped"),
    ]
    assert [(row["iteration"], row["phase"], row["step"]) for row in found] == [
        (iteration, phase, step)
        for iteration, phase in (("1", "model"), ("2", "tokenizer"), ("2", "model"))
        for step in "246"
    ]
    for row in found:
        tokenizer = row["phase"] == "tokenizer"
        assert (row["accuracy"] == "") == tokenizer
        assert (row["distance"] != "") == tokenizer
        values = [float(row[name]) for name in ("lr", "loss", "codes_used", "perplexity")]
        assert np.isfinite(values).all()
        assert 1 <= float(row["perplexity"]) <= 32
    assert float(found[-1]["lr"]) < float(found[-2]["lr"]) < float(found[-3]["lr"])


def test_what_could_not_be_read_is_listed_and_told_once(whole, sounds):
    listed = [json.loads(line) for line in (whole[0] / "skipped.jsonl").read_text().splitlines()]
    assert sorted(entry["path"] for entry in listed) == [str(sounds / "empty.wav"), str(sounds / "late.flac")]
    assert all(entry["error"] for entry in listed)
    warned = [message for message in whole[1].warned if message.startswith("Skipped")]
    assert len(warned) == 2
    assert all(any(entry["path"] in message for message in warned) for entry in listed)
    assert {row["skipped"] for row in rows(whole[0])} <= {"0", "1"}
    assert rows(whole[0])[-1]["skipped"] == "1"
    assert len(pq.read_table(whole[0] / "corpus.parquet")) == 13


def test_broken_files_are_named_on_standard_error(tmp_path, sounds, capsys):
    code, _, error = main(capsys, *command(sounds, tmp_path / "run", iterations=1, model__steps=2))
    assert code == 0
    assert f"Warning: Skipped {sounds / 'empty.wav'}: the file is empty" in error


def test_run_yaml_says_all(whole, sounds):
    about = yaml.safe_load((whole[0] / "run.yaml").read_text())
    assert about["inputs"] == [str(sounds)]
    assert about["teacher"] is None
    chosen = settings("nano", assignments=assignments()).to_dict()
    assert {name: about[name] for name in chosen} == chosen


def test_models_learn_with_the_corpus_s_statistics_and_labels(whole):
    statistics = json.loads((whole[0] / "statistics.json").read_text())
    for phase in ["iteration-1/tokenizer", *PHASES]:
        cfg = torchbeats.load(whole[0] / f"{phase}.safetensors").cfg
        assert (cfg.fbank_mean, cfg.fbank_std) == (statistics["fbank_mean"], statistics["fbank_std"])
    assert isinstance(torchbeats.load(whole[0] / "iteration-1/tokenizer.safetensors"), RandomProjectionTokenizer)
    tokenizer = torchbeats.load(whole[0] / "iteration-2/tokenizer.safetensors")
    assert tokenizer.quantize.embedding.initted
    assert len(tokenizer.encode(torch.from_numpy(noise(4))[None]).labels.unique()) > 1


def test_the_same_run_elsewhere_is_the_same(whole, sounds, tmp_path):
    run(sounds, tmp_path / "run", data__workers=1)  # who decodes makes no difference
    same(weights(tmp_path / "run"), weights(whole[0]))
    assert rows(tmp_path / "run") == rows(whole[0])


def test_a_finished_run_does_nothing(whole, sounds, monkeypatch):
    monkeypatch.setattr(Run, "_fit", lambda *_: pytest.fail("it trains"))
    before = {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()}
    assert run(sounds, whole[0]) == whole[0] / "model.safetensors"
    assert {path: path.read_bytes() for path in whole[0].rglob("*") if path.is_file()} == before


def test_a_finished_run_can_be_taken_further(whole, sounds, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    run(sounds, tmp_path / "run", iterations=3)
    before, after = rows(whole[0]), rows(tmp_path / "run")
    assert after[: len(before)] == before
    assert [row["iteration"] for row in after[len(before) :]] == ["3"] * 6
    last = load_file(tmp_path / "run" / "iteration-3" / "model.safetensors")
    final = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in last.items())
    same(weights_of(tmp_path / "run", PHASES), weights_of(whole[0], PHASES))


def weights_of(folder, names):
    return {name: load_file(folder / f"{name}.safetensors") for name in names}


def test_first_labels_from_a_teacher(sounds, tmp_path):
    torchbeats.save(small_model(), tmp_path / "teacher.safetensors")
    out = tmp_path / "run"
    run(sounds, out, teacher=str(tmp_path / "teacher.safetensors"), iterations=1)
    assert [(row["iteration"], row["phase"]) for row in rows(out)] == [("1", "tokenizer")] * 3 + [("1", "model")] * 3
    assert isinstance(torchbeats.load(out / "iteration-1" / "tokenizer.safetensors"), torchbeats.Tokenizers)


def test_a_tokenizer_that_starts_as_its_teacher(sounds, tmp_path):
    """With no learning rate worth the name it still is the teacher at the end."""
    run(sounds, tmp_path, distillation__start="teacher", distillation__lr=1e-12)
    theirs = load_file(tmp_path / "iteration-1" / "model.safetensors")
    ours = load_file(tmp_path / "iteration-2" / "tokenizer.safetensors")
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def test_a_tokenizer_is_no_teacher(sounds, whole, tmp_path):
    teacher = str(whole[0] / "iteration-2" / "tokenizer.safetensors")
    with pytest.raises(CheckpointError, match=r"tokenizer\.safetensors: this is a tokenizer checkpoint"):
        run(sounds, tmp_path, teacher=teacher)


def test_collapsed_labels_are_told(tmp_path):
    """A corpus of one steady sound has one label a band, of 1,024."""
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", noise(1.0, seed=0, level=0.1), 16_000)
    notes = Notes()
    over = {"tokens__quant_n": 1024, "tokens__normalisation": "corpus", "iterations": 1, "model__steps": 4}
    run(tmp_path, tmp_path / "run", notes, **over)
    told = [message for message in notes.warned if "collapsed" in message]
    assert len(told) == 1  # not with every report
    assert told[0].startswith("Iteration 1, model, step 2: the labels have collapsed: ")
    assert "of 1024 codes" in told[0]


@pytest.mark.parametrize(("lr", "collapses"), [(1.0, True), (1e-3, False)])
def test_embeddings_that_collapse_are_told(sounds, tmp_path, lr, collapses):
    """A real collapse: in ten steps at far too high a rate all embeddings become one, while labels stay many."""
    notes = Notes()
    run(sounds, tmp_path / "run", notes, iterations=1, model__lr=lr, model__steps=10, trainer__log_every=10)
    told = [message for message in notes.warned if "collapsed" in message]
    (row,) = rows(tmp_path / "run")
    assert (float(row["mean_cosine"]) > 0.998) == collapses
    if collapses:
        assert told[0].startswith("Iteration 1, model, step 10: the embeddings have collapsed: effective rank ")
    assert len(told) == collapses


def test_accumulated_batches(sounds, tmp_path):
    run(sounds, tmp_path, iterations=1, trainer__accumulate=2, model__steps=4)
    assert [row["step"] for row in rows(tmp_path)] == ["2", "4"]


# --- kills ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    """Forks processes that have imported everything already."""
    return forking("torchbeats.training.run", "tensorboard", "test_pretrain")


def in_a_process(arguments, state):
    """The command, which takes its time once there is a state, so that a kill finds it in that phase."""
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    Reporter.on_train_batch_start = lambda *_: time.sleep(0.5 * state.exists())
    sys_argv(arguments)


def in_one_of_two(rank, folder, reseed_below):
    """A codebook's start and some steps, in a process that sees every other vector of each batch."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # what is drawn must not depend on it
    dist.init_process_group("gloo", f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(followed(rank, 2, reseed_below), folder / f"{rank}.pt")
    dist.barrier()  # neither leaves before the other has its share
    os._exit(0)  # taking the group apart can wait for its own thread without an end, with PyTorch 2.6


def followed(rank, world, reseed_below=0.0):
    """State of a codebook behind some steps, on one of ``world`` shares of the same vectors."""
    module = NormEMAVectorQuantizer(16, 4, beta=1.0, decay=0.8, kmeans_init=True, reseed_below=reseed_below)
    random = torch.Generator().manual_seed(0)
    start = torch.randn(100, 4, generator=random)
    with torch.random.fork_rng():
        if world == 1 or rank == 0:
            torch.manual_seed(0)
        module.embedding.init_from(torch.nn.functional.normalize(start, dim=-1))
    for step in range(6):
        z = torch.randn(100, 4, generator=random) + step  # away from where the codes began
        module(z[rank::world])
    return module.state_dict()


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_run_goes_on_as_if_nothing_had_been(server, whole, sounds, tmp_path, phase):
    """On one thread the same sums are taken in the same order, so that even the last bit agrees."""
    out = tmp_path / "run"
    state, deadline = out / f"{phase}.ckpt", time.monotonic() + 120
    process = server.Process(target=in_a_process, args=(command(sounds, out), state))
    process.start()
    while not state.exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (out / f"{phase}.safetensors").exists()
    run(sounds, out)
    same(weights(out), weights(whole[0]))
    assert rows(out) == rows(whole[0])
    assert not list(out.rglob("*.ckpt"))
    listed = (out / "skipped.jsonl").read_text().splitlines()
    assert len(listed) == len(set(listed)) == 2


OPTIONS = {
    "model__masks": 3,
    "model__mask_block": 2,
    "model__mix": 0.7,
    "model__utterance": 0.5,
    "config__input_patch_size": 8,
}


def test_a_run_with_all_options_goes_on_where_it_was(sounds, tmp_path, monkeypatch):
    """To the same bits; and its models are of use."""
    run(sounds, tmp_path / "whole", iterations=1, **OPTIONS)

    def stop(self, trainer, *_):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Reporter, "on_train_batch_start", stop, raising=False)
    with pytest.raises(saving.TrainingStopped):
        run(sounds, tmp_path / "run", iterations=1, **OPTIONS)
    monkeypatch.undo()
    run(sounds, tmp_path / "run", iterations=1, **OPTIONS)
    names = ["iteration-1/tokenizer", "iteration-1/model"]
    same(weights_of(tmp_path / "run", names), weights_of(tmp_path / "whole", names))
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert all(float(row["utterance"]) > 0 for row in rows(tmp_path / "run"))
    model = torchbeats.load(tmp_path / "run" / "model.safetensors")
    assert (model.grid.bands, model.grid.step_seconds) == (16, 0.08)
    (embedded,) = torchbeats.embed(str(sounds / "3.wav"), model, pool="bands")
    assert embedded.embedding.shape == (16 * 32,)


def test_rows_behind_the_state_are_written_anew(whole, sounds, tmp_path, monkeypatch):
    """A run that stops later than its last state has told of steps that are made again."""
    out, write = tmp_path / "run", Reporter._write

    def write_and_stop(self, report):
        write(self, report)
        if (self.key["phase"], self._done) == ("tokenizer", 4):
            raise ZeroDivisionError

    monkeypatch.setattr(Reporter, "_write", write_and_stop)
    with pytest.raises(ZeroDivisionError):
        run(sounds, out)
    assert rows(out)[-1]["step"] == "4"
    monkeypatch.undo()
    run(sounds, out)
    same(weights(out), weights(whole[0]))
    assert rows(out) == rows(whole[0])


def test_what_a_killed_run_left_half_written_is_cleaned(whole, sounds, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    left = [
        tmp_path / "run" / ".metrics.csv.999999999.tmp",
        tmp_path / "run" / "iteration-1" / ".model.ckpt.999999999.tmp",
    ]
    for file in left:
        file.write_bytes(b"half")
    run(sounds, tmp_path / "run")
    assert not any(file.exists() for file in left)


def test_the_table_of_an_earlier_version_is_continued(whole, sounds, tmp_path):
    """It has no figures of embeddings."""
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    (out / "iteration-2" / "model.safetensors").unlink()
    names = [name for name in rows(out)[0] if name not in COLUMNS]
    with (out / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(whole[0])[:-3])
    run(sounds, out)
    assert [{n: row[n] for n in names} for row in rows(out)] == [{n: row[n] for n in names} for row in rows(whole[0])]
    assert rows(out)[0]["effective_rank"] == ""
    assert rows(out)[-1]["effective_rank"] == rows(whole[0])[-1]["effective_rank"]


# --- stops ------------------------------------------------------------------------------------------------------------


def in_a_slow_process(arguments, report, seconds):
    """The command, which takes its time over every step once the table of its reports is there."""
    os.setpgrp()  # with the processes that it begins
    torch.set_num_threads(1)
    Reporter.on_train_batch_start = lambda *_: time.sleep(seconds * report.exists())
    sys_argv(arguments)


def slow_run(server, sounds, out, seconds=0.5, workers=0):
    """A run that has saved nothing when it has made its first report, and then goes on slowly."""
    arguments = command(sounds, out, trainer__save_every=1_000, data__workers=workers)
    process = server.Process(target=in_a_slow_process, args=(arguments, out / "metrics.csv", seconds))
    process.start()
    deadline = time.monotonic() + 120
    while not (out / "metrics.csv").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("send", [os.kill, os.killpg])  # to it alone, or, as a terminal does, to all that it began
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_run_has_saved_its_step_and_says_so(server, whole, sounds, tmp_path, name, send, capfd):
    """The state goes on in the middle of what a report counts, to the very same rows and weights."""
    out = tmp_path / "run"
    process = slow_run(server, sounds, out, workers=1)
    send(process.pid, getattr(signal, name))
    process.join(60)
    assert process.exitcode == {"SIGTERM": 143, "SIGINT": 130}[name]
    assert (out / "iteration-1" / "model.ckpt").exists()
    assert not (out / "iteration-1" / "model.safetensors").exists()
    run(sounds, out)
    same(weights(out), weights(whole[0]))
    assert rows(out) == rows(whole[0])


def test_a_second_signal_ends_a_run_at_once(server, sounds, tmp_path):
    process = slow_run(server, sounds, tmp_path / "run", seconds=60)
    time.sleep(1)  # by now it is within the next step
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert process.is_alive()  # the step is not finished
    begin = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 143
    assert time.monotonic() - begin < 20


def test_state_is_saved_every_few_minutes(sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "SAVE_SECONDS", 0.0)
    saved = []
    save = saving.Saver._save
    monkeypatch.setattr(
        saving.Saver, "_save", lambda self, trainer: (saved.append(trainer.global_step), save(self, trainer))
    )
    run(sounds, tmp_path / "run", iterations=1, trainer__save_every=1_000)
    assert saved == [1, 2, 3, 4, 5]


def test_a_stop_is_told_in_a_sentence(sounds, tmp_path, monkeypatch, capsys):
    def stop(self, trainer, *_):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Reporter, "on_train_batch_start", stop, raising=False)
    monkeypatch.setattr("sys.argv", ["torchbeats", *command(sounds, tmp_path / "run")])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 143
    assert "Stopped at step 4; the same command goes on." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


# --- numbers that are not numbers -------------------------------------------------------------------------------------


def broken_steps(monkeypatch, steps, loss=lambda loss: loss * math.nan):
    """Let these steps of model training, counted from 1, have a loss that is no number."""
    step = Pretraining.step

    def broken(self, batch):
        scalars = step(self, batch)
        if self.global_step + 1 in steps:
            scalars["loss"] = loss(scalars["loss"])
        return scalars

    monkeypatch.setattr(Pretraining, "step", broken)


@pytest.mark.parametrize(
    "loss",
    [lambda loss: loss * math.nan, lambda loss: loss * math.inf, lambda loss: loss + (loss * 0).sqrt()],
    ids=["loss", "infinite", "gradient"],  # the last: 0 / 0 on the way back alone
)
def test_a_step_that_is_not_finite_is_left_out_and_its_sounds_are_named(sounds, tmp_path, monkeypatch, loss):
    broken_steps(monkeypatch, {3}, loss)
    notes, out = Notes(), tmp_path / "run"
    run(sounds, out, notes, iterations=1, trainer__save_every=1)
    assert all(tensor.isfinite().all() for tensor in load_file(out / "model.safetensors").values())
    told = [message for message in notes.warned if "not finite" in message]
    assert len(told) == 1
    assert told[0].startswith("Iteration 1, model, step 3: the loss or its gradient is not finite.")
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    bad = [line["path"] for line in listed if "not finite at step 3" in line["error"]]
    assert bad
    assert all(Path(path).parent == sounds for path in bad)
    assert all(row["loss"] not in ("nan", "inf") for row in rows(out))


def test_a_step_that_is_left_out_changes_nothing(sounds, tmp_path, monkeypatch):
    """Three such steps and more: the weights stay those that the model began with."""
    begun = {}
    start = Reporter.on_train_start

    def remember(self, trainer, task):
        begun.update({name: value.clone() for name, value in task.network.model.state_dict().items()})
        start(self, trainer, task)

    monkeypatch.setattr(Reporter, "on_train_start", remember)
    broken_steps(monkeypatch, {1, 2, 3})
    run(sounds, tmp_path / "run", iterations=1, model__steps=3)
    trained = load_file(tmp_path / "run" / "model.safetensors")
    assert trained
    assert all(torch.equal(begun[name], value) for name, value in trained.items())


def test_several_steps_in_a_row_end_the_run_at_the_last_good_state(sounds, tmp_path, monkeypatch, capsys):
    broken_steps(monkeypatch, set(range(3, 100)))
    out = tmp_path / "run"
    arguments = command(sounds, out, iterations=1, model__steps=30, trainer__save_every=1, trainer__log_every=1)
    monkeypatch.setattr("sys.argv", ["torchbeats", *arguments])
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert "was not finite in 5 steps in a row, up to step 7. The state saved before is kept in" in error
    assert not list(out.rglob("model.safetensors"))
    state = torch.load(out / "iteration-1" / "model.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values() if tensor.is_floating_point())


def test_codes_never_follow_what_is_not_finite(sounds, tmp_path, monkeypatch):
    project = Distillation._project

    def broken(self, batch, fbank=None):
        encoded, z = project(self, batch, fbank)
        return encoded, z * math.nan if fbank is not None and self.global_step == 2 else z

    monkeypatch.setattr(Distillation, "_project", broken)
    run(sounds, tmp_path / "run", iterations=2)
    tokenizer = load_file(tmp_path / "run" / "iteration-2" / "tokenizer.safetensors")
    assert all(tensor.isfinite().all() for tensor in tokenizer.values() if tensor.is_floating_point())


# --- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_compute_what_one_does(sounds, tmp_path, whole):
    """The same sums in another order: after six steps weights differ by rounding, codebooks too."""
    out = tmp_path / "run"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = command(sounds, out, trainer__devices=2, trainer__strategy="ddp")
    done = subprocess.run(
        [sys.executable, "-m", "torchbeats", *arguments], capture_output=True, text=True, timeout=300, env=env
    )
    assert done.returncode == 0, done.stderr
    one, two = weights(whole[0]), weights(out)
    for file in one:
        for name, tensor in one[file].items():
            torch.testing.assert_close(two[file][name], tensor, rtol=0, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(rows(whole[0]), rows(out), strict=True):
        for column in ("loss", "distance", "commitment", "accuracy", "majority", "codes_used", "perplexity"):
            assert (a[column] == "") == (b[column] == "")
            if a[column]:
                assert float(b[column]) == pytest.approx(float(a[column]), rel=1e-3, abs=1e-3)
            assert a["skipped"] == b["skipped"]
    assert sorted(line.split(": ")[1] for line in done.stderr.splitlines()) == [
        f"Skipped {sounds / name}" for name in ("empty.wav", "late.flac")
    ]
    assert done.stdout == ""


@pytest.mark.parametrize("reseed_below", [0.0, 0.3])
def test_a_codebook_is_the_same_in_all_processes(server, tmp_path, reseed_below):
    processes = [server.Process(target=in_one_of_two, args=(rank, tmp_path, reseed_below)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    here, there = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(here[name], there[name]) for name in here)
    if not reseed_below:  # then nothing is drawn, and the codebook is that of one process with all vectors
        for name, tensor in followed(0, 1).items():
            torch.testing.assert_close(here[name], tensor, rtol=1e-5, atol=1e-5)
