"""Folders that hold more than files: links, pipes, what cannot be searched."""

import errno
import os
import socket
import sys
import warnings

import pytest

from torchbeats.audio import AudioWarning
from torchbeats.data import folders
from torchbeats.data.folders import Omissions, sounds_in_folder
from torchbeats.data.inputs import find_audio
from torchbeats.errors import InputError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and links are made otherwise on Windows")


@pytest.fixture
def folder(tmp_path):
    top = tmp_path / "top"
    for name in ("a.wav", "sub/b.wav"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    return top


def noted(inputs, **settings):
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return find_audio(inputs, notes=lines.append, **settings), lines


def at(folder, *names):
    return [str(folder / name) for name in names]


def test_nothing_is_said_where_nothing_is_left_out(folder):
    (folder / ".hidden.wav").touch()
    (folder / "notes.txt").touch()
    os.mkfifo(folder / "control")  # is not called like a sound
    assert noted([folder]) == (at(folder, "a.wav", "sub/b.wav"), [])


def test_pipes_sockets_and_devices_are_named_and_never_opened(folder):
    os.mkfifo(folder / "pipe.wav")
    os.mkfifo(folder / "sub" / "other pipe.flac")
    (folder / "null.wav").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        place = os.getcwd()
        os.chdir(folder)  # the path of a socket must be short
        try:
            server.bind("socket.wav")
        finally:
            os.chdir(place)
    paths, lines = noted([folder])
    assert paths == at(folder, "a.wav", "sub/b.wav")
    left_out = ", ".join(at(folder, "null.wav", "pipe.wav", "socket.wav"))
    assert lines == [f"Named pipes, devices and sockets were left out: {left_out} and 1 more."]


def test_a_pipe_for_a_list_is_refused_without_waiting(folder):
    os.mkfifo(folder / "list.csv")
    with pytest.raises(InputError, match=r"list\.csv is a named pipe, not a file"):
        find_audio([folder / "list.csv"])


def test_files_that_macos_leaves_are_told_in_one_line(folder):
    for name in ("._a.wav", "sub/._b.wav", "._c.flac", "._d.mp3"):
        (folder / name).touch()
    paths, lines = noted([folder, folder / "sub"])
    assert paths == at(folder, "a.wav", "sub/b.wav")
    assert len(lines) == 1
    assert lines[0].startswith(f"Files with attributes from macOS (._*) were left out: {folder}/._a.wav, ")
    assert lines[0].endswith(" and 2 more.")  # of the five that two inputs met


ALIASES = "Links to files that are here by another name were left out, as they are the same sounds: "


def test_a_link_to_nothing_is_read_to_say_so(folder):
    (folder / "nothing.wav").symlink_to(folder / "none.wav")
    (folder / "self.wav").symlink_to(folder / "self.wav")
    (folder / "elsewhere.wav").symlink_to("../none/x.wav")
    assert noted([folder]) == (at(folder, "a.wav", "elsewhere.wav", "nothing.wav", "self.wav", "sub/b.wav"), [])


def test_a_file_that_links_lead_to_comes_once_by_its_own_name(folder):
    for link, target in [("0.wav", "a.wav"), ("1.wav", "sub/b.wav"), ("sub/z.wav", "../1.wav")]:
        (folder / link).symlink_to(target)
    paths, lines = noted([folder])
    assert paths == at(folder, "a.wav", "sub/b.wav")
    assert lines == [ALIASES + ", ".join(at(folder, "0.wav", "1.wav", "sub/z.wav")) + "."]


def test_a_file_that_only_links_lead_to_comes_once(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.wav").touch()
    (folder / ".store").mkdir()
    (folder / ".store" / "d.wav").touch()
    (folder / "e").touch()  # is not called like a sound
    for name, target in [("1.wav", "../elsewhere/c.wav"), ("2.wav", ".store/d.wav"), ("3.wav", "e")]:
        (folder / name).symlink_to(target)
        (folder / "sub" / name).symlink_to(folder / target)
    paths, lines = noted([folder])
    assert paths == at(folder, "1.wav", "2.wav", "3.wav", "a.wav", "sub/b.wav")
    assert lines == [ALIASES + ", ".join(at(folder, "sub/1.wav", "sub/2.wav", "sub/3.wav")) + "."]


@pytest.mark.parametrize("link", ["0.wav", "z.wav", "sub/0.wav", "z/0.wav"])
def test_a_file_that_comes_by_a_link_to_its_folder_too(folder, tmp_path, link):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.wav").touch()
    (folder / "t").symlink_to(tmp_path / "elsewhere")
    (folder / "z").mkdir()
    (folder / link).symlink_to(tmp_path / "elsewhere" / "c.wav")
    paths, lines = noted([folder], follow_links=True)
    assert {*paths} in ({*at(folder, "a.wav", "sub/b.wav", name)} for name in (link, "t/c.wav"))
    assert (len(paths), len(lines)) == (3, 1)


def test_links_to_folders_are_named_or_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.wav").touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / ".hidden").symlink_to(tmp_path / "elsewhere")
    expected = f"Links to folders were not followed (--follow-links, in Python follow_links=True): {folder}/linked."
    assert noted([folder]) == (at(folder, "a.wav", "sub/b.wav"), [expected])
    assert noted([folder], follow_links=True) == (at(folder, "a.wav", "linked/c.wav", "sub/b.wav"), [])
    assert noted([folder / "linked"]) == (at(folder, "linked/c.wav"), [])  # it was named


def test_links_that_go_round_in_circles_are_followed_once(folder):
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "twin").symlink_to(folder / "sub")
    paths, lines = noted([folder], follow_links=True)
    assert paths == at(folder, "a.wav", "sub/b.wav")
    searched = ", ".join(at(folder, "sub/up", "twin"))
    assert lines == [f"Links to folders that had been searched already were not followed: {searched}."]


def test_by_default_each_line_is_a_warning(folder):
    os.mkfifo(folder / "pipe.wav")
    (folder / "linked").symlink_to(folder / "sub")
    with pytest.warns(AudioWarning) as caught:
        assert find_audio([folder]) == at(folder, "a.wav", "sub/b.wav")
    assert [str(warning.message).split(" ")[0] for warning in caught] == ["Links", "Named"]
    assert {warning.filename for warning in caught} == {__file__}


def test_a_folder_that_may_not_be_entered_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):  # root may enter every folder, so that the system's answer is imitated
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    assert noted([folder]) == (
        at(folder, "a.wav"),
        [f"Folders that could not be searched: {folder}/sub (Permission denied)."],
    )
    with pytest.raises(InputError, match=r"no sound file in the folder .*sub \(Permission denied\)\.$"):
        find_audio([folder / "sub"])


