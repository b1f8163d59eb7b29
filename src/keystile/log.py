"""The log of control process, supervisor and command line: one line an event, on standard error.

Workers do not import this. Rules: nobody logs a header value, a body, a credential or a key; exceptions are logged by
type and place, never by message.
"""

from __future__ import annotations

import sys

import structlog


def configure(log_format: str, process: str = "supervisor") -> None:
    """Set the log up, once a process: `json` or text lines. `process` is its name in every line."""
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(process=process)
