"""Annotations of every format, as the programs write them, with the recordings where people have them."""

import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers import write_sounds
from torchbeats.audio import AudioWarning
from torchbeats.data.annotations.annotation import Annotation
from torchbeats.data.annotations.audacity import write_audacity
from torchbeats.data.annotations.birdnet import write_birdnet
from torchbeats.data.annotations.kaleidoscope import write_kaleidoscope
from torchbeats.data.annotations.plain import write_csv, write_json, write_jsonl
from torchbeats.data.annotations.raven import write_raven
from torchbeats.data.annotations.reading import read_annotations
from torchbeats.data.inputs import find_sounds
from torchbeats.errors import InputError, SettingsError

SEVERAL = {"Raven": "t.raven.txt", "Kaleidoscope": "t.kaleidoscope.csv", "BirdNET": "t.birdnet.csv", "CSV": "t.csv"}
SEVERAL |= {"JSON lines": "t.jsonl", "JSON": "t.json"}
WRITERS = {"Raven": write_raven, "Kaleidoscope": write_kaleidoscope, "BirdNET": write_birdnet, "CSV": write_csv}
WRITERS |= {"JSON lines": write_jsonl, "JSON": write_json}


@pytest.fixture
def folder(tmp_path):
    return write_sounds(tmp_path, {"a.wav": 4.0, "b.wav": 6.0, "sub/c.wav": 5.0})


def write(path, *lines, encoding="utf-8", end="\n"):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def tabs(*cells):
    return "\t".join(map(str, cells))


def brief(annotations, folder):
    return [(one.path.removeprefix(f"{folder}/"), one.start, one.end, one.label) for one in annotations]


RAVEN = tabs("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)")


# --- Raven


def test_raven_of_several_recordings_counts_through_them(folder):
    table = write(
        folder / "all.Table.1.selections.txt",
        tabs(RAVEN, "Begin File", "File Offset (s)", "Annotation"),
        tabs(1, "Waveform 1", 1, 1.5, 2.5, 100.0, 900.5, "a.wav", 1.5, "Größe"),
        tabs(1, "Spectrogram 1", 1, 1.5, 2.5, 100.0, 900.5, "a.wav", 1.5, "Größe"),
        tabs(2, "Spectrogram 1", 1, 5.25, 6.0, 0, 4000, "b.wav", 1.25, "犬"),
    )
    found = read_annotations(table)
    assert brief(found, folder) == [("a.wav", 1.5, 2.5, "Größe"), ("b.wav", 1.25, 2.0, "犬")]
    assert (found[0].low, found[0].high) == (100.0, 900.5)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.filterwarnings("ignore::torchbeats.AudioWarning")
def test_raven_in_any_encoding_of_the_recording_of_its_name(folder, encoding, end):
    lines = tabs(RAVEN, "Sound type"), tabs(1, "Spectrogram 1", 1, 0.5, 1.5, 1, 2, "Größe")
    table = write(folder / "a.Table.1.selections.txt", *lines, encoding=encoding, end=end)
    assert brief(read_annotations(table), folder) == [("a.wav", 0.5, 1.5, "Größe")]


def test_any_column_has_the_labels(folder):
    header = tabs(RAVEN, "Delta Time (s)", "Peak Freq (Hz)", "Call", "Notes", "Sex")
    table = write(folder / "a.txt", header, tabs(1, "Spectrogram 1", 1, 0, 1, 0, 1, 1, 500, "song", "faint", "m"))
    with pytest.raises(InputError, match="which of its columns 'Call', 'Sex' has the labels"):
        read_annotations(table)
    assert read_annotations(table, label_column="sex")[0].label == "m"
    assert read_annotations(table, label_column="Notes")[0].label == "faint"
    with pytest.raises(InputError, match="no column 'Nobody'"):
        read_annotations(table, label_column="Nobody")


def test_paths_of_another_machine(folder):
    header = tabs(RAVEN, "Begin Path", "Species")
    table = write(folder / "labels" / "x.txt", header, tabs(1, "S", 1, 0, 1, 0, 1, r"D:\field\sub\C.WAV", "wren"))
    assert brief(read_annotations(table), folder) == [("sub/c.wav", 0, 1, "wren")]


def test_rows_without_a_label_are_named(folder):
    table = write(
        folder / "a.txt", tabs(RAVEN, "Species"), tabs(1, "S", 1, 0, 1, 0, 1, ""), tabs(2, "S", 1, 1, 2, 0, 1, "x")
    )
    with pytest.warns(AudioWarning, match="1 row left out, which have no label: line 2"):
        assert [one.label for one in read_annotations(table)] == ["x"]


