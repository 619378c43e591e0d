"""How threads wait in the command, and in a program that imports the package."""

import os
import subprocess
import sys

import pytest

ASK = "import os, sys; sys.argv[0] = {name!r}; import torchbeats; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("torchbeats", {}, "10000"),
        ("/usr/bin/torchbeats", {}, "10000"),
        ("torchbeats", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("torchbeats", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("program.py", {}, "None"),
    ],
)
def test_only_the_command_decides_and_only_what_nobody_has_said(name, given, expected):
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", ASK.format(name=name)], env=clean | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected


def test_it_is_said_before_pytorch_is_there():
    """OpenMP reads it where its library is loaded."""
    code = (
        "import sys; sys.argv[0] = 'torchbeats'\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            import os; print(os.environ.get('GOMP_SPINCOUNT')); sys.meta_path.remove(self)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import torchbeats"
    )
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10000"]
