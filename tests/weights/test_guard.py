"""A Hub that lies: nothing is written outside the cache, and no more than was promised."""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hub_server import HubServer, process
from torchbeats.errors import HubError
from torchbeats.weights import guard
from torchbeats.weights.hub import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Resolve = Callable[[str], Path]

WEIGHTS = bytes(range(256)) * 400
CLIMBS = ["../../x", "../../../../x", "/x", "..", "a/b", "..\\x", "C:x", "x\x01", "", ".", "é"]


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "down" / "here" / "home"


@pytest.fixture
def online(server: HubServer, home: Path) -> Iterator[Resolve]:
    with process(server.env(home)) as pool:
        yield lambda name: pool.submit(resolve, name).result()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def blobs(home: Path) -> list[Path]:
    return [path for path in files(home) if "blobs" in path.parts or "snapshots" in path.parts]


@pytest.mark.parametrize("value", ["../../x", "../../../../../../outside", "/outside-of-the-cache", "..", "a/b"])
@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
def test_names_that_lead_out_of_the_cache(
    server: HubServer, online: Resolve, home: Path, tmp_path: Path, header: str, value: str
) -> None:
    server.add("o/lies", {"model.pt": WEIGHTS})
    server.lies = {header: value if header == "X-Repo-Commit" else f'"{value}"'}
    if header == "ETag":
        server.lies["X-Linked-Etag"] = server.lies["ETag"]  # which goes before it
    with pytest.raises(HubError, match=r"o/lies/model\.pt was not downloaded: .* no plain name\. .*HF_ENDPOINT"):
        online("o/lies")
    assert blobs(home) == []
    assert [path for path in files(tmp_path) if home not in path.parents] == []
    assert not Path("/outside-of-the-cache").exists()
    server.lies = {}
    assert online("o/lies").read_bytes() == WEIGHTS  # nothing of the lie is left


def test_a_commit_that_leads_out_and_lacks_the_file(server: HubServer, online: Resolve, tmp_path: Path) -> None:
    """The client notes in the commit's folder that it has no such file."""
    server.add("o/lacks", {"model.pt": WEIGHTS})
    server.unlisted, server.lies = True, {"X-Repo-Commit": "../../../../../../outside"}
    with pytest.raises(HubError, match="no plain name"):
        online("o/lacks/other.pt")
    assert not list(tmp_path.rglob("outside"))
    assert not list(tmp_path.rglob("other.pt"))


@pytest.mark.parametrize("sha", ["../../../../secret", "/", 7, ["x"]])
def test_a_listing_whose_commit_leads_out(server: HubServer, online: Resolve, home: Path, sha: object) -> None:
    (home.parent / "secret").mkdir(parents=True)
    (home.parent / "secret/model.pt").write_bytes(b"of somebody else")
    server.add("o/sha", {"model.pt": WEIGHTS[::-1]})
    online("o/sha")  # so that the folders to climb out of exist
    server.add("o/sha", {"model.pt": WEIGHTS})
    server.sha = sha
    assert online("o/sha").read_bytes() == WEIGHTS


def test_a_listing_whose_files_lead_out(server: HubServer, online: Resolve, tmp_path: Path) -> None:
    server.add("o/names", {"../../../../secret.pt": WEIGHTS, "/etc/m.pt": WEIGHTS, "a\\..\\..\\b.pt": WEIGHTS})
    with pytest.raises(HubError, match="no checkpoint"):
        online("o/names")
    server.add("o/names", {"../../../../secret.pt": WEIGHTS, "sub/model.pt": WEIGHTS})
    assert online("o/names").read_bytes() == WEIGHTS


NO_LISTINGS = [
    b"<html>Log in</html>",
    b"[1, 2]",
    b'{"siblings": "model.pt"}',
    b'{"siblings": [1]}',
    b'{"siblings": [{}]}',
    b'{"siblings": ' + b"[" * 10**5,
    b'{"lastModified": "yesterday", "siblings": []}',
    b'{"downloads": ' + b"9" * 5000 + b"}",
]


def test_a_listing_that_is_none(server: HubServer, online: Resolve) -> None:
    server.add("o/none", {"model.pt": WEIGHTS})
    for server.listing in NO_LISTINGS:
        with pytest.raises(HubError, match=r"o/none was not downloaded: what came is no answer of a Hub"):
            online("o/none")
    server.listing = None
    online("o/none")
    for server.listing in NO_LISTINGS:
        assert online("o/none").read_bytes() == WEIGHTS  # of the cache


def test_more_than_was_promised_is_cut_off(server: HubServer, online: Resolve, home: Path) -> None:
    server.add("o/more", {"model.pt": WEIGHTS})
    server.more = bytes(2**27)
    start = time.monotonic()
    with pytest.raises(HubError, match=r"was not downloaded: the server sends more than the 102,400 bytes"):
        online("o/more")
    assert time.monotonic() - start < 20  # one try, and no second
    assert blobs(home) == []
    server.more = b""
    assert online("o/more").read_bytes() == WEIGHTS


