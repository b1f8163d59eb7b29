from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from keystile import errors
from keystile.core.mcp import error_body
from keystile.errors import ERRORS, REFUSALS, KeystileError, Refusal, StartRefused, Unavailable, Unreadable

SOURCE = Path(__file__).parent.parent / "src" / "keystile"
# The issue, "Statuses": clients of both eras fall back to the old protocol on 400, 404 and 405.
PERMANENT = {400, 401, 403, 404, 405, 408, 413, 415, 421, 431, 501, 505}
PASSING = {429, 502, 503, 504}
OURS_TO_MEND = {"credential_unreadable", "internal_error"}
ALL = [pytest.param(refusal, id=refusal.code) for refusal in REFUSALS.values()]


def test_codes_are_unique() -> None:
    assert len(errors._TABLE) == len(REFUSALS)


def names(index: ast.expr) -> set[str]:
    """The codes that an index may be: a name of the code itself, or one of two."""
    if isinstance(index, ast.IfExp):
        return names(index.body) | names(index.orelse)
    return {str(index.value)} if isinstance(index, ast.Constant) else set()


def test_every_refusal_that_the_source_names_is_in_the_table_and_none_stands_unused() -> None:
    looked_up = [
        node.slice
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "REFUSALS"
    ]
    named = {name for index in looked_up for name in names(index)}
    assert named <= set(REFUSALS)
    assert set(REFUSALS) == named


@pytest.mark.parametrize("refusal", ALL)
def test_a_status_says_whether_trying_again_could_help(refusal: Refusal) -> None:
    if refusal.code in OURS_TO_MEND:
        assert refusal.status == 500
        assert refusal.fault == "gateway"
    elif refusal.fault == "caller":
        assert refusal.status in PERMANENT
    else:
        assert refusal.status in PASSING


@pytest.mark.parametrize("refusal", ALL)
def test_retry_after_goes_with_503_alone(refusal: Refusal) -> None:
    assert (refusal.retry_after is not None) == (refusal.status == 503)


@pytest.mark.parametrize("refusal", ALL)
def test_the_json_rpc_code_is_one_the_specification_has(refusal: Refusal) -> None:
    assert refusal.rpc in {-32700, -32600, -32020, -32603}
    if refusal.rpc != -32603:
        assert refusal.status == 400


@pytest.mark.parametrize("refusal", ALL)
def test_a_refusal_is_a_whole_json_rpc_error_that_echoes_nothing(refusal: Refusal) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]+", refusal.code)
    assert re.fullmatch(r"[A-Z][^{}%\n]*\.", refusal.message)
    assert msgspec.json.decode(error_body(refusal, b"7")) == {
        "jsonrpc": "2.0",
        "id": 7,
        "error": {
            "code": refusal.rpc,
            "message": refusal.message,
            "data": {"gateway": refusal.code, "fault": refusal.fault},
        },
    }
    assert msgspec.json.decode(error_body(refusal, None))["id"] is None


def test_a_refused_upstream_credential_is_no_401_for_the_client() -> None:
    assert REFUSALS["upstream_auth_failed"].status == 502
    assert REFUSALS["upstream_redirected"].status == 502
    assert REFUSALS["upstream_encoding"].status == 502
    assert REFUSALS["upstream_connection_lost"].status == 502


def test_errors_are_told_by_status_and_have_a_code_of_their_own() -> None:
    assert {status: error.status for status, error in ERRORS.items()} == {status: status for status in ERRORS}
    assert len({error.default for error in ERRORS.values()}) == len(ERRORS)
    assert issubclass(Unavailable, KeystileError)
    assert Unreadable("x").code == "credential_unreadable"
    assert Unreadable.status == 500
    assert StartRefused("x").code == "start_refused"
    assert KeystileError("x", "y", field="z").details == {"field": "z"}
