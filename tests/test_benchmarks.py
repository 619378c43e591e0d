"""The benchmarks run, without peers and with little sound."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("mixed_lengths", "long_recordings", "cold_start", "busy_machine")
]


@pytest.mark.parametrize("name", ["throughput", "where_time_goes", "short_files", *SLOW])
def test_quick(name, tmp_path, monkeypatch):
    out = tmp_path / "table.md"
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--peers", "--threads", "1", "--out", str(out)])
    importlib.import_module(name).main()
    text = out.read_text()
    assert sum(line.startswith("| ") for line in text.splitlines()) > 2  # more than a head and its rule
    assert f"`python benchmarks/{name}.py --quick --peers" in text


def test_nothing_takes_more_than_it_did(monkeypatch):
    """Where it does for a reason: ``python benchmarks/counts.py --write``."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    counts = importlib.import_module("counts")
    kept = json.loads(counts.LIMITS.read_text())
    if counts.version() != kept["torch"]:
        pytest.skip(f"the limits are those of torch {kept['torch']}")
    assert counts.above(counts.measured(), kept["limits"]) == []


def test_a_slower_pass_is_seen(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    counts = importlib.import_module("counts")
    layer = torch.nn.Linear(64, 64)
    x = torch.zeros(2, 64)

    def slower():
        return torch.nn.functional.linear(x, layer.weight.clone(), layer.bias)

    with torch.inference_mode():
        with counts.Operators(layer) as plain:
            layer(x)
        with counts.Operators(layer) as copying:
            slower()
    assert (plain.weight_bytes, copying.weight_bytes) == (0, 64 * 64 * 4)
    assert (copying.calls, copying.bytes) == (plain.calls + 1, plain.bytes + 64 * 64 * 4)
    limits = {"pass": {"operators": plain.calls, "file: calls": 100}}
    assert counts.above({"pass": {"operators": copying.calls, "file: calls": 109}}, limits) == [
        f"pass, operators: {copying.calls}, at most {plain.calls}"
    ]


def test_probe_speed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["probe_speed.py", "--quick"])
    importlib.import_module("probe_speed").main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 3
    assert rows[0][3] == rows[2][3]  # the accuracy of the exact solution


@pytest.mark.slow
def test_serving(tmp_path, monkeypatch):
    for package in ("fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["serving.py", "--quick", "--out", str(tmp_path / "table.md")])
    importlib.import_module("serving").main()
    text = (tmp_path / "table.md").read_text()
    assert '"500"' not in text
    assert "| exit status on SIGTERM | 0 |" in text


def test_mixed_lengths_are_what_they_are_said_to_be(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    mixed = importlib.import_module("mixed_lengths")
    made = mixed.lengths(48, 299.0, np.random.default_rng(0))
    assert made.sum() == pytest.approx(299)
    assert (made.min(), made.max()) == pytest.approx((0.5, 30))
