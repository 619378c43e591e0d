"""Every Python block of a page runs, one after the other, in a folder with the files that the pages name."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer, tone

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    "coming-from-the-original-code.md": ["peft"],
    "integrations/speechbrain.md": ["hyperpyyaml"],
    "integrations/hear.md": [],
    "integrations/x-ares.md": [],
    "integrations/datasets.md": ["datasets"],
    "integrations/mteb.md": ["mteb"],
    "many-machines.md": ["ray", "datasets"],
    "teach.md": ["sklearn"],
    "integrations/transformers.md": ["transformers"],
    "integrations/sentence-transformers.md": ["sentence_transformers"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    deep, label_dict = {"encoder_layers": 12}, {index: f"/m/{index}" for index in range(527)}
    for name, model, more in (
        ("BEATs_iter3", small_model(**deep), {}),
        (
            "BEATs_finetuned",
            small_model(finetuned_model=True, **deep),
            {"label_dict": label_dict},
        ),
        ("Tokenizer_iter3", small_tokenizer(), {}),
    ):
        torch.save({"cfg": model.cfg.to_dict(), "model": model.state_dict(), **more}, tmp_path / f"{name}.pt")
    (tmp_path / "sounds").mkdir()
    for index, samples in enumerate((tone(1), noise(2), tone(0.7, 44_100))):
        soundfile.write(tmp_path / "sounds" / f"{index}.wav", samples, 44_100 if index == 2 else 16_000)
    (tmp_path / "recordings").mkdir()
    rows = [("path", "label", "start", "end")]
    for index in range(6):  # a hiss, then a tone
        samples = np.concatenate([noise(2, seed=index), tone(2, hertz=300 + 50 * index)])
        soundfile.write(tmp_path / "recordings" / f"{index}.wav", samples, 16_000)
        if index < 4:
            rows += [(f"recordings/{index}.wav", "hiss", 0, 2), (f"recordings/{index}.wav", "tone", 2, 4)]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(page):
    """All that the page's Python blocks define, and what its shell blocks print, under ``printed``."""
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {"__name__": "page", "printed": []}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for number, (language, block) in enumerate(blocks):
        if language == "python":
            exec(compile(block, f"{page}, block {number + 1}", "exec"), names)
        else:
            result = subprocess.run(
                ["sh", "-ec", block], env={**os.environ, "PATH": path}, capture_output=True, text=True
            )
            assert result.returncode == 0, result.stderr
            names["printed"].append(result.stdout)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, folder):
    for package in PAGES[page]:
        pytest.importorskip(package)
    names = run(page)
    if page.startswith("coming"):
        assert names["features"].shape == (2, 144, 48)
        assert names["grid"].shape == (2, 18, 8, 48)
        assert names["labels"].shape == (288,)
        assert names["weights"][11].shape == (2, 144, 144)
        assert len(names["layer_results"]) == 10
        assert names["patch_mask"].sum(1).tolist() == [0, 48]
        assert torchbeats.load(folder / "merged.safetensors").labels is None
    if page.endswith("speechbrain.md"):
        assert names["features"].shape == (2, 48, 48)
    if page.endswith("hear.md"):
        assert names["steps"].shape == (4, 18, 48)
        assert names["scenes"].shape == (4, 48)
    if page.endswith("x-ares.md"):
        assert names["steps"].shape == (2, 19, 48)
    if page == "integrations/transformers.md":
        assert names["outputs"].pooler_output.shape == (2, 48)
        assert len(names["tags"]) == 3
        assert names["trained"].labels == ["tone", "noise"]
    if page.endswith("sentence-transformers.md"):
        assert names["embeddings"].shape == (3, 48)
        assert names["embedding"].shape == (48,)
    if page.endswith("mteb.md"):
        assert names["results"].task_results[0].get_score() == 1
        assert names["encoder"].mteb_model_meta.embed_dim == 48
    if page.endswith("datasets.md"):
        model = torchbeats.load(folder / "BEATs_iter3.pt")
        for row in names["table"]:
            (expected,) = torchbeats.embed(row["audio"]["path"], model, window=None)
            torch.testing.assert_close(torch.tensor(row["embedding"]), torch.as_tensor(expected.embedding))
    if page == "many-machines.md":
        stored = pq.read_table("embeddings").to_pylist()
        expected = {row.path: row.embedding for row in torchbeats.embed("sounds", "beats-nano", pool="bands")}
        assert len(stored) == len(expected) == len(names["embedded"])
        for row in [*stored, *names["embedded"]]:
            np.testing.assert_allclose(row["embedding"], expected[row["path"]], atol=1e-4)  # other batches
    if page == "teach.md":
        windows = [json.loads(line) for line in names["printed"][2].splitlines()][:24]
        said = [row["labels"][0]["label"] for row in windows]
        assert said == ["hiss", "hiss", "tone", "tone"] * 6
