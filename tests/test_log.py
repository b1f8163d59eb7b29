"""The log's two forms."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from keystile import log


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_json_is_one_object_a_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json", "control")
    structlog.get_logger("anything").warning("something happened", part="ledger")
    out, err = capsys.readouterr()
    assert out == ""
    line = json.loads(err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "something happened", "level": "warning", "part": "ledger", "process": "control"}


def test_text_is_one_line_without_colours(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("text")
    structlog.get_logger("anything").error("something happened", part="ledger")
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert "something happened" in err
    assert "process=supervisor" in err
    assert "\x1b" not in err


def test_a_logger_made_before_obeys_what_is_configured_after(capsys: pytest.CaptureFixture[str]) -> None:
    early = structlog.get_logger("early")
    log.configure("json", "control")
    early.info("said")
    assert json.loads(capsys.readouterr().err)["event"] == "said"
