"""One request for an MCP endpoint, from its head to the decision; then a `Relay` has it.

Guarantees: judged by `core/decide.py` alone, against configuration no older than the request, looked at when the head
has come and once more when the body is whole; recorded exactly once, whatever becomes of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from keystile.core.decide import Admitted, Place, Turned, admissible, admit, decide
from keystile.core.exchange import Step
from keystile.core.http1 import RequestHead, read_request
from keystile.errors import REFUSALS, Refusal
from keystile.gateway.gate import Gate
from keystile.gateway.heads import LARGEST, Known, bare, keepable
from keystile.gateway.holding import Budget
from keystile.gateway.record import Record
from keystile.gateway.relay import Relay

if TYPE_CHECKING:
    from keystile.gateway.inbound import Inbound


class Hearing:
    """A request being judged. `budget` is what its body may take; `head` is bare once it is admitted."""

    __slots__ = ("_admitted", "_client", "_gate", "_generation", "_record", "_relay", "_text", "budget", "head")

    def __init__(self, gate: Gate, client: Inbound, head: RequestHead, slug: bytes, text: bytes) -> None:
        self._gate = gate
        self._client = client
        self.head = head
        self._text = text
        forwarded = head.named.get(b"x-forwarded-for")
        address = client.peer if forwarded is None else gate.address_of(client.peer, forwarded)
        self._record = Record(head, slug, address, len(text))
        self._admitted: Admitted | None = None
        self._relay: Relay | None = None
        self._generation = 0
        self.budget: Budget = gate.bodies

    def __repr__(self) -> str:
        return f"<Hearing {self._relay or 'judging'}>"

    def begin_known(self, known: Known) -> bool:
        """`begin` for a head that was admitted before and is bare now."""
        if not self._gate.trail.ready():
            return self._unrecordable()
        self._generation = known.generation
        self._admitted = known.admitted
        self._record.admitted(known.admitted)
        return True

    def begin(self, where: Place, mark: bytes) -> bool:
        """Judge the head; False when the request was turned away."""
        gate, record = self._gate, self._record
        if not gate.trail.ready():
            return self._unrecordable()
        if not gate.fresh():
            return self.refuse(REFUSALS["configuration_stale"])
        if where is not Place.ENDPOINT:
            record.connection = gate.registry.connection_named(record.slug.decode("ascii"))
            return self.refuse(admissible(self.head.named, gate.shape) or REFUSALS["not_found"])
        admitted = self._admit()
        if admitted is None:
            return False
        if self.head.method != b"POST" and (self.head.chunked or self.head.length):
            return self.refuse(REFUSALS["body_unexpected"])
        keeping = len(self._text) <= LARGEST and keepable(self.head)
        self.head = bare(self.head)
        if keeping:
            gate.heads.keep(mark, Known(self.head, record.slug, admitted, self._generation))
        return True

    def whole(self, body: bytes) -> None:
        """The body has come: decide, and forward or refuse."""
        gate, record, admitted = self._gate, self._record, self._admitted
        record.bytes_in += len(body)
        if not gate.fresh():
            self.refuse(REFUSALS["configuration_stale"])
            return
        if gate.generation != self._generation:
            admitted = self._admit()
        if admitted is None:
            return
        expires = admitted.key.expires_at
        if expires is not None and expires <= time.time_ns() // 1_000_000:
            self.refuse(REFUSALS["key_expired"])  # while the body was arriving
            return
        decision = decide(admitted, body, gate.registry)
        if isinstance(decision, Turned):
            record.turned(decision)
            self.refuse(decision.refusal, decision.id)
            return
        self._text = b""
        record.ask(decision.operations)
        record.decided = time.monotonic()
        self._relay = Relay(gate, self._client, record, decision, body)
        self._relay.start()

    def refuse(self, refusal: Refusal, request_id: bytes | None = None) -> bool:
        """Turn it away and record that; False, for callers that end with it."""
        if self._relay is not None:
            self._relay.withdraw(refusal)
            return False
        record = self._record
        record.status = refusal.status
        self._gate.trail.record(record.ended(Step.REFUSE, refusal))
        self._client.turn_away(refusal, request_id, record.trace)
        return False

    def left(self) -> None:
        """The client is gone."""
        if self._relay is not None:
            self._relay.left()
        else:
            self._gate.trail.record(self._record.ended(Step.LEAVE))

    @property
    def owner(self) -> str:
        """Whose budget the body takes from."""
        return "" if self._admitted is None else self._admitted.key.id

    def pause(self) -> None:
        """The client reads slowly."""
        if self._relay is not None:
            self._relay.pause()

    def resume(self) -> None:
        """It has caught up."""
        if self._relay is not None:
            self._relay.resume()

    def _unrecordable(self) -> bool:
        """This one refusal leaves no event: there is nowhere to put it."""
        self._client.turn_away(REFUSALS["trail_unavailable"], trace=self._record.trace)
        return False

    def _admit(self) -> Admitted | None:
        gate, record = self._gate, self._record
        self._generation = gate.generation
        found = admit(self._full(), record.slug, gate.registry, gate.shape, record.at)
        if isinstance(found, Turned):
            record.turned(found)
            self.refuse(found.refusal)
            return None
        record.admitted(found)
        self._admitted = found
        return found

    def _full(self) -> RequestHead:
        """The head with its fields, read again if it is one that was remembered without them."""
        if self.head.fields:
            return self.head
        found = read_request(self._text, len(self._text), len(self._text))
        if not isinstance(found, tuple):
            raise RuntimeError("a head that was accepted is not accepted again")  # noqa: TRY004 — a bug, not a type
        return found[0]
