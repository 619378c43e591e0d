"""Whatever the sounds and the weights, no number that is not finite is written, and no command ends in a traceback.

Two kinds of bad input, beside good sounds: a float WAV with absurd samples, and models that compute infinities of any
sound though each of their weights is a number.
"""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import torchbeats
from helpers import noise, small_model, small_tokenizer
from torchbeats.tables.formats import METADATA_KEY

RATE = 16_000
LABELS = {0: "cat", 1: "dog"}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Six sounds of each of two classes; in one class, one more with a sample of 1e30."""
    folder = tmp_path_factory.mktemp("sounds")
    for name in LABELS.values():
        (folder / name).mkdir()
        for seed in range(6):
            soundfile.write(folder / name / f"{seed}.wav", noise(0.5, seed=seed), RATE, "FLOAT")
    bad = noise(0.5)
    bad[4000] = 1e30
    soundfile.write(folder / "cat" / "huge.wav", bad, RATE, "FLOAT")
    return folder


def tagger(**fields):
    model = small_model(finetuned_model=True, predictor_class=2, problem_type="single_label", **fields)
    model.label_dict = dict(LABELS)
    return model


def overflowing(model):
    """Weights that are numbers, and results that are not."""
    with torch.no_grad():
        model.encoder.layers[-1].final_layer_norm.weight.fill_(3e38)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, change in {"good": lambda model: model, "broken": overflowing}.items():
        torchbeats.save(change(tagger()), folder / f"{name}.safetensors")
        torchbeats.save(change(small_tokenizer()), folder / f"{name}-tokenizer.safetensors")
    return folder


COMMANDS = {
    "embed": ["-o", "OUT.parquet", "-m", "MODEL"],
    "tag": ["-o", "OUT.jsonl", "-m", "MODEL"],
    "tokens": ["-o", "OUT.parquet", "-t", "MODEL"],
    "evaluate": ["-o", "OUT", "-m", "MODEL"],
    "probe": ["--no-cache", "--format", "json", "-m", "MODEL"],
}


def arguments(command, sounds, model, out):
    values = {"MODEL": str(model), "OUT": str(out)}
    rest = [re.sub("MODEL|OUT", lambda match: values[match[0]], word) for word in COMMANDS[command]]
    return [command, sounds, *rest]


def numbers(path, out):
    """All numbers that a command wrote, to files or to standard output."""
    texts = [file.read_text() for file in path.rglob("*.json*")] + [out]
    yield from (word for text in texts for word in re.findall(r"\bNaN\b|\bInfinity\b", text))
    for file in path.rglob("*.parquet"):
        table = pq.read_table(file)
        values = table.columns[-1].combine_chunks()
        while not pa.types.is_primitive(values.type):
            values = values.flatten()
        yield from values.to_numpy(zero_copy_only=False)[~np.isfinite(values.to_numpy(zero_copy_only=False))].tolist()


@pytest.mark.parametrize("command", COMMANDS)
def test_absurd_samples_are_that_sounds_failure(run, sounds, models, tmp_path, command):
    model = models / ("good-tokenizer.safetensors" if command == "tokens" else "good.safetensors")
    status, out, err = run(*arguments(command, sounds, model, tmp_path / "out"))
    assert status == 1
    assert "huge.wav" in err
    assert "1e+30" in err
    assert list(numbers(tmp_path, out)) == []
    if command in ("embed", "tokens"):
        assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 12


@pytest.mark.parametrize("command", COMMANDS)
def test_no_number_of_a_model_that_overflows(run, sounds, models, tmp_path, command):
    model = models / ("broken-tokenizer.safetensors" if command == "tokens" else "broken.safetensors")
    status, out, err = run(*arguments(command, sounds, model, tmp_path / "out"))
    assert status == 2
    assert "the model gives numbers for it that are not finite" in err
    assert list(numbers(tmp_path, out)) == []
    if command in ("embed", "tokens"):
        assert not (tmp_path / "out.parquet").exists()
        failures = (tmp_path / "out.parquet.errors.jsonl").read_text().splitlines()
        assert len({json.loads(line)["path"] for line in failures}) == len(failures) == 13


def with_statistic(model, path, field, value):
    """A model's file with another number in its config, as text."""
    with safe_open(model, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["torchbeats"])
    about.pop("digest")
    text = re.sub(rf'"{field}": *[-0-9.e]+', f'"{field}": {value}', json.dumps(about))
    assert value in text
    save_file(tensors, path, {"torchbeats": text})
    return path


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["fbank_mean", "fbank_std"])
def test_statistics_are_finite_or_the_model_is_refused(models, tmp_path, field, value):
    for name in ("good", "good-tokenizer"):
        bad = with_statistic(models / f"{name}.safetensors", tmp_path / "bad.safetensors", field, value)
        with pytest.raises(torchbeats.CheckpointError, match=f"{field} must be a finite number"):
            torchbeats.load(bad)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_such_a_model(run, sounds, models, tmp_path, command):
    good = models / ("good-tokenizer.safetensors" if command == "tokens" else "good.safetensors")
    bad = with_statistic(good, tmp_path / "bad.safetensors", "fbank_std", "NaN")
    status, _, err = run(*arguments(command, sounds, bad, tmp_path / "out"))
    assert status == 2
    assert "fbank_std must be a finite number" in err
    assert not (tmp_path / "out.parquet").exists()


def test_a_stored_table_with_such_numbers_is_refused(run, sounds, models, tmp_path):
    table = tmp_path / "table.parquet"
    assert run("embed", sounds, "-m", models / "good.safetensors", "-o", table)[0] == 1
    stored = pq.read_table(table)
    values = np.array(stored["embedding"].to_pylist(), np.float32)
    values[3, 1] = np.nan
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    metadata = {METADATA_KEY: stored.schema.metadata[METADATA_KEY]}
    broken = stored.set_column(3, "embedding", fixed).replace_schema_metadata(metadata)
    pq.write_table(broken, table)
    labels = tmp_path / "labels.csv"
    rows = [f"{path},{path.split('/')[-2]}" for path in stored["path"].to_pylist()]
    labels.write_text("\n".join(["path,label", *rows]) + "\n")
    status, _, err = run("fit", table, labels, "-o", tmp_path / "head.safetensors")
    assert status == 2
    assert f"{table} holds numbers that are not finite, in row 3, of {stored['path'][3]}." in err
