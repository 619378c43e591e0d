"""Class folders and lists → examples, and what is said where they are none."""

import json
import re
import tarfile
import unicodedata
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from helpers import noise, write_sounds
from torchbeats.audio import AudioWarning
from torchbeats.data.labelled import Example, read_labelled
from torchbeats.data.splits import purpose
from torchbeats.errors import InputError


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(0.2), 16_000)
    return path


@pytest.fixture
def three(tmp_path):
    return [sound(tmp_path / f"{name}.wav") for name in "abc"]


def csv(tmp_path, text):
    (tmp_path / "list.csv").write_text(text, "utf-8")
    return tmp_path / "list.csv"


def test_class_folders(tmp_path):
    for name in ("dog/1.wav", "dog/deep/2.wav", "鳥/3.wav", ".hidden/4.wav", "dog/.5.wav", "dog/notes.txt"):
        sound(tmp_path / name) if name.endswith("wav") else (tmp_path / name).touch()
    found = read_labelled([tmp_path])
    assert found.classes == ["dog", "鳥"]
    assert found.problem_type == "single_label"
    assert [(e.path, e.labels) for e in found.examples] == [
        (str(tmp_path / "dog/1.wav"), ("dog",)),
        (str(tmp_path / "dog/deep/2.wav"), ("dog",)),
        (str(tmp_path / "鳥/3.wav"), ("鳥",)),
    ]
    assert found.targets().tolist() == [0, 0, 1]
    assert found.counts() == {"dog": 2, "鳥": 1}


def test_folders_of_splits(tmp_path):
    for name in ("train/dog/1.wav", "train/cat/2.wav", "Test/dog/3.wav"):
        sound(tmp_path / name)
    found = read_labelled([tmp_path])
    assert found.classes == ["cat", "dog"]
    assert [(e.labels, e.split) for e in found.examples] == [
        (("dog",), "test"),
        (("cat",), "train"),
        (("dog",), "train"),
    ]
    assert [e.labels for e in found.select(split="test").examples] == [("dog",)]
    # but a class may be called test, where sounds lie in it
    sound(tmp_path / "train/4.wav")
    (tmp_path / "Test").rename(tmp_path / "rest")
    assert read_labelled([tmp_path]).classes == ["rest", "train"]


def test_list_with_everything(three, tmp_path):
    columns = "path,label,start,end,split,fold,group\n"
    rows = "a.wav,dog,0.5,1,train,1,x\nb.wav,cat,,,test,2,y\nc.wav,dog,,0.1,test,2,x\n"
    found = read_labelled([csv(tmp_path, columns + rows)])
    assert found.examples == [
        Example(str(three[0]), ("dog",), 0.5, 1.0, "train", "1", "x"),
        Example(str(three[1]), ("cat",), 0.0, None, "test", "2", "y"),
        Example(str(three[2]), ("dog",), 0.0, 0.1, "test", "2", "x"),
    ]
    assert len(found.select(split="test", fold="2").examples) == 2
    with pytest.raises(InputError, match=r"no example in the split 'valid'; there are 'test', 'train'\."):
        found.select(split="valid")
    with pytest.raises(InputError, match=r"no example in the fold '2'; there are '1'\."):
        found.select(split="train", fold="2")
    assert found.select().examples == found.examples


def test_no_splits_to_choose_from(three, tmp_path):
    found = read_labelled([csv(tmp_path, "path,label\na.wav,x\nb.wav,y\n")])
    with pytest.raises(InputError, match="no example says its split"):
        found.select(split="test")


@pytest.mark.parametrize("cell", ["dog;cat", "dog|cat", " dog ; cat ;", '"[""dog"", ""cat"", ""dog""]"'])
def test_several_labels_in_text(three, tmp_path, cell):
    found = read_labelled([csv(tmp_path, f"path,labels\na.wav,{cell}\nb.wav,dog\nc.wav,\n")])
    assert found.problem_type == "multi_label"
    assert found.classes == ["cat", "dog"]
    assert found.targets().tolist() == [[1, 1], [0, 1], [0, 0]]
    assert found.targets().dtype == np.float32


