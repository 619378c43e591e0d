"""Several processes that train together: which one writes, and how they add up what each has."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist
from torch import Tensor


def leads() -> bool:
    """Whether this process is the one that writes; the others are started by it, and find what it wrote."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


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
