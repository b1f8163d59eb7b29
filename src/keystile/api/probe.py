"""A small MCP exchange with an upstream, to see whether a connection would work. Bounded in time and size.

Rules: it goes through `dial` like every call, so the same addresses and certificates are refused; redirects are never
followed; nothing of it is stored; what an upstream says is cut, made printable, and cleared of the credential.
First `server/discover` (MCP 2026-07-28), then `initialize` (2025-03-26 to 2025-11-25), whose session is ended by DELETE
(2025-11-25, basic/transports: Session Management).
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from typing import Any, cast

import msgspec

from keystile.core.addresses import Reach
from keystile.core.framing import Chunked, Length, UntilClose
from keystile.core.headers import opening
from keystile.core.http1 import AnswerHead, read_answer
from keystile.core.target import Target
from keystile.dial import DialError, dial
from keystile.errors import REFUSALS, Refusal
from keystile.model import Connection, Secret
from keystile.schemes import scheme_of

TOTAL_SECONDS = 12.0
END_SECONDS = 3.0
ANSWER_BYTES = 256 * 1024
HEAD_BYTES = 32 * 1024
FIELDS = 128
INTERIM = 8
"""Most interim heads before an answer, as in the gateway."""

Result = dict[str, Any]

_NEWEST, _HANDSHAKE = "2026-07-28", "2025-11-25"
_PRODUCT = b"keystile"  # not the mark of the node: a probe is no hop of a caller's request
_ME = {"name": "keystile", "version": "0"}
_PROTOCOL = "io.modelcontextprotocol/"
_VERSION = re.compile(r"[0-9A-Za-z.-]{1,32}")
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_SHOWN = 200

_NOT_MCP = ("upstream_not_mcp", "The upstream answered, and not as an MCP server.")
_FAILED = ("upstream_failed", "The upstream answered with an error of its own.")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the probe found. `code` is None when all is well."""

    method: str | None = None
    status: int | None = None
    version: str | None = None
    server: str | None = None
    server_version: str | None = None
    latency_ms: float | None = None
    code: str | None = None
    message: str | None = None
    reason: str | None = None


class Heard(msgspec.Struct, frozen=True):
    """One answer of an upstream. `result` is the JSON-RPC result it held, None when it held none."""

    status: int
    fields: dict[bytes, bytes]
    result: Result | None
    latency_ms: float


