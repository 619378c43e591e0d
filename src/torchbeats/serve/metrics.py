"""Counts and times of a server, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # upper bounds, in seconds


class Metrics:
    """Numbers that only grow, numbers of the moment, and times; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._buckets = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0
        self._counters: dict[str, tuple[str, float]] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        with self._lock:
            self._requests[route, status] += 1
            self._buckets[bisect_left(BUCKETS, seconds)] += 1
            self._seconds += seconds

    def counter(self, name: str, about: str) -> Callable[[float], None]:
        """A number that only grows; the result adds to it."""
        self._counters[name] = about, 0.0

        def add(amount: float) -> None:
            with self._lock:
                self._counters[name] = about, self._counters[name][1] + amount

        return add

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """A number of the moment, which is asked for when it is read."""
        self._gauges[name] = about, value

    def text(self) -> str:
        """All of them."""
        lines: list[str] = []

        def begin(name: str, about: str, kind: str) -> None:
            lines.extend((f"# HELP {name} {about}", f"# TYPE {name} {kind}"))

        gauges = {name: (about, value()) for name, (about, value) in self._gauges.items()}
        with self._lock:
            begin("torchbeats_requests_total", "Requests that were answered.", "counter")
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'torchbeats_requests_total{{route="{route}",status="{status}"}} {count}')
            begin("torchbeats_request_seconds", "Time from a request's head to its answer.", "histogram")
            total = 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), self._buckets, strict=True):
                total += count
                lines.append(f'torchbeats_request_seconds_bucket{{le="{bound}"}} {total}')
            lines += [
                f"torchbeats_request_seconds_sum {self._seconds:.6f}",
                f"torchbeats_request_seconds_count {total}",
            ]
            for kind, numbers in (("counter", self._counters), ("gauge", gauges)):
                for name, (about, value) in numbers.items():
                    begin(name, about, kind)
                    lines.append(f"{name} {value:g}")
        return "\n".join(lines) + "\n"
