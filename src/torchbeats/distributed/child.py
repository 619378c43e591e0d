"""The process that computes blocks: ``python -m torchbeats.distributed.child``, started by `isolation.Isolated`.

It reads a `Job` and then requests from its standard input, and writes answers to what was its standard output. It ends
when its input does, whatever it is at: nobody waits for it any more.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from typing import Any, BinaryIO

from torchbeats.distributed.computing import Computing, Job


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be among the answers
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, requests), daemon=True).start()

    def answer(kind: str, value: object) -> None:
        pickle.dump((kind, value), answers)
        answers.flush()

    try:
        job = requests.get()
        assert isinstance(job, Job)
        computing = Computing(job)
    except Exception as error:
        answer("error", error)
        return
    answer("ready", None)
    while True:
        block, one_by_one, unusable = requests.get()
        try:
            if one_by_one:
                for number in computing.try_each(block, unusable):
                    answer("at", number)
                answer("done", None)
            else:
                answer("done", computing.compute(block, unusable))
        except Exception as error:
            answer("error", error)


def _listen(stream: BinaryIO, requests: queue.SimpleQueue[Any]) -> None:
    while True:
        try:
            requests.put(pickle.load(stream))  # of the process that started this one
        except EOFError:
            os._exit(0)


if __name__ == "__main__":
    main()
