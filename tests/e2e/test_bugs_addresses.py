"""Bug class SSRF on a running node: refused when a connection is made, and again whenever it would be dialled."""

from __future__ import annotations

import json
import select
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import msgspec
import pytest

from tests.gateway.stage import CALL
from tests.peers.gateway import Gateway, gateway

pytestmark = pytest.mark.xdist_group("addresses")

LOOPBACK = ["http://127.0.0.1:{port}/mcp", "http://[::ffff:127.0.0.1]:{port}/mcp", "http://localhost:{port}/mcp"]
LOOPBACK += ["http://[::1]:{port}/mcp", "https://127.0.0.1:{port}/mcp", "http://127.8.9.10:{port}/mcp"]
NUMERIC = ["http://0x7f.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/"]
NUMERIC += ["http://127.0.0.1./", "http://127.0.0.256/", "http://[fe80::1%25eth0]/", "http://①②⑦.⓪.⓪.①/"]
PRIVATE = ["http://10.0.0.1/", "https://192.168.0.1/", "https://[fd00::1]/", "http://0.0.0.0:{port}/", "http://[::]/"]
METADATA = [
    "http://169.254.169.254/latest/meta-data/",
    "https://169.254.170.2/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[64:ff9b::169.254.169.254]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
]
EVERYTHING = "0.0.0.0/0,::/0"


class Closed(msgspec.Struct, frozen=True):
    """A node with no range allowed, whose connections were made while all were; and who would be dialled."""

    running: Gateway
    first_answers: dict[str, tuple[int, str]]
    slugs: dict[str, str]
    key: str
    upstream: socket.socket

    def dialled(self) -> bool:
        return bool(select.select([self.upstream], [], [], 0)[0])


def tried(running: Gateway, url: str, slug: str) -> tuple[int, str]:
    """Status and error code of an attempt to make a connection."""
    answer = running.api("POST", "/connections", {"slug": slug, "upstreamUrl": url, "authType": "none"})
    assert answer.status == 201 or url not in json.dumps(answer.body)
    return answer.status, "" if answer.status == 201 else answer.body["error"]["code"]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("closed")
    # All of IPv4 and, through the same socket, of IPv6.
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as upstream:
        port = upstream.getsockname()[1]
        urls = [url.replace("{port}", str(port)) for url in LOOPBACK + NUMERIC + PRIVATE + METADATA]
        slugs = {url: f"upstream-{number}" for number, url in enumerate(urls)}
        with gateway(folder, upstreams_allow=EVERYTHING) as first:
            answers = {url: tried(first, url, slug) for url, slug in slugs.items()}
            for number, url in enumerate(urls[-len(METADATA) :]):
                slugs[url] = first.connection("https://192.0.2.1/", slug=f"metadata-{number}")
            key = first.client_key()
        with closing(sqlite3.connect(first.data / "keystile.db")) as database, database:
            for url in urls[-len(METADATA) :]:  # the API takes none of these, whatever is allowed
                database.execute("UPDATE connections SET upstream_url = ? WHERE slug = ?", (url, slugs[url]))
        with gateway(folder, admin_key=first.admin_key, upstreams_allow="") as again:
            at = {
                written: slugs[url] for written, url in zip(LOOPBACK + NUMERIC + PRIVATE + METADATA, urls, strict=True)
            }
            told = {written: answers[url] for written, url in zip(at, urls, strict=True)}
            yield Closed(again, told, at, key, upstream)


@pytest.mark.parametrize("url", METADATA)
def test_a_metadata_address_is_refused_even_where_everything_is_allowed(closed: Closed, url: str) -> None:
    assert closed.first_answers[url] == (400, "address_refused")


@pytest.mark.parametrize("url", NUMERIC)
def test_a_host_that_parsers_read_differently_is_refused_whatever_is_allowed(closed: Closed, url: str) -> None:
    assert closed.first_answers[url] == (400, "invalid")


@pytest.mark.parametrize("url", LOOPBACK + PRIVATE)
def test_loopback_and_private_addresses_are_taken_only_where_they_are_allowed(closed: Closed, url: str) -> None:
    assert closed.first_answers[url] == (201, "")
    port = closed.upstream.getsockname()[1]
    assert tried(closed.running, url.replace("{port}", str(port)), "another") == (400, "address_refused")
    change = {"upstreamUrl": url.replace("{port}", str(port))}
    patched = closed.running.api("PATCH", f"/connections/{closed.slugs[LOOPBACK[0]]}", change)
    assert (patched.status, patched.body["error"]["code"]) == (400, "address_refused")


@pytest.mark.parametrize("url", LOOPBACK + PRIVATE + METADATA)
def test_what_may_not_be_dialled_is_not_dialled_for_a_call_or_a_check(closed: Closed, url: str) -> None:
    slug = closed.slugs[url]
    sent = {"content-type": "application/json", "x-api-key": closed.key}
    status, _, body = closed.running._request("POST", f"/v1/mcp/{slug}", CALL, sent)
    assert (status, json.loads(body)["error"]["data"]["gateway"]) == (502, "address_refused")
    assert closed.running.api("POST", f"/connections/{slug}/check").data["code"] == "address_refused"
    (event,) = closed.running.events(1, connection=slug)
    assert (event["outcome"], event["refusal"]) == ("upstream_failed", "address_refused")
    assert not closed.dialled()
