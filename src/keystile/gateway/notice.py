"""A worker's own few log lines, on standard error, without the control process's logging library.

Rules: an unexpected exception is told by its type and where it was raised, never by its message, which may hold what
a client or an upstream sent. A line that cannot be written is dropped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
import uuid
from collections.abc import Generator
from contextlib import contextmanager

_format = {"json": False}


def configure(log_format: str) -> None:
    """`text` or `json`."""
    _format["json"] = log_format == "json"


def say(level: str, event: str, **facts: object) -> None:
    """One line."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if _format["json"]:
        line = json.dumps({"timestamp": at, "level": level, "event": event, **facts}, default=repr)
    else:
        line = " ".join([at, level, event, *(f"{name}={value}" for name, value in facts.items())])
    with contextlib.suppress(OSError):  # a log on a full disk must not stop what is logged
        sys.stderr.write(line + "\n")


def bug(error: BaseException | None, where: str) -> None:
    """An exception that nobody expected."""
    frames = traceback.extract_tb(error.__traceback__ if error is not None else None)
    trail = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    say("error", "bug", id=uuid.uuid4().hex[:12], where=where, type=type(error).__name__, trail=trail)


@contextmanager
def guarded(where: str) -> Generator[None]:
    """One thing's bug must not befall the others that the same loop looks after."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 — that is what this is for
        bug(error, where)
