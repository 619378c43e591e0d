"""Stores as inputs of a run: a bucket on loopback, an archive, a web page's folder; listings, updates, failures."""

import importlib.util
import json
import shutil
import socket
import socketserver
import threading
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from helpers import small_model, write_sounds
from torchbeats import (
    AudioError,
    AudioWarning,
    EmbeddingPlan,
    InputError,
    MissingPackageError,
    audio,
    remote,
    write_table,
)
from torchbeats.data import inputs, urls
from torchbeats.data.inputs import Piece, find_audio, find_sounds
from torchbeats.data.labelled import read_labelled
from torchbeats.training.corpus import index

NAMES = {"a.wav": 1.0, "b/c.wav": 2.0, "b/d.flac": 1.5, "z.wav": 0.6}
PLAN = EmbeddingPlan("mean", window=1.0, batch_seconds=2.0)


@pytest.fixture(scope="module")
def server():
    """The address of an object store."""
    if not all(map(importlib.util.find_spec, ("moto", "s3fs", "flask"))):
        pytest.skip("needs moto[server] and s3fs")
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch):
    """A new bucket, as a file system of fsspec's."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.01, 0.01))
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they may have other credentials
    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.mkdir("sounds")
    yield files
    files.rm("sounds", recursive=True)


@pytest.fixture
def folder(tmp_path):
    return write_sounds(tmp_path / "sounds", NAMES)


@pytest.fixture(scope="module")
def model():
    return small_model()


def upload(files, folder, names=tuple(NAMES)):
    for name in names:
        files.pipe(f"sounds/x/{name}", (folder / name).read_bytes())
    files.pipe("sounds/x/readme.txt", b"text")
    files.pipe("sounds/x/.hidden/e.wav", b"")


def paths(*given):
    return [piece.path for piece in find_sounds(given)]


# --- what a URL means


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("x/", ["a.wav", "b/c.wav", "b/d.flac", "z.wav"]),
        ("x", ["a.wav", "b/c.wav", "b/d.flac", "z.wav"]),
        ("", ["a.wav", "b/c.wav", "b/d.flac", "z.wav"]),
        ("x/*.wav", ["a.wav", "z.wav"]),
        ("x/**.wav", ["a.wav", "b/c.wav", "z.wav"]),
        ("x/**/*.wav", ["a.wav", "b/c.wav", "z.wav"]),
        ("*/?/[cx].wav", ["b/c.wav"]),
        ("x/{z,a}.wav", ["z.wav", "a.wav"]),
        ("x/b/c.wav", ["b/c.wav"]),
    ],
)
def test_a_bucket_is_listed_in_order_page_by_page(bucket, folder, monkeypatch, pattern, names):
    upload(bucket, folder)
    call, questions = type(bucket).call_s3, []

    def small_pages(self, method, **more):
        questions.append(method)
        return call(self, method, **more, MaxKeys=2)

    monkeypatch.setattr(type(bucket), "call_s3", small_pages)
    assert paths(f"s3://sounds/{pattern}") == [f"s3://sounds/x/{name}" for name in names]
    if pattern == "x/":
        assert len(questions) > 2


def test_a_listing_goes_on_while_it_is_used(bucket, folder, monkeypatch):
    upload(bucket, folder)
    call, questions = type(bucket).call_s3, []

    def small_pages(self, method, **more):
        questions.append(more)
        return call(self, method, **more, MaxKeys=1)

    monkeypatch.setattr(type(bucket), "call_s3", small_pages)
    first = next(urls.sounds_at("s3://sounds/x/"))
    assert (first.url, first.size) == ("s3://sounds/x/a.wav", (folder / "a.wav").stat().st_size)
    assert len(questions) == 2  # .hidden comes before a.wav


def test_archives_folders_and_memory(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in NAMES:
            archive.write(folder / name, f"in/{name}")
    memory = fsspec.filesystem("memory")
    try:
        for name in NAMES:
            memory.pipe(f"/some/in/{name}", (folder / name).read_bytes())
        shutil.copytree(folder, tmp_path / "in")
        for start, end in (
            ("zip://in", f"::{tmp_path}/all.zip"),
            ("memory://some/in", ""),
            (f"file://{tmp_path}/in", ""),
        ):
            order = ["a.wav", "z.wav", "b/c.wav", "b/d.flac"]
            assert paths(f"{start}/{end}") == [f"{start}/{name}{end}" for name in order]
            assert paths(f"{start}/*/?.wav{end}") == [f"{start}/b/c.wav{end}"]
            (piece,) = find_sounds([f"{start}/b/c.wav{end}"])
            np.testing.assert_array_equal(audio.load(piece.content.open()), audio.load(folder / "b/c.wav"))
            assert piece.content.size == (folder / "b/c.wav").stat().st_size
            assert piece.content.version
        assert paths(f"zip://::{tmp_path}/all.zip")[0] == f"zip://in/a.wav::{tmp_path}/all.zip"
    finally:
        memory.rm("/some", recursive=True)


def test_each_once_and_urls_in_lists(bucket, folder, tmp_path):
    upload(bucket, folder)
    (tmp_path / "l.csv").write_text("path,start,end\ns3://sounds/x/a.wav,0.25,0.75\ns3://sounds/x/z.wav,,\n")
    once = paths("s3://sounds/x/a.wav", "s3://sounds/x/*.wav", folder / "a.wav")
    assert once == ["s3://sounds/x/a.wav", "s3://sounds/x/z.wav", str(folder / "a.wav")]
    part, whole = find_sounds([tmp_path / "l.csv"])
    assert (part.path, part.start, part.end) == ("s3://sounds/x/a.wav", 0.25, 0.75)
    assert part.content.version.startswith("ETag ")
    assert whole.path == "s3://sounds/x/z.wav"
    assert find_audio([tmp_path / "l.csv"]) == ["s3://sounds/x/a.wav", "s3://sounds/x/z.wav"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://sounds/none/", "There is no sound file at s3://sounds/none/"),
        ("s3://sounds/*.mp3", r"There is no sound file at s3://sounds/\*\.mp3"),
        ("s3://no-such-bucket/x/", "s3://no-such-bucket/x/: there is no such file"),
        ("nothing://x/", "no store of this kind is known"),
        ("s3://sounds/list.csv", "must be a file of this machine: download it"),
        ("s3://sounds/{x,", r"s3://sounds/\{x, cannot be read: "),
    ],
)
def test_what_names_no_sounds_is_said_at_once(bucket, folder, url, reason):
    with pytest.raises(InputError, match=reason) as caught:
        find_sounds([url])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["https", "s3", "memory"])
def test_a_url_that_lacks_a_slash_is_told_as_it_has_to_be_written(tmp_path, scheme):
    url = f"{scheme}:/example.org/a.wav"
    (tmp_path / "l.csv").write_text(f"path,label\n{url},x\n")
    for given in ([url], [tmp_path / "l.csv"]):
        (sound,) = find_sounds(given)
        assert sound.path == url
        with pytest.raises(AudioError, match=f"if it is a URL, write it as {scheme}://example.org/a.wav"):
            next(audio.stream(sound.path))
    for name in (f"{scheme}:/example.org/x/", f"{scheme}://example.org/x/", f"{scheme}:/example.org/l.csv"):
        with pytest.raises(InputError, match=f"{scheme}://example.org/.*this machine"):
            read_labelled([name])


def test_without_credentials(server, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    with pytest.raises(InputError, match=r"^s3://sounds/x/: no credentials are known for its store \(.+\)") as caught:
        find_sounds(["s3://sounds/x/"])
    assert str(caught.value).count("\n") == 0


def test_a_missing_package_ends_the_listing(monkeypatch):
    def without(*_, **__):
        raise ImportError("Install s3fs to access S3") from ModuleNotFoundError("No module", name="s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    for url in ("s3://sounds/x/", "s3://sounds/x/a.wav"):
        with pytest.raises(MissingPackageError, match=r"s3fs: pip install 'torchbeats\[remote\]'"):
            find_sounds([url])


# --- runs


def rows(path):
    table = pq.read_table(path)
    return table["path"].to_pylist(), np.stack(table["embedding"].to_numpy())


def test_a_bucket_gives_what_the_folder_gives(bucket, folder, tmp_path, model):
    upload(bucket, folder)
    here = write_table(folder, tmp_path / "here.parquet", model, PLAN)
    away = write_table("s3://sounds/x/", tmp_path / "away.parquet", model, PLAN)
    assert away.failures == here.failures == 0
    assert here.rows == away.rows
    by_name = {}
    for path, values in zip(*rows(here.path), strict=True):
        by_name.setdefault(str(Path(path).relative_to(folder)), []).append(values)
    far = {}
    for path, values in zip(*rows(away.path), strict=True):
        far.setdefault(path.removeprefix("s3://sounds/x/"), []).append(values)
    assert list(far) == ["a.wav", "b/c.wav", "b/d.flac", "z.wav"]
    for name, values in by_name.items():
        np.testing.assert_allclose(far[name], values, atol=1e-5)  # batches have other neighbours


def test_a_run_over_a_bucket_is_complete_continued_and_updated(bucket, folder, tmp_path, model):
    upload(bucket, folder)
    out, source = tmp_path / "t.parquet", "s3://sounds/x/"
    write_table(source, out, model, PLAN)
    before = rows(out)
    assert write_table(source, out, model, PLAN).complete
    bucket.pipe("sounds/x/b/c.wav", (folder / "z.wav").read_bytes())  # changed
    bucket.pipe("sounds/x/n.wav", (folder / "a.wav").read_bytes())  # added
    bucket.rm("sounds/x/z.wav")
    result = write_table(source, out, model, PLAN, update=True)
    assert (result.kept, result.dropped, result.sounds) == (2, 2, 4)
    after = rows(out)
    assert list(dict.fromkeys(after[0])) == [f"{source}{name}" for name in ("a.wav", "b/c.wav", "b/d.flac", "n.wav")]
    np.testing.assert_array_equal(after[1][0], before[1][0])
    assert write_table(source, out, model, PLAN, update=True).complete


def test_failures_are_rows_of_the_error_list_and_are_tried_again(bucket, folder, tmp_path, model, monkeypatch):
    upload(bucket, folder)
    out, source = tmp_path / "t.parquet", ["s3://sounds/x/a.wav", "s3://sounds/x/gone.wav", "s3://sounds/x/z.wav"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        result = write_table(source, out, model, PLAN)
    assert (result.sounds, result.failures) == (3, 1)
    assert json.loads(result.errors.read_text()) == {"path": source[1], "error": "there is no such file"}
    bucket.pipe("sounds/x/gone.wav", (folder / "a.wav").read_bytes())
    result = write_table(source, out, model, PLAN, update=True)
    assert (result.kept, result.failures) == (2, 0)
    assert set(rows(out)[0]) == set(source)


class Cutter(socketserver.ThreadingTCPServer):
    """Passes connections on to a server, and cuts the answers of some of them off."""

    daemon_threads = True

    def __init__(self, port, cuts):
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.port, self.cuts, self.lock = port, cuts, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def finish_request(self, request, address):
        with socket.create_connection(("127.0.0.1", self.port)) as server:
            threading.Thread(target=self.forward, args=(request, server), daemon=True).start()
            sent = 0
            while content := server.recv(4096):
                sent += len(content)
                with self.lock:
                    if sent > 20_000 and self.cuts:
                        self.cuts -= 1
                        break
                request.sendall(content)
            server.shutdown(socket.SHUT_RDWR)

    def forward(self, source, target):
        with suppress(OSError):
            while content := source.recv(4096):
                target.sendall(content)


def test_cut_connections_cost_nothing(bucket, server, folder, tmp_path, model, monkeypatch):
    upload(bucket, folder)
    calm = rows(write_table("s3://sounds/x/", tmp_path / "calm.parquet", model, PLAN).path)
    with Cutter(int(server.rpartition(":")[2]), cuts=8) as cutter:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{cutter.server_address[1]}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        rough = rows(write_table("s3://sounds/x/", tmp_path / "rough.parquet", model, PLAN).path)
        assert cutter.cuts == 0
        cutter.shutdown()
    assert rough[0] == calm[0]
    np.testing.assert_array_equal(rough[1], calm[1])


def test_pieces_of_a_caller_notice_changes_too(bucket, folder, tmp_path, model):
    upload(bucket, folder)
    pieces = [Piece("s3://sounds/x/b/c.wav", 0.5, 1.5), Piece("s3://sounds/x/a.wav")]
    write_table(pieces, tmp_path / "t.parquet", model, PLAN)
    bucket.pipe("sounds/x/a.wav", (folder / "z.wav").read_bytes())
    result = write_table(pieces, tmp_path / "t.parquet", model, PLAN, update=True)
    assert (result.kept, result.dropped) == (1, 1)


def test_a_training_takes_a_prefix(bucket, folder):
    upload(bucket, folder)
    corpus = index(["s3://sounds/x/"])
    assert [corpus.path(row) for row in range(4)] == [f"s3://sounds/x/{name}" for name in NAMES]
    np.testing.assert_allclose(corpus.seconds, list(NAMES.values()), atol=1e-3)
    np.testing.assert_array_equal(corpus.read(1, 0.5, 1.0), audio.load(folder / "b/c.wav")[8_000:24_000])


def test_many_are_looked_up_together(monkeypatch):
    asked = []

    def describe(url):
        asked.append(url)
        return remote.Details(1, "v")

    monkeypatch.setattr(remote, "describe", describe)
    names = [f"memory://x/{number}.wav" for number in range(200)]
    first = next(inputs.iterate_sounds(names))
    assert first == Piece(names[0], content=urls.RemoteSound(names[0], 1, "v"))
    assert len(asked) == inputs.LOOKED_UP
    assert paths(*names) == names
