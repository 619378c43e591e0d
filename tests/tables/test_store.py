"""Results on disk: one table, complete or absent, and every way to stop and go on."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchbeats.errors import StoreError
from torchbeats.inference import Group, Position
from torchbeats.plans import Row
from torchbeats.tables import formats, fragments, store, unfinished
from torchbeats.tables.store import Store

WIDTH = 5
ROW = Row("embedding", (WIDTH,), np.dtype(np.float32), "window")
ABOUT = {"model": "beats-iter3", "pool": "mean", "layer": None, "window": 10.0, "inputs": "7 files, 0123"}
FILES = ["t.parquet", "t.npz"]
OUTPUTS = FILES + ["t.lance"] * (importlib.util.find_spec("lance") is not None)
every_file = pytest.mark.parametrize("name", FILES)
every_output = pytest.mark.parametrize("name", OUTPUTS)


@pytest.fixture(autouse=True)
def _flush_at_once(monkeypatch):
    monkeypatch.setattr(store, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(fragments, "FRAGMENT_BYTES", 2000)


def group(number, rows=3, failures=()):
    """Rows of one input, each different."""
    values = np.random.default_rng(number).standard_normal((rows, WIDTH)).astype(np.float32)
    times = np.stack([np.arange(rows), np.arange(1, rows + 1)], 1) / 3
    begins = np.arange(rows) == 0
    return Group([f"ü {number}.wav"] * rows, times, values, begins, list(failures), Position(number + 1, 0))


GROUPS = [
    group(0),
    group(1, rows=1, failures=[("a.wav", "the file is empty (0 bytes)")]),
    Group(position=Position(2, 4), failures=[("ü.wav", "no sound")]),
    group(2, rows=40),
    group(3, rows=2),
]
FAILURES = [{"path": "a.wav", "error": "the file is empty (0 bytes)"}, {"path": "ü.wav", "error": "no sound"}]


def write(out, groups=GROUPS, about=ABOUT, **more):
    table = Store(out, ROW, about, **more)
    for part in groups[table_start(table, groups) :]:
        table.append(part)
    table.finish()
    return table


def table_start(table, groups):
    """Where a run goes on, as `inference.groups` would."""
    positions = [Position(), *(part.position for part in groups)]
    return positions.index(table.position)


def columns(out):
    """Any format as ``{name: array}``."""
    if out.suffix == ".npz":
        with np.load(out) as arrays:
            return {name: arrays[name] for name in ("path", "start", "end", "embedding")}
    table = formats.open_lance(out).to_table() if out.suffix == ".lance" else pq.read_table(out)
    values = {name: np.array(table[name].to_pylist()) for name in ("path", "start", "end")}
    return values | {"embedding": np.stack(table["embedding"].to_numpy()) if len(table) else np.empty((0, WIDTH))}


def about(out):
    if out.suffix == ".npz":
        return json.loads(str(np.load(out)["about"]))
    return json.loads(schema_of(out).metadata[b"torchbeats"])


def schema_of(out):
    return formats.open_lance(out).schema if out.suffix == ".lance" else pq.read_schema(out)


def assert_holds(out, groups=GROUPS):
    found = columns(out)
    assert list(found["path"]) == [path for part in groups for path in part.paths]
    for index, name in enumerate(("start", "end")):
        np.testing.assert_array_equal(found[name], np.concatenate([part.times[:, index] for part in groups]))
    np.testing.assert_array_equal(found["embedding"], np.concatenate([p.values for p in groups if p.paths]))


def files(folder):
    return sorted(path.name for path in folder.iterdir())


# --- the table


def test_parquet_schema(tmp_path):
    write(tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert [(field.name, field.type) for field in schema] == [
        ("path", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("embedding", pa.list_(pa.float32(), WIDTH)),
    ]
    assert not any(pq.read_table(tmp_path / "t.parquet").column(name).null_count for name in schema.names)


@every_output
def test_content_and_metadata(tmp_path, name):
    out = tmp_path / "new folder" / name
    assert write(out).failed == 2
    assert_holds(out)
    assert about(out) == {**ABOUT, "failed": 2}
    lines = (out.parent / f"{name}.errors.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == FAILURES
    assert files(out.parent) == [name, f"{name}.errors.jsonl"]


def test_npz_is_the_parquet(tmp_path):
    for name in OUTPUTS:
        write(tmp_path / name)
    parquet, npz = columns(tmp_path / "t.parquet"), columns(tmp_path / "t.npz")
    for name, values in parquet.items():
        np.testing.assert_array_equal(npz[name], values)
    assert (npz["embedding"].dtype, npz["embedding"].shape) == (np.float32, (46, WIDTH))
    assert (npz["start"].dtype, npz["end"].dtype, npz["path"].dtype.kind) == (np.float64, np.float64, "U")


@every_output
def test_large_tables_are_written_in_pieces(tmp_path, monkeypatch, name):
    monkeypatch.setattr(store, "FLUSH_BYTES", 1000)
    many = [group(number, rows=17) for number in range(30)]
    write(tmp_path / name, many)
    assert_holds(tmp_path / name, many)
    if name.endswith("parquet"):
        assert pq.read_metadata(tmp_path / name).num_row_groups > 5


@every_output
def test_only_failures(tmp_path, name):
    write(tmp_path / name, [Group(position=Position(1, 0), failures=[("a.wav", "no sound")])])
    found = columns(tmp_path / name)
    assert [len(values) for values in found.values()] == [0, 0, 0, 0]
    assert found["embedding"].shape == (0, WIDTH)
    if name.endswith("npz"):
        assert found["path"].dtype.kind == "U"
    else:
        assert schema_of(tmp_path / name).field("embedding").type.list_size == WIDTH
    assert about(tmp_path / name)["failed"] == 1
    assert Store(tmp_path / name, ROW, ABOUT).complete


@every_output
def test_names_that_are_not_utf8(tmp_path, name):
    odd = os.fsdecode(b"caf\xe9.wav")
    values, begins = np.ones((1, WIDTH), np.float32), np.ones(1, bool)
    write(tmp_path / name, [Group([odd], np.zeros((1, 2)), values, begins, [(odd, "x")], Position(1))])
    assert columns(tmp_path / name)["path"].tolist() == [r"caf\xe9.wav"]
    (line,) = (tmp_path / f"{name}.errors.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["path"] == r"caf\xe9.wav"


def test_errors_of_an_earlier_run_go(tmp_path):
    write(tmp_path / "t.parquet")
    write(tmp_path / "t.parquet", [group(0)], overwrite=True)
    assert files(tmp_path) == ["t.parquet"]


# --- stopping and going on


@every_output
@pytest.mark.parametrize("stop", range(len(GROUPS) + 1))
def test_resume(tmp_path, name, stop):
    first = Store(tmp_path / name, ROW, ABOUT)
    assert (first.position, first.failed, first.complete) == (Position(), 0, False)
    for part in GROUPS[:stop]:
        first.append(part)
    second = Store(tmp_path / name, ROW, ABOUT)
    assert not formats.exists(tmp_path / name)
    assert second.position == (GROUPS[stop - 1].position if stop else Position())
    assert second.failed == sum(len(part.failures) for part in GROUPS[:stop])
    for part in GROUPS[stop:]:
        second.append(part)
    second.finish()
    assert second.complete
    assert second.failed == 2
    assert_holds(tmp_path / name)
    assert files(tmp_path) == [name, f"{name}.errors.jsonl"]


@pytest.mark.skipif("t.lance" not in OUTPUTS, reason="needs the extra search")
def test_a_lance_dataset_grows_as_the_run_goes_on(tmp_path):
    """Rows move on to fragments, of which there are few, and the folder of the unfinished run stays small."""
    out = tmp_path / "t.lance"
    write(out, [group(9)])
    table = Store(out, ROW, ABOUT, overwrite=True)
    sizes, waiting = [], []
    for number in range(60):
        table.append(group(number, rows=4))
        sizes.append(sum(path.stat().st_size for path in (out / "data").iterdir()))
        waiting.append(sum(path.stat().st_size for path in (tmp_path / "t.lance.parts").glob("rows*.arrow")))
    assert sizes == sorted(sizes)
    assert 5 < len(set(sizes)) < 40
    assert max(waiting) < 2 * fragments.FRAGMENT_BYTES
    assert list(columns(out)["path"]) == group(9).paths  # what was there stays until the end
    Store(out, ROW, ABOUT, overwrite=True).finish()
    assert_holds(out, [group(number, rows=4) for number in range(60)])
    assert len(formats.open_lance(out).get_fragments()) < 40
    assert files(tmp_path) == ["t.lance"]
    assert formats.open_lance(out).count_rows() == 240
    kept = {file.path for part in formats.open_lance(out).get_fragments() for file in part.metadata.files}
    assert {path.name for path in (out / "data").iterdir()} == kept


@pytest.mark.skipif("t.lance" not in OUTPUTS, reason="needs the extra search")
def test_fragments_of_a_run_that_is_begun_anew_go(tmp_path):
    out = tmp_path / "t.lance"
    first = Store(out, ROW, ABOUT)
    for part in GROUPS:
        first.append(part)
    assert list((out / "data").iterdir())
    write(out, [group(7)], {**ABOUT, "pool": "bands"}, overwrite=True)
    assert_holds(out, [group(7)])
    assert len(list((out / "data").iterdir())) == 1
    (tmp_path / "u.lance").touch()
    with pytest.raises(StoreError, match=r"u\.lance is a file, and Lance keeps a table in a folder"):
        Store(tmp_path / "u.lance", ROW, ABOUT)


def test_rows_reach_the_disk_in_time_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FLUSH_SECONDS", 1000.0)
    monkeypatch.setattr(store, "FLUSH_BYTES", 40 * WIDTH * 4)
    table = Store(tmp_path / "t.parquet", ROW, ABOUT)
    for part in GROUPS:
        table.append(part)
    assert len(list(unfinished.parts(tmp_path / "t.parquet.parts"))) == 1  # when the fourth group filled it
    assert Store(tmp_path / "t.parquet", ROW, ABOUT).position == GROUPS[3].position
    table.finish()
    assert_holds(tmp_path / "t.parquet")


class Killed(BaseException):
    pass


def stopped_at_every(monkeypatch, owner, name, moment, attempt):
    """Run ``attempt(number)`` again and again, and stop each at another call of a function of the system."""
    call, left = getattr(owner, name), [0]

    def stop_at(*arguments, **options):
        left[0] -= 1
        if left[0] < 0 and moment == "before":
            raise Killed
        result = call(*arguments, **options)
        if left[0] < 0:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, stop_at)
    for stop in range(200):
        left[0] = stop
        try:
            attempt(stop)
        except Killed:
            left[0] = 1000
            yield stop
        else:
            return


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", [(Path, "replace"), (os, "fsync"), (Path, "unlink")], ids=["name", "sync", "delete"])
@every_output
def test_stopped_at_every_step(tmp_path, monkeypatch, name, moment, step):
    """Whatever is about to reach the disk, to get its name, to be deleted, or just has been, when the run stops."""
    calm = tmp_path / "calm" / name
    write(calm)
    stops = 0
    for stop in stopped_at_every(monkeypatch, *step, moment, lambda stop: write(tmp_path / str(stop) / name)):
        stops += 1
        out = tmp_path / str(stop) / name
        if not Store(out, ROW, ABOUT).complete:
            write(out)
        assert_holds(out)
        if name.endswith("parquet"):
            assert out.read_bytes() == calm.read_bytes()
        assert [json.loads(line) for line in (out.parent / f"{name}.errors.jsonl").open()] == FAILURES
        assert files(out.parent) == [name, f"{name}.errors.jsonl"]
    # run.json is written at the beginning and for every group, the list of errors and the output at the end
    assert stops >= (1 + len(GROUPS) + 2 if step[1] != "unlink" else 5)


@every_output
def test_what_a_killed_run_left_half_written_is_cut_off(tmp_path, name):
    out = tmp_path / name
    table = Store(out, ROW, ABOUT)
    for part in GROUPS[:2]:
        table.append(part)
    for growing in unfinished.GROWING:
        with (tmp_path / f"{name}.parts" / growing).open("ab") as file:
            file.write(b"half a part")
    write(out)
    assert_holds(out)
    assert [json.loads(line) for line in (tmp_path / f"{name}.errors.jsonl").open()] == FAILURES


def test_rows_that_were_lost_are_noticed(tmp_path):
    table = Store(tmp_path / "t.parquet", ROW, ABOUT)
    table.append(GROUPS[0])
    os.truncate(tmp_path / "t.parquet.parts" / "rows.arrow", 100)
    with pytest.raises(StoreError, match=r"rows\.arrow is shorter than it was: 100 of .* --overwrite"):
        write(tmp_path / "t.parquet")
    write(tmp_path / "t.parquet", overwrite=True)
    assert_holds(tmp_path / "t.parquet")


def test_files_on_disk_do_not_grow_in_number(tmp_path):
    table = Store(tmp_path / "t.parquet", ROW, ABOUT)
    for number in range(50):
        table.append(group(number))
    folder = tmp_path / "t.parquet.parts"
    assert files(folder) == ["failures.jsonl", "inputs.bin", "lock", "rows.arrow", "run.json"][2:]
    assert len(list(unfinished.parts(folder))) == 50
    assert (folder / "run.json").stat().st_size < 1000


def test_a_table_does_not_show_how_its_rows_came(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FLUSH_BYTES", 2000)
    many = [group(number, rows=17) for number in range(30)]
    write(tmp_path / "a.parquet", many)
    monkeypatch.setattr(store, "FLUSH_SECONDS", 1000.0)
    write(tmp_path / "b.parquet", many)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_pieces():
    schema = pa.schema([("a", pa.int64())])
    tables = [
        pa.table({"a": list(range(first, last))}, schema)
        for first, last in [(0, 3), (3, 3), (3, 10), (10, 11), (11, 12)]
    ]
    assert [piece["a"].to_pylist() for piece in formats.pieces(tables, 5)] == [[*range(5)], [*range(5, 10)], [10, 11]]
    assert list(formats.pieces([], 5)) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_while_parts_are_cleared_away(tmp_path, monkeypatch, overwrite):
    def some(path, **options):
        if path.name in unfinished.GROWING:
            gone.append(path)
            if len(gone) == 2 + len(unfinished.GROWING):  # the first were cleared as the run began
                raise Killed
        unlink(path, **options)

    gone, unlink = [], Path.unlink
    with monkeypatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        patch.setattr(Path, "unlink", some)
        write(tmp_path / "t.parquet", overwrite=overwrite)
    if not overwrite:
        assert Store(tmp_path / "t.parquet", ROW, ABOUT).complete
    else:
        write(tmp_path / "t.parquet", overwrite=True)
    assert_holds(tmp_path / "t.parquet")


@every_file
def test_complete_run_is_found(tmp_path, name):
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    again = Store(tmp_path / name, ROW, ABOUT)
    assert (again.complete, again.failed) == (True, 2)
    assert (tmp_path / name).read_bytes() == before
    assert files(tmp_path) == [name, f"{name}.errors.jsonl"]


@every_file
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": "bands"}, "pool is mean there and bands here"),
        ({"layer": 3}, "layer is None there and 3 here"),
        ({"window": 5.0, "model": "other"}, "model is beats-iter3 there and other here; window is 10.0 there"),
    ],
)
def test_other_settings_are_refused(tmp_path, name, change, said):
    write(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(StoreError, match=rf"exists and holds something else: {said}.*--overwrite"):
        Store(tmp_path / name, ROW, {**ABOUT, **change})
    assert (tmp_path / name).read_bytes() == before

    Store(tmp_path / f"unfinished-{name}", ROW, ABOUT).append(GROUPS[0])
    with pytest.raises(StoreError, match=rf"unfinished run with other settings: {said}.*--overwrite"):
        Store(tmp_path / f"unfinished-{name}", ROW, {**ABOUT, **change})
    assert Store(tmp_path / f"unfinished-{name}", ROW, ABOUT).position == GROUPS[0].position
    fresh = Store(tmp_path / f"unfinished-{name}", ROW, {**ABOUT, **change}, overwrite=True)
    assert fresh.position == Position()


def test_run_without_results_may_change_its_settings(tmp_path):
    Store(tmp_path / "t.npz", ROW, ABOUT)
    write(tmp_path / "t.npz", about={**ABOUT, "pool": "bands"})
    assert about(tmp_path / "t.npz")["pool"] == "bands"


def test_an_unfinished_run_of_the_version_before_is_refused(tmp_path):
    folder = tmp_path / "t.parquet.parts"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"about": {**ABOUT, "torchbeats": "0.1.0"}, "overwrite": False}))
    (folder / "part-000000.parquet").write_bytes(b"rows")
    with pytest.raises(StoreError, match=r"unfinished run of torchbeats 0\.1, which this version cannot continue"):
        write(tmp_path / "t.parquet")
    assert (folder / "part-000000.parquet").read_bytes() == b"rows"
    write(tmp_path / "t.parquet", overwrite=True)
    assert_holds(tmp_path / "t.parquet")
    assert not folder.exists()


@every_file
@pytest.mark.parametrize("data", [b"", b"something else\n" * 10, b"PK\x05\x06" + bytes(18), "npy"])
def test_strange_file_in_the_way(tmp_path, name, data):
    if data == "npy":
        np.save(tmp_path / "a.npy", np.ones(3))
        data = (tmp_path / "a.npy").read_bytes()
        (tmp_path / "a.npy").unlink()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StoreError, match="exists and holds something else: nothing that torchbeats wrote"):
        Store(tmp_path / name, ROW, ABOUT)
    assert files(tmp_path) == [name]
    write(tmp_path / name, overwrite=True)
    assert_holds(tmp_path / name)


@every_file
def test_table_of_others_in_the_way(tmp_path, name):
    if name.endswith("npz"):
        np.savez(tmp_path / name, a=np.ones(3))
    else:
        pq.write_table(pa.table({"a": [1]}), tmp_path / name)
    with pytest.raises(StoreError, match="nothing that torchbeats wrote"):
        Store(tmp_path / name, ROW, ABOUT)


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_in_the_way_is_found_at_once(tmp_path, overwrite):
    """Not when the work is done."""
    (tmp_path / "t.parquet").mkdir()
    with pytest.raises(StoreError, match=r"t\.parquet"):
        Store(tmp_path / "t.parquet", ROW, ABOUT, overwrite=overwrite)


def test_other_suffix():
    with pytest.raises(StoreError, match=r"must be named \.parquet, \.npz or \.lance; t\.csv is not"):
        Store("t.csv", ROW, ABOUT)


# --- overwriting


@every_file
def test_old_output_stays_until_the_new_is_complete(tmp_path, name):
    out = tmp_path / name
    write(out, [group(9)])
    before = out.read_bytes()
    table = Store(out, ROW, ABOUT, overwrite=True)  # the same settings, and yet done again
    assert not table.complete
    assert table.position == Position()
    for part in GROUPS[:3]:
        table.append(part)
        assert out.read_bytes() == before
    assert Store(out, ROW, ABOUT, overwrite=True).position == GROUPS[2].position  # continued by another
    write(out, overwrite=True)
    assert_holds(out)
    assert files(tmp_path) == [name, f"{name}.errors.jsonl"]


def test_stopped_overwriting_run_is_continued_without_the_option(tmp_path):
    """Where there is no old output, ``--overwrite`` makes no difference to the result."""
    Store(tmp_path / "t.parquet", ROW, ABOUT, overwrite=True).append(GROUPS[0])
    assert Store(tmp_path / "t.parquet", ROW, ABOUT).position == GROUPS[0].position
    write(tmp_path / "t.parquet")
    assert_holds(tmp_path / "t.parquet")


def test_other_settings_overwrite_an_unfinished_overwriting_run(tmp_path):
    write(tmp_path / "t.npz", [group(9)])
    Store(tmp_path / "t.npz", ROW, ABOUT, overwrite=True).append(GROUPS[0])
    write(tmp_path / "t.npz", about={**ABOUT, "pool": "bands"}, overwrite=True)
    assert_holds(tmp_path / "t.npz")
    assert about(tmp_path / "t.npz")["pool"] == "bands"


def nobody():
    """The number of a process that was."""
    return subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("complete", [False, True], ids=["beginning", "complete already"])
def test_leftovers_of_killed_writes_go(tmp_path, complete):
    out = tmp_path / "t.parquet"
    if complete:
        write(out, GROUPS)
    for name in ("t.parquet", "t.parquet.errors.jsonl"):
        (tmp_path / f".{name}.{nobody()}.tmp").write_text("left")
    if complete:
        assert Store(out, ROW, ABOUT).complete
    else:
        write(out, GROUPS)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("command", ["embed", "tokens", "tag"])
def test_a_tables_input_is_never_its_output(run, tmp_path, command):
    """A Parquet list of paths, a sound itself, and the list of an earlier run's errors."""
    listed = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": [str(tmp_path / "none.wav")]}), listed)
    errors = tmp_path / "t.parquet.errors.jsonl"
    errors.write_text(json.dumps({"path": "none.wav"}) + "\n")
    sound = tmp_path / "sound.csv"
    sound.write_text("no sound")
    option = "-t" if command == "tokens" else "-m"
    cases = [(listed, listed), (errors, tmp_path / "t.parquet")] if command != "tag" else [(sound, sound)]
    for source, out in cases:
        before = source.read_bytes()
        status, _, err = run(command, source, "-o", out, option, "beats-nano", "--overwrite")
        assert status == 2
        assert f"The output {source} is one of the inputs; name another." in err
        assert source.read_bytes() == before
