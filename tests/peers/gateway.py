"""The real gateway as a process: `keystile serve` on a free port, with a data folder of its own.

    with gateway(tmp_path) as running:
        slug = running.connection(upstream.url, credential="made-up-credential")
        key = running.client_key()
        ...                                        # call running.endpoint(slug) with `Authorization: Bearer {key}`
        (event,) = running.events(1, connection=slug)

It waits for `/readyz` and the REST API, ends of SIGTERM by its own process id, and fails the test if it does not.
"""

from __future__ import annotations

import http.client
import json
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec

from keystile import mint
from tests.peers.processes import PATIENCE, ROOT, children, free_port, process

COMMAND = (ROOT / ".venv/bin/keystile", "serve")
_numbers = count(1)


class Answer(msgspec.Struct, frozen=True):
    """An answer of the REST API: `body` is the decoded JSON, `None` where there was none."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def data(self) -> Any:
        """What a success carries."""
        assert self.status < 400 and self.body is not None, f"{self.status}: {self.body}"
        return self.body["data"]


class Gateway:
    """A running gateway. `admin_key` opens the REST API; `log` is the file with all it wrote."""

    def __init__(self, running: subprocess.Popen[str], port: int, folder: Path, admin_key: str) -> None:
        self.running = running
        self.port = port
        self.folder = folder
        self.log = folder / "gateway.log"
        self.data = folder / "data"
        self.admin_key = admin_key
        self.url = f"http://127.0.0.1:{port}"

    def __repr__(self) -> str:
        return f"<Gateway {self.url} pid={self.running.pid}>"

    def processes(self) -> list[int]:
        """The supervisor's process id, then its children's."""
        return [self.running.pid, *children(self.running.pid)]

    def endpoint(self, slug: str) -> str:
        """Where MCP clients call a connection."""
        return f"{self.url}/v1/mcp/{slug}"

    def api(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One REST call; `path` follows `/api/v1`. With the admin key, unless another is given."""
        sent = {"Authorization": f"Bearer {key or self.admin_key}", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        status, got, content = self._request(
            method, f"/api/v1{path}", None if body is None else json.dumps(body).encode(), sent
        )
        return Answer(status, got, json.loads(content) if content else None)

    def connection(self, upstream_url: str, credential: str | None = None, **more: object) -> str:
        """A new connection's slug. `more` joins the body; `authType` is `none` without a credential."""
        body: dict[str, object] = {
            "slug": f"upstream-{next(_numbers)}",
            "name": "An upstream",
            "upstreamUrl": upstream_url,
        }
        body |= {"authType": "none"} if credential is None else {"credential": credential}
        return str(self.api("POST", "/connections", body | more).data["slug"])

    def client_key(self, **more: object) -> str:
        """A new API key, of role `client` unless `more` says otherwise."""
        return str(self.api("POST", "/keys", {"name": "A client", **more}).data["key"])

    def events(
        self, expected: int, *, has: Callable[[list[dict[str, Any]]], bool] = bool, **filters: object
    ) -> list[dict[str, Any]]:
        """The trail, newest first, once it holds at least so many events, and what `has` asks for.

        `filters` as in `GET /events`.
        """
        query = urlencode({"limit": 1000, **filters})
        deadline = time.monotonic() + PATIENCE
        while True:
            found: list[dict[str, Any]] = self.api("GET", f"/events?{query}").data
            if len(found) >= expected and (has(found) or not expected):
                return found
            assert time.monotonic() < deadline, f"{len(found)} events instead of {expected}: {found}"
            select.select([], [], [], 0.05)

    def ready(self) -> bool:
        """Whether every worker serves."""
        try:
            return self._request("GET", "/readyz", None, {})[0] == http.client.OK
        except OSError:
            return False

    def administered(self) -> bool:
        """Whether the control process answers."""
        return self.api("GET", "/keys").status != http.client.SERVICE_UNAVAILABLE

    def _request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@contextmanager
def gateway(folder: Path, *, workers: int = 1, admin_key: str | None = None, **settings: object) -> Iterator[Gateway]:
    """`keystile serve` with its data in `folder`; `settings` as in `limits_head_seconds=0.2`.

    Called again with the folder and the admin key of a former run, it goes on with that run's data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    key = admin_key or mint.new_api_key()
    environment = {
        "KEYSTILE_PORT": port,
        "KEYSTILE_DATA_DIR": folder / "data",
        "KEYSTILE_BOOTSTRAP_KEY": key,
        "KEYSTILE_WORKERS": workers,
        "KEYSTILE_UPSTREAMS_ALLOW": "127.0.0.0/8,::1/128",
    } | {f"KEYSTILE_{name.upper()}": value for name, value in settings.items()}
    with process(COMMAND, {name: str(value) for name, value in environment.items()}, folder / "gateway.log") as running:
        started = Gateway(running, port, folder, key)
        deadline = time.monotonic() + PATIENCE
        # Workers serve from the feed alone: the API may come a moment later.
        while not (started.ready() and started.administered()):
            log = started.log.read_text()
            assert running.poll() is None, f"keystile serve ended with {running.returncode}:\n{log}"
            assert time.monotonic() < deadline, f"keystile serve is not ready:\n{log}"
            select.select([], [], [], 0.02)
        yield started