def test_nocall_is_nothing(folder):
    header = tabs(RAVEN, "Common Name", "Species Code", "Confidence", "Begin Path", "File Offset (s)")
    table = write(
        folder / "a.BirdNET.selection.table.txt",
        header,
        tabs(1, "Spectrogram 1", 1, 0, 3.0, 0, 15000, "nocall", "nocall", 1.0, "/data/a.wav", 0),
        tabs(2, "Spectrogram 1", 1, 3.0, 4.0, 0, 15000, "Wren", "winwre4", 0.8123, "/data/a.wav", 3.0),
    )
    (found,) = read_annotations(table)
    assert (found.label, found.peak, found.start) == ("Wren", 0.8123, 3.0)


# --- Audacity


def test_audacity_with_frequencies(folder):
    track = write(
        folder / "b.txt",
        tabs("0.500000", "1.250000", "first call"),
        tabs("\\", "1000.000000", "-1.000000"),
        tabs("2,5", "2,5", "point"),
        tabs("3.0", "4.0", ""),
    )
    with pytest.warns(AudioWarning, match="which have no label: line 4"):
        found = read_annotations(track)
    assert [(one.start, one.end, one.label, one.low, one.high) for one in found] == [
        (0.5, 1.25, "first call", 1000.0, None),
        (2.5, 2.5, "point", None, None),
    ]
    assert found[0].path == str(folder / "b.wav")


def test_a_track_beside_no_recording(folder):
    track = write(folder / "nobody.txt", tabs("0.5", "1.0", "x"))
    with pytest.raises(InputError, match="names no recording"):
        read_annotations(track)
    with pytest.raises(InputError, match="line 2 must have the start"):
        read_annotations(write(folder / "a.txt", tabs("0.5", "1.0", "x"), "not a line"))


def test_lists_of_paths_are_still_lists(folder):
    listed = write(folder / "files.txt", "a.wav", "b.wav")
    assert [piece.path for piece in find_sounds([listed])] == [str(folder / "a.wav"), str(folder / "b.wav")]


def test_embed_takes_annotations_as_pieces(folder):
    track = write(folder / "b.txt", tabs("0.5", "1.25", "x"))
    (piece,) = find_sounds([track])
    assert (piece.path, piece.start, piece.end) == (str(folder / "b.wav"), 0.5, 1.25)


def test_a_table_of_times_and_names_without_the_other_columns_of_raven(folder):
    header = tabs("Begin Time (s)", "End Time (s)", "Common Name", "Species Code", "Confidence")
    table = write(folder / "a.selection.table.txt", header, tabs(1.0, 3.0, "Barred Owl", "brdowl", 0.42))
    (owl,) = read_annotations(table)
    assert (owl.path, *owl[1:4], owl.peak) == (str(folder / "a.wav"), 1.0, 3.0, "Barred Owl", 0.42)


# --- Kaleidoscope


