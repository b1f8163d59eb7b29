from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keystile.core.echo import SHORTEST, Echo, echo_of

# Few letters, so that credentials overlap with themselves and with the text; asterisks among them, for those are ours.
credentials = st.one_of(
    st.text("ab*", min_size=12, max_size=20).map(str.encode),
    st.binary(min_size=12, max_size=40),
    st.sampled_from([b"a" * 12, b"ab" * 7, b"****abcdefgh", b"*" * 12, b"abcabcabcabd"]),
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A credential, and an answer that holds it, parts of it and other bytes, in pieces split at any places."""
    credential = draw(credentials)
    size = len(credential)
    parts = st.one_of(
        st.just(credential),
        st.integers(0, size).map(lambda at: credential[:at]),
        st.integers(0, size).map(lambda at: credential[at:]),
        st.text("ab*", max_size=5).map(str.encode),
        st.binary(max_size=5),
    )
    text = b"".join(draw(st.lists(parts, max_size=12)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return credential, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(answers())
@example((b"****abcdefgh", [b"****abcdefgh", b"abcdefgh"]))
@example((b"a" * 12, [b"a" * 6, b"a" * 12]))
@example((b"abcabcabcabd", [b"abcabc", b"abcabc", b"abd"]))
def test_masked_piece_by_piece_is_masked_as_a_whole(answer: tuple[bytes, list[bytes]]) -> None:
    credential, pieces = answer
    text = b"".join(pieces)
    echo = Echo(credential)
    out, taken = b"", 0
    for piece in pieces:
        out += echo.feed(piece)
        taken += len(piece)
        held = taken - len(out)
        # Only what could begin a match waits.
        assert held < len(credential)
        assert credential.startswith(text[taken - held : taken])
        assert echo.holds == (held > 0)
    out += echo.flush()
    assert not echo.holds
    assert out == text.replace(credential, b"*" * len(credential))
    assert len(out) == len(text)
    assert echo.found == (credential in text)
    assert Echo(credential).masked(text) == out


@given(answers())
def test_no_credential_is_left_of_an_answer_unless_asterisks_spell_it(answer: tuple[bytes, list[bytes]]) -> None:
    credential, pieces = answer
    echo = Echo(credential)
    out = b"".join([*(echo.feed(piece) for piece in pieces), echo.flush()])
    assert credential not in out or b"*" in credential


def test_every_split_of_one_answer_is_masked_alike() -> None:
    credential = b"made-up-credential"
    text = b'data: {"token":"made-up-credential"}\n\nmade-up-made-up-credentialmade-up-credential-made'
    for first in range(len(text)):
        for second in range(first, len(text), 7):
            echo = Echo(credential)
            out = echo.feed(text[:first]) + echo.feed(text[first:second]) + echo.feed(text[second:]) + echo.flush()
            assert out == text.replace(credential, b"*" * len(credential))


def test_an_answer_without_the_credential_leaves_at_once() -> None:
    echo = Echo(b"made-up-credential")
    event = b'event: message\ndata: {"jsonrpc":"2.0"}\n\n'
    assert echo.feed(event) is event
    assert not echo.holds
    assert not echo.found


@pytest.mark.parametrize(
    ("credential", "looked_for"), [(None, False), (b"", False), (b"x" * 11, False), (b"x" * 12, True)]
)
def test_short_credentials_are_not_looked_for(credential: bytes | None, looked_for: bool) -> None:  # noqa: FBT001 — a column
    assert SHORTEST == 12
    assert (echo_of(credential) is not None) == looked_for


def test_no_repr_shows_the_credential() -> None:
    echo = Echo(b"made-up-credential")
    echo.feed(b"made-up-cred")
    assert repr(echo) == "<Echo found=False held=12>"
