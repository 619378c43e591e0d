"""Class folders and lists → examples, and what is said where they are none."""

import json
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from helpers import noise
from torchbeats.data.labelled import Example, read_labelled
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
    assert [e.labels for e in found.where(split="test").examples] == [("dog",)]
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
    assert len(found.where(split="test", fold="2").examples) == 2
    with pytest.raises(InputError, match=r"no example in the split 'valid'; there are 'test', 'train'\."):
        found.where(split="valid")
    with pytest.raises(InputError, match=r"no example in the fold '2'; there are '1'\."):
        found.where(split="train", fold="2")
    assert found.where().examples == found.examples


def test_no_splits_to_choose_from(three, tmp_path):
    found = read_labelled([csv(tmp_path, "path,label\na.wav,x\nb.wav,y\n")])
    with pytest.raises(InputError, match="no example says its split"):
        found.where(split="test")


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
    found = read_labelled(
        [csv(tmp_path, f"path,label,split\na.wav,x,train\nb.wav,y,test\n{three[0]},y,\n./a.wav,x,train\n")]
    )
    assert [(e.labels, e.split) for e in found.examples] == [(("x", "y"), "train"), (("y",), "test")]
    assert found.problem_type == "multi_label"
    # two pieces of it are two examples
    found = read_labelled([csv(tmp_path, "path,label,start,end\na.wav,x,0,1\na.wav,y,1,2\n")])
    assert found.problem_type == "single_label"
    with pytest.raises(InputError, match=r"a\.wav is in the split 'train' and in 'test'"):
        read_labelled([csv(tmp_path, "path,label,split\na.wav,x,train\na.wav,x,test\n")])
    with pytest.raises(InputError, match=r"a\.wav has the labels x, y"):
        read_labelled([csv(tmp_path, "path,label\na.wav,x\na.wav,y\n")], "single_label")


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
        ("path,label,start\na.wav,x,soon\n", r"Row 1 of .* must have start and end in seconds, not 'soon' and None"),
        ("path,label,start,end\na.wav,x,0,1\na.wav,x,2,1\n", r"Row 2 of .* ends at 1\.0 s, but starts at 2\.0 s"),
        ("path,label,end\na.wav,x,inf\n", r"Row 1 of .* in seconds"),
        ("path,label,start\na.wav,x,-1\n", r"Row 1 of .* starts at -1"),
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
    given = csv(tmp_path, "path,label\na.wav,x\nb.wav,\n")
    with pytest.raises(InputError, match=r"b\.wav has no label"):
        read_labelled([given], "single_label")
    assert read_labelled([given]).problem_type == "multi_label"
    single = csv(tmp_path, "path,label\na.wav,x\nb.wav,y\n")
    assert read_labelled([single], "multi_label").targets().tolist() == [[1, 0], [0, 1]]


def test_a_subset_keeps_the_classes(three, tmp_path):
    found = read_labelled([csv(tmp_path, "path,label\na.wav,x\nb.wav,y\nc.wav,z\n")]).subset([2])
    assert found.classes == ["x", "y", "z"]
    assert found.targets().tolist() == [2]