def test_kaleidoscope(folder):
    table = write(
        folder / "id.csv",
        "INDIR,OUTDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,DATE,TIME,HOUR,Fmin,Fmax,AUTO ID*,MANUAL ID",
        r"D:\bats,,sub,c.wav,0,1.5,2,2024-07-01,21:30:00,21,20000,45100,PIPPIP,NYCLEI",
        r"D:\bats,,,b.wav,0,0,5,2024-07-01,21:30:00,21,,,PIPPIP,",
        r"D:\bats,,,b.wav,0,5,1,2024-07-01,21:30:00,21,,,NoID,",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the columns TIME and HOUR are known
        found = read_annotations(table)
    assert brief(found, folder) == [("sub/c.wav", 1.5, 3.5, "NYCLEI"), ("b.wav", 0, 5, "PIPPIP")]
    assert (found[0].low, found[0].high) == (20000, 45100)
    with pytest.warns(AudioWarning, match="2 rows left out, which have no label"):
        assert len(read_annotations(table, label_column="MANUAL ID")) == 1


def test_kaleidoscope_writes_the_frequencies_of_bats_in_kilohertz(folder):
    columns = "INDIR,FOLDER,IN FILE,OFFSET,DURATION,AUTO ID*,PULSES,MATCHING,N,Fc,Sc,Dur,Fmax,Fmin,Fmean,MANUAL ID"
    table = write(folder / "id.csv", columns, r"D:\bats,,a.wav,0,2,PIPPIP,12,10,12,45.1,,,48.3,44.2,,")
    (bat,) = read_annotations(table)
    assert (bat.label, bat.low, bat.high) == ("PIPPIP", 44_200.0, 48_300.0)


def test_kaleidoscope_clusters(folder):
    header = "INDIR,FOLDER,IN FILE*,OFFSET,DURATION,Fmin,Fmean,Fmax,TOP1MATCH*,TOP1DIST,MANUAL ID"
    table = write(folder / "cluster.csv", header, ",sub,c.wav,0.1,0.2,1,2,3,robin.1,0.5,")
    assert brief(read_annotations(table), folder) == [("sub/c.wav", 0.1, pytest.approx(0.3), "robin.1")]


# --- BirdNET


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        (
            "b.BirdNET.results.csv",
            "Start (s),End (s),Scientific name,Common name,Confidence",
            "0,3,Turdus merula,Amsel,0.9",
        ),
        ("b.csv", "Start (s);End (s);Scientific name;Common name;Confidence", "0;3;Turdus merula;Amsel;0.9"),
        ("all.csv", "Start (s),End (s),Scientific name,Common name,Confidence,File", "0,3,T,Amsel,0.9,/home/me/b.wav"),
        (
            "r.csv",
            "filepath,start,end,scientific_name,common_name,confidence,lat,lon,week,overlap,sensitivity,min_conf,model",
            "/d/b.wav,0,3,Turdus merula,Amsel,0.9,-1,-1,-1,0,1,0.1,m",
        ),
        (
            "kaleidoscope.csv",
            "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,common_name,confidence,lat,lon,week,overlap,sens",
            "/d,e,b.wav,0,3,Turdus merula,Amsel,0.9,-1,-1,-1,0,1",
        ),
    ],
)
def test_birdnet(folder, name, header, row):
    (found,) = read_annotations(write(folder / name, header, row))
    assert found == Annotation(str(folder / "b.wav"), 0.0, 3.0, "Amsel", peak=0.9)


def test_birdnet_by_scientific_name(folder):
    header = "Start (s),End (s),Scientific name,Common name,Confidence"
    table = write(folder / "b.BirdNET.results.csv", header, "0,3,Turdus merula,Amsel,0.9")
    assert read_annotations(table, label_column="Scientific name")[0].label == "Turdus merula"


def test_birdnet_label_track_with_confidence(folder):
    track = write(folder / "b.BirdNET.results.txt", tabs("0.0", "3.0", "Turdus merula_Amsel", "0.9"))
    assert read_annotations(track) == [Annotation(str(folder / "b.wav"), 0.0, 3.0, "Turdus merula_Amsel", peak=0.9)]


def test_birdnet_parquet(folder):
    columns = {"Start (s)": [0.0], "End (s)": [3.0], "Scientific name": ["T"], "Common name": ["Amsel"]}
    table = pa.table({**columns, "Confidence": [0.9], "File": ["/home/me/b.wav"]})
    pq.write_table(table, folder / "BirdNET_CombinedTable.parquet")
    (found,) = read_annotations(folder / "BirdNET_CombinedTable.parquet")
    assert found == Annotation(str(folder / "b.wav"), 0.0, 3.0, "Amsel", peak=0.9)


# --- Perch Hoplite


def test_hoplite_annotations_that_are_not_positive_are_left_out(folder):
    table = write(
        folder / "hoplite_annotations.csv",
        "recording,start_offset_s,end_offset_s,label,label_type",
        *("sub/c.wav,1.0,2.5,wren,positive", "b.wav,0,5,wren,negative", "b.wav,0,5,robin,uncertain"),
    )
    with pytest.warns(AudioWarning, match="2 rows left out, whose label_type is not positive: line 3, line 4"):
        found = read_annotations(table)
    assert brief(found, folder) == [("sub/c.wav", 1.0, 2.5, "wren")]
    assert len(find_sounds([table])) == 2  # which may be embedded all the same


def test_hoplite_detections(folder):
    header = "idx,project,filename,window_start,window_end,label,logits"
    table = write(folder / "inference.csv", header, "7,p,sub/c.wav,0.0,5.0,wren,1.25")
    assert brief(read_annotations(table), folder) == [("sub/c.wav", 0.0, 5.0, "wren")]


# --- folders, and where recordings are


