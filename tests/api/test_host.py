"""The host operator's socket."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

from keystile.api.host import trusted

pytestmark = pytest.mark.anyio


async def test_an_organization_comes_with_its_first_admin_key(served: Any) -> None:
    made = await served.host.post("/organizations", json={"slug": "acme", "name": "Acme"})
    assert made.status_code == 201
    data = made.json()["data"]
    assert (data["slug"], data["name"]) == ("acme", "Acme")
    admin = served.client(data["key"])
    assert (await admin.get("/connections")).json()["data"] == []
    await served.connection("example", admin)
    assert [row["slug"] for row in (await served.host.get("/organizations")).json()["data"]] == ["default", "acme"]
    again = await served.host.post("/organizations", json={"slug": "acme"})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "slug_taken")


async def test_a_lost_key_is_made_anew(served: Any) -> None:
    made = await served.host.post("/organizations/default/keys", json={"name": "back in", "role": "owner"})
    assert made.status_code == 201
    assert (await served.client(made.json()["data"]["key"]).get("/keys")).status_code == 200
    assert (await served.host.post("/organizations/absent/keys", json={"name": "k"})).status_code == 404


async def test_a_key_made_here_reaches_its_organization_alone(served: Any) -> None:
    await served.connection("ours")
    await served.host.post("/organizations", json={"slug": "acme"})
    for organization, status in (("default", 201), ("acme", 400)):
        body = {"name": "k", "connections": ["ours"]}
        made = await served.host.post(f"/organizations/{organization}/keys", json=body)
        assert made.status_code == status
    late = {"name": "k", "expiresAt": "2020-01-01T00:00:00Z"}
    assert (await served.host.post("/organizations/acme/keys", json=late)).status_code == 400


async def test_organizations_page(served: Any) -> None:
    for number in range(4):
        assert (await served.host.post("/organizations", json={"slug": f"org-{number}"})).status_code == 201
    first = (await served.host.get("/organizations?limit=3")).json()
    rest = (await served.host.get(f"/organizations?limit=3&cursor={first['meta']['nextCursor']}")).json()
    slugs = [row["slug"] for row in first["data"] + rest["data"]]
    assert slugs[0] == "default" and sorted(slugs[1:]) == [f"org-{number}" for number in range(4)]
    assert rest["meta"]["nextCursor"] is None


async def test_the_api_does_not_lead_here_nor_back(served: Any) -> None:
    stranger = served.client(None)
    for path in ("/host/v1/organizations", "/organizations"):
        answer = await stranger.get(f"http://gateway.example{path}")
        assert answer.status_code == 404
    assert (await served.api.get("/organizations")).status_code == 404
    assert (await served.host.get("http://host/api/v1/connections")).status_code == 404


async def test_both_sockets_are_for_this_user_alone(served: Any) -> None:
    for path in (served.folders.control_socket, served.folders.host_socket):
        assert path.stat().st_mode & 0o777 == 0o600
    assert served.folders.run.stat().st_mode & 0o777 == 0o700


async def test_the_kernel_says_who_connected() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert trusted(ours)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_is_cut_off_unheard(served: Any) -> None:
    for folder in (served.folders.run, *served.folders.run.parents):
        folder.chmod(folder.stat().st_mode | 0o011)
    served.folders.host_socket.chmod(0o666)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(served.folders.host_socket))
            stranger.sendall(b"GET /host/v1/organizations HTTP/1.1\r\nhost: x\r\n\r\n")
            try:
                heard = stranger.recv(100)
            except ConnectionError:
                heard = b""
        os.write(writing, b"[" + heard + b"]")
        os._exit(0)
    assert await asyncio.to_thread(os.read, reading, 200) == b"[]"
    os.waitpid(child, 0)  # noqa: ASYNC222 — it wrote its last byte, and ends
    assert (await served.host.get("/organizations")).status_code == 200
    os.close(reading)
    os.close(writing)
