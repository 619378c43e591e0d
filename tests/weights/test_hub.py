"""Names to files, against a Hub of our own. Its client reads the environment once, so each environment is a process."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hub_server import HubServer, process
from torchbeats.errors import HubError
from torchbeats.weights import hub
from torchbeats.weights.hub import MODELS, Source, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Resolve = Callable[[str], Path]

WEIGHTS = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("huggingface")


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _calm(server: HubServer) -> None:
    server.requests.clear()
    server.cut.clear()
    server.damaged.clear()
    server.down = server.down_after_cut = server.unlisted = False


@pytest.fixture(scope="module")
def online(server: HubServer, home: Path) -> Iterator[Resolve]:
    with process(server.env(home)) as pool:
        yield lambda name: pool.submit(resolve, name).result()


@pytest.fixture(scope="module")
def offline(server: HubServer, home: Path) -> Iterator[Resolve]:
    with process({**server.env(home), "HF_HUB_OFFLINE": "1"}) as pool:
        yield lambda name: pool.submit(resolve, name).result()


@pytest.fixture(scope="module")
def unreachable(server: HubServer, home: Path) -> Iterator[Resolve]:
    with process({**server.env(home), "HF_ENDPOINT": "http://127.0.0.1:9"}) as pool:
        yield lambda name: pool.submit(resolve, name).result()


def test_import_costs_nothing() -> None:
    code = "import sys, torchbeats.weights.hub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- paths


def test_existing_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "anything.bin"
    file.touch()
    assert resolve(file) == resolve(str(file)) == file


def test_folder_with_one_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="no checkpoint"):
        resolve(tmp_path)
    for name in ("a.pt", "config.yaml"):
        (tmp_path / name).touch()
    assert resolve(tmp_path) == tmp_path / "a.pt"
    (tmp_path / "b.pth").touch()
    with pytest.raises(HubError, match=r"2 checkpoints .*a\.pt, .*b\.pth"):
        resolve(tmp_path)
    (tmp_path / "c.safetensors").touch()
    assert resolve(tmp_path) == tmp_path / "c.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert resolve(f"~/{tmp_path.name}/a.pt") == tmp_path / "a.pt"


@pytest.mark.parametrize(
    "name", ["./beats", "/no/such/beats", "~/beats", "beats.pt", "runs/beats.pth", "a/b/", "../a/b"]
)
def test_what_reads_as_a_path_is_one(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        resolve(name)


def test_path_object_is_never_a_name() -> None:
    with pytest.raises(FileNotFoundError):
        resolve(Path("beats-iter3"))


def test_path_into_a_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/first").mkdir(parents=True)
    with pytest.raises(FileNotFoundError):
        resolve("runs/first/best.pt")


def test_missing_file_that_is_published() -> None:
    with pytest.raises(FileNotFoundError, match="The name beats-iter3 downloads"):
        resolve("BEATs_iter3.pt")


# ---- names


def test_unknown_name() -> None:
    with pytest.raises(HubError, match=r"Did you mean .*beats-iter3.*torchbeats models"):
        resolve("beats-itr3")
    with pytest.raises(HubError, match=r"no model named 'xyz'\. `torchbeats models`"):
        resolve("xyz")


def test_table() -> None:
    assert all(name == source.name for name, source in MODELS.items())
    assert {"beats-iter3", "openbeats-base-i1", "openbeats-large-i3", "aves2-naturelm-beats"} < set(MODELS)
    assert MODELS["beats-iter3"].revision == "5b53b0404df452a3a607d7e67687227730e5bad1"


def test_parse() -> None:
    parsed = {
        "o/r": Source("", "o/r"),
        "o/r@v1": Source("", "o/r", revision="v1"),
        "o/r@refs/pr/1": Source("", "o/r", revision="refs/pr/1"),
        "o/r/sub/m.pt@v1": Source("", "o/r", "sub/m.pt", "v1"),
        "datasets/o/r/m.pt": Source("", "o/r", "m.pt", repo_type="dataset"),
    }
    for text, source in parsed.items():
        assert hub._parse(text) == replace(source, name=text)
        assert hub._name(source) == text


def test_download_and_cache(server: HubServer, online: Resolve, offline: Resolve, unreachable: Resolve) -> None:
    repo = server.add("o/plain", {"model.pt": WEIGHTS, "README.md": b"#"})
    path = online("o/plain")
    assert path.name == "model.pt"
    assert path.read_bytes() == WEIGHTS
    assert not path.with_name("README.md").exists()

    server.requests.clear()
    assert online("o/plain") == path
    assert server.requests == ["GET /api/models/o/plain/revision/main"]
    assert online(f"o/plain/model.pt@{repo.commit}") == path
    assert len(server.requests) == 1  # a commit does not change: not even asked
    for without_network in (offline, unreachable):
        assert without_network("o/plain") == without_network("o/plain/model.pt") == path
    server.down = True
    assert online("o/plain/model.pt") == path


def test_short_name(server: HubServer, home: Path) -> None:
    source = MODELS["beats-iter3"]
    server.add(source.repo, {"BEATs_iter3.pt": WEIGHTS, "other.pt": b""}, commit=source.revision)
    with process(server.env(home)) as pool:
        assert not pool.submit(hub.is_cached, source).result()
        path = pool.submit(resolve, "beats-iter3").result()
        assert path.read_bytes() == WEIGHTS
        server.requests.clear()
        assert pool.submit(resolve, "beats-iter3").result() == path
        assert pool.submit(hub.is_cached, source).result()
        assert not pool.submit(hub.is_cached, MODELS["openbeats-base-i1"]).result()
        assert server.requests == []


def test_dataset_and_revision(server: HubServer, online: Resolve) -> None:
    server.add("datasets/o/sets", {"sub/model.pt": WEIGHTS}, branches=("v1",))
    assert online("datasets/o/sets/sub/model.pt@v1").read_bytes() == WEIGHTS
    with pytest.raises(HubError, match=r"datasets/o/sets@v2 does not exist: .* no revision v2"):
        online("datasets/o/sets@v2")


def test_new_commit_is_fetched(server: HubServer, online: Resolve) -> None:
    server.add("o/moving", {"model.pt": WEIGHTS})
    first = online("o/moving")
    server.add("o/moving", {"model.pt": WEIGHTS[::-1]})
    assert online("o/moving").read_bytes() == WEIGHTS[::-1]
    assert first.read_bytes() == WEIGHTS


def test_sidecars_beside_and_above(server: HubServer, online: Resolve) -> None:
    server.add(
        "o/espnet",
        {"exp/a/best.pth": WEIGHTS, "exp/a/config.yaml": b"beside", "config.yaml": b"above", "label_map.json": b"{}"},
    )
    path = online("o/espnet")
    assert path.with_name("config.yaml").read_bytes() == b"beside"
    top = path.parents[2]
    assert sorted(p.name for p in top.iterdir()) == ["exp", "label_map.json"]


def test_several_checkpoints(server: HubServer, online: Resolve) -> None:
    server.add("o/many", {"a.pt": WEIGHTS, "x/b.pth": WEIGHTS})
    with pytest.raises(HubError, match=r"2 checkpoints in o/many.*o/many/a\.pt, o/many/x/b\.pth"):
        online("o/many")
    server.add("o/many", {"a.pt": b"", "b.safetensors": WEIGHTS})
    assert online("o/many").name == "b.safetensors"
    server.add("o/none", {"README.md": b""})
    with pytest.raises(HubError, match=r"no checkpoint .* in o/none"):
        online("o/none")


def test_mirror_without_api(server: HubServer, online: Resolve) -> None:
    server.add("o/mirrored", {"model.pt": WEIGHTS})
    server.unlisted = True
    assert online("o/mirrored/model.pt").read_bytes() == WEIGHTS
    with pytest.raises(HubError, match=r"o/mirrored/other\.pt does not exist"):
        online("o/mirrored/other.pt")


# ---- mishaps


def test_no_such_repository(online: Resolve) -> None:
    with pytest.raises(HubError, match=r"o/nowhere/m\.pt is neither on the Hub nor on this machine.*hf auth login"):
        online("o/nowhere/m.pt")


def test_no_such_file(server: HubServer, online: Resolve) -> None:
    server.add("o/files", {"model.pt": WEIGHTS, "notes.txt": b""})
    with pytest.raises(HubError, match=r"no file modle\.pt in o/files\. It has: model\.pt, notes\.txt"):
        online("o/files/modle.pt")


def test_gated(server: HubServer, online: Resolve) -> None:
    server.add("o/gated", {"model.pt": WEIGHTS}, gated=True)
    with pytest.raises(HubError, match=r"https://huggingface\.co/o/gated asks .*licence.*hf auth login.*HF_TOKEN"):
        online("o/gated")


def test_cut_connection_is_taken_up_again(server: HubServer, online: Resolve) -> None:
    server.add("o/cut", {"model.pt": WEIGHTS})
    server.cut["model.pt"] = 1
    with suppress(HubError):  # older clients leave the rest to the next run
        online("o/cut")
    assert online("o/cut").read_bytes() == WEIGHTS
    assert server.requests.count("GET /o/cut/resolve/main/model.pt") == 2


def test_cut_connection_and_then_nothing(server: HubServer, online: Resolve, offline: Resolve) -> None:
    server.add("o/lost", {"model.pt": WEIGHTS})
    server.cut["model.pt"], server.down_after_cut = 1, True
    with pytest.raises(
        HubError, match=r"o/lost/model\.pt could not be downloaded.*run the command again.*resolve/main"
    ):
        online("o/lost")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        offline("o/lost")
    server.down = False
    assert online("o/lost").read_bytes() == WEIGHTS


def test_damaged_file_is_not_kept(server: HubServer, online: Resolve, home: Path) -> None:
    server.add("o/damaged", {"model.pt": WEIGHTS})
    server.damaged.add("model.pt")
    for _ in range(2):
        with pytest.raises(HubError, match=r"o/damaged/model\.pt arrived damaged and has been deleted"):
            online("o/damaged")
        assert not [p for p in home.rglob("models--o--damaged/*/**/*") if p.is_file() and p.parent.name != "refs"]
    server.damaged.clear()
    assert online("o/damaged").read_bytes() == WEIGHTS


def test_offline_says_what_to_do(server: HubServer, offline: Resolve) -> None:
    url = "https://huggingface.co/datasets/o/absent/resolve/main/sub/model.pt"
    with pytest.raises(HubError) as caught:
        offline("datasets/o/absent/sub/model.pt")
    said = str(caught.value)
    assert all(part in said for part in ("HF_HUB_OFFLINE", url, "--model /path/to/model.pt"))
    with pytest.raises(HubError, match=r"https://huggingface\.co/o/absent/tree/main"):
        offline("o/absent")
    assert server.requests == []


def test_unreachable_says_what_to_do(unreachable: Resolve) -> None:
    source = MODELS["beats-iter3-plus-as2m"]
    url = f"https://huggingface.co/{source.repo}/resolve/{source.revision}/{source.file}"
    with pytest.raises(HubError, match=rf"could not be downloaded.*{url}.*--model /path/to/BEATs_iter3_plus_AS2M\.pt"):
        unreachable("beats-iter3-plus-as2m")
