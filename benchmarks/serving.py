"""A server under load on loopback: ``python serving.py [--seconds 60] [--requests 10000] [--out results/serving.md]``.

Throughput beside that of `embed`, in turns; times at half of it; two hundred requests at a time, of all kinds; memory.
Clients are threads of this process; where there are few cores they take from the server what they use.
"""

import argparse
import http.client
import io
import itertools
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile

CLIENTS, AT_ONCE, CLIP_SECONDS = 8, 200, 10.0


def clip(seconds, seed=0, rate=16_000):
    samples = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    file = io.BytesIO()
    soundfile.write(file, samples, rate, "PCM_16", format="WAV")
    return file.getvalue()


def form(content):
    """A body of multipart/form-data with one file, and its type."""
    mark = b"b0undary5f2a"
    head = b"--" + mark + b'\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return head + content + b"\r\n--" + mark + b"--\r\n", f"multipart/form-data; boundary={mark.decode()}"


class Server:
    """One in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "torchbeats", "serve", "--no-page", "--port", "0", *arguments]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        line = self.process.stdout.readline()
        self.start_seconds = time.perf_counter() - began
        self.port = int(re.search(r":(\d+)$", line.strip())[1])

    def memory(self):
        """MB of all its processes; pages that they share count for each by its share."""
        total = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(folder.name)) == self.process.pid:
                    text = (folder / "smaps_rollup").read_text()
                    total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
            except (OSError, ProcessLookupError, TypeError):
                continue
        return total / 1024

    def own_memory(self):
        """MB of its main process alone."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self):
        self.process.terminate()
        return self.process.wait(120)


def ask(line, body, kind, route="/v1/embeddings"):
    """One request; its status and its seconds."""
    for last in (False, True):
        began = time.perf_counter()
        try:
            line.request("POST", route, body, {"Content-Type": kind})
            answer = line.getresponse()
            answer.read()
        except (ConnectionError, http.client.RemoteDisconnected):
            line.close()  # the server had closed a line on which nothing came for long: as any client, on a new one
            if last:
                raise
        else:
            return answer.status, time.perf_counter() - began
    raise AssertionError


def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def many(port, bodies, total, clients=CLIENTS, rate=None):
    """So many requests by some clients, at a rate if there is one: seconds of all, seconds of each, statuses."""
    numbers, times, statuses = itertools.count(), [], Counter()
    begun = time.perf_counter()

    def work(_):
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (number := next(numbers)) < total:
            if rate is not None:
                time.sleep(max(0.0, begun + number / rate - time.perf_counter()))
            status, seconds = ask(line, *bodies[number % len(bodies)])
            times.append(seconds)
            statuses[status] += 1

    return in_threads(clients, work), times, statuses


LIBRARY = """
import sys, time
from torchbeats import embed, load
model = load("beats-nano")
list(embed(sys.argv[1:3], model))
began = time.perf_counter()
count = sum(1 for _ in embed(sys.argv[1:], model))
print(count / (time.perf_counter() - began))
"""


def by_library(paths):
    """Clips a second of `embed` in a process of its own, decoding included."""
    done = subprocess.run([sys.executable, "-c", LIBRARY, *paths], capture_output=True, text=True, check=True)
    return float(done.stdout)


