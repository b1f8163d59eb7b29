"""The official conformance suite says the same of a server whether or not the gateway stands before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.contenders import nginx
from tests.e2e import conformance
from tests.peers.gateway import gateway
from tests.peers.processes import fixture, free_port

CREDENTIAL = "made-up-upstream-credential"
SUCCESSES = {"2025-11-25": 84, "2026-07-28": 120}
"""What the best reference server gets: all checks of the one, all scored checks of the other."""


@pytest.mark.node
@pytest.mark.timeout(2 * conformance.TIMEOUT)
@pytest.mark.parametrize("revision", conformance.REVISIONS)
def test_every_check_has_the_same_verdict_through_the_gateway(tmp_path: Path, revision: str) -> None:
    with fixture() as upstream:
        direct = conformance.run(upstream.url, revision)
    assert [check for check in direct if check.scored and check.status not in {"SUCCESS", "INFO"}] == []
    assert (
        sum(check.status == "SUCCESS" for check in direct if check.scored or revision == "2025-11-25")
        == (SUCCESSES[revision])
    )

    with fixture(f"Authorization: Bearer {CREDENTIAL}") as upstream, gateway(tmp_path) as running:
        endpoint = running.endpoint(running.connection(upstream.url, CREDENTIAL))
        through = conformance.run(endpoint, revision, running.client_key())
        seen = upstream.seen()

    changed = {check.verdict for check in through} ^ {check.verdict for check in direct}
    assert [check for check in (*direct, *through) if check.verdict in changed] == []
    assert [check.verdict for check in through] == [check.verdict for check in direct]
    # The credential was put on each time, and nothing of the client's own key came along.
    assert {value for request in seen for value in request.values("authorization")} == {f"Bearer {CREDENTIAL}"}
    assert not any("ks_" in value for request in seen for _, value in request.headers)


@pytest.mark.node
@pytest.mark.timeout(2 * conformance.TIMEOUT)
@pytest.mark.parametrize(
    ("revision", "fault"),
    [
        ("2025-11-25", "limit_except POST DELETE { deny all; }"),
        ("2025-11-25", "limit_except GET POST { deny all; }"),
        ("2025-11-25", 'proxy_set_header Last-Event-ID "";'),
        ("2026-07-28", 'proxy_set_header Mcp-Method "";'),
    ],
)
def test_the_comparison_notices_a_proxy_that_holds_something_back(tmp_path: Path, revision: str, fault: str) -> None:
    port = free_port()
    with fixture() as upstream:
        proxied = f"proxy_pass {upstream.origin}; proxy_set_header Host $http_host; proxy_buffering off; {fault}"
        with nginx(tmp_path, port, f"server {{ listen 127.0.0.1:{port}; location / {{ {proxied} }} }}"):
            through = conformance.run(f"http://127.0.0.1:{port}/mcp", revision)
        direct = conformance.run(upstream.url, revision)
    assert [check.verdict for check in through] != [check.verdict for check in direct]
