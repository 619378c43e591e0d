"""Names that are not text, and things that are not files."""

import os
import socket
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchbeats.files import from_readable, readable, special_kind

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
