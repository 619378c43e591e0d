"""Processes that a launcher would start, for tests."""

import os
import socket
import subprocess
import sys

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(arguments, **values):
    env = {name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith("SLURM")}
    env |= {"OMP_NUM_THREADS": "1", **{name: str(value) for name, value in values.items()}}
    return subprocess.Popen(
        [sys.executable, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(processes):
    """Exit status and standard error of each."""
    result = []
    try:
        for process in processes:
            _, error = process.communicate(timeout=240)
            result.append((process.returncode, error))
    finally:
        for process in processes:
            process.kill()
    return result
