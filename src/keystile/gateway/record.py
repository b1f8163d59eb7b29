"""What is known of one exchange while it lives, and the one event it becomes."""

from __future__ import annotations

import os
import random
import time

from msgspec.structs import replace

from keystile.audit.event import Event, Outcome, cut, event_id
from keystile.core.authorize import Context
from keystile.core.decide import Admitted, Turned
from keystile.core.exchange import State, Step, after
from keystile.core.http1 import RequestHead
from keystile.core.mcp import Operation
from keystile.errors import Refusal
from keystile.model import ApiKey, Connection

_BATCH = "batch"
_NOTHING = (None, None, None)
_OUTCOMES: dict[State, Outcome] = {
    State.DONE: "done",
    State.REFUSED: "refused",
    State.UPSTREAM_FAILED: "upstream_failed",
    State.CLIENT_LEFT: "client_left",
}
_entropy = random.Random(int.from_bytes(os.urandom(32), "big")).getrandbits  # noqa: S311 — ids, not secrets


def new_id(at: int) -> str:
    """A new id for an event of that millisecond."""
    return event_id(at, _entropy(74))


class Record:
    """The facts of an exchange, filled in as they become known. Times are seconds of the monotonic clock."""

    __slots__ = (
        "address",
        "answered",
        "asked",
        "at",
        "began",
        "bytes_in",
        "bytes_out",
        "connection",
        "context",
        "decided",
        "dialled",
        "id",
        "key",
        "method",
        "opened",
        "protocol",
        "redacted",
        "sent",
        "slug",
        "state",
        "status",
        "upstream_status",
    )

    def __init__(self, head: RequestHead, slug: bytes, address: str, received: int) -> None:
        self.state = State.READING
        self.began = time.monotonic()
        self.at = time.time_ns() // 1_000_000
        self.id = new_id(self.at)
        self.address = address
        self.method = head.method
        self.slug = slug
        self.bytes_in = received
        self.bytes_out = 0
        self.connection: Connection | None = None
        self.key: ApiKey | None = None
        self.context: Context | None = None
        self.asked: tuple[str | None, str | None, str | None] = _NOTHING
        self.protocol: bytes | None = None
        self.decided = self.sent = self.answered = self.dialled = 0.0
        self.status: int | None = None
        self.upstream_status: int | None = None
        self.redacted = False
        self.opened: Event | None = None

    @property
    def trace(self) -> str:
        """The caller's trace id, or the exchange's own id in its place."""
        return self.id if self.context is None or self.context.trace is None else self.context.trace

    def admitted(self, admitted: Admitted) -> None:
        """The head was let in."""
        self.connection = admitted.endpoint.connection
        self.key = admitted.key
        self.context = admitted.context
        self.protocol = admitted.protocol

    def turned(self, turned: Turned) -> None:
        """It was refused, and this much was known."""
        self.connection = turned.connection
        self.key = turned.key
        self.context = turned.context
        self.ask(turned.operations)

    def ask(self, operations: tuple[Operation, ...]) -> None:
        """What the message asks for. Only what the event tells is kept: a name may be as long as a body."""
        method, name, version = _asked(operations)
        self.asked = method and cut(method), name and cut(name), version and cut(version)

    def open(self) -> Event:
        """What is known before anything is forwarded: the line for the trail, should this worker die."""
        key, connection, context = self.key, self.connection, self.context
        method, name, version = self.asked
        organization = key.organization if key else connection.organization if connection else None
        protocol = version if version is not None or self.protocol is None else self.protocol.decode("latin-1")
        opened = self.opened = Event(
            id=self.id,
            at=self.at,
            outcome="interrupted",
            organization=organization,
            connection=connection.id if connection else None,
            key=key.id if key else None,
            trace=self.trace,
            slug=self.slug.decode("ascii"),
            user=context.user if context else None,
            metadata=context.metadata if context else None,
            address=self.address,
            http_method=self.method.decode("ascii"),
            rpc_method=method,
            name=name,
            protocol=None if protocol is None else cut(protocol),
            credential_version=connection.active_version or None if connection else None,
        )
        return opened

    def move(self, step: Step) -> None:
        """The exchange goes on. A step that its state does not know is a bug: KeyError."""
        self.state = after(self.state, step)

    def ended(self, step: Step, refusal: Refusal | None = None) -> Event:
        """The exchange is over: the one line for the trail. Nothing that `open` tells changes after it."""
        self.move(step)
        now = time.monotonic()
        return replace(
            self.opened or self.open(),
            outcome=_OUTCOMES[self.state],
            refusal=refusal.code if refusal else None,
            status=self.status,
            upstream_status=self.upstream_status,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            total_ms=(now - self.began) * 1000,
            first_byte_ms=(self.answered - self.began) * 1000 if self.answered else None,
            gateway_ms=(self.sent - self.decided - self.dialled) * 1000 if self.sent else None,
            redacted=self.redacted,
        )


def _asked(operations: tuple[Operation, ...]) -> tuple[str | None, str | None, str | None]:
    if len(operations) == 1:
        first = operations[0]
        return first.method or first.kind, first.name, first.version
    if not operations:
        return _NOTHING
    methods = dict.fromkeys(each.method or each.kind for each in operations)
    names = dict.fromkeys(each.name for each in operations if each.name is not None)
    return f"{_BATCH}: {', '.join(methods)}", ", ".join(names) or None, None
