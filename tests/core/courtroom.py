"""A courtroom for the tests of the judging: a registry with made-up organizations, and heads that are really parsed."""

from __future__ import annotations

import hashlib
from itertools import count

import msgspec

from keystile.core import apikey
from keystile.core.decide import Admitted, Forward, Shape, Turned, admit, decide, place
from keystile.core.envelope import KeyRing, credential_binding, seal_for_node
from keystile.core.http1 import RequestHead, read_request
from keystile.core.registry import Registry
from keystile.core.target import Target, parse_target
from keystile.model import ApiKey, AuthType, Change, Connection, DataKey, Published, Role

OURS, THEIRS = "organization", "neighbour"
NODE_KEY = bytes(range(32))
DATA_KEYS = {OURS: bytes(32), THEIRS: bytes([1] * 32)}
CREDENTIAL = "made-up-credential-0123456789"
NOW = 1_000_000
SHAPE = Shape(frozenset((b"gate.example", b"localhost", b"[::1]")), frozenset((b"https://app.example",)))
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}'
Fields = list[tuple[bytes, bytes]]


def ring() -> KeyRing:
    """The data keys of both organizations."""
    keys = KeyRing()
    for organization, data_key in DATA_KEYS.items():
        keys.add(organization, 1, data_key)
    return keys


def data_key(organization: str, term: int = 1) -> DataKey:
    """An organization's data key as the feed carries it."""
    sealed = seal_for_node(NODE_KEY, organization, term, DATA_KEYS[organization], bytes(12))
    return DataKey(organization=organization, term=term, sealed=sealed)


def a_key(number: int) -> str:
    """A well-formed Keystile key, the same for the same number."""
    return apikey.compose(hashlib.sha256(b"%d" % number).digest())


def a_row(number: int, organization: str = OURS, **more: object) -> ApiKey:
    """The row of `a_key(number)`."""
    row = ApiKey(
        id=f"key{number}",
        organization=organization,
        name="made up",
        role=Role.CLIENT,
        digest=apikey.digest(a_key(number).encode()),
        created_at=1,
    )
    return msgspec.structs.replace(row, **more)


def a_connection(number: int, organization: str = OURS, **more: object) -> Connection:
    """A connection with a bearer credential, unless `more` says otherwise."""
    row = Connection(
        id=f"connection{number}",
        number=number,
        organization=organization,
        slug=f"slug{number}",
        name="made up",
        upstream_url="https://mcp.example/mcp?tenant=1",
        auth_type=AuthType.BEARER,
        active_version=1,
    )
    return msgspec.structs.replace(row, **more)


def published(connection: Connection, credential: str = CREDENTIAL) -> Published:
    """A connection as the feed carries it, its credential sealed."""
    if connection.auth_type is AuthType.NONE:
        return Published(connection=connection)
    target = parse_target(connection.upstream_url)
    assert isinstance(target, Target)
    binding = credential_binding(connection, connection.active_version, target.origin)
    return Published(connection=connection, sealed=ring().seal(credential.encode(), binding, 1, bytes(12)))


def parsed(raw: bytes) -> RequestHead:
    """A head that the gateway accepts."""
    found = read_request(raw, 65536, 256)
    assert isinstance(found, tuple), found
    assert found[1] == len(raw)
    return found[0]


class Court:
    """One worker's registry, and what is brought before it."""

    def __init__(self, *changes: Change) -> None:
        self.registry = Registry(NODE_KEY)
        for change in (data_key(OURS), data_key(THEIRS), *changes):
            self.registry.apply(change)
        self._numbers = count(1)

    def key(self, organization: str = OURS, **more: object) -> str:
        """Make a key; `row_of` gives its row."""
        number = next(self._numbers)
        self.registry.apply(a_row(number, organization, **more))
        return a_key(number)

    def row_of(self, key: str) -> ApiKey:
        row = self.registry.key(apikey.digest(key.encode()))
        assert row is not None
        return row

    def connect(self, organization: str = OURS, credential: str = CREDENTIAL, **more: object) -> Connection:
        """Publish a connection."""
        connection = a_connection(next(self._numbers), organization, **more)
        self.registry.apply(published(connection, credential))
        return connection

    def admit(self, head: RequestHead) -> Admitted | Turned:
        _, slug = place(head.target)
        assert slug is not None
        return admit(head, slug, self.registry, SHAPE, NOW)

    def judge(self, head: RequestHead, body: bytes = CALL) -> Forward | Turned:
        """The whole pipeline."""
        found = self.admit(head)
        if isinstance(found, Turned):
            return found
        return decide(found, body if head.method == b"POST" else b"", self.registry)


def request(
    slug: str, key: str | None, *fields: bytes, method: bytes = b"POST", host: bytes = b"gate.example"
) -> RequestHead:
    """A plain request; `fields` are further lines as they stand. Content-Type is added to a POST that has none."""
    lines = [b"%b /v1/mcp/%b HTTP/1.1" % (method, slug.encode()), b"host: " + host]
    if key is not None:
        lines.append(b"authorization: Bearer " + key.encode())
    if method == b"POST" and not any(field.lower().startswith(b"content-type:") for field in fields):
        lines.append(b"content-type: application/json")
    return parsed(b"\r\n".join([*lines, *fields]) + b"\r\n\r\n")


def fields_of(forward: Forward) -> Fields:
    """The fields of an upstream head, as a strict reader finds them: a head that does not parse is an injection."""
    return list(parsed(forward.head).fields)


def code(found: object) -> str:
    """The refusal's code, or `forwarded`."""
    return found.refusal.code if isinstance(found, Turned) else "forwarded"
