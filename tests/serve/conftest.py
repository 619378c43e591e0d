"""Servers that several tests ask."""

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from live_server import SOUNDS, Running
from torchbeats import EmbeddingPlan, write_table


@pytest.fixture(scope="session")
def start():
    """Start a server; it is stopped at the end at the latest."""
    servers = []

    def begin(*arguments, **settings):
        servers.append(Running(*arguments, **settings))
        return servers[-1]

    yield begin
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A table of the example sounds in windows of a second."""
    path = tmp_path_factory.mktemp("table") / "sounds.parquet"
    write_table([SOUNDS], path, "beats-nano", plan=EmbeddingPlan(window=1.0))
    return path


@pytest.fixture(scope="session")
def server(start, table):
    """A server with a table and small bounds."""
    server = start(
        *("--no-page", "--table", table, "--max-body", 8, "--max-audio", 120, "--max-inputs", 8, "--max-seconds", 20),
        *("--decoders", 1, "--max-decoder", 512),
    )
    yield server
    assert "Traceback" not in server.said, server.said
