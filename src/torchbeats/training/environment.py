"""How Lightning learns of processes that a launcher started."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from torchbeats.errors import SettingsError
from torchbeats.training.processes import Launched, address, launched
from torchbeats.training.settings import TrainerSettings


class LaunchedEnvironment(ClusterEnvironment):
    """Processes that torchrun, srun or mpirun started, all by one rule.

    Args:
        launch: of this process.
    """

    def __init__(self, launch: Launched) -> None:
        super().__init__()
        self.launch = launch

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning is to start none."""
        return True

    @property
    def main_address(self) -> str:
        """Where the processes meet."""
        return address(self.launch)[0]

    @property
    def main_port(self) -> int:
        """The port at which the processes meet."""
        return address(self.launch)[1]

    @staticmethod
    def detect() -> bool:
        """Whether there is a launcher."""
        return launched() is not None

    def world_size(self) -> int:
        """Number of processes."""
        return self.launch.world

    def set_world_size(self, size: int) -> None:
        """The launcher has decided."""

    def global_rank(self) -> int:
        """Number of this process."""
        return self.launch.rank

    def set_global_rank(self, rank: int) -> None:
        """The launcher has decided."""

    def local_rank(self) -> int:
        """Number on this machine."""
        return self.launch.local_rank

    def node_rank(self) -> int:
        """Number of this machine."""
        return self.launch.rank // self.launch.local_world


def environment_for(t: TrainerSettings) -> tuple[ClusterEnvironment, int | str, int]:
    """Lightning's environment, the devices on each machine, and the number of machines.

    Raises:
        SettingsError: the settings ask for other processes than the launcher started, or for several machines without
            any launcher.
    """
    launch = launched()
    if launch is None:
        if t.nodes > 1 and not {"NODE_RANK", "GROUP_RANK"} & os.environ.keys():
            raise SettingsError(
                f"trainer.nodes={t.nodes} needs something that starts a process on every machine: srun, torchrun or "
                "mpirun, or NODE_RANK and MASTER_ADDR in the environment of each."
            )
        return LightningEnvironment(), t.devices, t.nodes
    devices = t.devices if t.devices not in ("auto", "-1", -1) else launch.local_world
    if str(devices) != str(launch.local_world) or t.nodes not in (1, launch.nodes):
        raise SettingsError(
            f"{launch.launcher} started {launch.local_world} processes on each of {launch.nodes} machines, and the "
            f"settings ask for trainer.devices={t.devices} and trainer.nodes={t.nodes}. Leave both out."
        )
    return LaunchedEnvironment(launch), launch.local_world, launch.nodes
