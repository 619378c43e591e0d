"""A real Ray of two nodes on this machine: rows, errors, what is lost in the middle, and what is done already."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import soundfile

import torchbeats
from helpers import noise
from torchbeats import EmbeddingPlan, StoreError, write_table
from torchbeats.cli import with_address
from torchbeats.data import blocks
from torchbeats.distributed import cluster
from torchbeats.distributed.running import write_table_on_ray
from torchbeats.errors import SettingsError
from torchbeats.tables.reading import Table

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

# In the processes that compute, a sound called crash ends the process as a decoder's fault does, and a slow one takes
# its time. They run no code of the tests, so this is given to them as Python starts.
HOOK = """
import os, signal, sys, time

if "torchbeats.distributed.child" in sys.orig_argv:
    from torchbeats.data import pieces

    original = pieces.stream

    def stream(piece):
        if "crash" in piece.path and piece.content is None:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "slow" in piece.path:
            time.sleep(0.4)
        return original(piece)

    pieces.stream = stream
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A head and another node, of one core each."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK)
    source = os.path.dirname(os.path.dirname(torchbeats.__file__))
    variables = {
        "PYTHONPATH": f"{folder}{os.pathsep}{source}",
        "OMP_NUM_THREADS": "1",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_health_check_initial_delay_ms": "500",  # a node that is gone is missed at once
        "RAY_health_check_period_ms": "500",
        "RAY_worker_niceness": "0",  # Ray makes way for everything else, and other tests are at work beside it
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    ray.shutdown()  # an example of the documentation may have begun one in this process
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    nodes.add_node(**small)
    try:
        ray.init(nodes.address, log_to_driver=False)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_INPUTS", 4)


def sounds(folder, kind, count):
    folder.mkdir()
    for number in range(count):
        soundfile.write(folder / f"{kind}-{number:02}.wav", noise(0.3 + 0.1 * number, seed=number), 16_000)
    return folder


def rows(path):
    return pq.read_table(path).replace_schema_metadata(None)


def workers(node):
    """The processes of a node that compute, and no others of this machine."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [one for one in raylet.children() if "MapWorker" in " ".join(one.cmdline())]


def test_rows_are_those_of_a_local_run_and_a_crash_is_an_error(nodes, tmp_path):
    folder = sounds(tmp_path / "sounds", "sound", 10)
    (folder / "crash.wav").write_text("no sound")  # so that a local run has the same rows
    (folder / "text.wav").write_text("no sound")
    skipped = {}
    with pytest.warns(torchbeats.AudioWarning):
        local = write_table(folder, tmp_path / "local.parquet", "beats-nano", EmbeddingPlan(window=0.5))
    out = tmp_path / "ray.parquet"
    result = write_table_on_ray(
        folder, out, "beats-nano", EmbeddingPlan(window=0.5), on_failure=lambda path, why: skipped.update({path: why})
    )
    assert rows(out).equals(rows(local.path))  # bit for bit, in order
    assert (result.sounds, result.failures, result.rows) == (12, 2, local.rows)
    assert skipped[str(folder / "crash.wav")] == "the process that read it was ended by SIGSEGV, 3 times"
    assert [line["path"] for line in map(json.loads, result.errors.open())] == sorted(skipped)
    assert Table(out).about == Table(local.path).about
    assert len(list(out.glob("part-*.parquet"))) == 3

    parts = {part: part.stat().st_mtime_ns for part in out.glob("part-*")}
    again = write_table_on_ray(folder, out, "beats-nano", EmbeddingPlan(window=0.5))
    assert again.complete
    max(parts).unlink()  # not that with the crash, each of which costs the start of a process
    more = write_table_on_ray(folder, out, "beats-nano", EmbeddingPlan(window=0.5), on_failure=lambda *_: None)
    assert (more.complete, more.sounds) == (False, 12)
    assert sum(part.stat().st_mtime_ns == time for part, time in parts.items()) == 2
    assert rows(out).equals(rows(local.path))
    with pytest.raises(StoreError, match="pool is mean there and bands here"):
        write_table_on_ray(folder, out, "beats-nano", EmbeddingPlan("bands", window=0.5))
    assert Table(out).take(np.array([5, 0])).shape == (2, 256)


def test_a_run_whose_driver_was_killed_goes_on(nodes, tmp_path):
    folder, out = sounds(tmp_path / "sounds", "slow", 12), tmp_path / "out.parquet"
    code = (
        "from torchbeats.data import blocks; blocks.BLOCK_INPUTS = 4\n"
        "from torchbeats.distributed.running import write_table_on_ray\n"
        f"write_table_on_ray({str(folder)!r}, {str(out)!r}, 'beats-nano', address={nodes.address!r}, actors=1)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code])
    try:
        limit = time.monotonic() + 240
        while not list(out.glob("part-*")) and time.monotonic() < limit:
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    (part,) = out.glob("part-*")
    written = part.stat().st_mtime_ns
    result = write_table_on_ray(folder, out, "beats-nano")
    assert 4 <= result.continued < 12
    assert part.stat().st_mtime_ns == written
    local = write_table(folder, tmp_path / "local.parquet", "beats-nano")
    assert rows(out).equals(rows(local.path))


def test_an_actor_and_a_node_are_killed(nodes, tmp_path):
    folder, out = sounds(tmp_path / "sounds", "slow", 20), tmp_path / "out.parquet"
    (other,) = nodes.worker_nodes
    lost = []

    @contextmanager
    def display(total, done):
        def progress(seconds, inputs):
            if not lost:
                lost.append(workers(nodes.head_node)[0])
                lost[0].kill()
            elif len(lost) == 1:
                lost.append(other)
                nodes.remove_node(other, allow_graceful=False)

        yield progress

    result = write_table_on_ray(folder, out, "beats-nano", display=display)
    assert len(lost) == 2
    assert (result.sounds, result.failures) == (20, 0)
    local = write_table(folder, tmp_path / "local.parquet", "beats-nano")
    assert rows(out).equals(rows(local.path))


def test_what_an_actor_takes_of_a_cluster():
    assert cluster.resources({"CPU": 8}, "auto") == {"num_cpus": 1}
    assert cluster.resources({"CPU": 16, "GPU": 2}, "auto") == {"num_gpus": 1, "num_cpus": 4}
    assert cluster.resources({"CPU": 16, "GPU": 2}, "cpu") == {"num_cpus": 1}


def test_an_address_may_be_left_out():
    assert with_address(["embed", "x", "--ray"]) == ["embed", "x", "--ray", "auto"]
    assert with_address(["embed", "--ray", "-o", "y"]) == ["embed", "--ray", "auto", "-o", "y"]
    assert with_address(["embed", "--ray", "local", "x"]) == ["embed", "--ray", "local", "x"]


def test_a_cluster_that_is_gone_is_not_waited_for(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    left = []
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: left[-1])
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        left.append(address)
        assert cluster._place("auto") is None  # Ray finds it
        assert cluster._place(address) == address
    assert cluster._place("auto") == cluster._place("local") == "local"
    left.append("no address")
    assert cluster._place("auto") == "local"
    left.append(None)
    assert cluster._place("auto") is None

    def unreadable(folder):
        raise PermissionError(folder)

    monkeypatch.setattr("ray._private.services.find_bootstrap_address", unreadable)
    assert cluster._place("auto") == "local"
    monkeypatch.setenv("RAY_ADDRESS", address)
    for place in ("auto", address):
        with pytest.raises(SettingsError, match=rf"no Ray cluster to be had at {address}: nothing answers there"):
            cluster._place(place)
    assert cluster._place("ray://head:10001") == "ray://head:10001"