def test_jsonl_and_parquet(three, tmp_path):
    rows = [
        {"file": "a.wav", "category": ["dog", "cat"], "fold": 1},
        {"file": "b.wav", "category": ["dog"], "fold": None},
    ]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "l.parquet")
    for name in ("l.jsonl", "l.parquet"):
        found = read_labelled([tmp_path / name])
        assert [(e.labels, e.fold) for e in found.examples] == [(("dog", "cat"), "1"), (("dog",), None)]


def test_numbers_are_labels(three, tmp_path):
    pq.write_table(pa.table({"path": ["a.wav", "b.wav"], "target": [3.0, 4.0]}), tmp_path / "l.parquet")
    assert read_labelled([tmp_path / "l.parquet"]).classes == ["3", "4"]


def test_a_sound_in_several_rows_has_all_their_labels(three, tmp_path):
    rows = f"path,label,split\na.wav,x,train\nb.wav,y,test\n{three[0]},y,\n./a.wav,x,train\n"
    found = read_labelled([csv(tmp_path, rows)], "multi_label")
    assert [(e.labels, e.split) for e in found.examples] == [(("x", "y"), "train"), (("y",), "test")]
    assert found.problem_type == "multi_label"
    # two pieces of it are two examples
    found = read_labelled([csv(tmp_path, "path,label,start,end\na.wav,x,0,1\na.wav,y,1,2\n")])
    assert found.problem_type == "single_label"
    with pytest.raises(InputError, match=r"a\.wav is in the split 'train' and in 'test'"):
        read_labelled([csv(tmp_path, "path,label,split\na.wav,x,train\na.wav,x,test\n")])
    # but where nobody said so, two labels of one sound may be a mistake, by whatever name it is called
    (tmp_path / "link.wav").symlink_to(three[0])
    for other in ("a.wav", "./a.wav", "link.wav", str(three[0])):
        for problem_type in (None, "single_label"):
            rows = f"path,label\na.wav,x\n{other},y\n"
            with pytest.raises(InputError, match=r"a\.wav has the label 'x' \(line 2 of .*\) and 'y' \(line 3 of"):
                read_labelled([csv(tmp_path, rows)], problem_type)
        assert len(read_labelled([csv(tmp_path, f"path,label\na.wav,x\n{other},x\n")]).examples) == 1


def test_letters_of_two_code_points(three, tmp_path):
    """Folders made on a Mac, and a model's labels from elsewhere."""
    apart, together = (unicodedata.normalize(form, "Grünspecht") for form in ("NFD", "NFC"))
    sound(tmp_path / "birds" / apart / "1.wav")
    assert read_labelled([tmp_path / "birds"]).classes == [together]
    assert read_labelled([tmp_path / "birds"], classes=["x", apart]).targets().tolist() == [1]
    found = read_labelled([csv(tmp_path, f"path,label\na.wav,{apart}\nb.wav,{together}\n")], classes=[together])
    assert found.targets().tolist() == [0, 0]


def test_classes_of_a_model(three, tmp_path):
    given = csv(tmp_path, "path,label\na.wav,/m/09x0r\nb.wav,Speech\nc.wav,Music\n")
    found = read_labelled([given], classes=["Music", "Speech", "Silence"], aliases={"/m/09x0r": "Speech"})
    assert found.classes == ["Music", "Speech", "Silence"]
    assert found.targets().tolist() == [1, 1, 0]
    assert found.counts() == {"Music": 1, "Speech": 2, "Silence": 0}
    with pytest.raises(InputError, match=r"no class called '/m/09x0r', 'Speech'; there are 'Music', 'Silence'\."):
        read_labelled([given], classes=["Music", "Silence"])