def peak() -> int:
    """Of this process, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_listing_without_an_end(server: HubServer, home: Path) -> None:
    server.add("o/endless", {"model.pt": WEIGHTS})
    server.endless = b'{"siblings": [' + b'{"rfilename": "model.pt"},' * 10_000
    with process(server.env(home)) as pool:
        with suppress(HubError):
            pool.submit(resolve, "o/no-such").result()  # what the client needs once
        before, start = pool.submit(peak).result(), time.monotonic()
        with pytest.raises(HubError, match=r"was not downloaded: the server's list of files goes on beyond 33,554,432"):
            pool.submit(resolve, "o/endless").result(timeout=60)
        assert time.monotonic() - start < 20
        assert pool.submit(peak).result() - before < 200 * 1024
    server.down = True


def test_a_session_of_requests() -> None:
    """Clients before 1.0 have one; its attribute ``stream`` is no method."""

    class Answer:
        _content: bytes

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def iter_content(self, size: int) -> Iterator[bytes]:
            return iter([b"{", b"}"])

    class Session:
        stream = False

        def get(self, url: str, stream: bool) -> Answer:
            assert stream
            return Answer()

    assert guard._Bounded(Session()).get("https://localhost:1/x")._content == b"{}"


def test_a_listing_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LONGEST_LISTING", 0.2)
    with pytest.raises(guard.HostileAnswer, match=r"has not ended after 0\.2 seconds"):
        guard._read(time.sleep(0.05) or b"." for _ in range(1000))
    assert guard._read(iter([b"a", b"b"])) == b"ab"


def impatient(name: str) -> Path:
    guard.LONGEST_WAIT = guard.LONGEST_LISTING = guard._WAIT_BY_BLOCKS = 1  # in a process of its own
    return resolve(name)


@pytest.mark.parametrize("drips", ["HEAD", "GET", "body"])
def test_what_only_drips_is_given_up(server: HubServer, home: Path, drips: str) -> None:
    """Each byte comes long before the client's time limits, which begin anew with it."""
    server.add(f"o/drips-{drips}", {"model.pt": WEIGHTS})
    with process(server.env(home)) as pool:
        with suppress(HubError):
            pool.submit(resolve, "o/no-such").result()  # what the client needs once
        server.drips, start = drips, time.monotonic()
        try:
            with pytest.raises(HubError, match=r"next to nothing has come from the server|has not ended after"):
                pool.submit(impatient, f"o/drips-{drips}").result(timeout=60)
            assert time.monotonic() - start < 30
        finally:
            server.drips = ""
    assert [path for path in blobs(home) if not str(path).endswith(".incomplete")] == []


def test_slow_is_not_stuck(server: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as something comes, it may take longer than one wait."""
    monkeypatch.setattr(guard, "LEAST_PROGRESS", 2)

    def slow() -> str:
        with guard._expected(0.3) as progress:
            for _ in range(8):
                time.sleep(0.1)
                progress.add(2)
        time.sleep(0.5)  # nothing is expected of a server any more
        return "done"

    assert guard.within_time(slow) == "done"
    with pytest.raises(ZeroDivisionError):
        guard.within_time(lambda: 1 / 0)


def test_a_sidecar_is_small(server: HubServer, online: Resolve) -> None:
    server.add("o/side", {"model.pth": WEIGHTS, "config.yaml": b"a: 1"})
    server.lies = {"X-Linked-Size": str(2**40)}
    with pytest.raises(HubError, match=r"config\.yaml was not downloaded: the server promises 1,099,511,627,776 bytes"):
        online("o/side")


@pytest.mark.parametrize("name", CLIMBS)
def test_plain_names(name: str) -> None:
    assert not guard.is_plain(name)
    assert guard.is_plain("d41d8cd98f00b204e9800998ecf8427e-12")
    assert not guard.is_plain("a" * 129)


def test_names_inside() -> None:
    for name in ("model.pt", "exp/a/best.pth", ".hidden/x", "..x/y"):
        assert guard.is_inside(name)
    for name in ("", "../x", "a/../../x", "/x", "\\x", "a\\..\\..\\x", "C:\\x", "C:x", "x\0", None, 3, "a/.."):
        assert not guard.is_inside(name)


def test_other_downloads_of_the_process_are_left_alone() -> None:
    from huggingface_hub import file_download

    with guard.guarded():
        pass
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        get = guard._limiting(lambda _url, file, **more: seen.append((file, more)))
        patch.setattr(file_download, "http_get", get)
        file = object()
        get("http://x", file, expected_size=3)
        assert seen == [(file, {"expected_size": 3})]
        with guard.guarded():
            get("http://x", file, expected_size=3)
        assert seen[1][0] is not file