class Probe:
    """One check of one connection, with its active credential or a candidate."""

    def __init__(self, connection: Connection, target: Target, credential: Secret | None, reach: Reach) -> None:
        self._connection = connection
        self._target = target
        self._credential = credential
        self._reach = reach

    def __repr__(self) -> str:
        return f"<Probe {self._target.origin}>"

    async def run(self) -> Found:
        """Ask, in both eras' ways. Raises DialError and TimeoutError."""
        async with asyncio.timeout(TOTAL_SECONDS):
            heard = await self._post("server/discover", _NEWEST, {"_meta": _meta()})
            if isinstance(heard, Refusal):
                return _refused(heard)
            version = _newest(heard.result or {})
            if version is not None:
                return self._found("server/discover", heard, version)
            if verdict := _final(heard):
                return verdict
            asked = {"protocolVersion": _HANDSHAKE, "capabilities": {}, "clientInfo": _ME}
            heard = await self._post("initialize", None, asked)
            if isinstance(heard, Refusal):
                return _refused(heard)
            version = (heard.result or {}).get("protocolVersion")
            if not isinstance(version, str):
                code, message = _FAILED if heard.status >= 500 else _NOT_MCP  # noqa: PLR2004 — RFC 9110, section 15.6
                return _final(heard) or Found(status=heard.status, code=code, message=message)
        await self._end(heard, version)
        return self._found("initialize", heard, version)

    def _found(self, method: str, heard: Heard, version: str) -> Found:
        result = heard.result or {}
        # 2026-07-28 stamps the server's identity on every result; before, it stands in the result itself.
        info = _object(_object(result.get("_meta")).get(f"{_PROTOCOL}serverInfo")) or _object(result.get("serverInfo"))
        return Found(
            method=method,
            status=heard.status,
            version=self._shown(version),
            server=self._shown(info.get("name")),
            server_version=self._shown(info.get("version")),
            latency_ms=heard.latency_ms,
        )

    def _shown(self, said: object) -> str | None:
        if not isinstance(said, str):
            return None
        secret = self._credential.reveal().decode("ascii") if self._credential else ""
        cleared = said.replace(secret, "*" * len(secret)) if secret else said
        return "".join(letter if letter.isprintable() else " " for letter in cleared[:_SHOWN])

    async def _post(self, method: str, version: str | None, params: dict[str, Any]) -> Heard | Refusal:
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        lines = "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        if version is not None:
            lines += f"mcp-protocol-version: {version}\r\nmcp-method: {method}\r\n"
        return await self._exchange(b"POST", lines.encode("ascii"), body)

    async def _end(self, heard: Heard, version: str) -> None:
        """End the session that `initialize` began. An upstream that does not let us (405) has not failed the check."""
        session = heard.fields.get(b"mcp-session-id")
        if session is None:
            return
        lines = b"mcp-session-id: " + session + b"\r\n"
        if _VERSION.fullmatch(version):
            lines += f"mcp-protocol-version: {version}\r\n".encode("ascii")
        with suppress(DialError, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._exchange(b"DELETE", lines, b"")

    async def _exchange(self, method: bytes, lines: bytes, body: bytes) -> Heard | Refusal:
        began = time.perf_counter()
        head = method + opening(self._target, self._connection.headers, _PRODUCT) + lines
        if self._credential is not None:
            head += scheme_of(self._connection).field(self._credential.reveal())
        head += b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        reader = asyncio.StreamReader(limit=HEAD_BYTES)
        transport, _ = await dial(
            self._target,
            self._reach,
            self._connection.ca_pem,
            TOTAL_SECONDS,
            lambda: asyncio.StreamReaderProtocol(reader),
        )
        try:
            transport.write(head + body)
            return await _heard(reader, began)
        except OSError:
            return REFUSALS["upstream_connection_lost"]
        finally:
            transport.abort()


async def _heard(reader: asyncio.StreamReader, began: float) -> Heard | Refusal:
    buffer, interim = b"", 0
    while True:
        parsed = read_answer(buffer, HEAD_BYTES, FIELDS)
        if isinstance(parsed, Refusal):
            return parsed
        if parsed is not None and parsed[0].status >= 200:  # noqa: PLR2004 — interim answers (RFC 9110, section 15.2)
            break
        if parsed is not None:
            buffer, interim = buffer[parsed[1] :], interim + 1
            if interim > INTERIM:
                return REFUSALS["upstream_malformed"]
            continue
        data = await reader.read(HEAD_BYTES)
        if not data:
            return REFUSALS["upstream_connection_lost"]
        buffer += data
    head, used = parsed
    latency = round((time.perf_counter() - began) * 1000, 1)
    fields = dict(head.fields)
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    result = await _result(reader, head, buffer[used:], streamed=kind == b"text/event-stream")
    return Heard(head.status, fields, result, latency)


async def _result(reader: asyncio.StreamReader, head: AnswerHead, data: bytes, *, streamed: bool) -> Result | None:
    """The JSON-RPC result in the body, or None. A stream is read until it is there; nothing is read past the bound."""
    body = Chunked(answer=True) if head.chunked else UntilClose() if head.length is None else Length(head.length)
    held, received, sought = bytearray(), 0, 0
    while True:
        fed = body.feed(data)
        if isinstance(fed, Refusal):
            return None
        held += fed[0]
        received += len(fed[0])
        # An event is looked at once, and the search for its end begins where the last one stopped.
        while streamed and (end := _EVENT_END.search(held, sought)):
            if (found := _result_of(_event_data(held[: end.start()]))) is not None:
                return found
            del held[: end.end()]
            sought = 0
        sought = max(0, len(held) - 3)
        if fed[1] is not None or received > ANSWER_BYTES:
            break
        data = await reader.read(HEAD_BYTES)
        if not data:
            break
    return None if streamed else _result_of(held)


def _event_data(event: bytearray) -> bytes:
    """The data of a server-sent event (WHATWG HTML, section 9.2.6)."""
    lines = _LINE_END.split(event)
    return b"\n".join(line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:"))


def _result_of(message: bytes | bytearray) -> Result | None:
    try:
        decoded = msgspec.json.decode(message, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return _object(decoded.get("result")) if decoded.get("id") == 1 and "result" in decoded else None


def _object(value: object) -> Result:
    """A JSON object, or an empty one in place of anything else."""
    return cast("Result", value) if isinstance(value, dict) else {}


def _newest(result: Result) -> str | None:
    listed = result.get("supportedVersions")
    versions = cast("list[object]", listed) if isinstance(listed, list) else []
    return max((version for version in versions if isinstance(version, str)), default=None)


def _meta() -> dict[str, object]:
    return {
        f"{_PROTOCOL}protocolVersion": _NEWEST,
        f"{_PROTOCOL}clientInfo": _ME,
        f"{_PROTOCOL}clientCapabilities": {},
    }


def _final(heard: Heard) -> Found | None:
    """What no other way of asking would change: the credential refused, or a redirect."""
    if heard.status in {401, 403}:
        return _refused(REFUSALS["upstream_auth_failed"], heard.status)
    if 300 <= heard.status < 400:  # noqa: PLR2004 — RFC 9110, section 15.4
        return _refused(REFUSALS["upstream_redirected"], heard.status)
    return None


def _refused(refusal: Refusal, status: int | None = None) -> Found:
    return Found(status=status, code=refusal.code, message=refusal.message)