def test_folders_of_annotations(folder):
    write(folder / "notes.txt", "This is no annotation.")
    write(folder / "other.csv", "name,value", "x,1")
    write(folder / "labels" / "a.txt", tabs("0", "1", "x"))
    write(folder / "labels" / "deep" / "c.audacity.txt", tabs("1", "2", "y"))
    write(folder / "plain.jsonl", '{"path": "b.wav", "start": 1, "end": 2, "label": "z"}')
    found = brief(read_annotations(folder), folder)
    assert sorted(found) == [("a.wav", 0, 1, "x"), ("b.wav", 1, 2, "z"), ("sub/c.wav", 1, 2, "y")]
    with pytest.raises(InputError, match="no annotations in the folder"):
        read_annotations(folder / "sub")


def test_same_names_in_several_folders(tmp_path):
    write_sounds(tmp_path, {"north/1.wav": 2.0, "south/1.wav": 2.0})
    for site in ("north", "south"):
        write(tmp_path / site / "1.txt", tabs("0", "1", site))
    assert brief(read_annotations(tmp_path), tmp_path) == [
        ("north/1.wav", 0, 1, "north"),
        ("south/1.wav", 0, 1, "south"),
    ]
    table = write(tmp_path / "t.csv", "IN FILE,FOLDER,OFFSET,DURATION,AUTO ID", "1.wav,south,0,1,x", "1.wav,,0,1,x")
    with pytest.raises(InputError, match=r"which may be .* or .*--sounds"):
        read_annotations(table)


def test_recordings_elsewhere(tmp_path):
    write_sounds(tmp_path / "disk", {"deep/er/a.flac": 2.0})
    track = write(tmp_path / "work" / "mine" / "a.txt", tabs("0", "1", "x"))
    with pytest.raises(InputError):
        read_annotations(track)
    (found,) = read_annotations(track, sounds=[tmp_path / "disk"])
    assert found.path == str(tmp_path / "disk/deep/er/a.flac")
    with pytest.raises(SettingsError, match="There is no folder"):
        read_annotations(track, sounds=[tmp_path / "disc"])


# --- written and read again


ROWS = [
    ("a.wav", 0.25, 1.0, "a, b"),
    ("a.wav", 0.5, 4.0, "犬"),
    ("b.wav", 0.0, 1.5, 'say "x"'),
    ("b.wav", 5.5, 6.0, "a, b"),
]


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_read(folder, name):
    rows = [Annotation(f"{folder}/{path}", start, end, label, peak=0.75) for path, start, end, label in ROWS]
    table = folder / "out" / SEVERAL[name]
    table.parent.mkdir()
    table.write_text("".join(WRITERS[name](rows)), "utf-8")
    found = read_annotations(table)
    assert brief(found, folder) == [(path, start, pytest.approx(end), label) for path, start, end, label in ROWS]
    assert {one.peak for one in found} == {0.75}


def test_raven_counts_on_behind_whole_recordings(folder):
    rows = [Annotation(f"{folder}/{path}", start, end, label) for path, start, end, label in ROWS]
    lines = [line.split("\t") for line in "".join(write_raven(rows)).splitlines()]
    begins = [float(cells[lines[0].index("Begin Time (s)")]) for cells in lines[1:]]
    assert begins == [0.25, 0.5, 4.0, 9.5]  # a.wav has 4 s


def test_audacity_is_written_with_frequencies(folder):
    rows = [
        Annotation(str(folder / "a.wav"), 1.0, 2.0, "x\ty", low=100.0),
        Annotation(str(folder / "a.wav"), 3.0, 3.5, "z"),
    ]
    track = folder / "a.audacity.txt"
    track.write_text("".join(write_audacity(rows)), "utf-8")
    assert read_annotations(track) == [rows[0]._replace(label="x y"), rows[1]]


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_and_read(folder, name):
    text = "".join(WRITERS[name]([]))
    assert text.count("\n") == (0 if name == "JSON lines" else 1)


def test_raven_of_several_recordings_without_offsets_says_so(folder):
    rows = tabs(1, "S", 1, 0, 1, 0, 1, "a.wav", "x"), tabs(2, "S", 1, 0, 1, 0, 1, "b.wav", "x")
    table = write(folder / "t.txt", tabs(RAVEN, "Begin File", "Species"), *rows)
    with pytest.warns(AudioWarning, match=r"no column File Offset \(s\): its times are taken as times in each"):
        assert len(read_annotations(table)) == 2


@pytest.mark.parametrize(("write", "end"), [(write_raven, ".raven.txt"), (write_kaleidoscope, ".csv")])
def test_urls_of_recordings_stay_as_they_are(tmp_path, write, end):
    path = tmp_path / f"t{end}"
    path.write_text("".join(write([Annotation("file:///no/such.wav", 1.0, 2.0, "x")])))
    assert [row.path for row in read_annotations([path])] == ["file:///no/such.wav"]
