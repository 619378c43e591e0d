"""A Hugging Face Hub small enough to read, on 127.0.0.1: listing, downloading, and what can go wrong with them.

with HubServer() as hub:
    hub.add("owner/repo", {"model.pt": b"..."})
    subprocess.run(command, env={**os.environ, **hub.env(cache_folder)})
"""

from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESOLVE = re.compile(r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
LIST = re.compile(r"/api/(?:models/|(?=datasets/))(?P<repo>.+?)(?:/revision/(?P<revision>.+))?")


@dataclass
class Repo:
    files: dict[str, bytes]
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    commit: str = ""

    def __post_init__(self) -> None:
        self.commit = self.commit or hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


@dataclass
class HubServer:
    """Serves `repos`; dataset repositories are called ``datasets/owner/repo``."""

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "GET /owner/repo/resolve/main/model.pt"
    cut: Counter[str] = field(default_factory=Counter)  # file: so many downloads of it break off half way
    damaged: set[str] = field(default_factory=set)  # files that arrive with another byte in them
    lies: dict[str, str] = field(default_factory=dict)  # headers in the place of the true ones
    more: bytes = b""  # sent behind every file
    sha: object = None  # of the commit, in listings, in the place of the true one
    listing: bytes | None = None  # sent in the place of a true one
    endless: bytes = b""  # sent in listings again and again, until the client hangs up
    pause: float = 0.0  # seconds between them
    drips: str = ""  # "HEAD" or "GET": the answers' headers come byte by byte; "body": the bodies of files do
    unlisted: bool = False  # a mirror that has files, but not the API
    down: bool = False  # 503 to everything from now on
    down_after_cut: bool = False  # as above, once a download has broken off

    def add(self, name: str, files: dict[str, bytes], **more: object) -> Repo:
        self.repos[name] = Repo(files, **more)  # type: ignore[arg-type]
        return self.repos[name]

    def env(self, home: Path) -> dict[str, str]:
        """What a process needs in its environment to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            server_state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: HubServer

    def do_GET(self) -> None:
        hub, path = self.server_state, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.down:
            return self.answer(503)
        if match := RESOLVE.fullmatch(path):
            return self.resolve(match["repo"], match["revision"], match["file"])
        if (match := LIST.fullmatch(path)) and not hub.unlisted:
            return self.list(match["repo"], match["revision"] or "main")
        return self.answer(404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """What `huggingface_hub` asks for when it uploads: a repository, how files are to come, and a commit."""
        hub, path, body = self.server_state, unquote(urlsplit(self.path).path), self.body()
        hub.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about.get('organization') or 'owner'}/{about['name'].split('/')[-1]}"
            hub.repos.setdefault(name, Repo({}))
            return self.answer_json({"url": f"{hub.url}/{name}", "id": name})
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer_json({"files": files})
        if path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            files = dict(hub.repos[name].files)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = hub.add(name, files).commit
            return self.answer_json({"commitOid": commit, "commitUrl": f"{hub.url}/{name}/commit/{commit}"})
        if path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        return self.answer(404)

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer_json(self, value: object) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def find(self, name: str, revision: str) -> Repo | None:
        """The repository at a revision; answers what the Hub answers where there is none."""
        repo = self.server_state.repos.get(name)
        if repo is None:
            self.answer(401, {"X-Error-Code": "RepoNotFound"})  # not 404: it might be private
        elif revision not in (*repo.branches, repo.commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return repo
        return None

    def list(self, name: str, revision: str) -> None:
        if repo := self.find(name, revision):
            siblings = [{"rfilename": file} for file in repo.files]
            sha = self.server_state.sha or repo.commit
            body = {"id": name.removeprefix("datasets/"), "sha": sha, "siblings": siblings}
            if self.server_state.endless:
                return self.answer_without_end(self.server_state.endless)
            listing = self.server_state.listing
            if listing is None:
                listing = json.dumps(body).encode()
            self.answer(200, {"Content-Type": "application/json"}, listing)
        return None

    def answer_without_end(self, block: bytes) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(OSError):
            while not self.server_state.down:
                self.wfile.write(block)
                time.sleep(self.server_state.pause)

    def resolve(self, name: str, revision: str, file: str) -> None:
        hub, repo = self.server_state, self.find(name, revision)
        if repo is None:
            return None
        if repo.gated:
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if file not in repo.files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit, **hub.lies})
        body = repo.files[file]
        large = file.endswith((".pt", ".pth", ".safetensors"))  # kept apart, under its SHA-256; the rest as git has it
        etag = hashlib.sha256(body).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(body))}
        headers |= hub.lies
        if self.command == "GET":
            body += hub.more
        if file in hub.damaged:
            body = bytes([body[0] ^ 1]) + body[1:]
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if self.command == "GET" and hub.cut[file]:
            hub.cut[file] -= 1
            hub.down = hub.down_after_cut
            return self.answer(206 if start else 200, headers, body[start:], send=(len(body) - start) // 2)
        return self.answer(206 if start else 200, headers, body[start:])

    def answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", send: int | None = None
    ) -> None:
        """Answer; of the body only the first `send` bytes, where given, and then hang up."""
        if self.server_state.drips == self.command:
            self.drip(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 10**6)
            return
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {}), "Connection": "close"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.server_state.drips == "body" and self.command == "GET" and headers and "ETag" in headers:
            self.drip(body)
        elif self.command != "HEAD":
            self.wfile.write(body[:send])

    def drip(self, data: bytes) -> None:
        with suppress(OSError):
            for i in range(len(data)):
                if not self.server_state.drips:
                    return
                self.wfile.write(data[i : i + 1])
                time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def process(env: dict[str, str]) -> Iterator[ProcessPoolExecutor]:
    """One process with `env` in its environment from the start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("HF_")):
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()
            patch.undo()
            yield pool
