"""A server's life: how it starts and stops, who may ask, and clients that behave badly."""

import os
import select
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import httpx
import numpy as np
import pytest

from helpers import noise
from live_server import group_is_alive, url, wait_for, wav

CLIP = {"input": url(wav(noise(0.5)))}


def is_in(line, server):
    """Whether the server's metrics have a line."""
    return line in httpx.get(f"{server.address}/metrics", timeout=30).text


def test_work_under_way_is_answered_when_it_is_stopped(start):
    """By either signal, which a terminal sends to decoders as well; nothing else is said, and no process is left."""
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start("--no-page")
        httpx.post(f"{server.address}/v1/embeddings", json=CLIP, timeout=120)  # the decoders are there
        body = {"input": [url(wav(noise(60.0, seed=seed))) for seed in range(2)]}
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(httpx.post, f"{server.address}/v1/embeddings", json=body, timeout=120)
            assert wait_for(partial(is_in, "in_progress 1\n", server))
            os.killpg(server.process.pid, number)
            answer = asking.result()
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["data"]) == 2
        assert server.stop(number, 60) == 0
        assert "Traceback" not in server.said
        assert server.said.splitlines()[-1].startswith("torchbeats answers at ")
        assert wait_for(lambda server=server: not group_is_alive(server.process.pid))


def test_two_at_one_port(run, server):
    status, _, error = run("serve", "--no-page", "--port", server.port)
    assert status == 2
    assert f"Port {server.port} at 127.0.0.1 is taken" in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "At 0.0.0.0 others on the network could use the server: give it a --token"),
        (["--token", "two words"], "without spaces"),
        (["--token", "x", "--no-token"], "contradict each other"),
        (["--host", "no.such.name.invalid", "--token", "x"], "There is no address no.such.name.invalid"),
        (["--max-audio", "0"], "audio_seconds is a positive number"),
        (["--tagger", "beats-nano", "--port", "0"], "This model has no label head"),
        (["--table", "none.parquet", "--port", "0"], "none.parquet"),
    ],
)
def test_what_cannot_be_served_is_said(run, arguments, sentence):
    pytest.importorskip("python_multipart")
    status, _, error = run("serve", "--no-page", *arguments)
    assert status == 2
    assert sentence in error


@pytest.fixture(scope="module")
def guarded(start):
    """A server that others on the network may use who have its token, and pages of one site."""
    server = start(
        *("--no-page", "--host", "0.0.0.0", "--cors", "https://sounds.example"),
        env={"TORCHBEATS_TOKEN": "secret-1"},
    )
    yield server
    assert "secret-1" not in server.said
    assert server.stop() == 0


def test_a_token_guards_all_but_health(guarded):
    with httpx.Client(base_url=f"http://127.0.0.1:{guarded.port}", timeout=60) as client:
        assert client.get("/health").status_code == 200
        for route in ("/v1/models", "/metrics", "/openapi.json", "/"):
            answer = client.get(route)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "This server asks for its token" in answer.json()["error"]["message"]
        assert client.post("/v1/embeddings", json=CLIP).status_code == 401
        for wrong in ("Bearer secret-2", "Bearer", "Basic secret-1", "Bearer secret-1x", "Bearer \u00e9"):
            assert client.get("/v1/models", headers={"Authorization": wrong.encode("latin-1")}).status_code == 401
        right = {"Authorization": "Bearer secret-1"}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.post("/v1/embeddings", json=CLIP, headers=right).status_code == 200


def talk(server, data, slowly=b"", seconds=60.0):
    """Send bytes at once, and others two a second; all that comes back until the server closes."""
    answer, end = b"", time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as line, suppress(ConnectionError):
        line.sendall(data)
        for byte in slowly:
            if select.select([line], [], [], 0.5)[0]:
                break
            line.sendall(bytes([byte]))
            if time.monotonic() > end:
                raise TimeoutError
        while part := line.recv(65_536):
            answer += part
    return answer


def request(server, length, body=b"", route="/v1/embeddings"):
    head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode() + body


