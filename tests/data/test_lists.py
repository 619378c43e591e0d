"""Lists as people and programs write them, and what is read of them."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from helpers import noise
from torchbeats import AudioWarning, audio
from torchbeats.data import pieces
from torchbeats.data.inputs import Piece, find_audio, find_sounds
from torchbeats.data.lists import iterate_list, read_list
from torchbeats.errors import AudioError, InputError


@pytest.fixture
def folder(tmp_path):
    """Two sounds of a second each."""
    for seed, name in enumerate(("a.wav", "Bär.wav")):
        soundfile.write(tmp_path / name, noise(1.0, seed=seed), 16_000)
    return tmp_path


def read(path):
    """The pieces of a list, and what was said."""
    with warnings.catch_warnings(record=True) as list_of:
        warnings.simplefilter("always")
        result = find_sounds([path])
    assert all(one.category is AudioWarning for one in list_of)
    return result, " ".join(str(one.message) for one in list_of)


def write(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", ["csv", "txt", "jsonl", "scp"])
def test_unicode_in_all_its_encodings(folder, encoding, suffix):
    text = {
        "csv": "path,label\r\na.wav,x\r\nBär.wav,y\r\n",
        "txt": "a.wav\r\nBär.wav\r\n",
        "jsonl": '{"path": "a.wav"}\r\n{"path": "Bär.wav"}\r\n',
        "scp": "one a.wav\r\ntwo Bär.wav\r\n",
    }[suffix]
    result, said = read(write(folder, f"l.{suffix}", text, encoding))
    assert result == [Piece(str(folder / "a.wav")), Piece(str(folder / "Bär.wav"))]
    assert not said


def test_western_encodings_are_told(folder):
    for encoding in ("latin-1", "cp1252"):
        result, said = read(write(folder, "l.csv", "path\na.wav\nBär.wav\n", encoding))
        assert [piece.path for piece in result] == [str(folder / "a.wav"), str(folder / "Bär.wav")]
        assert "is not UTF-8, and is read as Latin-1 (Windows-1252); see line 3: 'Bär.wav'" in said
    # what is no Windows-1252 is Latin-1
    assert "read as Latin-1; see line 2" in read(write(folder, "l.csv", "path\nä\x81.wav\n", "latin-1"))[1]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_delimiters(folder, delimiter, suffix):
    table = [["id", " File Name ", "Label"], ["1", '"a.wav"', "x"], ["2", "Bär.wav", '"y, z; v"']]
    text = "\n".join(delimiter.join(row) for row in table)
    result = read_list(write(folder, f"l.{suffix}", text), labels=True)
    assert [row.path for row in result.rows] == [str(folder / "a.wav"), str(folder / "Bär.wav")]
    assert [row.values["Label"] for row in result.rows] == ["x", "y, z; v"]
    assert [row.number for row in result.rows] == [2, 3]


@pytest.mark.parametrize("before", ["sep=;\n", "# made by hand\n\n# on Monday\n", "#"])
def test_what_stands_before_a_header(folder, before):
    result = read_list(write(folder, "l.csv", f"{before}path;label\na.wav;x\n"), labels=True)
    assert [(row.path, row.values) for row in result.rows] == [(str(folder / "a.wav"), {"label": "x"})]


@pytest.mark.parametrize(
    ("header", "row", "piece"),
    [
        ("path,start,end", "0.25,0.75", (0.25, 0.75)),
        ("path,start_time,end_time", "0.25,0.75", (0.25, 0.75)),
        ("path,Begin Time (s),End Time (s)", "0.25,0.75", (0.25, 0.75)),
        ("path,Start (s),End (s)", "0.25,0.75", (0.25, 0.75)),
        ("path,startTime,endTime", "0.25,0.75", (0.25, 0.75)),
        ("path,START_S,END_S", "0.25,0.75", (0.25, 0.75)),
        ("path,start_seconds,end_seconds", "0.25,0.75", (0.25, 0.75)),
        ("path,start_ms,end_ms", "250,750", (0.25, 0.75)),
        ("path,begin,end", "0.25,0.75", (0.25, 0.75)),
        ("path,onset,offset", "0.25,0.75", (0.25, 0.75)),
        ("path,offset,duration", "0.25,0.5", (0.25, 0.75)),
        ("path,start,duration", "0.25,0.5", (0.25, 0.75)),
        ("path,onset,Duration (s)", "0.25,0.5", (0.25, 0.75)),
        ("path,start,end", "0.25,", (0.25, None)),
        ("path,start,end", "nan,0.75", (0.0, 0.75)),
        ("path,end", "0.75", (0.0, 0.75)),
        ("audio_filepath,offset,duration", "0.25,0.5", (0.25, 0.75)),
        ("audio_filepath,duration", "0.75", (0.0, 0.75)),
        ("Begin Path,Begin Time (s),End Time (s),File Offset (s)", "100.25,100.75,0.25", (0.25, 0.75)),
    ],
)
def test_pieces(folder, header, row, piece):
    expected = [Piece(str(folder / "a.wav"), *piece)]
    table = f"{header}\na.wav,{row}\na.wav,{row}\n"
    assert read(write(folder, "l.csv", table)) == (expected, "")  # each piece once
    assert read(write(folder, "l.txt", table.replace(",", "\t"))) == (expected, "")
    cells = dict(zip(header.split(","), ["a.wav", *row.split(",")], strict=True))
    assert read(write(folder, "l.jsonl", json.dumps(cells))) == (expected, "")
    numbers = {name: [float(cell or "nan") if cell != "a.wav" else cell] for name, cell in cells.items()}
    pq.write_table(pa.table(numbers), folder / "l.parquet")
    assert read(folder / "l.parquet") == (expected, "")
    assert find_audio([folder / "l.csv"]) == [str(folder / "a.wav")]


def test_times_with_a_decimal_comma(folder):
    assert read(write(folder, "l.csv", "path;start;end\na.wav;0,25;0,75\n"))[0] == [
        Piece(str(folder / "a.wav"), 0.25, 0.75)
    ]


@pytest.mark.parametrize(
    "column", ["start_sample", "begin_frame", "time", "duration", "Stop Time (min)", "Zeit (s)", "Ende [MS]"]
)
def test_columns_that_look_like_times_are_named(folder, column):
    result, said = read(write(folder, "l.csv", f"path,{column},x\na.wav,3,4\n"))
    assert result == [Piece(str(folder / "a.wav"))]
    assert f"the columns '{column}' look like times, and are not used: whole files are taken" in said


@pytest.mark.parametrize("column", ["Tag(s)", "Comment(s)", "Label(s)"])
def test_a_plural_is_no_unit(folder, column):
    assert read(write(folder, "l.csv", f"path,{column}\na.wav,3\n")) == ([Piece(str(folder / "a.wav"))], "")


def test_a_column_that_is_there_twice_is_named(folder):
    result, said = read(write(folder, "l.csv", "path,start,start\na.wav,0.25,0.5\n"))
    assert result == [Piece(str(folder / "a.wav"), 0.5)]
    assert "there is more than one column 'start'; of each the last is read" in said


def test_comments_and_quotes_in_plain_lists(folder):
    (folder / "#1.wav").touch()
    text = "# sounds of spring\na.wav\n\"Bär.wav\"\n  'a.wav'\n#1.wav\n#gone.wav\n"
    result, said = read(write(folder, "l.txt", text))
    assert [piece.path for piece in result] == [str(folder / name) for name in ("a.wav", "Bär.wav", "#1.wav")]
    assert not said


def test_windows_paths(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "b.wav").touch()
    (folder / "real\\name.wav").touch()
    text = "path\n.\\deep\\b.wav\nreal\\name.wav\nC:\\sounds\\x.wav\n"
    result, said = read(write(folder, "l.csv", text))
    assert [piece.path for piece in result] == [
        str(folder / "deep" / "b.wav"),
        str(folder / "real\\name.wav"),
        "C:\\sounds\\x.wav",
    ]
    assert "\\ in paths is read as /, in 1 row: .\\deep\\b.wav (line 2)" in said


def test_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    result, said = read(write(folder, "l.csv", "path\n~/a.wav\n~/gone.wav\n"))
    assert [piece.path for piece in result] == [str(folder / "a.wav"), str(folder / "gone.wav")]
    assert "~ is read as the home folder, in 2 rows: ~/a.wav (line 2)" in said


@pytest.mark.parametrize(
    "url",
    ["https://example.org/a.wav", "s3://bucket/a.wav", "file:///x/a.wav", "HTTP://x/y?z=1", "filecache::s3://b/c"],
)
def test_urls_stay_whole(folder, url):
    for name, text in (("l.csv", f"path\n{url}\n"), ("l.txt", url), ("l.jsonl", json.dumps({"file": url}))):
        path = write(folder, name, text)
        assert [row.path for row in iterate_list(path)] == [url]


def test_kaldi_lists_and_never_their_pipes(folder):
    (folder / "with a space.wav").touch()
    witness = folder / "witness"
    text = f"one a.wav\ntwo touch {witness} |\nthree\twith a space.wav\nfour touch {witness}|  \n"
    result, said = read(write(folder, "wav.scp", text))
    assert [piece.path for piece in result] == [str(folder / "a.wav"), str(folder / "with a space.wav")]
    assert "2 rows left out, since commands are never run (|): line 2, line 4." in said
    assert not witness.exists()


def test_nul_characters(folder):
    for name, text in (
        ("l.csv", "path,label\na.wav,x\nb\0d.wav,x\nBär.wav,y\n"),
        ("l.txt", "a.wav\n\nb\0d.wav\nBär.wav\n"),
        ("l.jsonl", '"a.wav"\n\n"b\\u0000d.wav"\n"Bär.wav"\n'),
    ):
        result, said = read(write(folder, name, text))
        assert [piece.path for piece in result] == [str(folder / "a.wav"), str(folder / "Bär.wav")]
        assert "1 row left out, whose path has a NUL character: line 3." in said


def test_rows_without_a_path_are_named(folder):
    result, said = read(write(folder, "l.csv", "path,label\na.wav,x\n,y\n\n"))
    assert len(result) == 1
    assert "1 row left out, which name no file: line 3." in said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.jsonl", '{"audio": {"path": "a.wav", "bytes": null}, "label": 0}\n'),
        ("l.jsonl", '{"audio_filepath": "a.wav", "text": "x"}\n'),
        ("l.json", '[{"wav": "a.wav", "labels": "x"}]'),
        ("l.json", '{"data": [{"wav": "a.wav", "labels": "x"}]}'),
        ("l.json", '{"audio_filepath": "a.wav"}\n{"audio_filepath": "a.wav"}\n'),
        ("l.csv", ",path,label\n0,a.wav,x\n"),
        ("l.csv", "Unnamed: 0,filePath\n0,a.wav\n"),
        ("l.csv", "\ufeff\ufeffpath\na.wav\n"),
        ("l.csv", "path\ra.wav\r"),
    ],
)
def test_lists_of_neighbours(folder, name, text):
    assert read(write(folder, name, text)) == ([Piece(str(folder / "a.wav"))], "")


def test_urbansound8k(tmp_path):
    """Its files are in a folder for each fold, and its times are those of the recordings that it was cut from."""
    sound = tmp_path / "audio" / "fold5" / "100032-3-0-0.wav"
    sound.parent.mkdir(parents=True)
    soundfile.write(sound, noise(0.5), 16_000)
    (tmp_path / "metadata").mkdir()
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    given = write(tmp_path / "metadata", "l.csv", header + "100032-3-0-0.wav,100032,58.0,58.5,1,5,3,dog_bark\n")
    (piece,), said = read(given)
    assert (piece.start, piece.end) == (0.0, None)
    assert sound.samefile(piece.path)
    assert "'start', 'end' look like times, and are not used" in said
    assert read_list(given, labels=True).rows[0].values["class"] == "dog_bark"


def test_a_list_that_is_no_file(folder):
    (folder / "l.csv").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        read_list(folder / "l.csv")


# --- sounds inside Parquet


def contents(folder, count=50):
    result = []
    for i in range(count):
        soundfile.write(folder / "x.wav", noise(0.1, seed=i), 16_000)
        result.append((folder / "x.wav").read_bytes())
    return result


@pytest.mark.parametrize("form", ["struct", "no names", "bytes"])
def test_sounds_inside_parquet(folder, form):
    data = contents(folder)
    column = {
        "struct": [{"bytes": one, "path": f"{i}.wav"} for i, one in enumerate(data)],
        "no names": [{"bytes": one, "path": None if i else "same.wav"} for i, one in enumerate(data)],
        "bytes": data,
    }[form]
    pq.write_table(pa.table({"audio": column, "path": ["gone.wav"] * 50}), folder / "l.parquet", row_group_size=20)
    result, said = read(folder / "l.parquet")
    assert not said
    assert len({piece.path for piece in result}) == 50
    if form == "struct":
        assert [piece.path for piece in result] == [f"{folder}/l.parquet#{i}.wav" for i in range(50)]
    for i in [*range(50), *np.random.default_rng(0).permutation(50).tolist()]:
        assert result[i].content.open().read() == data[i]
    (samples,) = pieces.stream(result[33])
    assert np.array_equal(samples, audio.excerpt(result[33].content.open(), 0, 1))
    (folder / "l.parquet").unlink()
    with pytest.raises(AudioError, match=r"l\.parquet cannot be read"):
        result[7].content.open()


def test_parquet_whose_bytes_are_all_empty_names_files(folder):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"audio": pa.array([{"bytes": None, "path": "a.wav"}], kind)}), folder / "l.parquet")
    assert read(folder / "l.parquet") == ([Piece(str(folder / "a.wav"))], "")


# --- pieces


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (-1.0, 0.5, "the piece starts at -1 s, and a sound starts at 0 s"),
        (0.5, 0.5, "the piece ends at 0.5 s, but starts at 0.5 s"),
        (0.0, float("inf"), "the piece ends at inf s"),
        (0.0, 1e30, "the piece ends at 1e+30 s"),
        (0.5, 1.5, "the piece ends at 1.5 s, and the file at 1.00 s"),
    ],
)
def test_impossible_pieces_fail(folder, start, end, reason):
    with pytest.raises(AudioError) as caught:
        list(pieces.stream(Piece(str(folder / "a.wav"), start, end)))
    assert caught.value.reason.startswith(reason)
    assert pieces.impossible(start, end, 1.0).startswith(reason)


def test_an_absurd_end_is_not_compared_with_a_length_that_is_not_known():
    assert pieces.impossible(0.0, 1e30) == "the piece ends at 1e+30 s, and no sound is that long"
    assert pieces.impossible(1e12, None) == "the piece ends at 1e+12 s, and no sound is that long"
    assert pieces.impossible(0.0, 1e30, 2.0) == "the piece ends at 1e+30 s, and the file at 2.00 s"


def test_pieces_behind_the_end_fail(folder):
    with pytest.raises(AudioError):
        list(pieces.stream(Piece(str(folder / "a.wav"), 3.0, 4.0)))
    assert "starts at 3 s, and the file ends at 1.00 s" in pieces.impossible(3.0, 4.0, 1.0)


def test_a_piece_may_end_a_little_behind_its_file(folder):
    (samples,) = pieces.stream(Piece(str(folder / "a.wav"), 0.25, 1.1))
    assert np.array_equal(samples, audio.load(folder / "a.wav")[4000:])
