"""The life of one exchange, as a transition table. Entering an ended state makes its event (`gateway/record.py`).

The table runs (`after`), is tested for completeness, and prints itself (`python -m keystile.core.exchange`).
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where an exchange stands."""

    READING = "reading"  # the head has come; it and the body are being judged
    DIALLING = "dialling"  # decided; an upstream connection is being opened
    WAITING = "waiting"  # sent; the answer has not begun
    ANSWERING = "answering"  # the answer's head has gone to the client
    DONE = "done"
    REFUSED = "refused"
    UPSTREAM_FAILED = "upstream_failed"
    CLIENT_LEFT = "client_left"


class Step(StrEnum):
    """What happens to it."""

    DIAL = "dial"
    SEND = "send"
    ANSWER = "answer"
    FINISH = "finish"
    REFUSE = "refuse"
    FAIL = "fail"
    LEAVE = "leave"


TABLE: dict[tuple[State, Step], State] = {
    (State.READING, Step.DIAL): State.DIALLING,
    (State.READING, Step.SEND): State.WAITING,
    (State.DIALLING, Step.SEND): State.WAITING,
    (State.WAITING, Step.ANSWER): State.ANSWERING,
    (State.ANSWERING, Step.FINISH): State.DONE,
    # A key or connection that is withdrawn refuses an exchange whatever it is doing.
    (State.READING, Step.REFUSE): State.REFUSED,
    (State.DIALLING, Step.REFUSE): State.REFUSED,
    (State.WAITING, Step.REFUSE): State.REFUSED,
    (State.ANSWERING, Step.REFUSE): State.REFUSED,
    (State.DIALLING, Step.FAIL): State.UPSTREAM_FAILED,
    (State.WAITING, Step.FAIL): State.UPSTREAM_FAILED,
    (State.ANSWERING, Step.FAIL): State.UPSTREAM_FAILED,
    (State.READING, Step.LEAVE): State.CLIENT_LEFT,
    (State.DIALLING, Step.LEAVE): State.CLIENT_LEFT,
    (State.WAITING, Step.LEAVE): State.CLIENT_LEFT,
    (State.ANSWERING, Step.LEAVE): State.CLIENT_LEFT,
}

ENDED = frozenset({State.DONE, State.REFUSED, State.UPSTREAM_FAILED, State.CLIENT_LEFT})


def after(state: State, step: Step) -> State:
    """The next state. A pair that is not in the table is a bug: KeyError."""
    return TABLE[state, step]


def printed() -> str:
    """The table, one transition a line."""
    return "\n".join(f"{state.value:10} {step.value:8} → {end.value}" for (state, step), end in TABLE.items())


if __name__ == "__main__":
    print(printed())  # noqa: T201 — the table prints itself
