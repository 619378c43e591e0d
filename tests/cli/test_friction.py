"""What a newcomer meets in the first hour: help on a narrow terminal, outputs that exist, packages that are missing."""

import re
import sys

import pytest
import soundfile

import torchbeats
from helpers import noise
from torchbeats.cli import COMMANDS
from torchbeats.plans import EmbeddingPlan

ALL = [name for commands in COMMANDS.values() for name in commands]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of three sounds, a table of them, and a model for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("friction")
    for name in ("cat", "dog"):
        (folder / "sounds" / name).mkdir(parents=True)
        for number in range(3):
            soundfile.write(folder / "sounds" / name / f"{number}.wav", noise(0.5, seed=number), 16_000)
    torchbeats.write_table(folder / "sounds", folder / "t.parquet", "beats-nano", EmbeddingPlan(window=1.0))
    return folder


def test_a_command_of_one_word_lists_the_others(run):
    status, out, _ = run()
    assert status in (0, 2)
    assert all(f" {command} " in out for command in ALL)


@pytest.mark.parametrize("command", ALL)
def test_help_has_whole_words_at_80_columns(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    status, out, _ = run(command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert re.findall(r"<[a-z][^>\n]*\n", out) == []  # a list of values that is broken anywhere


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("umap", "map", ("map", "{table}", "-o", "m.png")),
        ("matplotlib", "plots", ("map", "{table}", "-o", "m.png", "--method", "pca")),
        ("matplotlib", "plots", ("tag", "{sounds}/cat/0.wav", "-o", "x.png")),
        ("fastapi", "serve", ("serve",)),
        ("uvicorn", "serve", ("serve",)),
        ("lance", "search", ("embed", "{sounds}", "-o", "t.lance")),
        ("ray", "ray", ("embed", "{sounds}", "-o", "t.parquet", "--ray", "local")),
        ("fsspec", "remote", ("embed", "https://localhost:1/x.wav", "-o", "t.parquet")),
        ("fsspec", "remote", ("tag", "https://localhost:1/x.wav")),
        ("sklearn", "probe", ("probe", "{sounds}")),
        ("sklearn", "probe", ("fit", "{table}", "{sounds}", "-o", "h.safetensors")),
        ("lightning", "train", ("finetune", "{sounds}", "-o", "run")),
        ("tensorboard", "train", ("finetune", "{sounds}", "-o", "run")),
        ("tensorboard", "train", ("pretrain", "{sounds}", "-o", "run")),
        ("onnx", "onnx", ("export", "beats-nano", "m.onnx")),
    ],
)
def test_a_missing_package_is_one_sentence(run, folder, tmp_path, monkeypatch, package, extra, arguments):
    if package == "uvicorn":  # is asked for behind it
        pytest.importorskip("fastapi")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    words = [word.format(table=folder / "t.parquet", sounds=folder / "sounds") for word in arguments]
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    sentence = f"Error: This needs the package {package}: pip install 'torchbeats[{extra}]'."
    assert err.endswith(sentence)  # behind what else there is to say; all is one line here
    assert err.count("Error:") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("x.csv", ("tag", "{sounds}", "-o", "x.csv")),
        ("m.png", ("map", "{table}", "-o", "m.png", "--method", "pca")),
        ("s.csv", ("search", "{table}", "row:0", "-o", "s.csv")),
        ("m.onnx", ("export", "beats-nano", "m.onnx")),
        ("c.safetensors", ("convert", "beats-nano", "c.safetensors")),
        ("h.safetensors", ("fit", "{table}", "{sounds}", "-o", "h.safetensors")),
        ("h.suggestions.csv", ("fit", "{table}", "{sounds}", "-o", "h.safetensors", "--suggest", "2")),
        ("metrics.json", ("evaluate", "{sounds}", "-m", "beats-nano-tagger", "-o", ".")),
    ],
)
def test_no_command_replaces_a_file_without_a_word(run, folder, tmp_path, monkeypatch, name, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("mine")
    status, _, err = run(*(word.format(table=folder / "t.parquet", sounds=folder / "sounds") for word in arguments))
    assert (status, err) == (2, f"Error: {name} exists; use --overwrite to replace it.")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_file_more_leads_to_update(run, folder, tmp_path):
    (tmp_path / "sounds").mkdir()
    soundfile.write(tmp_path / "sounds/0.wav", noise(0.5), 16_000)
    command = ("embed", tmp_path / "sounds", "-o", tmp_path / "t.parquet", "-m", "beats-nano")
    assert run(*command)[0] == 0
    soundfile.write(tmp_path / "sounds/1.wav", noise(0.6), 16_000)
    status, _, err = run(*command)
    assert status == 2
    assert err.endswith("use --overwrite, or --update to compute only files that differ.")
    assert "--update" not in run(*command, "--pool", "bands")[2]  # that would be another table
    assert run(*command, "--update")[0] == 0


def test_no_such_device_is_a_sentence(run, folder, tmp_path):
    status, _, err = run("embed", folder / "sounds", "-o", tmp_path / "t.parquet", "--device", "toaster")
    assert status == 2
    assert err.endswith("There is no device toaster here; name cpu, auto, or one that PyTorch finds.")


def on_a_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)


def test_results_have_whole_words_at_80_columns(run, folder, monkeypatch):
    on_a_terminal(monkeypatch, 80)
    for command in (["tag", folder / "sounds", "--every", "0.5", "--top", "9"], ["show", "beats-nano-tagger"]):
        status, out, _ = run(*command)
        assert status == 0
        assert max(map(len, out.splitlines())) <= 80
        assert "silence, speech" in " ".join(out.split()) or command[0] == "tag"
    broken = [line for line in run("finetune", "--show")[1].splitlines() if len(line) > 80]
    assert broken == []


def test_one_file_that_cannot_be_read_is_one(run, tmp_path):
    _, _, said = run("embed", tmp_path / "none.wav", "-o", tmp_path / "t.parquet")
    assert "Error: The file could not be read, so there is no table" in said


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("x.csv", ("tag", "{sounds}", "-o")),
        ("x.parquet", ("embed", "{sounds}", "-o")),
        ("m.onnx", ("export", "beats-nano")),
        ("hits", ("search", "{table}", "row:0", "-o")),
    ],
)
def test_a_file_where_a_folder_should_be_is_named(run, folder, tmp_path, monkeypatch, name, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").touch()
    words = [word.format(table=folder / "t.parquet", sounds=folder / "sounds") for word in arguments]
    status, out, err = run(*words, f"list.csv/{name}")
    assert (status, out) == (2, "")
    assert "Error: list.csv is a file, so that list.csv/" in err