def test_a_path_that_is_too_long_is_named(folder):
    """Folders of 200 letters in one another, until the system refuses the whole path."""
    descriptors = [os.open(folder, os.O_RDONLY)]
    for _ in range(25):
        os.mkdir("x" * 200, dir_fd=descriptors[-1])
        descriptors.append(os.open("x" * 200, os.O_RDONLY, dir_fd=descriptors[-1]))
    os.close(os.open("deep.wav", os.O_CREAT, dir_fd=descriptors[-1]))
    for descriptor in descriptors:
        os.close(descriptor)
    paths, lines = noted([folder])
    assert paths == at(folder, "a.wav", "sub/b.wav")
    assert len(lines) == 1
    assert lines[0].startswith(f"Folders that could not be searched: {folder}/xxx")
    assert lines[0].endswith("(File name too long).")


def test_a_folder_with_nothing_but_omissions_says_what_they_are(folder):
    (folder / "a.wav").unlink()
    (folder / "sub" / "b.wav").unlink()
    os.mkfifo(folder / "sub" / "pipe.wav")
    with pytest.raises(InputError, match=r"There is no sound file in .*sockets were left out: .*pipe\.wav\.$"):
        find_audio([folder])


def test_omissions_of_several_folders_add_up(folder):
    (folder / "._a.wav").touch()
    (folder / "sub" / "._b.wav").touch()
    omissions = Omissions()
    assert [*sounds_in_folder(str(folder / "sub"), omissions)] == at(folder, "sub/b.wav")
    assert [*sounds_in_folder(str(folder), omissions)] == at(folder, "a.wav", "sub/b.wav")
    assert omissions == Omissions(metadata=at(folder, "sub/._b.wav", "._a.wav", "sub/._b.wav"))
