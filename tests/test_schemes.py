from __future__ import annotations

import pytest

from keystile.core.headers import banned
from keystile.model import AuthType, Connection
from keystile.schemes import SCHEMES, Bearer, Header, Nothing, scheme_of


def connection(auth_type: AuthType, name: str | None = None) -> Connection:
    return Connection(
        id="c",
        number=1,
        organization="o",
        slug="slug",
        name="made up",
        upstream_url="https://mcp.example/",
        auth_type=auth_type,
        auth_header_name=name,
    )


def test_every_auth_type_has_a_scheme() -> None:
    assert set(SCHEMES) == set(AuthType)


def test_bearer_writes_authorization() -> None:
    scheme = scheme_of(connection(AuthType.BEARER))
    assert isinstance(scheme, Bearer)
    assert scheme.field(b"made-up") == b"authorization: Bearer made-up\r\n"
    assert scheme.replaces == b"authorization"


@pytest.mark.parametrize("name", ["X-Api-Key", "Authorization", "PRIVATE-TOKEN"])
def test_header_writes_the_credential_raw_under_its_name(name: str) -> None:
    assert banned(name) is None
    scheme = scheme_of(connection(AuthType.HEADER, name))
    assert isinstance(scheme, Header)
    assert scheme.field(b"Basic made-up") == name.encode() + b": Basic made-up\r\n"
    assert scheme.replaces == name.lower().encode()


def test_none_writes_and_replaces_nothing() -> None:
    scheme = scheme_of(connection(AuthType.NONE))
    assert isinstance(scheme, Nothing)
    assert scheme.field(b"made-up") == b""
    assert scheme.replaces == b""


@pytest.mark.parametrize("auth_type", [AuthType.BEARER, AuthType.HEADER])
def test_what_a_scheme_writes_is_what_it_replaces(auth_type: AuthType) -> None:
    scheme = scheme_of(connection(auth_type, "X-Token"))
    line = scheme.field(b"made-up")
    assert line.partition(b":")[0].lower() == scheme.replaces
    assert line.endswith(b"\r\n")
    assert line.count(b"\r\n") == 1
