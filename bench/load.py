"""The load: so many `tools/call` requests over so many keep-alive connections, with h2load.

h2load sends an exact number of requests (so events can be counted), logs each one's duration, and costs about 5 µs of
CPU a request, which leaves the second core of a small machine to the upstream.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import msgspec

BODY = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"eleven more"}}}'
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"eleven more"}]}}'
assert len(BODY) == 106  # noqa: S101, PLR2004 -- the size that the figures are given for

_STATUSES = re.compile(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx")
_DATA = re.compile(r"headers \(.*\), \S+ \((\d+)\) data")
_RATE = re.compile(r"finished in .*, ([\d.]+) req/s")


class Load(msgspec.Struct, frozen=True):
    """What one run gave. Durations in microseconds, of single requests."""

    requests: int
    per_second: float
    p50: float
    p99: float


def run(url: str, headers: dict[str, str], requests: int, clients: int) -> Load:
    """Send the requests and wait for the answers; RuntimeError unless each is 200 with the right number of bytes."""
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(BODY)
        fields = {"content-type": "application/json", "accept": "application/json, text/event-stream", **headers}
        command = ["h2load", "--h1", "-t1", f"-n{requests}", f"-c{clients}", f"-d{body}", f"--log-file={log}"]
        command += [f"-H{name}: {value}" for name, value in fields.items()]
        done = subprocess.run([*command, url], capture_output=True, text=True, check=False)
        statuses, data, rate = (pattern.search(done.stdout) for pattern in (_STATUSES, _DATA, _RATE))
        if not (statuses and data and rate) or int(statuses[1]) != requests or int(data[1]) != requests * len(ANSWER):
            raise RuntimeError(f"not every answer was right:\n{done.stdout}\n{done.stderr}")
        durations = sorted(int(line.rpartition("\t")[2]) for line in log.read_text().splitlines())
    return Load(requests, float(rate[1]), _at(durations, 0.50), _at(durations, 0.99))


def _at(ordered: list[int], share: float) -> float:
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
