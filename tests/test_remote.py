"""Files at URLs: whole and in blocks, cut connections, and what is said where a file cannot be had."""

import http.server
import io
import sys
import threading
import time
import zipfile
from collections import Counter

import fsspec
import numpy as np
import pytest
import soundfile

import torchbeats
from helpers import noise
from torchbeats import AudioError, MissingPackageError, audio, remote

RATE = 16_000


def encoded(samples, kind="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Files, and parts of them; some requests are refused, or cut off half-way."""

    protocol_version = "HTTP/1.1"
    files: dict
    cuts: Counter  # by path, how many of the next answers are cut off
    busy: Counter  # how many are refused for now
    asked: list
    ranges = True
    lengths = True
    pause = 0.0  # after each piece of an answer, in seconds

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_content):
        content, wanted = self.files.get(self.path), self.headers.get("Range")
        if content is None or self.path.startswith("/secret"):
            self.send_error(404 if content is None else 403)
            return
        if with_content and self.busy[self.path] > 0:
            self.busy[self.path] -= 1
            self.send_error(503)
            return
        extra = {"Accept-Ranges": "bytes"} if self.ranges else {}
        status = 200
        if wanted and self.ranges:
            first, _, last = wanted.partition("=")[2].partition("-")
            end = min(int(last) if last else len(content) - 1, len(content) - 1)
            extra["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            content, status = content[int(first) : end + 1], 206
        self.send_response(status)
        if self.lengths:
            extra["Content-Length"] = str(len(content))
        else:
            extra["Connection"] = "close"
            self.close_connection = True
        for name, value in {"ETag": f'"{len(content)}"', **extra}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_content:
            return
        self.asked.append((self.path, len(content)))
        if self.cuts[self.path] > 0:
            self.cuts[self.path] -= 1
            content, self.close_connection = content[: len(content) // 2], True
        for start in range(0, len(content), 2**14):
            self.wfile.write(content[start : start + 2**14])
            time.sleep(self.pause)


@pytest.fixture
def web(monkeypatch):
    """A server, whose class has what it does, and its address."""
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.01, 0.01, 0.01))

    class Own(Handler):
        files, cuts, busy, asked = {}, Counter(), Counter(), []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Own, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SAMPLES = noise(3.0)


def stored():
    return soundfile.read(io.BytesIO(encoded(SAMPLES)), dtype="float32")[0]


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("block", [None, 10_000], ids=["whole", "in blocks"])
def test_on_the_web(web, monkeypatch, kind, block):
    handler, address = web
    handler.files["/a.sound"] = encoded(SAMPLES, kind)
    if block:
        monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
        monkeypatch.setattr(remote, "BLOCK_BYTES", block)
    url = f"{address}/a.sound?token=1"
    handler.files["/a.sound?token=1"] = handler.files["/a.sound"]
    whole = soundfile.read(io.BytesIO(handler.files["/a.sound"]), dtype="float32")[0]
    np.testing.assert_array_equal(audio.load(url), whole)
    np.testing.assert_array_equal(audio.excerpt(url, 1.0, 0.5), whole[16_000:24_000])
    assert audio.duration(url) == pytest.approx(3.0)
    if block:
        assert max(size for _, size in handler.asked) == block


@pytest.mark.parametrize("block", [None, 10_000], ids=["whole", "in blocks"])
@pytest.mark.parametrize("trouble", ["cuts", "busy"])
def test_trouble_that_passes_and_trouble_that_stays(web, monkeypatch, block, trouble):
    handler, address = web
    handler.files["/a.wav"] = encoded(SAMPLES)
    if block:
        monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
        monkeypatch.setattr(remote, "BLOCK_BYTES", block)
    getattr(handler, trouble)["/a.wav"] = 3
    np.testing.assert_array_equal(audio.load(f"{address}/a.wav"), stored())
    getattr(handler, trouble)["/a.wav"] = 10**6
    with pytest.raises(AudioError, match=r"a\.wav: it cannot be read \(.+\)\.$") as caught:
        audio.load(f"{address}/a.wav")
    assert "\n" not in str(caught.value)


def test_trouble_in_the_middle_of_a_large_file_is_a_failure_and_no_end(web, monkeypatch):
    """Not a warning that the file breaks off, as of a file that is damaged: an update tries it again."""
    handler, address = web
    handler.files["/a.wav"] = encoded(noise(20.0))
    monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    blocks = audio.stream(f"{address}/a.wav", 1.0)
    assert len(next(blocks)) == RATE
    handler.busy["/a.wav"] = 10**6
    with pytest.raises(AudioError, match="503"):
        list(blocks)