def test_clients_that_lie_dawdle_or_hang_up(server):
    """Each at once, while an honest client is answered; afterwards nothing of them is held."""
    address = f"{server.address}/v1/embeddings"
    results = {}

    def background(name, function, *arguments, **options):
        thread = threading.Thread(target=lambda: results.update({name: function(*arguments, **options)}))
        thread.start()
        return thread

    threads = [
        background("promised more", talk, server, request(server, 5000, b"{}")),
        background("a byte a second", talk, server, request(server, 5000), b" " * 100),
        background("a slow head", talk, server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"x" * 100),
        background("silence", talk, server, b""),
    ]
    assert b" 413 " in talk(server, request(server, 10**12)[:-1] + b"\n")
    assert talk(server, request(server, -5)).startswith(b"HTTP/1.1 400 ")
    assert talk(server, request(server, 2, b"{}GET / HTTP/9\r\n\r\n")).startswith(b"HTTP/1.1 422 ")
    assert talk(server, b"no HTTP at all\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    for _ in range(20):  # hang up in the middle of a body, and behind it
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(request(server, 5000, b"{"))
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            content = httpx.Request("POST", address, json=CLIP).content
            line.sendall(request(server, len(content), content))
    assert httpx.post(address, json=CLIP, timeout=60).status_code == 200
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert b"HTTP/1.1 408 " in results["promised more"]
    assert b"HTTP/1.1 408 " in results["a byte a second"]
    assert results["a slow head"] == results["silence"] == b""
    assert wait_for(partial(is_in, "torchbeats_held_bytes 0\n", server))
    assert wait_for(partial(is_in, "torchbeats_requests_in_progress 0\n", server))


def test_a_full_queue_and_full_memory_send_away(start):
    server = start("--no-page", "--max-queue", 2, "--max-body", 1, "--max-held", 1, "--max-seconds", 30)
    httpx.post(f"{server.address}/v1/embeddings", json=CLIP, timeout=120)
    lines = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    for line in lines:
        line.sendall(request(server, 1000, b"{"))
    assert wait_for(partial(is_in, "in_progress 2\n", server))
    full = httpx.post(f"{server.address}/v1/embeddings", json=CLIP)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["type"] == "rate_limit_error"
    lines.pop().close()
    assert wait_for(partial(is_in, "in_progress 1\n", server))
    lines[0].close()
    line = socket.create_connection(("127.0.0.1", server.port))
    line.sendall(request(server, 2**20 - 100, b"{"))
    assert wait_for(partial(is_in, f"held_bytes {2**20 - 100:g}\n", server))
    away = httpx.post(f"{server.address}/v1/embeddings", json=CLIP)
    assert away.status_code == 503
    assert int(away.headers["retry-after"]) >= 1
    line.close()
    assert wait_for(lambda: httpx.post(f"{server.address}/v1/embeddings", json=CLIP).status_code == 200)
    server.stop()


def test_an_answer_that_takes_too_long(start):
    server = start("--no-page", "--max-seconds", 0.4)
    body = {"input": [url(wav(np.tile(noise(1.0, seed=seed), 60))) for seed in range(5)]}
    answers = [httpx.post(f"{server.address}/v1/embeddings", json=body, timeout=60) for _ in range(3)]
    assert {answer.status_code for answer in answers} <= {504, 408}
    assert wait_for(lambda: httpx.post(f"{server.address}/v1/embeddings", json=CLIP).status_code == 200)
    assert server.stop() == 0


def test_pages_of_named_sites_may_ask(guarded):
    good, bad = {"Origin": "https://sounds.example"}, {"Origin": "https://other.example"}
    right = {"Authorization": "Bearer secret-1"}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    route = f"http://127.0.0.1:{guarded.port}/v1/embeddings"
    before = httpx.options(route, headers={**good, **ask})
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (204, good["Origin"])  # no token yet
    assert httpx.options(route, headers={**bad, **ask}).status_code == 403
    answer = httpx.post(route, json=CLIP, headers={**good, **right}, timeout=120)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, good["Origin"])
    assert httpx.post(route, json=CLIP, headers={**bad, **right}).status_code == 403
