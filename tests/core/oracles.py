"""Other readers of the same bytes. What our readers accept, these must read alike; tests and fuzz targets ask them."""

import json
from typing import Any

import httptools

from keystile.core.framing import Chunked, Length
from keystile.core.http1 import RequestHead, read_request
from keystile.core.mcp import Refused, asked
from keystile.errors import Refusal

MAX_BYTES, MAX_FIELDS = 32768, 128


class Connection:
    """Reads requests as the gateway's connection does, and notes what became of each."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.heads: list[RequestHead] = []
        self.bodies: list[bytes] = []
        self._buffer = b""
        self._searched = 0
        self._body: Chunked | Length | None = None
        self._refused = False

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and not self._refused and self._step():
            pass

    def _step(self) -> bool:
        if self._body is None:
            found = read_request(self._buffer, MAX_BYTES, MAX_FIELDS, self._searched)
            if isinstance(found, Refusal):
                return self._refuse(found)
            if found is None:
                self._searched = len(self._buffer)
                return False
            head, size = found
            self._searched = 0
            self.heads.append(head)
            self.bodies.append(b"")
            self._body = Chunked() if head.chunked else Length(head.length or 0)
            self._buffer = self._buffer[size:]
        fed = self._body.feed(self._buffer)
        if isinstance(fed, Refusal):
            return self._refuse(fed)
        self.bodies[-1] += fed[0]
        self._buffer = fed[1] or b""
        if fed[1] is not None:
            self._body = None
            self.outcomes.append("accepted")
        return fed[1] is not None

    def _refuse(self, refusal: Refusal) -> bool:
        self.outcomes.append(refusal.code)
        self._refused = True
        return False

    def end(self) -> list[str]:
        waiting = (self._buffer or self._body) and not self._refused
        return [*self.outcomes, "waits"] if waiting else self.outcomes


def replay(pieces: list[bytes]) -> Connection:
    connection = Connection()
    for piece in pieces:
        connection.feed(piece)
    return connection


class Oracle:
    """llhttp's reading of the same bytes."""

    def __init__(self, data: bytes) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.complete = False
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method = parser.get_method()
        self.minor = int(parser.get_http_version()[-1:])

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


def assert_llhttp_agrees(data: bytes) -> None:
    found = read_request(data, MAX_BYTES, MAX_FIELDS)
    if not isinstance(found, tuple):
        return
    head, size = found
    fed = (Chunked() if head.chunked else Length(head.length or 0)).feed(data[size:])
    if isinstance(fed, Refusal) or fed[1] is None:
        return
    oracle = Oracle(data.removesuffix(fed[1]))
    assert oracle.complete
    assert (oracle.method, oracle.target, oracle.minor) == (head.method, head.target, head.minor)
    assert tuple(oracle.fields) == head.fields
    assert oracle.body == fed[0]


class Pairs(list[tuple[str, Any]]):
    """A JSON object as the standard library read it, with every repeat."""

    def names(self) -> list[str]:
        return [key for key, _ in self]


def assert_the_standard_library_agrees(body: bytes) -> None:
    """A message's envelope is beyond doubt, and it says to `json` what it says to us. A batch is only parsed."""
    found = asked(body, None, None)
    if isinstance(found, Refused):
        if found.refusal.code == "message_ambiguous":
            assert b"\\" in body or not body.isascii() or body.lstrip()[:1] == b"[" or _doubtful(_read(body))
        return
    message = _read(body)
    if not isinstance(message, Pairs):
        return
    assert not _doubtful(message)
    members = dict(message)
    params = dict(members.get("params", ()))
    named = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}.get(members.get("method", ""))
    assert found[0].method == members.get("method")
    assert found[0].name == (params[named] if named else None)
    assert (None if found[0].id is None else _read(found[0].id)) == members.get("id")


def _read(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=Pairs, parse_int=str)  # int() refuses more than 4300 digits


def _doubtful(message: Pairs) -> bool:
    params = dict(message).get("params")
    return _repeats_or_varies(message, {"jsonrpc", "id", "method", "params", "result", "error"}) or (
        isinstance(params, Pairs) and _repeats_or_varies(params, {"name", "uri", "_meta", "protocolVersion"})
    )


def _repeats_or_varies(members: Pairs, known: set[str]) -> bool:
    names = members.names()
    folded = {name.casefold() for name in known}
    return len(names) > len(set(names)) or any(name.casefold() in folded and name not in known for name in names)
