"""Processes that somebody else started: torchrun on two machines, SLURM's tasks, mpirun; here all on this machine."""

import csv
import json
import math
import os
import re
import signal
import sys
import time

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from helpers import forking, noise, pretrain_command, tiny_run
from launchers import NAMES, finish, free_port, start
from torchbeats import cli
from torchbeats.cli import console
from torchbeats.errors import SettingsError
from torchbeats.training.configuring import settings
from torchbeats.training.environment import environment_for
from torchbeats.training.pretraining import Pretraining
from torchbeats.training.processes import Launched, is_leader, join_processes, launched
from torchbeats.training.reporter import Reporter
from torchbeats.training.run import Run
from torchbeats.training.settings import TrainerSettings


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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**TORCHRUN, "RANK": "x"}, "RANK=x"),
        ({**TORCHRUN, "RANK": 4}, "number 4 of 4 processes"),
        ({**TORCHRUN, "RANK": -1}, "number -1 of 4 processes"),
        ({**TORCHRUN, "LOCAL_RANK": -1}, "number -1 on its machine"),
        ({**MPI, "OMPI_COMM_WORLD_SIZE": 0}, "number 3 of 0 processes"),
        ({**TASK, "SLURM_PROCID": 1, "SLURM_NNODES": "two"}, "SLURM_NNODES=two"),
        ({"LOCAL_RANK": "first"}, "LOCAL_RANK=first"),
    ],
)
def test_variables_that_make_no_sense(variables, values, said):
    variables(**values)
    with pytest.raises(SettingsError, match=said):
        is_leader()


@pytest.mark.parametrize("port", ["abc", "", -1, 0, 2**16])
def test_a_port_that_is_none(variables, port):
    variables(**TORCHRUN, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(SettingsError, match=f"MASTER_PORT={port}"):
        join_processes("cpu")


def run(data, out, **over):
    return Run(out, [str(data)], settings("nano", assignments=tiny_run(**over))).train()


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for i in range(9):
        soundfile.write(folder / f"{i}.wav", noise(0.6 + 0.3 * i, seed=i, level=0.03 * (i + 1)), 16_000)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory, sounds):
    """What one process computes."""
    return run(sounds, tmp_path_factory.mktemp("alone") / "run").parent


def torchrun(arguments):
    """Two nodes, each with an agent and a process of its own."""
    agent = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    agent.append(f"--master-port={free_port()}")
    return finish([start([*agent, f"--node-rank={node}", "-m", "torchbeats", *arguments]) for node in range(2)])


def become_one_of_several(arguments, values, log, bad_step, stops_at):
    """In a new process: be the command, as a launcher would start it; what befalls it comes at a step."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name in NAMES or name.startswith("SLURM")]:
        del os.environ[name]
    os.environ.update({name: str(value) for name, value in values.items()})
    step = Pretraining.step

    def broken(self, batch):
        scalars = step(self, batch)
        if self.global_step + 1 == bad_step:
            scalars["loss"] = scalars["loss"] * math.nan
        return scalars

    def before(self, trainer, *_):
        if trainer.global_step + 1 == stops_at:
            os.kill(os.getpid(), signal.SIGTERM)

    Pretraining.step = broken
    Reporter.on_train_batch_start = before
    sys.argv = ["torchbeats", *map(str, arguments)]
    cli.main()


def together(arguments, folder, variables, *, bad_step=(None, None), stops_at=(None, None)):
    """Two processes of the command: their exit statuses, and all that they said.

    They are forked, as each would take seconds to import everything.

    Args:
        arguments: of the command.
        folder: for what they say.
        variables: of a rank's environment.
        bad_step: at which the loss of each is not finite.
        stops_at: the step that each gets SIGTERM before.
    """
    log = folder / f"said-{free_port()}"
    context = forking("torchbeats.training.run", "tensorboard", "test_clusters")
    processes = [
        context.Process(
            target=become_one_of_several, args=(arguments, variables(rank), log, bad_step[rank], stops_at[rank])
        )
        for rank in range(2)
    ]
    for process in reversed(processes):  # rank 1 is there first
        process.start()
    for process in processes:
        process.join(240)
        process.kill()
    return [process.exitcode for process in processes], log.read_text()


def tasks(**values):
    """The variables of two of SLURM's tasks on two nodes."""
    about = {
        "SLURM_JOB_ID": 4711,
        "SLURM_NTASKS": 2,
        "SLURM_NNODES": 2,
        "SLURM_LOCALID": 0,
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "SLURM_JOB_NAME": "train",
        **values,
    }
    return lambda rank: {**about, "SLURM_PROCID": rank, "SLURM_NODEID": rank}


def workers_of_torchrun():
    """The variables of two processes of torchrun on one machine."""
    about = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    about["MASTER_PORT"] = free_port()
    return lambda rank: {**about, "RANK": rank, "LOCAL_RANK": rank}