def test_missing_files_stay_unless_all_are(three, tmp_path):
    found = read_labelled([csv(tmp_path, "path,label\na.wav,x\ngone.wav,y\n")])
    assert len(found.examples) == 2
    with pytest.raises(InputError, match=r"None of the 2 sounds is there; the first would be .*gone1\.wav"):
        read_labelled([csv(tmp_path, "path,label\ngone1.wav,x\ngone2.wav,y\n")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,lable\na.wav,x\n", r"list\.csv needs a column called label or .* beside path or"),
        ("name,label\na.wav,x\n", r"list\.csv cannot be read: it needs a column called path or .* it has name, label"),
        ("path,label\n", r"list\.csv has no rows"),
        ("path,label\na.wav,\nb.wav,\n", r"Not one of the 2 sounds has a label"),
        ("path,label,start\na.wav,x,soon\n", r"line 2: its column 'start' must hold seconds, not 'soon'"),
        ("path,label\na.wav,x\nb.wav," + "y" * 2000 + "\n", r"line 3: a label has 2,000 characters"),
    ],
)
def test_lists_that_are_refused(three, tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        read_labelled([csv(tmp_path, text)])


def test_folders_that_are_refused(three, tmp_path):
    with pytest.raises(InputError, match="has no folders in it; every class needs one"):
        read_labelled([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"The class 'empty' has no sounds: There is no sound file"):
        read_labelled([tmp_path])
    with pytest.raises(InputError, match=re.escape("a.wav is neither a folder of class folders nor a list")):
        read_labelled([three[0]])
    with pytest.raises(InputError, match="There is no list"):
        read_labelled([tmp_path / "gone.csv"])
    with pytest.raises(InputError, match="problem type must be one of"):
        read_labelled([tmp_path], "regression")
    with pytest.raises(InputError, match="name no sounds"):
        read_labelled([])


def test_one_label_for_each_where_asked(three, tmp_path):
    given = csv(tmp_path, "path,label\na.wav,x;y\nb.wav,x\n")
    with pytest.raises(InputError, match=r"a\.wav has the labels x, y"):
        read_labelled([given], "single_label")
    assert read_labelled([given]).problem_type == "multi_label"
    single = csv(tmp_path, "path,label\na.wav,x\nb.wav,y\n")
    assert read_labelled([single], "multi_label").targets().tolist() == [[1, 0], [0, 1]]


def test_a_subset_keeps_the_classes(three, tmp_path):
    found = read_labelled([csv(tmp_path, "path,label\na.wav,x\nb.wav,y\nc.wav,z\n")]).subset([2])
    assert found.classes == ["x", "y", "z"]
    assert found.targets().tolist() == [2]


def caught(function, *args):
    """What a function returns and the warnings that it gives."""
    with warnings.catch_warnings(record=True) as list_of:
        warnings.simplefilter("always")
        result = function(*args)
    assert all(issubclass(one.category, AudioWarning) for one in list_of)
    return result, " ".join(str(one.message) for one in list_of)


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "N/A", "<NA>", "None", "null", "", "  ", "['nan']", "[]"])
def test_no_label_is_no_class(three, tmp_path, missing):
    given = csv(tmp_path, f"path,label\na.wav,x\nb.wav,{missing}\nc.wav,y\n")
    for problem_type in (None, "single_label"):
        result, said = caught(read_labelled, [given], problem_type)
        assert (result.problem_type, result.classes) == ("single_label", ["x", "y"])
        assert [example.path for example in result.examples] == [str(three[0]), str(three[2])]
        assert "1 of 3 sounds are left out, as they have no label" in said
        assert "line 3 of" in said
    assert read_labelled([given], "multi_label").targets().tolist() == [[1, 0], [0, 0], [0, 1]]
    # where a model has such a class, or a folder is called so, it is one
    if missing in ("None", "NA"):
        assert read_labelled([given], classes=["x", "y", missing]).targets().tolist() == [0, 2, 1]
        sound(tmp_path / "folders" / missing / "1.wav")
        assert read_labelled([tmp_path / "folders"]).classes == [missing]


def test_gaps_in_a_column_of_numbers(three, tmp_path):
    pq.write_table(pa.table({"path": ["a.wav", "b.wav", "c.wav"], "label": [1.0, None, 2.0]}), tmp_path / "l.parquet")
    result, said = caught(read_labelled, [tmp_path / "l.parquet"])
    assert (result.problem_type, result.classes, len(result.examples)) == ("single_label", ["1", "2"], 2)
    assert "row 2 of" in said


