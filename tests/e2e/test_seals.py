"""Promise 6 on a running node: rows moved or changed behind its back open nothing, and nothing is dialled for them."""

from __future__ import annotations

import http.client
import json
import select
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import msgspec
import pytest

from tests.gateway.stage import CALL, RESULT
from tests.peers.gateway import Gateway, gateway

pytestmark = pytest.mark.xdist_group("seals")

VERSION = "UPDATE credential_versions SET {} WHERE connection = (SELECT id FROM connections WHERE slug = ?)"
SEALED = VERSION.format("sealed = {}")
OF = "(SELECT sealed FROM credential_versions JOIN connections ON id = connection WHERE slug = '{}')"
CHANGES: dict[str, tuple[str, ...]] = {
    "sealed-of-another-row": (SEALED.format(OF.format("untouched")),),
    "one-bit-flipped": (SEALED.format("CAST(substr(sealed, 1, length(sealed) - 1) || x'00' AS BLOB)"),),
    "cut": (SEALED.format("substr(sealed, 1, 20)"),),
    "emptied": (SEALED.format("x''"),),
    "text": (SEALED.format("'made up'"),),
    "a-number": (SEALED.format("12345678901"),),
    "gone": (SEALED.format("NULL"),),
    "another-origin": ("UPDATE connections SET upstream_url = '{elsewhere}' WHERE slug = ?",),
    "another-origin-in-both-rows": (
        "UPDATE connections SET upstream_url = '{elsewhere}' WHERE slug = ?",
        VERSION.format("origin = '{elsewhere_origin}'"),
    ),
    "another-header": ("UPDATE connections SET auth_type = 'header', auth_header_name = 'X-Key' WHERE slug = ?",),
    "no-auth-type": ("UPDATE connections SET auth_type = 'none' WHERE slug = ?",),
    "another-number": (
        VERSION.format("version = 2"),
        "UPDATE connections SET active_version = 2 WHERE slug = ?",
    ),
    "no-url": ("UPDATE connections SET upstream_url = 'http://0x7f.1:80' WHERE slug = ?",),
}


class Moved(msgspec.Struct, frozen=True):
    """A node whose rows were changed while it was down, and the two sockets that its upstream URLs name."""

    running: Gateway
    upstream: socket.socket
    elsewhere: socket.socket
    key: str

    def call(self, slug: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.running.port, timeout=10)
        with closing(connection):
            head = {"content-type": "application/json", "x-api-key": self.key}
            connection.request("POST", f"/v1/mcp/{slug}", CALL, head)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def dialled(self) -> bool:
        return bool(select.select([self.upstream, self.elsewhere], [], [], 0)[0])


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    folder = tmp_path_factory.mktemp("moved")
    with socket.create_server(("127.0.0.1", 0)) as upstream, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        url, other = (f"http://127.0.0.1:{each.getsockname()[1]}" for each in (upstream, elsewhere))
        with gateway(folder) as first:
            for slug in ("untouched", *CHANGES):
                first.connection(f"{url}/mcp", f"made-up-credential-of-{slug}", slug=slug)
            key = first.client_key()
        with closing(sqlite3.connect(first.data / "keystile.db")) as database, database:
            for slug, statements in CHANGES.items():
                for statement in statements:
                    filled = statement.replace("{elsewhere}", other + "/mcp").replace("{elsewhere_origin}", other)
                    assert database.execute(filled, (slug,)).rowcount == 1
        with gateway(folder, admin_key=first.admin_key) as again:
            yield Moved(again, upstream, elsewhere, key)


def test_an_untouched_row_opens_after_a_restart(moved: Moved) -> None:
    with closing(socket.create_connection(("127.0.0.1", moved.running.port))) as client:
        head = f"POST /v1/mcp/untouched HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: {moved.key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(CALL)}\r\n\r\n"
        client.sendall(head.encode() + CALL)
        moved.upstream.settimeout(10)
        served, _ = moved.upstream.accept()
        with closing(served):
            assert b"authorization: Bearer made-up-credential-of-untouched\r\n" in served.recv(65536)
            length = b"content-length: %d\r\nconnection: close\r\n\r\n" % len(RESULT)
            served.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + length + RESULT)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("slug", CHANGES)
def test_a_row_changed_behind_its_back_opens_nothing(moved: Moved, slug: str) -> None:
    for _ in range(2):
        status, body = moved.call(slug)
        assert (status, body["error"]["data"]["gateway"]) == (500, "credential_unreadable")
    for event in moved.running.events(2, connection=slug):
        assert (event["outcome"], event["refusal"], event["status"]) == ("refused", "credential_unreadable", 500)
    checked = moved.running.api("POST", f"/connections/{slug}/check")
    assert checked.status >= 400 and "made-up" not in json.dumps(checked.body)
    assert not moved.dialled()


MENDED: list[Callable[[Moved, str], int]] = [
    lambda moved, slug: moved.running.api("GET", f"/connections/{slug}").status,
    lambda moved, slug: moved.running.api("DELETE", f"/connections/{slug}").status,
]


@pytest.mark.parametrize("slug", CHANGES)
def test_such_a_row_is_still_shown_and_can_be_deleted(moved: Moved, slug: str) -> None:
    assert [mend(moved, slug) for mend in MENDED] == [200, 204]
    assert moved.call(slug)[0] == 404