def close_to(alone, together):
    """The same sums in another order."""
    for name, tensor in load_file(alone / "model.safetensors").items():
        torch.testing.assert_close(load_file(together / "model.safetensors")[name], tensor, rtol=0, atol=1e-3)


def test_two_nodes_of_torchrun_compute_what_one_process_does(sounds, alone, tmp_path):
    for status, error in torchrun(pretrain_command(sounds, tmp_path, trainer__devices="auto", trainer__nodes=2)):
        assert status == 0, error
    close_to(alone, tmp_path)


def test_two_tasks_of_slurm_compute_what_one_process_does(sounds, alone, tmp_path):
    arguments = pretrain_command(sounds, tmp_path / "out", trainer__devices="auto", trainer__nodes=2)
    statuses, said = together(arguments, tmp_path, tasks())
    assert statuses == [0, 0], said
    close_to(alone, tmp_path / "out")


def test_a_folder_of_another_run_is_refused_once(sounds, tmp_path):
    run(sounds, tmp_path / "out", iterations=1)
    arguments = pretrain_command(sounds, tmp_path / "out", trainer__devices="auto", model__steps=7)
    statuses, said = together(arguments, tmp_path, tasks())
    assert statuses == [2, 2]
    assert said.count("holds a run with other settings") == 1


# --- two processes of torchrun, one of which has a bad batch, or is stopped -------------------------------------------

# Each process is the command; its exit status is written down.
PROCESS = """
import os, time
from torchbeats import cli
from torchbeats.training.reporter import Reporter

Reporter.on_train_batch_start = lambda *_: time.sleep(0.3)
try:
    cli.main()
except SystemExit as leaving:
    open(os.path.join(os.environ["STATUS"], os.environ["RANK"]), "w").write(str(leaving.code or 0))
    raise
"""


def steps(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_a_batch_that_is_not_finite_in_one_process_is_left_out_by_both(sounds, tmp_path):
    out = tmp_path / "out"
    arguments = pretrain_command(sounds, out, trainer__devices="auto", iterations=1)
    statuses, said = together(arguments, tmp_path, workers_of_torchrun(), bad_step=(None, 3))
    assert statuses == [0, 0], said
    assert all(tensor.isfinite().all() for tensor in load_file(out / "model.safetensors").values())
    told = [line for line in said.splitlines() if "not finite" in line]
    assert len(told) == 1
    assert "step 3: the loss or its gradient is not finite" in told[0]
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert listed
    assert all("not finite at step 3" in line["error"] for line in listed)
    assert steps(out) == [2, 4, 6]  # no step was taken by one process alone


@pytest.mark.parametrize("stops_at", [(3, 3), (None, 3)], ids=["both", "one of them"])
def test_processes_stop_together(sounds, alone, tmp_path, stops_at):
    out = tmp_path / "out"
    arguments = pretrain_command(sounds, out, trainer__devices="auto", iterations=1)
    statuses, said = together(arguments, tmp_path, workers_of_torchrun(), stops_at=stops_at)
    assert statuses == [143, 143]
    assert said.count("Stopped at step 3; the same command goes on.") == 1
    state = torch.load(out / "iteration-1" / "model.ckpt", weights_only=True)
    assert state["global_step"] == 3
    statuses, said = together(arguments, tmp_path, workers_of_torchrun())
    assert statuses == [0, 0], said
    close_to(alone / "iteration-1", out)


def test_torchrun_is_stopped(sounds, tmp_path):
    """It hands the signal on to its processes, and waits for them."""
    out, script = tmp_path / "out", tmp_path / "process.py"
    script.write_text(PROCESS)
    agent = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    arguments = pretrain_command(sounds, out, trainer__devices="auto", iterations=1, model__steps=100)
    process = start([*agent, f"--master-port={free_port()}", str(script), *arguments], STATUS=tmp_path)
    until = time.monotonic() + 200
    while not (out / "metrics.csv").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    ((status, error),) = finish([process])
    assert status != 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["143", "143"]
    step = int(re.search(r"Stopped at step (\d+); the same command goes on", error)[1])
    assert torch.load(out / "iteration-1" / "model.ckpt", weights_only=True)["global_step"] == step


@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_one_process_tells_what_finetune_notes(variables, sounds, tmp_path, capsys, monkeypatch, launcher):
    monkeypatch.setattr(console, "_errors_only", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # a note comes once a day
    if launcher:
        variables(**TORCHRUN)
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(f"{sounds}/{i}.wav,1.0\n{sounds}/8.wav,1\n" for i in "01"))
    monkeypatch.setattr("sys.argv", ["torchbeats", "finetune", str(tmp_path / "l.csv"), "-o", str(tmp_path / "out")])
    monkeypatch.setattr("torchbeats.training.finetune_run.join_processes", lambda accelerator: None)
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert "There must be two classes or more" in error
    assert ("Using the built-in model" in error) == (launcher is None)
