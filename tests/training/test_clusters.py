"""Processes that somebody else started: torchrun on two machines, SLURM's tasks, mpirun; here all on this machine."""

import os

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from helpers import noise, pretrain_command, tiny_run
from launchers import NAMES, finish, free_port, start
from torchbeats.errors import SettingsError
from torchbeats.training.environment import environment_for
from torchbeats.training.processes import Launched, is_leader, launched
from torchbeats.training.run import Run
from torchbeats.training.settings import TrainerSettings, settings


@pytest.fixture
def variables(monkeypatch):
    """Sets what a launcher would; nothing of the machine's own is left."""

    def replace(**values):
        for name in list(os.environ):
            if name in NAMES or name.startswith(("SLURM_", "OMPI_", "PMI")) or name == "ENVIRONMENT":
                monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    replace()
    return replace


TASK = {"SLURM_JOB_ID": 7, "SLURM_NTASKS": 4, "SLURM_NNODES": 2, "SLURM_LOCALID": 1, "SLURM_NODEID": 1}
TORCHRUN = {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 1}
MPI = {"OMPI_COMM_WORLD_RANK": 3, "OMPI_COMM_WORLD_SIZE": 4, "OMPI_COMM_WORLD_LOCAL_RANK": 1}


@pytest.mark.parametrize(
    ("values", "launcher"),
    [
        (TORCHRUN, "torchrun"),
        ({**TASK, "SLURM_PROCID": 3}, "srun"),
        ({**TASK, "SLURM_PROCID": 3, "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 4, "ENVIRONMENT": "BATCH"}, "srun"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": 2}, "mpirun"),
        ({**TASK, "SLURM_PROCID": 0, **TORCHRUN}, "torchrun"),  # which a task may start
    ],
)
def test_the_place_among_processes_that_a_launcher_started(variables, values, launcher):
    variables(**values)
    assert launched() == Launched(launcher, rank=3, world=4, local_rank=1, local_world=2)
    assert not is_leader()
    _, devices, nodes = environment_for(TrainerSettings(devices="auto", nodes=2))
    assert (devices, nodes) == (2, 2)
    with pytest.raises(SettingsError, match="started 2 processes on each of 2 machines"):
        environment_for(TrainerSettings(devices=3, nodes=2))


def test_a_batch_script_without_srun_is_one_process(variables):
    variables(**TASK, SLURM_PROCID=0, ENVIRONMENT="BATCH")
    assert launched() is None
    assert is_leader()


def test_processes_of_lightning_are_not_a_launchers(variables):
    variables(LOCAL_RANK=1, NODE_RANK=0, WORLD_SIZE=2)
    assert launched() is None
    assert not is_leader()


def test_several_machines_need_a_launcher(variables):
    with pytest.raises(SettingsError, match=r"trainer\.nodes=4 needs something that starts a process on every machine"):
        environment_for(TrainerSettings(nodes=4))


def test_variables_that_make_no_sense(variables):
    variables(RANK="x", WORLD_SIZE=2, LOCAL_RANK=0)
    with pytest.raises(SettingsError, match="RANK=x"):
        is_leader()


def run(data, out, **over):
    return Run(out, [str(data)], settings("nano", assignments=tiny_run(**over))).train()


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(9):
        soundfile.write(folder / f"{i}.wav", noise(0.6 + 0.3 * i, seed=i, level=0.03 * (i + 1)), 16_000)
    return folder


def torchrun(arguments):
    """Two nodes, each with an agent and a process of its own."""
    agent = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    agent.append(f"--master-port={free_port()}")
    return finish([start([*agent, f"--node-rank={node}", "-m", "torchbeats", *arguments]) for node in range(2)])


def slurm(arguments, **values):
    """Two tasks on two nodes, by SLURM's variables; rank 1 is there first."""
    about = {
        "SLURM_JOB_ID": 4711,
        "SLURM_NTASKS": 2,
        "SLURM_NNODES": 2,
        "SLURM_LOCALID": 0,
        "SLURM_NODELIST": "127.0.0.1",
    }
    about |= {"MASTER_PORT": free_port(), "SLURM_JOB_NAME": "train", **values}
    return finish(
        [start(["-m", "torchbeats", *arguments], **about, SLURM_PROCID=rank, SLURM_NODEID=rank) for rank in (1, 0)]
    )


def close_to(alone, together):
    """The same sums in another order."""
    for name, tensor in load_file(alone / "model.safetensors").items():
        torch.testing.assert_close(load_file(together / "model.safetensors")[name], tensor, rtol=0, atol=1e-3)


@pytest.mark.parametrize("launch", [torchrun, slurm])
def test_two_nodes_compute_what_one_process_does(sounds, tmp_path, launch):
    run(sounds, tmp_path / "alone")
    arguments = pretrain_command(sounds, tmp_path / "out", trainer__devices="auto", trainer__nodes=2)
    for status, error in launch(arguments):
        assert status == 0, error
    close_to(tmp_path / "alone", tmp_path / "out")


def test_a_folder_of_another_run_is_refused_once(sounds, tmp_path):
    run(sounds, tmp_path / "out", iterations=1)
    results = slurm(pretrain_command(sounds, tmp_path / "out", trainer__devices="auto", model__steps=7))
    assert [status for status, _ in results] == [2, 2]
    assert sum(error.count("holds a run with other settings") for _, error in results) == 1
