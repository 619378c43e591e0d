"""What a command is given, and the files it means."""

import io
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchbeats.data.columns import PATH_COLUMNS
from torchbeats.data.inputs import find_audio, find_sounds
from torchbeats.errors import InputError

HERE = ["a.wav", "b.FLAC", "d/c.mp3", "d/e/f.opus", "d/e/deep video.MKV", "g.wav"]
NOISE = ["notes.txt", "d/cover.png", ".hidden.wav", ".git/x.wav", "e.wav.part", "table.csv"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with sounds and other things, the working directory beside it."""
    top = tmp_path / "sounds"
    for name in (*HERE, *NOISE):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return top


def at(folder, *names):
    return [str(folder / name) for name in names]


# --- files and folders


def test_folder_is_searched_in_a_fixed_order(folder):
    # a folder's own files before those below it, each by name
    expected = at(folder, "a.wav", "b.FLAC", "g.wav", "d/c.mp3", "d/e/deep video.MKV", "d/e/f.opus")
    assert find_audio([folder]) == find_audio([str(folder)]) == expected
    assert find_audio([f"{folder}/"]) == expected
    os.chdir(folder)
    assert find_audio(["."]) == [f"./{os.path.relpath(path, folder)}" for path in expected]


def test_a_file_by_several_names_comes_once(folder, tmp_path):
    (folder / "link.wav").symlink_to("a.wav")
    (tmp_path / "list.csv").write_text("path,start\nsounds/d/../a.wav,\nsounds/a.wav,0.5\nsounds/link.wav,0.5\n")
    os.link(folder / "g.wav", folder / "hard.wav")
    lines = []
    given = [*at(folder, "a.wav", "./d/../a.wav", "link.wav", "g.wav", "hard.wav"), tmp_path / "list.csv"]
    sounds = [(sound.path, sound.start) for sound in find_sounds(given, notes=lines.append)]
    assert sounds == [(path, 0.0) for path in at(folder, "a.wav", "g.wav", "hard.wav")] + [(f"{folder}/a.wav", 0.5)]
    assert len(lines) == 1
    assert lines[0].startswith("Other names of files that were named before were left out: ")
    assert lines[0].count("a.wav") == 2
    assert lines[0].endswith(" and 1 more.")


def test_where_files_are_not_numbered_they_are_told_apart_by_name(folder, monkeypatch):
    """Python gives 0 on file systems that number no files."""
    real = os.stat

    def without_number(path, **options):
        about = list(real(path, **options))
        about[1] = 0
        return os.stat_result(about)

    (folder / "link.wav").symlink_to("a.wav")
    monkeypatch.setattr(os, "stat", without_number)
    assert find_audio(at(folder, "a.wav", "g.wav", "link.wav")) == at(folder, "a.wav", "g.wav")
    assert find_audio([folder], follow_links=True) == at(
        folder, *sorted(HERE[:2]), "g.wav", *HERE[2:3], *HERE[4:5], HERE[3]
    )


def test_hidden_folder_is_searched_when_it_is_named(folder):
    assert find_audio([folder / ".git"]) == at(folder, ".git/x.wav")


def test_order_given_is_kept_and_each_comes_once(folder):
    given = at(folder, "g.wav", "d", "a.wav", "g.wav", "d/c.mp3")
    assert find_audio(given) == at(folder, "g.wav", "d/c.mp3", "d/e/deep video.MKV", "d/e/f.opus", "a.wav")


def test_named_files_are_taken_whatever_they_are(folder):
    given = [*at(folder, ".hidden.wav", "d/cover.png", "none.wav"), "no such"]
    assert find_audio(given) == given


def test_links_to_folders_do_not_lead_in_circles(folder):
    (folder / "d" / "up").symlink_to(folder)
    assert len(find_audio([folder])) == len(HERE)


@pytest.mark.parametrize("name", ["empty", "pictures"])
def test_folder_without_sound(folder, name):
    (folder / name / "below").mkdir(parents=True)
    (folder / "pictures" / "below").mkdir(parents=True, exist_ok=True)
    (folder / "pictures" / "below" / "a.png").touch()
    with pytest.raises(InputError, match=rf"no sound file in the folder {folder / name}, nor in any below it\."):
        find_audio([folder / "a.wav", folder / name])


def test_nothing_at_all():
    with pytest.raises(InputError, match="name no files"):
        find_audio([])


def test_name_that_is_not_utf8(folder):
    odd = os.fsencode(folder) + b"/caf\xe9.wav"
    try:
        open(odd, "w").close()
    except OSError:
        pytest.skip("this file system takes no such names")
    assert os.fsdecode(odd) in find_audio([folder])


# --- lists

LISTS = {
    "list.txt": lambda paths: "\n".join(paths) + "\n",
    "windows.txt": lambda paths: "\r\n".join(paths),
    "blank lines.TXT": lambda paths: "\n\n  \n" + "\n\n".join(paths),
    "strings.jsonl": lambda paths: "\n".join(json.dumps(path) for path in paths),
    **{
        f"{column}.jsonl": lambda paths, c=column: "\n\n".join(json.dumps({"id": 1, c: path}) for path in paths)
        for column in PATH_COLUMNS
    },
    **{
        f"{column}.csv": lambda paths, c=column: f"id,{c},label\r\n" + "".join(f'1,"{p}",x\r\n' for p in paths)
        for column in PATH_COLUMNS
    },
    "one column.CSV": lambda paths: "path\n" + "\n".join(paths) + "\n\n",
    "empty cells.csv": lambda paths: "label,path\n" + "\n".join(f"x,{path}" for path in paths) + "\ny,\nz\n",
}


@pytest.mark.parametrize("bom", ["", "\ufeff"], ids=["", "bom"])
@pytest.mark.parametrize("name", LISTS)
def test_list(folder, name, bom):
    """Paths are found beside the list, where absolute as they are, and else from the working directory."""
    (folder.parent / "elsewhere" / "near.wav").touch()
    (folder.parent / "elsewhere" / "a.wav").touch()  # the one beside the list wins
    given = ["a.wav", str(folder / "g.wav"), "d/e/deep video.MKV", "near.wav", "ü ghost.wav"]
    (folder / name).write_text(bom + LISTS[name](given), "utf-8", newline="")
    found = find_audio([folder / name])
    assert found == [*at(folder, "a.wav", "g.wav", "d/e/deep video.MKV"), "near.wav", str(folder / "ü ghost.wav")]


def test_first_known_column_counts(folder):
    (folder / "l.csv").write_text("audio,filename,path\n1,2,a.wav\n")
    assert find_audio([folder / "l.csv"]) == at(folder, "a.wav")


def test_lists_files_and_folders_together(folder):
    (folder / "l.txt").write_text("g.wav\na.wav\n")
    assert find_audio([*at(folder, "a.wav", "l.txt", "d/e")]) == at(
        folder, "a.wav", "g.wav", "d/e/deep video.MKV", "d/e/f.opus"
    )


BAD_LISTS = {
    "missing.csv": (None, r"There is no list .*missing\.csv\."),
    "column.csv": (b"name,label\na.wav,x\n", r"column called path or .*; it has name, label\."),
    "nothing.csv": (b"", r"column called path or .*; it has none\."),
    "column.jsonl": (b'{"name": "a.wav"}\n', r"column called path or .*; it has name\."),
    "broken.jsonl": (b'"a.wav"\n\n{"path": \n', r"line 3 is not JSON"),
    "number.jsonl": (b'"a.wav"\n7\n', r"line 2 must hold a path, not 7\."),
    "null.jsonl": (b'{"path": null}\n', r"line 1 must hold a path, not None\."),
    "binary.txt": (b"a\n\x89PNG\x00\xff\xfe.wav\n", r"binary\.txt cannot be read: line 2 is not text"),
    "long cell.csv": (b'path\n"' + b"x" * 200_000 + b'"\n', r"long cell\.csv cannot be read: line 2 .*field limit"),
    "long header.csv": (b'"path' + b"x" * 200_000 + b'"\n', r"cannot be read: its header has a cell that is too long"),
    "long line.txt": (b"a.wav\n" + b"x" * 10_000, r"line 2 holds a path of 10,000 characters"),
    "open quote.csv": (b'path,label\na.wav,x\n"g.wav,x\na.wav,y\n', r"line 3 is not what a table has .*no partner"),
    "more cells.csv": (b"path,label\na.wav,x\na,b.wav,x\n", r"line 3 has 3 cells, and the header 2"),
    "deep.jsonl": (b'"a.wav"\n' + b"[" * 100_000, r"line 2 is nested too deeply"),
    "one word.scp": (b"u1 a.wav\nu2\n", r"line 2 must hold the name of an utterance and its path, not 'u2'"),
    "soon.csv": (b"path,start\na.wav,1\na.wav,soon\n", r"line 3: its column 'start' must hold seconds, not 'soon'"),
    "empty.txt": (b"\n \n", "name no files"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_bad_list(folder, name):
    data, said = BAD_LISTS[name]
    if data is not None:
        (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=said):
        find_audio([folder / name])


def test_a_table_that_holds_sounds_and_not_their_paths(folder):
    pq.write_table(pa.table({"audio": [{"bytes": b"RIFF", "path": "a.wav"}]}), folder / "hub.parquet")
    with pytest.raises(InputError, match=r"hub\.parquet holds sounds in itself, not paths of files"):
        find_audio([folder / "hub.parquet"])
    pq.write_table(pa.table({"audio": [[0.1, 0.2]]}), folder / "numbers.parquet")
    with pytest.raises(InputError, match=r"'audio' must hold paths of files or their bytes, not values of type list"):
        find_audio([folder / "numbers.parquet"])


def test_unusual_line_breaks_belong_to_names(folder):
    names = ["next\x85line.wav", "separator\u2028.wav", "page\x0c.wav"]
    (folder / "l.txt").write_text("\n".join(names), "utf-8")
    (folder / "l.jsonl").write_text("\n".join(json.dumps(name, ensure_ascii=False) for name in names), "utf-8")
    (folder / "l.csv").write_text("path\n" + "\n".join(names), "utf-8")
    for suffix in ("txt", "jsonl", "csv"):
        assert find_audio([folder / f"l.{suffix}"]) == at(folder, *names)


# --- standard input


def stdin(monkeypatch, data, errors="strict"):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", errors=errors))


def test_paths_on_standard_input(folder, monkeypatch):
    stdin(monkeypatch, "b.wav\r\n\n a space .wav\nb.wav\nü.wav".encode())
    assert find_audio(["first.wav", "-"]) == ["first.wav", "b.wav", " a space .wav", "ü.wav"]


def test_nothing_on_standard_input(monkeypatch):
    stdin(monkeypatch, b"\n")
    with pytest.raises(InputError, match="name no files"):
        find_audio(["-"])


def test_standard_input_with_a_name_that_is_not_utf8(monkeypatch):
    stdin(monkeypatch, b"caf\xe9.wav\nb.wav\n")
    assert find_audio(["-"]) == [os.fsdecode(b"caf\xe9.wav"), "b.wav"]


def test_standard_input_as_find_print0_writes_it(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a b.wav\0c\nd.wav\0")))
    assert find_audio(["-"]) == ["a b.wav", "c\nd.wav"]
