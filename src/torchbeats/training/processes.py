"""Several processes that train together: who started them, which one writes, and how they agree.

Lightning starts processes on one machine itself, behind all that is done before training. Processes that a launcher
started (torchrun, srun, mpirun) run from the beginning side by side; those meet here first, and the one that leads goes
ahead wherever files are written.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from torchbeats.errors import SettingsError

_PATIENCE = timedelta(days=7)  # others wait so long while one process looks at a corpus
_MEETING = 600.0  # seconds within which all processes have to have started


class Launched(NamedTuple):
    """This process's place among those that a launcher started.

    Attributes:
        launcher: its name, for people.
        rank: number among all processes.
        world: how many there are.
        local_rank: number among those of this machine.
        local_world: how many this machine has.
    """

    launcher: str
    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return max(1, self.world // self.local_world)


def launched() -> Launched | None:
    """The launcher that the environment describes; None for a process that was started alone, or by Lightning.

    Raises:
        SettingsError: what it describes cannot be.
    """
    launch = _launched()
    if launch is not None and not (0 <= launch.rank < launch.world and launch.local_rank >= 0):
        raise SettingsError(
            f"The environment of this process makes no sense: by the variables of {launch.launcher} it is number "
            f"{launch.rank} of {launch.world} processes, counted from 0, and number {launch.local_rank} on its machine."
        )
    return launch


def _launched() -> Launched | None:
    env = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= env.keys():
        rank, world, local = _numbers("RANK", "WORLD_SIZE", "LOCAL_RANK")
        return Launched("torchrun", rank, world, local, _local_world("LOCAL_WORLD_SIZE"))
    if {"NODE_RANK", "LOCAL_RANK"} & env.keys():
        return None  # Lightning's own
    if {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"} <= env.keys():
        rank, world, local = _numbers("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
        return Launched("mpirun", rank, world, local, _local_world("OMPI_COMM_WORLD_LOCAL_SIZE"))
    if "SLURM_PROCID" in env and _within_srun():
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        rank, world, local = _numbers("SLURM_PROCID", size, "SLURM_LOCALID")
        counts = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
        nodes = next((_numbers(name)[0] for name in counts if name in env), 1)
        world = world if size in env else 1
        return Launched("srun", rank, world, local, max(1, world // max(1, nodes)))
    return None


def _within_srun() -> bool:
    """Whether SLURM started this process as a task; a batch script has rank 0 too, and nobody else beside it."""
    env = os.environ
    if {"SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"} & env.keys():
        return True
    return env.get("ENVIRONMENT") != "BATCH" and ("SLURM_NTASKS" in env and "SLURM_LOCALID" in env)


def _numbers(*names: str) -> list[int]:
    try:
        return [int(os.environ.get(name, 0)) for name in names]
    except ValueError:
        values = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        raise SettingsError(f"The environment of this process makes no sense: {values} must be integers.") from None


def _local_world(name: str) -> int:
    return max(1, _numbers(name)[0])


def is_leader() -> bool:
    """Whether this process is the one that writes."""
    launch = launched()
    if launch is not None:
        return launch.rank == 0
    return not any(_numbers("LOCAL_RANK", "NODE_RANK"))


def join_processes(accelerator: str = "auto") -> None:
    """Wait until all processes that a launcher started are there; of a process alone, nothing is asked.

    Raises:
        SettingsError: they do not come, or cannot be reached.
    """
    launch = launched()
    if launch is None or launch.world == 1 or dist.is_initialized():
        return
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    host, port = address(launch)
    try:
        store = TCPStore(
            host,
            port,
            launch.world,
            is_master=launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=timedelta(seconds=_MEETING),
        )
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=PrefixStore(f"torchbeats/{restart}", store),
            rank=launch.rank,
            world_size=launch.world,
            timeout=_PATIENCE,
        )
    except (RuntimeError, ValueError) as error:  # DistError is a RuntimeError
        raise SettingsError(
            f"The {launch.world} processes that {launch.launcher} started cannot meet at {host}:{port}: {error}"
        ) from error
    atexit.register(_part)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def address(launch: Launched) -> tuple[str, int]:
    """Where the processes meet: ``MASTER_ADDR`` and ``MASTER_PORT``, or what SLURM says of its first machine."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host is None and launch.launcher == "srun":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        host = SLURMEnvironment.resolve_root_node_address(
            os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
        )
    if host is None and launch.nodes > 1:
        raise SettingsError(
            f"{launch.launcher} started {launch.world} processes; MASTER_ADDR must name the first machine."
        )
    if port is None:  # the same for all tasks of a job, and seldom that of another job
        digits = "".join(filter(str.isdecimal, os.environ.get("SLURM_JOB_ID", "")))
        return host or "127.0.0.1", 15_000 + int(digits[-4:] or 0)
    (number,) = _numbers("MASTER_PORT")
    if not 0 < number < 2**16:
        raise SettingsError(f"The environment of this process makes no sense: there is no port MASTER_PORT={port}.")
    return host or "127.0.0.1", number


def leader_first(action: Callable[[], None]) -> None:
    """Let the process that leads do something, while the others wait for it.

    Raises:
        SystemExit: in the others, where the work failed; the one that leads says why.
    """
    distributed = dist.is_available() and dist.is_initialized() and launched() is not None
    failure: list[Any] = [None]
    try:
        if is_leader():
            action()
    except BaseException:
        failure = [True]
        raise
    finally:
        if distributed:
            dist.broadcast_object_list(failure, 0)
    if failure[0]:
        raise SystemExit(2)


def leader_finds(file: Path) -> bool:
    """Whether a file exists, as the process that leads sees it, so that all go the same way."""
    result = [file.exists()]
    if dist.is_available() and dist.is_initialized() and launched() is not None:
        dist.broadcast_object_list(result, 0)
    return result[0]


def all_together() -> None:
    """Wait until all processes that a launcher started have come here."""
    if launched() is not None and dist.is_available() and dist.is_initialized():
        dist.barrier()


def wait_for(file: Path, seconds: float = 120.0) -> None:
    """Wait until a file that another machine wrote is seen here too, as shared file systems take their time.

    Raises:
        SettingsError: it does not come.
    """
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() > end:
            raise SettingsError(f"{file} was written, but is not seen here; all machines must share the run's folder.")
        time.sleep(0.1)


def workers_for(requested: int, processes: int) -> int:
    """How many processes are to decode for each of those that train; -1 stands for as many as there are cores for."""
    spare = (os.cpu_count() or 1) // processes - 1
    return requested if requested >= 0 else max(1, min(8, spare))


def all_sum(x: Tensor) -> Tensor:
    """Sum over the processes, if there are several; ``x`` stays as it is."""
    x = x.detach().clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def all_items(items: list[Any]) -> list[Any]:
    """What the lists of all processes hold."""
    if not (dist.is_available() and dist.is_initialized()):
        return items
    lists: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]
