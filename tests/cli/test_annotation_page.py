"""docs/annotations.md: every command and every Python block of it runs, one after the other."""

import re
import shlex
from pathlib import Path

import soundfile
import torch

import torchbeats
from helpers import small_model, tone, write_sound

PAGE = (Path(__file__).parents[2] / "docs" / "annotations.md").read_text("utf-8")


def test_the_page_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds").mkdir()
    for number in range(2):
        write_sound(f"sounds/{number}.wav", tone(4, 44_100), 44_100)
    model = small_model(finetuned_model=True, predictor_class=2, problem_type="multi_label")
    with torch.no_grad():
        model.predictor.bias.copy_(torch.tensor([9.0, -9.0]))
    model.label_dict = {0: "wren", 1: "robin"}
    torchbeats.save(model, "detector.safetensors")
    names = {"__name__": "page"}
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for number, (language, block) in enumerate(blocks):
        if language == "python":
            exec(compile(block, f"annotations.md, block {number + 1}", "exec"), names)
            continue
        for line in block.splitlines():
            name, *arguments = shlex.split(line)
            assert name == "torchbeats"
            status, _, err = run(*arguments)
            assert status == 0, (line, err)
    clips = sorted(path for path in Path("clips").rglob("*.wav"))
    assert [path.parent.name for path in clips] == ["wren", "wren"]
    assert {soundfile.info(path).samplerate for path in clips} == {44_100}
    assert len(names["annotations"]) == names["result"].written == 2
