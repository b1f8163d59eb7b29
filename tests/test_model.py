from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback

import msgspec
import pytest

from keystile.model import Role, Secret

PLAIN = b"made-up-credential-0123456789"
SECRET = Secret(PLAIN)


@pytest.mark.parametrize("text", [repr(SECRET), str(SECRET), f"{SECRET}", f"{SECRET!s:>50}", f"{[SECRET]}"])
def test_no_text_of_a_secret_shows_it(text: str) -> None:
    assert PLAIN.decode() not in text
    assert "Secret" in text


def test_a_secret_shows_when_it_is_revealed_and_only_then() -> None:
    assert SECRET.reveal() == PLAIN
    assert not hasattr(SECRET, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(SECRET, protocol)


def test_a_secret_is_not_copied() -> None:
    with pytest.raises(TypeError):
        copy.copy(SECRET)


def test_a_secret_is_not_encoded() -> None:
    for encode in (msgspec.json.encode, msgspec.msgpack.encode, json.dumps):
        with pytest.raises(TypeError):
            encode({"credential": SECRET})


def test_a_secret_in_a_log_line_or_a_traceback_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("made-up").error("credential %s %r", SECRET, SECRET)

    def fails(credential: Secret) -> None:
        raise ValueError(credential)

    with pytest.raises(ValueError, match="Secret") as caught:
        fails(SECRET)
    told = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    # This test's module holds the bytes under a name of its own; the frame that got the secret must not show them.
    assert PLAIN.decode() not in caplog.text
    assert PLAIN.decode() not in told


def test_all_but_auditors_call() -> None:
    assert {role for role in Role if not role.calls} == {Role.AUDITOR}
