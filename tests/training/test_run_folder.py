"""The folder of a run."""

from pathlib import Path

import pytest

from torchbeats.errors import SettingsError
from torchbeats.training.folder import RunFolder


def test_a_run_at_a_url_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"The output s3:/+bucket/run is a URL"):
        RunFolder(Path("s3://bucket/run")).claim({}, {}, [])
    assert not list(tmp_path.iterdir())
