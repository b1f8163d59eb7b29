"""What is printed does nothing but be read, whoever said it."""

from __future__ import annotations

import json

import pytest

from keystile.commands import output

SAID = "late\u202e\u009b2J\x1b[2J\x7f\u00fc"


def test_json_escapes_what_would_move_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.record({"name": SAID, "metadata": {SAID: SAID}}, scripts=True)
    printed = capsys.readouterr().out
    assert printed.replace("\n", "").isascii()
    assert printed.replace("\n", "").isprintable()
    assert json.loads(printed) == {"name": SAID, "metadata": {SAID: SAID}}


@pytest.mark.parametrize("value", [SAID, {"key": SAID}, [SAID]])
def test_a_cell_shows_letters_and_no_orders(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    output.record({"name": value}, scripts=False)
    printed = capsys.readouterr().out.removesuffix("\n")
    assert printed.isprintable()
    assert "\u00fc" in printed
