"""``--quiet``, and notes that come once a day."""

import os
import time

import pytest

from helpers import noise, write_sound
from torchbeats import cli
from torchbeats.cli import console


@pytest.fixture
def tagged(run, monkeypatch, tmp_path):
    """What `torchbeats tag` with the built-in tagger says on standard error."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_sound(tmp_path / "a.wav", noise(1), 16_000)
    return lambda *options: run("tag", tmp_path / "a.wav", *options)[2]


def test_a_note_is_shown_once_a_day(tagged, tmp_path):
    assert "built-in tagger" in tagged()
    assert tagged() == ""
    (stamp,) = (tmp_path / "cache" / "torchbeats" / "notes").iterdir()
    yesterday = time.time() - console.DAY - 1
    os.utime(stamp, (yesterday, yesterday))
    assert "built-in tagger" in tagged()


def test_a_clock_that_was_ahead_hides_no_note_for_good(tagged, tmp_path):
    tagged()
    (stamp,) = (tmp_path / "cache" / "torchbeats" / "notes").iterdir()
    os.utime(stamp, (time.time() + 10 * console.DAY,) * 2)
    assert "built-in tagger" in tagged()


def test_a_cache_that_cannot_be_written_costs_no_more_than_a_note_again(tagged, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "built-in tagger" in tagged()
    assert "built-in tagger" in tagged()


@pytest.mark.parametrize("option", ["--quiet", "-q"])
def test_quiet_drops_notes(tagged, option):
    assert tagged(option) == ""


def test_quiet_keeps_warnings_errors_and_what_could_not_be_read(run, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    status, _, error = run("tag", tmp_path / "bad.wav", "-q")
    assert status == 2
    assert "Skipped" in error
    status, _, error = run("tag", tmp_path / "bad.wav", "-m", tmp_path / "none.pt", "-q")
    assert status == 2
    assert error.startswith("Error: ")


@pytest.mark.parametrize("command", [name for commands in cli.COMMANDS.values() for name in commands])
def test_every_command_can_be_quiet(run, command):
    assert "--quiet" in run(command, "--help")[1]


def test_what_goes_on_leaves_nothing_in_a_log(capsys):
    with console.audio_progress(3, 0) as done, console.count_progress(2, "fits"), console.working("Fit") as say:
        done(1.0, 1)
        say("Fit 1 of 2")
    assert capsys.readouterr() == ("", "")


def test_a_command_to_try_is_one_line(monkeypatch, capsys):
    narrow = console.Console(stderr=True, force_terminal=True, width=40)
    monkeypatch.setattr(console, "console", narrow)
    monkeypatch.setattr(console, "_quiet", False)  # as a command that another test ran may have left it
    monkeypatch.setattr(console, "_errors_only", False)
    console.remark("detector.safetensors: 3 classes.", "torchbeats tag soundscape.parquet -m detector.safetensors")
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "Try it: torchbeats tag soundscape.parquet -m detector.safetensors"
