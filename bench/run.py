"""Measure every contender in turn, round after round, and print medians. `make bench`; options in `BENCH=…`."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from bench import load
from bench.contenders import CONTENDERS, Running, upstream_server

_TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")  # microseconds


class Round(msgspec.Struct, frozen=True):
    """One measurement. CPU is user and system time in microseconds a request; latencies in microseconds."""

    worker_cpu: float
    all_cpu: float
    per_second: float
    p50: float
    p99: float


class Result(msgspec.Struct, frozen=True):
    """What a run found out: every round, and the medians of each contender."""

    clients: int
    requests: int
    rounds: dict[str, list[Round]]
    median: dict[str, Round]
    ratio: dict[str, Round]
    """Keystile's median divided by the other's, for each other contender."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make bench", description="Keystile beside other proxies, same work, one run")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each contender (default 5)")
    parser.add_argument("--requests", type=int, default=60_000, help="requests in a round (default 60,000)")
    parser.add_argument("--clients", type=int, default=64, help="keep-alive connections (default 64)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    result = measure(options.rounds, options.requests, options.clients)
    print(msgspec.json.format(msgspec.json.encode(result)).decode() if options.json else table(result))


def measure(rounds: int, requests: int, clients: int) -> Result:
    """Start everything, warm it up, and measure the contenders in turn: A B A B …, so that a slow minute hits all."""
    taken: dict[str, list[Round]] = {contender.name: [] for contender in CONTENDERS}
    with tempfile.TemporaryDirectory(prefix="keystile-bench-") as folder, ExitStack() as stack:
        upstream = stack.enter_context(upstream_server(Path(folder, "upstream")))
        started: dict[str, Running] = {}
        sent = dict.fromkeys(taken, 0)
        for contender in CONTENDERS:
            place = Path(folder, contender.name)
            place.mkdir()
            started[contender.name] = stack.enter_context(contextmanager(contender().running)(place, upstream))
        for name, running in started.items():
            _answers_rightly(running)
            load.run(running.url, running.headers, requests, clients)  # warm: pools, caches, the allocator
            sent[name] += 1 + requests
            running.settle(sent[name])
        for _ in range(rounds):
            for name, running in started.items():
                sent[name] += requests
                taken[name].append(_round(running, requests, clients, sent[name]))
    median = {name: _median(of) for name, of in taken.items()}
    ratio = {name: _ratio(median["keystile"], other) for name, other in median.items() if name != "keystile"}
    return Result(clients, requests, taken, median, ratio)


def _round(running: Running, requests: int, clients: int, sent: int) -> Round:
    before = cpu(running.workers), cpu(running.processes)
    found = load.run(running.url, running.headers, requests, clients)
    running.settle(sent)  # what is left to do after the last answer counts too
    after = cpu(running.workers), cpu(running.processes)
    worker, every = ((late - early) / requests for early, late in zip(before, after, strict=True))
    return Round(worker, every, found.per_second, found.p50, found.p99)


def cpu(processes: Sequence[int]) -> float:
    """User and system time of these processes so far, in microseconds; proc(5), fields 14 and 15 of `stat`."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes]
    return sum(int(utime) + int(stime) for utime, stime in (field[11:13] for field in fields)) * _TICK


def _answers_rightly(running: Running) -> None:
    headers = {"content-type": "application/json", **running.headers}
    request = urllib.request.Request(running.url, load.BODY, headers)  # noqa: S310 -- loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 -- the same
        if answer.read() != load.ANSWER:
            raise RuntimeError(f"{running.url} does not answer as the upstream does")


def _median(rounds: list[Round]) -> Round:
    return Round(*(statistics.median(getattr(one, field) for one in rounds) for field in Round.__struct_fields__))


def _ratio(ours: Round, other: Round) -> Round:
    return Round(*(getattr(ours, field) / (getattr(other, field) or 1.0) for field in Round.__struct_fields__))


def table(result: Result) -> str:
    """The medians as text, a contender a line."""
    rounds = len(next(iter(result.rounds.values())))
    what = (
        f"{result.clients} clients, {result.requests:,} requests a round, medians of {rounds} rounds, "
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores"
    )
    lines = [
        what,
        "",
        f"{'':<22}{'CPU µs/request':>24}{'':>12}{'latency ms':>18}",
        f"{'':<22}{'worker':>12}{'all':>12}{'requests/s':>12}{'p50':>9}{'p99':>9}",
    ]
    for name, one in result.median.items():
        figures = f"{one.worker_cpu:>12.1f}{one.all_cpu:>12.1f}{one.per_second:>12,.0f}"
        lines.append(f"{name:<22}{figures}{one.p50 / 1000:>9.2f}{one.p99 / 1000:>9.2f}")
    for name, one in result.ratio.items():
        figures = f"{one.worker_cpu:>12.2f}{one.all_cpu:>12.2f}{one.per_second:>12.2f}"
        lines.append(f"{f'keystile / {name}':<22}{figures}{one.p50:>9.2f}{one.p99:>9.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
