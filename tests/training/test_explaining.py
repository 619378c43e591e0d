import dataclasses

import pytest
import yaml

from torchbeats.training.configuring import PRESETS, finetune_settings, settings
from torchbeats.training.explaining import explained_yaml, explanations, section_meaning
from torchbeats.training.settings import FinetuneSettings, Settings


@pytest.mark.parametrize("kind", [Settings, FinetuneSettings])
def test_every_setting_has_a_sentence(kind):
    def parts(value):
        yield value
        for field in dataclasses.fields(value):
            if dataclasses.is_dataclass(getattr(value, field.name)):
                yield from parts(getattr(value, field.name))

    for part in parts(kind()):
        assert section_meaning(part).endswith(".")
        for field in dataclasses.fields(part):
            if not dataclasses.is_dataclass(getattr(part, field.name)):
                meaning = field.metadata.get("meaning", "")
                assert len(meaning) > 10, f"{type(part).__name__}.{field.name} has no sentence"
                assert meaning.endswith("."), f"{type(part).__name__}.{field.name}: {meaning}"
                assert "\n" not in meaning


@pytest.mark.parametrize("size", PRESETS)
def test_what_is_shown_is_what_a_file_may_hold(size, tmp_path):
    """With its comments it is the same settings, whatever the values look like."""
    run_settings = settings(size, None, ["trainer.strategy='a # b: c'", "data.crop_seconds=[1, 2.5]"])
    text = explained_yaml(run_settings, room=80)
    assert yaml.safe_load(explained_yaml(run_settings)) == yaml.safe_load(text) == run_settings.to_dict()
    assert all(len(line) <= 80 for line in text.splitlines() if "#" in line.replace("a # b", ""))
    (tmp_path / "shown.yaml").write_text(text)
    assert settings(file=tmp_path / "shown.yaml") == run_settings


def test_fine_tuning_is_shown_with_meanings():
    text = explained_yaml(finetune_settings(None, ["model.freeze=-1"]))
    assert yaml.safe_load(text)["model"]["freeze"] == -1
    (line,) = [line for line in text.splitlines() if line.startswith("  freeze:")]
    assert "all but the head" in line


def test_explanations_have_names_that_set_takes():
    rows = list(explanations(Settings()))
    assert len({row.name for row in rows}) == len(rows)
    mask = next(row for row in rows if row.name == "model.mask")
    assert (mask.kind, mask.value) == ("float", 0.75)
    for row in rows:
        if not isinstance(row.value, dict):
            settings("base", None, [f"{row.name}={row.value}"])


def test_defaults_are_not_shared():
    one, other = Settings(), Settings()
    one.data.crop_seconds.append(1.0)
    one.config["dropout"] = 0.0
    assert (other.data.crop_seconds, other.config) == ([10.0], {})
