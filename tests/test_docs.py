"""Every block of the README and of docs/ runs, page by page, in a folder of its own: see `pages`.

The folder has the example clips where a checkout has them. Pages about checkpoints of others get small stand-ins for
those, under the names that the pages use.
"""

import csv
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import torchbeats
from helpers import noise, small_model, small_tokenizer, tone
from pages import ROOT, Block, blocks, matches, pages, run_page, shell

MOST_NOT_RUN = 22
OWN_PROCESS = "TORCHBEATS_TEST_PAGE"  # is set in the environment of a process that runs one page alone
# What a page needs beside the package's own tests.
NEEDS = {
    "docs/coming-from/research-code.md": ["peft"],
    "docs/coming-from/speechbrain.md": ["hyperpyyaml"],
    "docs/integrations/datasets.md": ["datasets"],
    "docs/integrations/mteb.md": ["mteb"],
    "docs/many-machines.md": ["ray", "datasets"],
    "docs/onnx.md": ["openvino"],
    "docs/integrations/transformers.md": ["transformers"],
    "docs/integrations/sentence-transformers.md": ["sentence_transformers"],
}
# Pages with a test of their own, which runs all their blocks and looks at figures.
RUN_ELSEWHERE = {"docs/tutorials/detector.md": "tests/cli/test_tutorial.py", "docs/serve.md": "tests/serve"}
CHECKPOINTS = [page for page in pages() if page.startswith(("docs/coming-from", "docs/integrations/"))]
TEXTS = {page: (ROOT / page).read_text("utf-8") for page in pages()}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a page runs: as a checkout's folder, as far as pages go."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RAY_ADDRESS", "local")  # neither the cluster of other tests nor one that is gone
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


def sounds(folder):
    (folder / "sounds").mkdir()
    for index, samples in enumerate((tone(1), noise(2), tone(0.7, 44_100))):
        soundfile.write(folder / "sounds" / f"{index}.wav", samples, 44_100 if index == 2 else 16_000)


def checkpoints(folder):
    """Files like those that others publish, of small models."""
    deep, label_dict = {"encoder_layers": 12}, {index: f"/m/{index}" for index in range(527)}
    for name, model, more in (
        ("BEATs_iter3", small_model(**deep), {}),
        ("BEATs_finetuned", small_model(finetuned_model=True, **deep), {"label_dict": label_dict}),
        ("Tokenizer_iter3", small_tokenizer(), {}),
    ):
        torch.save({"cfg": model.cfg.to_dict(), "model": model.state_dict(), **more}, folder / f"{name}.pt")


def hiss_and_tones(folder):
    """Recordings of a hiss and then a tone, and labels for some of them."""
    (folder / "recordings").mkdir()
    rows = [("path", "label", "start", "end")]
    for index in range(6):
        samples = np.concatenate([noise(2, seed=index), tone(2, hertz=300 + 50 * index)])
        soundfile.write(folder / "recordings" / f"{index}.wav", samples, 16_000)
        if index < 4:
            rows += [(f"recordings/{index}.wav", "hiss", 0, 2), (f"recordings/{index}.wav", "tone", 2, 4)]
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def wren_detector(folder):
    """A detector that always hears one of its two birds."""
    model = small_model(finetuned_model=True, predictor_class=2, problem_type="multi_label")
    with torch.no_grad():
        model.predictor.bias.copy_(torch.tensor([9.0, -9.0]))
    model.label_dict = {0: "wren", 1: "robin"}
    torchbeats.save(model, folder / "detector.safetensors")


# What lies in a page's folder beside the example clips.
FILES = {
    **{page: [sounds, checkpoints] for page in CHECKPOINTS},
    "docs/integrations/mteb.md": [sounds, checkpoints, hiss_and_tones],
    "docs/many-machines.md": [sounds],
    "docs/teach.md": [hiss_and_tones],
    "docs/annotations.md": [sounds, wren_detector],
}


def after_the_original_code(folder, names):
    assert names["features"].shape == (2, 144, 48)
    assert names["grid"].shape == (2, 18, 8, 48)
    assert names["labels"].shape == (288,)
    assert names["weights"][11].shape == (2, 144, 144)
    assert len(names["layer_results"]) == 10
    assert names["patch_mask"].sum(1).tolist() == [0, 48]
    assert torchbeats.load(folder / "merged.safetensors").labels is None


def after_transformers(folder, names):
    assert names["outputs"].pooler_output.shape == (2, 48)
    assert len(names["tags"]) == 3
    assert names["trained"].labels == ["tone", "noise"]


def after_datasets(folder, names):
    model = torchbeats.load(folder / "BEATs_iter3.pt")
    for row in names["table"]:
        (expected,) = torchbeats.embed(row["audio"]["path"], model, window=None)
        torch.testing.assert_close(torch.tensor(row["embedding"]), torch.as_tensor(expected.embedding))


