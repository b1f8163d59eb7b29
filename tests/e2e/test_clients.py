"""Real clients of both eras reach real servers through the gateway, with nothing but a Keystile key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from tests.peers.clients import fastmcp_client, python_sdk
from tests.peers.gateway import Gateway, gateway
from tests.peers.processes import ROOT, Fixture, Seen, everything, fixture, node, python_mcp1

CREDENTIAL = "made-up-upstream-credential"
HANDSHAKE, MODERN = "2025-11-25", "2026-07-28"
PEERS = ROOT / "tests/peers"
pytestmark = [pytest.mark.node, pytest.mark.xdist_group("clients")]

Walk = Callable[[str, str, str], dict[str, Any]]


def python(mode: python_sdk.Mode) -> Walk:
    return lambda url, key, tour: anyio.run(python_sdk.walk, url, key, tour, mode)


CLIENTS: dict[str, tuple[str, Walk]] = {
    "mcp 2.3": (MODERN, python("auto")),
    "mcp 2.3 legacy": (HANDSHAKE, python("legacy")),
    "mcp 1.30": (HANDSHAKE, lambda *asked: python_mcp1(PEERS / "clients/python_sdk1.py", *asked)),
    "fastmcp 4": (MODERN, lambda *asked: anyio.run(fastmcp_client.walk, *asked)),
    "typescript 1": (HANDSHAKE, lambda *asked: node(PEERS / "node/sdk1.mjs", *asked)),
    "typescript 2": (MODERN, lambda *asked: node(PEERS / "node/sdk2.mjs", *asked, "auto")),
    "typescript 2 legacy": (HANDSHAKE, lambda *asked: node(PEERS / "node/sdk2.mjs", *asked, "legacy")),
}
HANDSHAKERS = [name for name, (era, _) in CLIENTS.items() if era == HANDSHAKE]
MODERNS = [name for name, (era, _) in CLIENTS.items() if era == MODERN]

OFFERED: dict[str, Any] = {
    "resources": ["test://static-binary", "test://static-text", "test://watched-resource"],
    "echo": "grüße\n\t✓",
    "failed": True,
    "image": "image/png",
    "read": "This is the content of the static text resource.",
    "template": '{"id": "7", "templateTest": true, "data": "Data for ID: 7"}',
    "prompt": "Prompt with arguments: arg1='a', arg2='b'",
    "completion": ["paris", "park", "party"],
    "progress": [0, 50, 100],
}
CONVERSED: dict[str, Any] = {
    "sampled": "LLM response: heard 'hello'",
    "elicited": "User response: action=accept, content={'username': 'my username', 'email': 'my email'}",
    "resumed": "Reconnection test completed",
    "logs": ["Before disconnect", "After reconnect"],
}
ROUNDED: dict[str, Any] = {
    "elicited": "Hello, my name!",
    "sampled": "Model said: heard 'What is the capital of France?'",
    "rooted": "Roots: ['file:///here']",
    "twice": "my name likes my color",
}
EVERYTHING: dict[str, Any] = {
    "echo": "Echo: hi",
    "sum": "The sum of 2 and 3 is 5.",
    "prompt": "What's weather in Ulm?",
    "read": True,
    "progress": [1, 2, 3],
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Fixture]:
    with fixture(f"Authorization: Bearer {CREDENTIAL}") as running:
        yield running


@pytest.fixture(scope="module")
def other_upstream() -> Iterator[str]:
    with everything() as url:
        yield url


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def key(gate: Gateway) -> str:
    return gate.client_key()


def agrees(seen: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whatever the client saw is as expected; not every client shows everything."""
    assert {name: seen[name] for name in expected if name in seen} == {
        name: value for name, value in expected.items() if name in seen
    }
    assert len(seen.keys() & expected.keys()) >= len(expected) - 1


