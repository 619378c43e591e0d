"""Every block of the page about the server runs against a live one; the files for containers say what they must."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml

from helpers import noise, tone

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serve.md"


def test_blocks_of_the_page(server, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    if shutil.which("curl") is None:
        pytest.skip("needs the program curl")
    soundfile.write(tmp_path / "bird.wav", tone(3.0), 16_000)
    soundfile.write(tmp_path / "rain.flac", noise(1.0), 16_000)
    monkeypatch.chdir(tmp_path)
    answers = 0
    for language, block in re.findall(r"^```(python|sh)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        block = block.replace("http://127.0.0.1:8000", server.address)
        if language == "python":
            done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert int(done.stdout) > 0
            continue
        commands = re.findall(r"^(?:curl|printf).*$", block, re.MULTILINE)
        assert len(commands) == len(block.splitlines())
        for command in commands:
            done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            if command.endswith("/metrics"):
                assert "torchbeats_requests_total" in done.stdout
            elif command.startswith("curl"):
                answer = json.loads(done.stdout)
                assert "error" not in answer, done.stdout
                answers += 1
    assert answers >= 10


def test_options_that_the_page_names_are_there(run):
    _, out, _ = run("serve", "--help")
    named = set(re.findall(r"(--[a-z]+[a-z-]*)", PAGE.read_text())) - {"--build", "--threads"}  # of other commands
    assert named
    assert sorted(option for option in named if option not in out) == []


def test_the_container_is_no_root_and_checks_its_health():
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER torchbeats$", text, re.MULTILINE)
    assert text.index("USER torchbeats") < text.index("ENTRYPOINT")
    health = json.loads(re.search(r"^HEALTHCHECK .*?CMD (\[[^\n]*\])$", text, re.MULTILINE | re.DOTALL)[1])
    assert health[2].endswith("/health', timeout=4)")
    copied = {name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["torchbeats"]
    assert service["environment"]["TORCHBEATS_TOKEN"].startswith("${TORCHBEATS_TOKEN:?")  # none: it does not start


def test_the_health_check_by_hand(start):
    """The steps of the container where no engine runs: its command, and its check."""
    server = start("--no-page", "--host", "0.0.0.0", env={**os.environ, "TORCHBEATS_TOKEN": "x", "HF_HUB_OFFLINE": "1"})
    text = (ROOT / "Dockerfile").read_text()
    check = json.loads(re.search(r"^HEALTHCHECK .*?CMD (\[[^\n]*\])$", text, re.MULTILINE | re.DOTALL)[1])[1:]
    check[1] = check[1].replace(":8000", f":{server.port}")
    assert subprocess.run([sys.executable, *check], timeout=60).returncode == 0
    server.stop()
    assert subprocess.run([sys.executable, *check], timeout=60, capture_output=True).returncode != 0