def throughput(server, folder, clips, rounds):
    paths = []
    for seed in range(clips):
        paths.append(os.path.join(folder, f"{seed:04}.wav"))
        Path(paths[-1]).write_bytes(clip(CLIP_SECONDS, seed))
    bodies = [form(Path(path).read_bytes()) for path in paths]
    many(server.port, bodies, 2 * CLIENTS)
    pairs = []
    for _ in range(rounds):
        library = by_library(paths)
        taken, _, statuses = many(server.port, bodies, clips)
        assert set(statuses) == {200}, statuses
        pairs.append((library, clips / taken))
    return pairs, bodies


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def storm(server, seconds):
    """Two hundred at a time, of all kinds: statuses by kind, and the times of those that were answered well."""
    kinds = {
        "small, good": form(clip(1.0)),
        "large, good": form(clip(60.0)),
        "broken sound": form(np.random.default_rng(0).bytes(20_000)),
        "broken JSON": (b'{"input": ', "application/json"),
        "cut off": form(clip(3.0)[:50_000]),
    }
    weights = [60, 5, 15, 10, 10]
    statuses, times, end = {kind: Counter() for kind in kinds}, [], time.perf_counter() + seconds

    def work(number):
        draw = random.Random(number)
        line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=180)
        while time.perf_counter() < end:
            if draw.random() < 0.02:  # hang up in the midst of a request
                with socket.create_connection(("127.0.0.1", server.port)) as other:
                    other.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n{")
            (kind,) = draw.choices(list(kinds), weights)
            try:
                status, taken = ask(line, *kinds[kind])
            except (OSError, http.client.HTTPException) as error:
                status, taken = type(error).__name__, 0.0
                line.close()
            statuses[kind][status] += 1
            if status == 200:
                times.append(taken)

    in_threads(AT_ONCE, work)
    return statuses, times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="that compute, in the library and in the server")
    parser.add_argument("--quick", action="store_true", help="little of everything: only tells whether it runs")
    parser.add_argument("--out")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.requests, arguments.clips, arguments.rounds = 2, 40, 8, 1
    if arguments.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    lines = []

    def tell(*cells):
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)

    tell("what", "figure")
    lines.append("|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        server = Server("--max-queue", "256")
        tell("start, until the address is told", f"{server.start_seconds:.1f} s")
        pairs, bodies = throughput(server, folder, arguments.clips, arguments.rounds)
        for library, mine in pairs:
            tell(
                f"clips of 10 s a second: `embed`, {CLIENTS} clients, ratio",
                f"{library:.1f}, {mine:.1f}, {mine / library:.0%}",
            )
        rate = statistics.median(mine for _, mine in pairs) / 2
        _, times, statuses = many(server.port, bodies, max(10, int(rate * arguments.seconds / 2)), rate=rate)
        middle, high = quantile(times, 0.5), quantile(times, 0.99)
        tell(
            f"at half load ({rate:.1f} a second): p50, p99, ratio", f"{middle:.3f} s, {high:.3f} s, {high / middle:.1f}"
        )
        assert set(statuses) == {200}, statuses
        server.stop()

        server = Server("--max-queue", "256")
        small = [form(clip(1.0, seed)) for seed in range(20)]
        many(server.port, small, 100)
        before, before_all = server.own_memory(), server.memory()
        taken, _, statuses = many(server.port, small, arguments.requests)
        after, after_all = server.own_memory(), server.memory()
        assert set(statuses) == {200}, statuses
        speed = arguments.requests / taken
        tell(
            f"memory after 100 and after {arguments.requests:,} more clips of 1 s ({speed:.0f} a second)",
            f"{before:.0f} MB, {after:.0f} MB; with its decoders {before_all:.0f} MB, {after_all:.0f} MB",
        )
        results, times = storm(server, arguments.seconds)
        for kind, statuses in results.items():
            tell(
                f"{AT_ONCE} at a time, {kind}: answers by status", json.dumps({str(k): n for k, n in statuses.items()})
            )
        if times:
            tell(
                f"{AT_ONCE} at a time, those answered: p50, p99",
                f"{quantile(times, 0.5):.2f} s, {quantile(times, 0.99):.2f} s",
            )
        tell("memory after that", f"{server.own_memory():.0f} MB; with its decoders {server.memory():.0f} MB")
        tell("exit status on SIGTERM", str(server.stop()))
    if arguments.out:
        command = " ".join(["python benchmarks/serving.py", *sys.argv[1:]])
        about = f"`{command}`, {os.cpu_count()} cores; load average {os.getloadavg()[0]:.0f} at the end.\n\n"
        Path(arguments.out).write_text(about + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
