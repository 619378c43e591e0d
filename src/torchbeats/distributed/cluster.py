"""Ray: the machines, and the blocks that they compute.

Who computes what and when, how much waits, and what is done again after an actor or a machine was lost, is Ray's work.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torchbeats.distributed.computing import Block, Job
from torchbeats.distributed.isolation import Isolated
from torchbeats.errors import SettingsError, StoreError, TorchbeatsError
from torchbeats.extras import require
from torchbeats.tables.parts import Summary

AUTO, LOCAL = "auto", "local"
ADDRESSES = (
    f"{AUTO}: the cluster that RAY_ADDRESS names or that runs on this machine, otherwise as {LOCAL}; {LOCAL}: one "
    "that is started here and ends with the run; or host:port of a cluster"
)
ANSWER_SECONDS = 5  # of a cluster's address, before it is taken for gone
IN_FLIGHT = 2  # blocks that an actor has: one at work, one waiting


class Actor:
    """A process of Ray's that computes blocks.

    Args:
        job: what is to be computed.
    """

    def __init__(self, job: Job) -> None:
        self._isolated = Isolated(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Summaries of blocks; the inputs and the results are pickled in a column ``data``."""
        blocks: list[Block] = [pickle.loads(data) for data in batch["data"]]
        return {"data": [pickle.dumps(self._isolated.compute(block)) for block in blocks]}


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The package ray, connected to a cluster; the caller's own connection is used, and stays, if there is one.

    Args:
        address: one of `ADDRESSES`.

    Raises:
        SettingsError: there is no cluster at the address.
        MissingPackageError: Ray is not installed.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user is raised
    ray = require("ray", "ray")
    require("ray.data", "ray")
    if ray.is_initialized():
        yield ray
        return
    place, handlers = _place(address), _handlers()
    try:
        with _silent():
            ray.init(
                place,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({"include_dashboard": False} if place == LOCAL else {}),
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise SettingsError(f"There is no Ray cluster to be had at {address}: {_line(error)}") from error
    finally:
        _restore(handlers)
    try:
        yield ray
    finally:
        with suppress(Exception):  # what the run did is told
            ray.shutdown()


def _place(address: str) -> str | None:
    """Where Ray shall look; None lets it find a cluster, or start one.

    For one that is gone it would wait minutes, and one that was killed leaves its address behind on its machine.
    """
    named = (os.environ.get("RAY_ADDRESS") or AUTO) if address == AUTO else address
    if named == AUTO:
        try:
            left = require("ray._private.services", "ray").find_bootstrap_address(None)
        except (OSError, ValueError):  # the file that says it is another user's, or no text
            return LOCAL
        return LOCAL if left and not _answers(left) else None
    if re.fullmatch(r"[^/]+:\d+", named) and not _answers(named):
        raise SettingsError(f"There is no Ray cluster to be had at {named}: nothing answers there.")
    return named


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def compute(ray: Any, job: Job, blocks: Sequence[Block], actors: int | None) -> Iterator[Summary]:
    """Summaries of blocks, as they are done, in any order.

    Args:
        ray: the package, connected.
        job: what is to be computed.
        blocks: of inputs.
        actors: how many processes compute; where not given, one for each GPU of the cluster if the job's device allows
            one, otherwise one for each CPU core.

    Raises:
        StoreError: the cluster cannot compute them.
        TorchbeatsError: what the actors raise.
    """
    share = resources(ray.cluster_resources(), job.device)
    most = int(ray.cluster_resources().get("GPU" if "num_gpus" in share else "CPU", 0)) or 1
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = ray.data.from_items(
        [{"data": pickle.dumps(block)} for block in blocks], override_num_blocks=max(1, len(blocks))
    )
    summaries = rows.map_batches(
        Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=min(actors or most, len(blocks)), max_tasks_in_flight_per_actor=IN_FLIGHT
        ),
        **share,
    )
    try:
        for batch in summaries.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
            for data in batch["data"]:
                yield pickle.loads(data)  # of our own actors
    except ray.exceptions.RayError as error:
        raise _explained(error) from error


def resources(cluster: dict[str, float], device: str | None) -> dict[str, float]:
    """What an actor takes of a cluster."""
    gpus = int(cluster.get("GPU", 0))
    if gpus and (device is None or device == "auto" or device.startswith("cuda")):
        return {"num_gpus": 1, "num_cpus": max(1, min(4, int(cluster.get("CPU", 1)) // gpus))}
    return {"num_cpus": 1}


def _explained(error: BaseException) -> TorchbeatsError:
    """The error of ours that is behind one of Ray's, or a sentence with what Ray says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TorchbeatsError):
            return cause
        inner = getattr(cause, "cause", None)
        cause = inner if isinstance(inner, BaseException) else cause.__cause__
    return StoreError(f"Ray could not finish the run: {_line(error)} What is done is kept; the same command goes on.")


def _line(error: BaseException) -> str:
    """The line of Ray's many that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return f"{(named or lines)[-1 if named else 0].rstrip('.')}."


@contextmanager
def _silent() -> Iterator[None]:
    """Standard error goes nowhere: Ray's compiled part says there what its settings are."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _restore(handlers: dict[int, Any]) -> None:
    """What signals do is the command's to say, not Ray's."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