def test_numbers_written_in_several_ways(three, tmp_path):
    result, said = caught(read_labelled, [csv(tmp_path, "path,label\na.wav,1\nb.wav,01\nc.wav,2.0\n")])
    assert result.classes == ["1", "2"]
    assert "one class each: 01, 1." in said
    result, said = caught(read_labelled, [csv(tmp_path, "path,label\na.wav,1\nb.wav,01\nc.wav,dog\n")])
    assert result.classes == ["01", "1", "dog"]
    assert "different classes" in said
    result, said = caught(read_labelled, [csv(tmp_path, "path,label\na.wav,01\nb.wav,02\nc.wav,10\n")])
    assert result.classes == ["01", "02", "10"]
    assert not said
    assert read_labelled([csv(tmp_path, "path,label\na.wav,01\n")], classes=["0", "1"]).targets().tolist() == [1]


@pytest.mark.parametrize(
    "cell",
    ["['dog', 'cat']", "['dog' 'cat']", "('dog', 'cat')", "[\"dog\", 'cat']", "[dog, cat]", "['dog', None, 'cat']"],
)
def test_several_labels_as_programs_print_them(three, tmp_path, cell):
    quoted = cell.replace('"', '""')
    result = read_labelled([csv(tmp_path, f'path,labels\na.wav,"{quoted}"\nb.wav,"[\'dog\']"\n')])
    assert [example.labels for example in result.examples] == [("dog", "cat"), ("dog",)]
    assert result.problem_type == "multi_label"


def test_brackets_that_are_no_list(three, tmp_path):
    given = csv(tmp_path, "path,label\na.wav,(background)\nb.wav,call [alarm]\nc.wav,[rain drops]\n")
    assert [e.labels for e in read_labelled([given]).examples] == [
        ("(background)",),
        ("call [alarm]",),
        ("rain drops",),
    ]


@pytest.mark.parametrize("yes", ["1", "1.0", "True"])
def test_columns_of_noughts_and_ones(three, tmp_path, yes):
    no = {"1": "0", "1.0": "0.0", "True": "False"}[yes]
    text = f",path,dog,split,cat,note\n0,a.wav,{yes},train,{no},x\n1,b.wav,{no},test,{yes},y\n"
    result, said = caught(read_labelled, [csv(tmp_path, text)])
    assert (result.problem_type, result.classes) == ("multi_label", ["cat", "dog"])
    assert [(e.labels, e.split) for e in result.examples] == [(("dog",), "train"), (("cat",), "test")]
    assert "2 classes: 'dog', 'cat'" in said
    frame = {"path": ["a.wav", "b.wav"], "dog": [1, 0], "cat": [False, True], "vector": [[1.0], [0.0]]}
    pq.write_table(pa.table(frame), tmp_path / "l.parquet")
    assert read_labelled([tmp_path / "l.parquet"]).targets().tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("cells", ["[0, 1, 0] [1, 0, 0]", "[0,1] [1,0]", "[0.0,1.0] [1.0,1.0]"])
def test_lists_of_noughts_and_ones_are_refused(three, tmp_path, cells):
    first, second = cells.replace(", ", ",").split()
    given = csv(tmp_path, f'path,label\na.wav,"{first}"\nb.wav,"{second}"\n')
    with pytest.raises(InputError, match=r"'label' of .* holds lists of noughts and ones \(one-hot\), as in line 2"):
        read_labelled([given])


def test_one_number_is_not_one_hot(three, tmp_path):
    assert read_labelled([csv(tmp_path, "path,label\na.wav,0\nb.wav,1\n")]).classes == ["0", "1"]
    assert read_labelled([csv(tmp_path, 'path,label\na.wav,"[0, 3]"\nb.wav,"[1, 2]"\n')]).classes == [*"0123"]


@pytest.mark.parametrize("word", ["Train", "TRAINING ", "train", "Val", "devel", "dev", "eval", "Testing", "hold-out"])
def test_words_for_splits(three, tmp_path, word):
    expected = purpose(word)
    assert expected in ("train", "validation", "test")
    given = csv(tmp_path, f"path,label,Split\na.wav,x,{word}\nb.wav,y,other\n")
    result = read_labelled([given])
    assert [example.split for example in result.examples] == [expected, "other"]
    assert result.select(split=word) == result.select(split=expected)
    sound(tmp_path / "folders" / word.strip() / "dog" / "1.wav")
    sound(tmp_path / "folders" / word.strip() / "cat" / "1.wav")
    result = read_labelled([tmp_path / "folders"])
    assert (result.classes, {example.split for example in result.examples}) == (["cat", "dog"], {expected})


