"""YAML within bounds: what is read, and what is refused before it takes time or room."""

import os
import time

import pytest
import yaml

from torchbeats import yaml_text


@pytest.fixture(params=["CSafeLoader", "SafeLoader"], autouse=True)
def loader(request, monkeypatch):
    """Both loaders: not every system has the one in C."""
    monkeypatch.setattr(yaml_text, "_LOADER", getattr(yaml, request.param))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", None),
        ("# nothing", None),
        ("a: &x [1, 2.5, no]\nb: [*x, *x]", {"a": [1, 2.5, False], "b": [[1, 2.5, False]] * 2}),
        ("base: &b {x: 1}\nc:\n  <<: *b\n  y: 2", {"base": {"x": 1}, "c": {"x": 1, "y": 2}}),
    ],
)
def test_values(text, values):
    assert yaml_text.load(text, 100) == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5_000, "nest"),
        ("- " * 51 + "x", "is nested more than 50 levels deep"),
        ("[" + "1," * 10**5 + "]", "holds more than 1,000 values"),
        ("a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" * 91, "holds more than 1,000 values"),
        ("a: &a {k: 1}\n" + "b: {<<: [" + "*a, " * 998 + "*a]}", "holds more than 1,000 values"),
        ("&a [*a]", "holds more than 1,000 values"),
        ("a: [1", "is not YAML: .* \\(line [12]\\)$"),
        ("a: 1\n\tb", "is not YAML: .* \\(line 2\\)$"),
        ("a: \x00", "is not YAML"),
        ("{[1]: 2}", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not YAML: could not determine a constructor"),
        ("a: 2001-02-30", "holds a value that cannot be read"),
        ("a: " + "9" * 5_000, "holds a number of 5,000 characters"),
        ("a: 1" + ":59" * 100_000, "holds a number of 300,001 characters"),  # to the base of 60
        ("a: 1" + ":59" * 100_000 + ".5", "holds a number of 300,003 characters"),
        ("a: !!int '1" + ":59" * 100_000 + "'", "holds a number of 300,001 characters"),
    ],
)
def test_what_is_refused(text, said):
    begin = time.process_time()
    with pytest.raises(ValueError, match=said) as error:
        yaml_text.load(text, 1_000)
    assert time.process_time() - begin < 1
    assert "\n" not in str(error.value)


def test_as_many_values_as_there_may_be():
    assert yaml_text.load("[" + "1, " * 998 + "1]", 1_000) == [1] * 999


def test_files(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("\ufeffa: 1", "utf-8")
    assert yaml_text.read(file, 100, 10) == {"a": 1}
    for content, said in [(b"#" * 5_000, "is larger than 4 kB"), (b"a: \xff", "is not UTF-8 text .byte 3.")]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            yaml_text.read(file, 2**12, 10)
    os.mkfifo(tmp_path / "pipe")
    for name, said in [("pipe", "a named pipe"), ("none", "No such file"), (".", "directory"), ("a\0b", "null")]:
        with pytest.raises(ValueError, match=f"cannot be read: .*{said}"):
            yaml_text.read(tmp_path / name, 100, 10)
