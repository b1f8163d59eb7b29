"""What an MCP message asks for: a typed peek into JSON-RPC 2.0, and the errors that answer it.

What this module guarantees: whatever it says of a message, every other parser of the same bytes must say too. The
bytes themselves are never written anew. `asked` answers or refuses; it never raises.

The rules:

- A message is exactly one of request, notification or response, with `jsonrpc` `"2.0"`, an id that is a string or an
  integer, and params that are an object (MCP, basic: Messages). A batch (2025-03-26) is an array of 1 to 256 of them;
  one refused element refuses it.
- The *envelope* is the message object and its params object. A member there that repeats, or whose name differs from
  a known one only in case, or is a known one spelt with escapes, is refused: parsers disagree about which one counts.
  What lies deeper (arguments, results) is not looked at.
- `tools/call`, `prompts/get` and `resources/read` need an id and a name; whoever sends them without an id hides a call.
- Where they are sent, `Mcp-Method`, and `Mcp-Name` for those three, must say what the body says (MCP 2026-07-28,
  transports/streamable-http: Server Validation). For other methods `Mcp-Name` means nothing.
"""

import base64
import re
from typing import Literal

import msgspec

from keystile.errors import REFUSALS, Refusal

_PARSE_ERROR = REFUSALS["parse_error"]
_INVALID = REFUSALS["message_invalid"]
_AMBIGUOUS = REFUSALS["message_ambiguous"]
_ID_MISSING = REFUSALS["request_id_missing"]
_MISMATCH = REFUSALS["header_mismatch"]

_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""The methods that act on something by name, and the member of params that names it."""

_LONGEST_ID = 1024  # bytes: an id is kept for as long as its answer streams
_MAX_BATCH = 256
_MAX_MEMBERS = 1024  # of the message or its params: far more than any method has, and quickly looked through

_WHITE = b" \t\n\r"  # RFC 8259 2
_SPACE = rb"[ \t\n\r]*+"
_MEMBER = re.compile(
    _SPACE + rb"[{,]" + _SPACE + rb'("(?:[^"\\]|\\.)*+")' + _SPACE + rb":" + _SPACE,
    re.DOTALL,
)
_END = re.compile(_SPACE + rb"}" + _SPACE)
_ENCODED = re.compile(rb"=\?base64\?(.*)\?=", re.DOTALL)


class _Meta(msgspec.Struct, gc=False):
    version: str | None = msgspec.field(default=None, name="io.modelcontextprotocol/protocolVersion")


_Members = dict[str, msgspec.Raw]
_object = msgspec.json.Decoder(_Members).decode
_array = msgspec.json.Decoder(list[msgspec.Raw]).decode
_string = msgspec.json.Decoder(str).decode
_meta = msgspec.json.Decoder(_Meta).decode


class Operation(msgspec.Struct, frozen=True, gc=False):
    """One JSON-RPC message, typed by what it is.

    `id` is raw JSON text (`b'7'`, `b'"x"'`). `name` is the tool, prompt or resource URI of the three methods that have
    one. `version` is the protocol version the message itself states: `initialize`'s, or the one in `_meta`.
    """

    kind: Literal["request", "notification", "response"]
    id: bytes | None
    method: str | None
    name: str | None
    version: str | None


class Refused(msgspec.Struct, frozen=True):
    """A body that is not forwarded. `id` is the request's when it is known beyond doubt, and never a batch's."""

    refusal: Refusal
    id: bytes | None


def asked(body: bytes, method: bytes | None, name: bytes | None) -> tuple[Operation, ...] | Refused:
    """What `body` asks for: one operation, or a batch's. `method`, `name`: the `Mcp-Method` and `Mcp-Name` fields."""
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            return Refused(_PARSE_ERROR, None)
    if body[:1] == b"{" or body.lstrip(_WHITE)[:1] != b"[":
        message = _message(body, method, name)
        return (message,) if isinstance(message, Operation) else message
    try:
        elements = _array(body)
    except (msgspec.DecodeError, RecursionError):
        return Refused(_PARSE_ERROR, None)
    operations: list[Operation] = []
    for element in elements[: _MAX_BATCH + 1]:
        message = _message(bytes(element), method, name)
        if isinstance(message, Refused):
            return Refused(message.refusal, None)
        operations.append(message)
    return tuple(operations) if 0 < len(operations) <= _MAX_BATCH else Refused(_INVALID, None)


def error_body(refusal: Refusal, request_id: bytes | None) -> bytes:
    """The JSON-RPC error that answers a refused message; `request_id` as raw JSON text, `None` when it is unknown."""
    data = {"gateway": refusal.code, "fault": refusal.fault}
    error = {"code": refusal.rpc, "message": refusal.message, "data": data}
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (request_id or b"null", msgspec.json.encode(error))


