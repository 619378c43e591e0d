"""Training on shards in an object store, here on loopback: connections are cut, and one of two processes is killed."""

import io
import os
import socket
import socketserver
import tarfile
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
import soundfile
from safetensors.torch import load_file

from helpers import noise, pretrain_command
from launchers import finish, free_port, start
from torchbeats.patches import PatchGrid
from torchbeats.training.batches import Draw
from torchbeats.training.corpus import index
from torchbeats.training.crops import Crops
from torchbeats.training.settings import DataSettings

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

BUCKET = "sounds"
CUT_BYTES = 20_000  # of an answer that is cut off


class Proxy(socketserver.ThreadingTCPServer):
    """Hands everything on to a server, but cuts off long answers of some connections half-way."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), Pump)
        self.upstream, self.connections, self.cuts = ("127.0.0.1", port), 0, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Pump(socketserver.BaseRequestHandler):
    def handle(self):
        self.server.connections += 1
        cut = self.server.connections % 2 == 0
        with socket.create_connection(self.server.upstream) as upstream:
            threading.Thread(target=self.hand_on, args=(self.request, upstream, False), daemon=True).start()
            self.hand_on(upstream, self.request, cut)

    def hand_on(self, source, target, cut):
        passed = 0
        with suppress(OSError):
            while data := source.recv(4096):
                passed += len(data)
                if cut and passed > CUT_BYTES:
                    self.server.cuts += 1
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def contents():
    result = []
    for shard in range(2):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(6):
                sound = io.BytesIO()
                samples = noise(0.8 + 0.3 * number, seed=6 * shard + number, level=0.1)
                soundfile.write(sound, samples, 16_000, format="WAV", subtype="PCM_16")
                member = tarfile.TarInfo(f"{number}.wav")
                member.size = len(sound.getvalue())
                archive.addfile(member, io.BytesIO(sound.getvalue()))
        result.append(file.getvalue())
    return result


@pytest.fixture(scope="module")
def store(contents):
    """A bucket with two shards, behind a proxy that cuts; its environment reaches processes that are started."""
    import s3fs

    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    proxy = Proxy(port)
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ |= variables
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(endpoint_url=f"http://127.0.0.1:{port}")  # past the proxy
    files.mkdir(BUCKET)
    for number, content in enumerate(contents):
        files.pipe(f"{BUCKET}/s-{number:02}.tar", content)
    try:
        yield proxy
    finally:
        proxy.shutdown()
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_shards_whose_connections_are_cut_are_those_on_disk(store, contents, tmp_path):
    for number, content in enumerate(contents):
        (tmp_path / f"s-{number:02}.tar").write_bytes(content)
    here = index([str(tmp_path / "s-{00..01}.tar")])
    failures = []
    there = index([f"s3://{BUCKET}/s-*.tar"], on_file=failures.append)
    assert failures == [None, None]
    assert [there.path(row).rpartition("/")[2] for row in range(len(there))] == [
        here.path(row).rpartition("/")[2] for row in range(len(here))
    ]
    data = DataSettings(crop_seconds=[0.5, 0.7], workers=0)
    for row in range(len(here)):
        draw = Draw(row, 0.6, (0, 0, row))
        expected, crop = (Crops(corpus, data, PatchGrid())[draw] for corpus in (here, there))
        np.testing.assert_array_equal(crop.samples, expected.samples)
    assert store.cuts > 0


def torchrun(out):
    """Two processes on this machine."""
    agent = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    agent += [f"--master-port={free_port()}", "-m", "torchbeats"]
    over = {"trainer__devices": 2, "model__steps": 12, "distillation__steps": 2, "trainer__save_every": 2}
    over["trainer__log_every"] = 2
    return start([*agent, *pretrain_command(f"s3://{BUCKET}/s-{{00..01}}.tar", out, iterations=1, **over)])


@pytest.mark.slow
def test_a_process_of_two_is_killed_and_the_training_goes_on(store, tmp_path):
    ((status, error),) = finish([torchrun(tmp_path / "calm")])
    assert status == 0, error
    agent = torchrun(tmp_path / "killed")
    limit = time.monotonic() + 200
    metrics = list[str]()
    while len(metrics) < 4 and agent.poll() is None and time.monotonic() < limit:  # a head and three lines: step 6
        time.sleep(0.02)
        metrics = [
            line for file in (tmp_path / "killed").rglob("metrics.csv") for line in file.read_text().splitlines()
        ]
    victim = [child for child in psutil.Process(agent.pid).children() if "torchbeats" in child.cmdline()][1]
    victim.kill()
    ((status, _),) = finish([agent])
    assert status != 0
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    ((status, error),) = finish([torchrun(tmp_path / "killed")])
    assert status == 0, error
    calm, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("calm", "killed"))
    for name, tensor in calm.items():
        np.testing.assert_array_equal(resumed[name].numpy(), tensor.numpy(), err_msg=name)
    assert store.cuts > 1