def test_servers_that_know_no_parts_or_no_sizes(web, monkeypatch):
    handler, address = web
    handler.files["/a.wav"] = encoded(SAMPLES)
    handler.lengths, handler.pause = False, 0.02
    np.testing.assert_array_equal(audio.load(f"{address}/a.wav"), stored())
    monkeypatch.setattr(remote, "MOST_BYTES", 2**14)
    with pytest.raises(AudioError, match="does not send parts"):
        audio.load(f"{address}/a.wav")
    handler.lengths, handler.ranges = True, False
    monkeypatch.setattr(remote, "WHOLE_BYTES", 0)
    monkeypatch.setattr(remote, "BLOCK_BYTES", 10_000)
    with pytest.raises(AudioError):
        audio.load(f"{address}/a.wav")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.wav", "there is no such file"), ("secret.wav", r"its store denies access \(.+\); check the credentials")],
)
def test_what_will_not_pass_is_not_tried_again(web, monkeypatch, name, reason):
    handler, address = web
    handler.files["/secret.wav"] = b"."
    monkeypatch.setattr(remote, "RETRY_SECONDS", (60.0,))
    with pytest.raises(AudioError, match=rf"{name}: {reason}\.$"):
        audio.load(f"{address}/{name}")


def test_nobody_listens(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.01,))
    with pytest.raises(AudioError, match=r"it cannot be read \(.*onnect"):
        audio.load("http://127.0.0.1:9/a.wav")


def test_a_file_in_an_archive_and_by_a_file_url(tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sub/a.wav", encoded(SAMPLES))
    (tmp_path / "a.wav").write_bytes(encoded(SAMPLES))
    for url in (f"zip://sub/a.wav::{tmp_path}/all.zip", f"file://{tmp_path}/a.wav"):
        np.testing.assert_array_equal(audio.load(url), stored())
    with pytest.raises(AudioError, match="there is no such file"):
        audio.load(f"zip://sub/b.wav::{tmp_path}/all.zip")
    with pytest.raises(AudioError, match="there is no such file"):
        audio.load(f"zip://sub/a.wav::{tmp_path}/none.zip")


def test_a_file_of_this_machine_may_be_called_like_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "x").mkdir(parents=True)
    (tmp_path / "s3:" / "x" / "a.wav").write_bytes(encoded(SAMPLES))
    assert not remote.is_url("s3://x/a.wav")
    np.testing.assert_array_equal(audio.load("s3://x/a.wav"), stored())
    assert remote.is_url("s3://x/b.wav")
    assert not remote.is_url("C:\\sounds\\a.wav")
    assert not remote.is_url("C://sounds/a.wav")


def test_without_fsspec(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingPackageError, match=r"needs the package fsspec: pip install 'torchbeats\[remote\]'"):
        remote.store_of("https://localhost:1/a.wav")


def test_what_is_not_installed_or_not_known(monkeypatch):
    def without(*_, **__):
        raise ImportError("Install s3fs to access S3") from ModuleNotFoundError("No module", name="s3fs")

    with pytest.raises(AudioError, match="no store of this kind is known"):
        audio.load("nothing://bucket/a.wav")
    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    with pytest.raises(MissingPackageError, match=r"needs the package s3fs: pip install 'torchbeats\[remote\]'"):
        remote.describe("s3://bucket/a.wav")
    with pytest.raises(AudioError, match=r"needs the package s3fs: pip install 'torchbeats\[remote\]'\.$"):
        audio.load("s3://bucket/a.wav")


def test_embedding_from_python(web):
    handler, address = web
    handler.files["/a.wav"] = encoded(SAMPLES)
    handler.cuts["/a.wav"] = 1
    (row,) = torchbeats.embed(f"{address}/a.wav", "beats-nano")
    (same,) = torchbeats.embed(stored(), "beats-nano")
    assert row.path == f"{address}/a.wav"
    np.testing.assert_array_equal(row.embedding, same.embedding)
    result = torchbeats.Embedder("beats-nano")({"path": [f"{address}/a.wav", f"{address}/b.wav"]})
    np.testing.assert_array_equal(result["embedding"][0], row.embedding)
    assert result["error"] == [None, "there is no such file."]
