"""Names that are not text, things that are not files, and what killed writes leave."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchbeats import files
from torchbeats.errors import SettingsError
from torchbeats.files import as_json, from_readable, one_line, printable, readable, special_kind

NAMES = {
    b"plain.wav": "plain.wav",
    "ü ж 音.wav".encode(): "ü ж 音.wav",
    b"caf\xe9.wav": r"caf\xe9.wav",
    rb"caf\xe9.wav": r"caf\x5cxe9.wav",  # a backslash and letters, as they are in the name
    rb"caf\x5cxe9.wav": r"caf\x5cx5cxe9.wav",
    b"caf\\\xe9.wav": r"caf\\xe9.wav",
    rb"C:\x\data\x41.wav": r"C:\x\data\x41.wav",  # not to be mistaken: bytes up to 7f are never escaped
    rb"\ud83d.wav": r"\x5cud83d.wav",
    b"\xff\xfe": r"\xff\xfe",
}


@pytest.mark.skipif(sys.platform == "win32", reason="names of files are text on Windows")
def test_names_as_text():
    for name, text in NAMES.items():
        assert readable(os.fsdecode(name)) == text
        assert os.fsencode(from_readable(text)) == name
    assert len(set(NAMES.values())) == len(NAMES)


def test_a_lone_surrogate_is_written_too():
    assert readable("\ud83d.wav") == r"\ud83d.wav"
    assert from_readable(r"\ud83d.wav") == "\ud83d.wav"


LETTERS = st.one_of(st.sampled_from("\\xu589acdef\udc80\udcff\udce9\ud800\udfffü"), st.characters(codec=None))


@given(st.text(LETTERS, max_size=20))
def test_every_name_comes_back(name):
    text = readable(name)
    text.encode()  # is UTF-8
    assert from_readable(text) == name


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    (tmp_path / "file").touch()
    assert special_kind("pipe") == special_kind(tmp_path / "link") == "a named pipe"
    assert special_kind("/dev/null") == "a device"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert special_kind("socket") == "a socket"
    for other in ("file", tmp_path, "none", "nul\0", "x" * 5000):
        assert special_kind(other) is None


# --- what a screen may have


@given(st.text(LETTERS | st.sampled_from("\x1b\x07\r\n\t\x7f\x9b\u202e\u2028[]"), max_size=30))
def test_nothing_that_a_terminal_obeys(text):
    for shown in (printable(text), one_line(text)):
        assert shown.isprintable()
        shown.encode()
    assert len(printable(text)) >= len(text)
    for indent in (None, 1):
        written = as_json({"a": [text], text: 1}, indent)
        assert written.replace("\n", "").isprintable()
        assert json.loads(written.encode()) == {"a": [text], text: 1}


def test_what_prints_stays_as_it_is():
    for text in ("Größe $x^2$", "犬の鳴き声", "two  blanks [red]x[/red]", "👍"):
        assert printable(text) == text
        assert as_json(text) == f'"{text}"'
    assert printable("a\x1b[31mb\nc") == "a [31mb c"
    assert printable("caf\udce9.wav") == r"caf\xe9.wav"
    assert one_line("  a \t\n b ") == "a b"
    assert as_json([float("nan"), "\x9b31m"]) == r'[null, "\u009b31m"]'


# --- leftovers


def nobody():
    """The number of a process that was."""
    return subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def leftovers(tmp_path):
    """Of a killed process: one of x.csv; one of x.csv.gz; and what is not ours, or is being written."""
    dead, alive = nobody(), os.getppid()
    ours = (f".x.csv.{dead}.tmp", f".x.csv.gz.{dead}.tmp", f".x.csv.{alive}.tmp")
    for name in (*ours, ".x.csv.tmp", f"x.csv.{dead}.tmp", f".x.csv.{dead}0x.tmp", f".other.{dead}.tmp.bak"):
        (tmp_path / name).write_text("left")
    return tmp_path, dead


@pytest.mark.skipif(sys.platform == "win32", reason="open files stay there")
def test_leftovers_of_a_file_go_with_its_next_write(leftovers):
    folder, dead = leftovers
    before = set(os.listdir(folder))
    with files.replacing(folder / "x.csv") as temporary:
        temporary.write_text("new")
    assert set(os.listdir(folder)) == (before - {f".x.csv.{dead}.tmp"}) | {"x.csv"}


@pytest.mark.skipif(sys.platform == "win32", reason="open files stay there")
def test_leftovers_in_a_folder(leftovers):
    folder, dead = leftovers
    before = set(os.listdir(folder))
    gone = {f".x.csv.{dead}.tmp", f".x.csv.gz.{dead}.tmp"}
    assert {path.name for path in files.remove_leftovers(folder)} == gone
    assert set(os.listdir(folder)) == before - gone
    assert files.remove_leftovers(folder / "none" / "x") == []


def test_a_name_with_signs_of_a_pattern(tmp_path):
    dead = nobody()
    for name in (f".[a]*.csv.{dead}.tmp", f".a.csv.{dead}.tmp"):
        (tmp_path / name).touch()
    assert [path.name for path in files.remove_leftovers(tmp_path / "[a]*.csv")] == [f".[a]*.csv.{dead}.tmp"]


# --- outputs that are inputs


def test_an_output_is_not_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    (tmp_path / "link").symlink_to("x")
    os.link("x", "hard")
    for name in ("x", "./x", tmp_path / "x", "link", "hard"):
        with pytest.raises(SettingsError, match=r"The output x is one of the inputs; name another\."):
            files.refuse_inputs(["none", "x"], ["nul\0", "nothing", name])
    (tmp_path / "y").touch()
    files.refuse_inputs(["x", "none"], ["y", "none", "nothing", "y" * 5000])


@pytest.mark.parametrize("name", ["s3://bucket/t.csv", Path("s3://bucket/t.csv"), "memory://t.parquet"])
def test_an_output_at_a_url_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"The output \S+ is a URL"):
        files.refuse_inputs([name], [])
    (tmp_path / str(name).partition("/")[0]).mkdir()
    files.refuse_inputs([name, "C:/x"], [])  # a folder that is called so