def after_many_machines(folder, names):
    stored = pq.read_table("embeddings").to_pylist()
    expected = {row.path: row.embedding for row in torchbeats.embed("sounds", "beats-nano", pool="bands")}
    assert len(stored) == len(expected) == len(names["embedded"])
    for row in [*stored, *names["embedded"]]:
        np.testing.assert_allclose(row["embedding"], expected[row["path"]], atol=1e-4)  # other batches


def after_annotations(folder, names):
    clips = sorted((folder / "clips").rglob("*.wav"))
    assert {path.parent.name for path in clips} == {"wren"}
    assert len(names["annotations"]) == names["result"].written == len(clips) > 0


def after_teaching(folder, names):
    windows = [line for line in names["printed"][2].splitlines() if " – " in line]  # times
    heard = [name for line in windows for name in ("hiss", "tone") if name in line]
    assert heard == ["hiss", "hiss", "tone", "tone"] * 6


def shapes(**expected):
    def check(folder, names):
        assert {name: tuple(names[name].shape) for name in expected} == expected

    return check


def after_mteb(folder, names):
    assert names["results"].task_results[0].get_score() == 1
    assert names["encoder"].mteb_model_meta.embed_dim == 48


# What has to be true behind a page, beside what it prints.
AFTER = {
    "docs/coming-from/research-code.md": after_the_original_code,
    "docs/coming-from/speechbrain.md": shapes(features=(2, 48, 48)),
    "docs/integrations/hear.md": shapes(steps=(4, 18, 48), scenes=(4, 48)),
    "docs/integrations/x-ares.md": shapes(steps=(2, 19, 48)),
    "docs/integrations/transformers.md": after_transformers,
    "docs/integrations/sentence-transformers.md": shapes(embeddings=(3, 48), embedding=(48,)),
    "docs/integrations/mteb.md": after_mteb,
    "docs/integrations/datasets.md": after_datasets,
    "docs/many-machines.md": after_many_machines,
    "docs/annotations.md": after_annotations,
    "docs/teach.md": after_teaching,
}


@pytest.mark.parametrize("page", [page for page in pages() if re.search("^```(python|bash|sh)$", TEXTS[page], re.M)])
def test_page_runs(page, folder, monkeypatch):
    if page in RUN_ELSEWHERE:
        assert (ROOT / RUN_ELSEWHERE[page]).exists()
        return
    for package in NEEDS.get(page, []):
        pytest.importorskip(package)
    if "ray" in NEEDS.get(page, []):
        # Ray changes how a process takes signals, and leaves a cluster in it: not in that of other tests.
        if OWN_PROCESS not in os.environ:
            test = f"{ROOT / 'tests' / 'test_docs.py'}::test_page_runs[{page}]"
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), test]
            done = subprocess.run(
                command, cwd=ROOT, env=os.environ | {OWN_PROCESS: "1"}, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 1)  # no worker processes, each of which imports PyTorch
    for make in FILES.get(page, []):
        make(folder)
    names = run_page(page)
    AFTER.get(page, lambda folder, names: None)(folder, names)


def test_few_blocks_are_not_run():
    every = [block for page in pages() for block in blocks(TEXTS[page], page)]
    left_out = [block for block in every if block.why]
    print(f"{len(every) - len(left_out)} blocks run, {len(left_out)} marked")
    assert len(left_out) <= MOST_NOT_RUN, "\n".join(f"{block.place}: {block.why}" for block in left_out)
    assert len(every) > 4 * len(left_out)


def test_pages_with_checks_exist():
    assert {*NEEDS, *FILES, *AFTER} <= {*pages()}


# --- the mechanism itself


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        ("a 0.99…\nb", "a 0.9912\nb  \n", True),
        ("…\nlast", "first\nsecond\nlast\n", True),
        ("a 0.99", "a 0.98", False),
        ("one\ntwo", "one\n\ntwo", False),
        ("…", "", True),
    ],
)
def test_what_is_shown_is_compared(expected, printed, same):
    assert matches(expected, printed) is same


@pytest.mark.parametrize(
    "text",
    ["```\nls\n```\n", "```ruby\n1\n```\n", "<!-- not run: slow -->\n\n```bash\nls\n```\n", "````python\n1\n````\n"],
)
def test_blocks_that_nobody_would_run_are_refused(text):
    with pytest.raises(AssertionError):
        list(blocks(text, "page"))


def test_marked_blocks_and_outputs_are_seen():
    text = "<!-- not run: hours -->\n```bash\nls\n```\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n```yaml\n```\n"
    assert [(b.language, b.line, b.output, b.why) for b in blocks(text, "page")] == [
        ("bash", 2, None, "hours"),
        ("python", 6, "1\n", None),
    ]


@pytest.mark.parametrize("code", ["torchbeats show nothing.parquet\n", "ls nothing.parquet | cat; exit 3\n"])
def test_a_command_that_fails_fails_the_page(code, folder):
    with pytest.raises(AssertionError, match="page, line 1"):
        shell(Block("page", 1, "bash", code, None, None))