def trail(gate: Gateway, slug: str, forwarded: list[Seen]) -> list[dict[str, Any]]:
    """The connection's events: one for each request that the upstream got, and no other."""
    events = gate.events(len(forwarded), connection=slug)
    assert sorted(event["httpMethod"] for event in events) == sorted(request.method for request in forwarded)
    # A listening stream ends when the client goes; the Python SDK leaves an answer's stream once the answer is there.
    assert {event["outcome"] for event in events} <= {"done", "client_left"}
    assert {event["upstreamStatus"] for event in events} <= {200, 202}
    assert {event["credentialVersion"] for event in events} == {1}
    return events


def called(events: list[dict[str, Any]]) -> set[tuple[str, str | None, str | None]]:
    return {(event["rpcMethod"], event["name"], event["protocolVersion"]) for event in events}


@pytest.mark.parametrize("client", CLIENTS)
def test_tools_resources_and_prompts_pass(gate: Gateway, upstream: Fixture, key: str, client: str) -> None:
    era, walk = CLIENTS[client]
    slug = gate.connection(upstream.url, CREDENTIAL)
    upstream.forget()
    seen = walk(gate.endpoint(slug), key, "offers")
    agrees(seen, OFFERED)
    assert {"echo", "test_simple_text", "json_schema_2020_12_tool"} <= set(seen["tools"])
    assert seen.get("protocol", era) == era

    assert called(trail(gate, slug, upstream.seen())) >= {
        ("tools/list", None, era),
        ("tools/call", "echo", era),
        ("resources/read", "test://template/7/data", era),
        ("prompts/get", "test_prompt_with_arguments", era),
    }


@pytest.mark.parametrize("client", HANDSHAKERS)
def test_questions_logs_and_resumption_pass_over_the_stream(
    gate: Gateway, upstream: Fixture, key: str, client: str
) -> None:
    slug = gate.connection(upstream.url, CREDENTIAL)
    upstream.forget()
    agrees(CLIENTS[client][1](gate.endpoint(slug), key, "conversation"), CONVERSED)

    forwarded = upstream.seen()
    assert any(request.method == "GET" and request.values("last-event-id") for request in forwarded), "nothing resumed"
    assert called(trail(gate, slug, forwarded)) >= {
        ("initialize", None, HANDSHAKE),
        ("tools/call", "test_elicitation", HANDSHAKE),
        ("tools/call", "test_reconnection", HANDSHAKE),
    }


@pytest.mark.parametrize("client", MODERNS)
def test_questions_pass_as_rounds_in_the_modern_era(gate: Gateway, upstream: Fixture, key: str, client: str) -> None:
    slug = gate.connection(upstream.url, CREDENTIAL)
    upstream.forget()
    agrees(CLIENTS[client][1](gate.endpoint(slug), key, "rounds"), ROUNDED)

    forwarded = upstream.seen()
    assert not any(request.values("mcp-session-id") for request in forwarded)
    names = [event["name"] for event in trail(gate, slug, forwarded)]
    assert names.count("test_input_required_result_elicitation") == 2
    assert names.count("test_input_required_result_multi_round") == 3


@pytest.mark.parametrize("client", CLIENTS)
def test_server_everything_is_reached(gate: Gateway, other_upstream: str, key: str, client: str) -> None:
    slug = gate.connection(other_upstream)
    seen = CLIENTS[client][1](gate.endpoint(slug), key, "everything")
    assert seen.items() >= {name: value for name, value in EVERYTHING.items() if name in seen}.items()
    assert {"echo", "sum", "prompt"} <= seen.keys()

    def shows_the_calls(events: list[dict[str, Any]]) -> bool:
        return {"echo", "get-sum"} <= {event["name"] for event in events if event["rpcMethod"] == "tools/call"}

    gate.events(1, has=shows_the_calls, connection=slug)


@pytest.mark.parametrize("client", ["mcp 2.3", "mcp 1.30", "typescript 1"])
def test_an_unknown_key_reaches_nothing(gate: Gateway, upstream: Fixture, client: str) -> None:
    slug = gate.connection(upstream.url, CREDENTIAL)
    upstream.forget()
    with pytest.raises(Exception):  # noqa: B017, PT011 -- each client has an error of its own
        CLIENTS[client][1](gate.endpoint(slug), "ks_unknown", "offers")
    assert upstream.seen() == []