def _message(text: bytes, method_field: bytes | None, name_field: bytes | None) -> Operation | Refused:
    members = _members(text, _MESSAGE)
    if isinstance(members, Refusal):
        return Refused(members, None)
    raw_id = members.get("id")
    request_id = None if raw_id is None else bytes(raw_id)
    if request_id is not None and (
        len(request_id) > _LONGEST_ID or (request_id[:1] != b'"' and not request_id.removeprefix(b"-").isdigit())
    ):
        return Refused(_INVALID, None)
    stated = members.get("jsonrpc")
    if stated is None or bytes(stated) != b'"2.0"':
        return Refused(_INVALID, request_id)
    raw_method = members.get("method")
    outcomes = ("result" in members) + ("error" in members)
    if raw_method is None:
        # An answer to a request of the server. No error that answers it may carry its id, which is not the client's.
        if request_id is None or outcomes != 1 or "params" in members:
            return Refused(_INVALID, None)
        if method_field is not None:
            return Refused(_MISMATCH, None)
        return Operation("response", request_id, None, None, None)
    if outcomes:
        return Refused(_INVALID, request_id)
    call = _call(raw_method, members.get("params"), request_id)
    if isinstance(call, Refusal):
        return Refused(call, request_id)
    if (method_field is not None and method_field != (call.method or "").encode()) or (
        name_field is not None and call.name is not None and _said(name_field) != call.name
    ):
        return Refused(_MISMATCH, request_id)
    return call


def _call(raw_method: msgspec.Raw, raw_params: msgspec.Raw | None, request_id: bytes | None) -> Operation | Refusal:
    """A request, or a notification if `request_id` is `None`."""
    params: _Members | Refusal = {} if raw_params is None else _members(bytes(raw_params), _PARAMS)
    if isinstance(params, Refusal):
        return params
    name = version = None
    try:
        method = _string(raw_method)
        naming = _NAMED.get(method)
        if naming is not None:
            if request_id is None:
                return _ID_MISSING
            name = _string(params[naming])
        if method == "initialize" and "protocolVersion" in params:
            version = _string(params["protocolVersion"])
        elif "_meta" in params:
            version = _meta(params["_meta"]).version
    except (msgspec.DecodeError, KeyError):
        return _INVALID
    return Operation("notification" if request_id is None else "request", request_id, method, name, version)


def _said(name_field: bytes) -> str | None:
    """What an `Mcp-Name` field says, its base64 form decoded. `None`: nothing that could agree with a body."""
    encoded = _ENCODED.fullmatch(name_field)
    try:
        return base64.b64decode(encoded[1], validate=True).decode() if encoded else name_field.decode("ascii")
    except ValueError:
        return None


def _folded(name: str) -> str:
    """A name as the most lenient parser would compare it: one that folds U+017F, U+212A, U+0131, U+0130 too."""
    return name.upper().casefold().replace("\u0307", "")


def _known(*names: str) -> dict[str, str]:
    return {_folded(name): name for name in names}


_MESSAGE = _known("jsonrpc", "id", "method", "params", "result", "error")
_PARAMS = _known("name", "uri", "_meta", "protocolVersion")
_HARMLESS = frozenset({*_MESSAGE.values(), *_PARAMS.values(), "arguments"})
"""Spellings of which no case variant needs to be looked for."""


def _members(text: bytes, known: dict[str, str]) -> _Members | Refusal:
    """The members of the object that `text` is, each of them beyond doubt."""
    try:
        members = _object(text)
    except msgspec.ValidationError:
        return _INVALID
    except (msgspec.DecodeError, RecursionError):
        return _PARSE_ERROR
    if len(members) > _MAX_MEMBERS:
        return _INVALID
    size = 1
    for key, value in members.items():
        if key not in _HARMLESS and known.get(_folded(key), key) != key:
            return _AMBIGUOUS
        size += len(key) + 4 + memoryview(value).nbytes
    # Repeats, escapes and white space all make a text longer than its members written once, plainly (`,"key":value`
    # each, and a brace more). So if it is not longer, it has none of them; else the text itself must be walked.
    return members if size == len(text) or _walks(text, members, known) else _AMBIGUOUS


def _walks(text: bytes, members: _Members, known: dict[str, str]) -> bool:
    """Whether `text` is exactly these members one after the other, and the known ones are spelt without escapes."""
    at = 0
    for key, value in members.items():
        found = _MEMBER.match(text, at)
        if found is None or _string(found[1]) != key:
            return False
        if b"\\" in found[1] and _folded(key) in known:
            return False
        raw = bytes(value)
        if not text.startswith(raw, found.end()):
            return False
        at = found.end() + len(raw)
    return _END.fullmatch(text, at) is not None or not members
