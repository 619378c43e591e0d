"""``torchbeats show``: what a file of ours holds."""

import json

import numpy as np
import pytest

import torchbeats
from helpers import noise, small_model, small_tokenizer
from torchbeats import InputError, describe


@pytest.fixture
def table(tmp_path):
    """One window of a small model, as Parquet and as NumPy."""

    def write(name):
        import soundfile

        soundfile.write(tmp_path / "a.wav", noise(1.0), 16_000)
        return torchbeats.write_table(tmp_path / "a.wav", tmp_path / name, small_model()).path

    return write


@pytest.mark.parametrize("name", ["t.parquet", "t.npz"])
def test_a_table(table, name):
    about = describe(table(name))
    assert (about["kind"], about["rows"], about["settings"]["pool"]) == ("table", 1, "mean")
    assert set(about["columns"]) == {"path", "start", "end", "embedding"}
    assert about["settings"]["shape"] == [48]


def test_models(tmp_path):
    torchbeats.save(small_model(), tmp_path / "m.safetensors")
    about = describe(tmp_path / "m.safetensors")
    assert (about["kind"], about["labels"], about["config"]["encoder_layers"]) == ("model", None, 2)
    assert about["outputs"]["bands"] == [8, 48]
    assert about["outputs"]["statistics"] == [2, 8, 48]
    torchbeats.save(small_tokenizer(), tmp_path / "t.safetensors")
    assert describe(tmp_path / "t.safetensors")["outputs"] == {"tokens": [8]}
    assert "speech" in " ".join(describe("beats-nano-tagger")["labels"])


def test_a_run(tmp_path):
    (tmp_path / "iteration-1").mkdir()
    (tmp_path / "iteration-1" / "model.safetensors").touch()
    (tmp_path / "run.yaml").write_text("seed: 3\n")
    about = describe(tmp_path)
    assert (about["kind"], about["complete"], about["settings"]) == ("run", False, {"seed": 3})
    assert about["results"] == ["iteration-1/model.safetensors"]


@pytest.mark.parametrize(
    ("content", "said"), [("[1]", "holds no settings"), ("a: [", "is not YAML"), ("\n" * (2**24 + 1), "16,384 kB")]
)
def test_a_run_with_other_settings(tmp_path, content, said):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        describe(tmp_path)


def test_anything_else(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        describe(tmp_path)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "other.parquet").write_text("no table")
    for name in ("other.npz", "other.parquet", "none.parquet"):
        with pytest.raises(InputError, match="no table that torchbeats wrote"):
            describe(tmp_path / name)


def test_the_command(run, table):
    command = ["show", table("t.parquet")]
    status, piped, _ = run(*command)
    assert (status, json.loads(piped)["rows"]) == (0, 1)
    _, people, _ = run(*command, "--format", "table")
    assert "\nsettings:\n  torchbeats: " in people
    status, out, said = run("show", "none.pt")
    assert (status, out) == (2, "")
    assert "Traceback" not in said