def test_folders_that_are_only_partly_splits_are_named(three, tmp_path):
    for name in ("top/train/dog/1.wav", "top/more/2.wav"):
        sound(tmp_path / name)
    result, said = caught(read_labelled, [tmp_path / "top"])
    assert result.classes == ["more", "train"]
    assert "'train' are taken as classes, not as splits" in said


def test_pieces_that_their_files_do_not_have(three, tmp_path):
    rows = ["0,0.1", "0.1,0.2", "0.1,0.3", "0.1,9", "5,6", "0,1e30", "-1,0.1", "0.15,0.1", "0,inf", "1e30,", "0.1,"]
    given = csv(tmp_path, "path,label,start,end\n" + "".join(f"a.wav,x,{row}\n" for row in rows) + "b.wav,y,,\n")
    result, wrong = read_labelled([given]).within_files()
    kept = [(0, 0.1), (0.1, 0.2), (0.1, 0.3), (0.1, None), (0, None)]
    assert [(example.start, example.end) for example in result.examples] == kept
    assert len(wrong) == 7
    assert wrong[0] == f"{three[0]}: the piece ends at 9 s, and the file at 0.20 s"
    assert wrong[1] == f"{three[0]}: the piece starts at 5 s, and the file ends at 0.20 s"
    with pytest.raises(InputError, match=r"No piece is in its file\. The first, .*a\.wav: the piece starts at 5 s"):
        read_labelled([csv(tmp_path, "path,label,start,end\na.wav,x,5,6\n")]).within_files()


def test_sounds_inside_parquet(three, tmp_path):
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"audio": [{"bytes": path.read_bytes(), "path": path.name} for path in three], "label": [1, 0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "hub.parquet")
    result = read_labelled([tmp_path / "hub.parquet"])
    assert [(e.path, e.labels) for e in result.examples] == [
        (f"{tmp_path}/hub.parquet#a.wav", ("dog",)),
        (f"{tmp_path}/hub.parquet#b.wav", ("cat",)),
        (f"{tmp_path}/hub.parquet#c.wav", ("dog",)),
    ]
    assert result.existing() == (result, [])
    assert result.within_files() == (result, [])
    assert result.examples[1].content.open().read() == three[1].read_bytes()


@pytest.mark.parametrize("column", ["subset", "Partition"])
def test_the_split_by_other_names(tmp_path, column):
    write_sounds(tmp_path, {"a.wav": 0.2, "b.wav": 0.2})
    (tmp_path / "l.csv").write_text(f"path,label,{column}\na.wav,cat,dev\nb.wav,dog,TRN\n")
    splits = [example.split for example in read_labelled([str(tmp_path / "l.csv")]).examples]
    assert splits == ["validation", "train"]


def test_urls_in_a_list_are_taken_to_be_there(three, tmp_path):
    (tmp_path / "l.csv").write_text("path,label\nhttp://localhost:9/a.wav,x\nhttp://localhost:9/b.wav,y\n")
    labelled = read_labelled([tmp_path / "l.csv"])  # nobody is asked
    assert [(example.path, *example.labels) for example in labelled.examples] == [
        ("http://localhost:9/a.wav", "x"),
        ("http://localhost:9/b.wav", "y"),
    ]
    assert labelled.existing()[1] == []


def test_sounds_in_a_shard_are_there_where_it_is(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"")
    (tmp_path / "l.csv").write_text("path,label\ns.tar#a.wav,x\nother.tar#b.wav,y\n")
    assert read_labelled([tmp_path / "l.csv"]).existing()[1] == [str(tmp_path / "other.tar#b.wav")]


def test_labels_in_the_names_of_a_shard_that_breaks_off(three, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("x_1.wav", "y_1.wav", "z_1.wav"):
            archive.add(three[0], name)
    content = (tmp_path / "s.tar").read_bytes()
    size = three[0].stat().st_size
    (tmp_path / "s.tar").write_bytes(content[: 2 * (512 + -(-size // 512) * 512) + 700])
    with pytest.warns(AudioWarning, match="s.tar: it breaks off within z_1.wav; the 2 sounds before are used"):
        labelled = read_labelled([tmp_path / "s.tar"], label_from=r"#(.)_")
    assert labelled.classes == ["x", "y"]
