from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.core.decide import STATELESS_SINCE, Admitted, Forward, Place, Turned, admissible, place, standing
from keystile.core.http1 import read_request
from keystile.core.session import Holder
from keystile.errors import REFUSALS
from keystile.model import ApiKey, AuthType, Dropped, Published, Role
from tests.core.courtroom import (
    CALL,
    CREDENTIAL,
    NOW,
    OURS,
    SHAPE,
    THEIRS,
    Court,
    a_connection,
    a_key,
    a_row,
    code,
    fields_of,
    parsed,
    published,
    request,
)

COURT = Court()
KEY = COURT.key()
UPSTREAM = COURT.connect(slug="upstream")
NEIGHBOURS = COURT.connect(THEIRS, slug="neighbours")
UNREADABLE = a_connection(90, slug="unreadable")
COURT.registry.apply(Published(connection=UNREADABLE, sealed=bytes(60)))
COURT.registry.apply(Published(connection=a_connection(91, slug="spoilt", upstream_url="no url")))
NOBODYS = a_key(999)


# Places


@pytest.mark.parametrize(
    ("target", "where", "slug"),
    [
        ("/v1/mcp/abc", Place.ENDPOINT, "abc"),
        ("/v1/mcp/a-b_9?key=ks_&x=/y", Place.ENDPOINT, "a-b_9"),
        (f"/v1/mcp/{'a' * 64}", Place.ENDPOINT, "a" * 64),
        (f"/v1/mcp/{'a' * 65}", Place.NOWHERE, None),
        ("/v1/mcp/ab", Place.NOWHERE, None),
        ("/v1/mcp/ABC", Place.NOWHERE, None),
        ("/v1/mcp/-abc", Place.NOWHERE, None),
        ("/v1/mcp/%61bc", Place.NOWHERE, None),
        ("/v1/mcp/abc%2f", Place.NOWHERE, None),
        ("/v1/mcp/abc;x", Place.NOWHERE, None),
        ("/v1/mcp/", Place.NOWHERE, None),
        ("/v1/mcp", Place.NOWHERE, None),
        ("/v1/mcp/abc/", Place.NOWHERE, "abc"),
        ("/v1/mcp/abc/.well-known/openid-configuration", Place.NOWHERE, "abc"),
        ("/v1/mcp/abc/../other", Place.NOWHERE, "abc"),
        ("/v1/mcp/../mcp/abc", Place.NOWHERE, None),
        ("/s/abc/mcp", Place.NOWHERE, None),
        ("/.well-known/oauth-protected-resource/v1/mcp/abc", Place.NOWHERE, None),
        ("/healthz", Place.HEALTH, None),
        ("/healthz?x", Place.HEALTH, None),
        ("/readyz", Place.READY, None),
        ("/healthz/", Place.CONTROL, None),
        ("/", Place.CONTROL, None),
        ("/api/v1/keys", Place.CONTROL, None),
        ("/x/v1/mcp/abc", Place.CONTROL, None),
        ("/V1/MCP/abc", Place.CONTROL, None),
    ],
)
def test_a_path_leads_to_one_place_and_none_is_decoded(target: str, where: Place, slug: str | None) -> None:
    assert place(target.encode()) == (where, None if slug is None else slug.encode())


@given(st.binary(max_size=80))
def test_only_the_exact_path_of_an_endpoint_is_one(noise: bytes) -> None:
    for target in (noise, b"/v1/mcp/" + noise, b"/v1/mcp/abc" + noise):
        where, slug = place(target)
        path = target.split(b"?")[0]
        assert (where is Place.ENDPOINT) == (slug is not None and path == b"/v1/mcp/" + slug)


# Shape


def hosted(host: bytes) -> str:
    return code(COURT.judge(request("upstream", KEY, host=host)))


@pytest.mark.parametrize("host", [b"gate.example", b"GATE.Example:8080", b"localhost:1", b"[::1]", b"[::1]:8080"])
def test_our_own_names_are_served_whatever_the_port(host: bytes) -> None:
    assert hosted(host) == "forwarded"


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"",
        b"gate.example.evil.example",
        b"gate.example.",
        b"xgate.example",
        b"gate.example:",
        b"::1",
        b"gate.example:80:80",
        b"gate.example:999999",
        b"evil@gate.example",
        b"127.0.0.1",
        b"[::2]",
        b"gate%2eexample",
    ],
)
def test_another_host_is_misdirected(host: bytes) -> None:
    raw = b"GET /v1/mcp/upstream HTTP/1.1\r\nhost: " + host + b"\r\nx-api-key: " + KEY.encode() + b"\r\n\r\n"
    read = read_request(raw, 32768, 128)
    if isinstance(read, tuple):
        assert code(COURT.judge(read[0])) == "host_not_allowed"
    else:
        assert read == REFUSALS["malformed_http"]


def test_a_request_without_a_host_is_misdirected() -> None:
    head = parsed(b"GET /v1/mcp/upstream HTTP/1.0\r\nx-api-key: " + KEY.encode() + b"\r\n\r\n")
    assert code(COURT.judge(head)) == "host_not_allowed"
    assert admissible({}, SHAPE) == REFUSALS["host_not_allowed"]


@pytest.mark.parametrize(
    "origin",
    [
        b"https://app.example",
        b"http://gate.example",
        b"https://gate.example:8443",
        b"http://localhost:3000",
        b"http://[::1]:80",
    ],
)
def test_pages_of_our_own_hosts_and_of_listed_origins_may_call(origin: bytes) -> None:
    found = COURT.judge(request("upstream", KEY, b"Origin: " + origin))
    assert isinstance(found, Forward)
    assert b"origin" not in dict(fields_of(found))


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"",
        b"*",
        b"https://evil.example",
        b"http://app.example",
        b"https://app.example:444",
        b"gate.example",
        b"https://gate.example.evil.example",
        b"file://gate.example",
        b"https://gate.example/",
        b"https://x@gate.example",
        b"https://gate.example https://evil.example",
        b"chrome-extension://gate.example",
    ],
)
def test_pages_of_other_origins_may_not_call(origin: bytes) -> None:
    assert code(COURT.judge(request("upstream", KEY, b"Origin: " + origin))) == "origin_not_allowed"


def test_a_second_origin_does_not_hide_behind_a_good_one() -> None:
    for pair in ((b"https://app.example", b"https://evil.example"), (b"https://evil.example", b"https://app.example")):
        found = COURT.judge(request("upstream", KEY, *(b"Origin: " + origin for origin in pair)))
        assert isinstance(found, Turned)


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/json",
        b"Application/JSON",
        b"application/json; charset=utf-8",
        b"application/json;charset=UTF-8",
        b'application/json ; charset="utf-8"',
        b"application/json; profile=mcp; charset=utf-8",
        b"application/json;",
    ],
)
def test_json_in_utf_8_is_the_one_media_type(content_type: bytes) -> None:
    assert code(COURT.judge(request("upstream", KEY, b"Content-Type: " + content_type))) == "forwarded"


@pytest.mark.parametrize(
    "content_type",
    [
        b"",
        b"text/plain",
        b"application/jsonp",
        b"application/json-rpc",
        b"application/json, text/plain",
        b"json",
        b"application/json; charset=utf-7",
        b"application/json; charset=utf-16",
        b"application/json;charset=latin1",
        b"application/json; charset=utf-8; charset=utf-7",
        b'application/json; charset="utf-7"',
        b"application/json; charset*=utf-7''x",
        b'application/json; a=";charset=utf-7"',
        b"application/json; charset",
        b"application/json; CHARSET=UTF-7",
        b"application/json charset=utf-7",
        b"multipart/form-data; a=application/json",
    ],
)
def test_other_media_types_and_charsets_are_refused(content_type: bytes) -> None:
    # UTF-7 spells other JSON in the same bytes, and servers that obey the charset would act on that.
    head = request("upstream", KEY, b"Content-Type: " + content_type)
    assert code(COURT.judge(head)) == "media_type_unsupported"


@pytest.mark.parametrize("coding", [b"gzip", b"identity", b""])
def test_an_encoded_body_is_refused(coding: bytes) -> None:
    assert code(COURT.judge(request("upstream", KEY, b"Content-Encoding: " + coding))) == "media_type_unsupported"


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
def test_three_methods_pass_as_they_are(method: bytes) -> None:
    found = COURT.judge(request("upstream", KEY, method=method))
    assert isinstance(found, Forward)
    assert found.head.startswith(method + b" /mcp?tenant=1 HTTP/1.1\r\n")


@pytest.mark.parametrize("method", [b"PUT", b"PATCH", b"HEAD", b"OPTIONS", b"TRACE", b"QUERY"])
def test_other_methods_are_refused_whoever_asks(method: bytes) -> None:
    for key in (KEY, NOBODYS, None):
        assert code(COURT.judge(request("upstream", key, method=method))) == "method_not_allowed"


@pytest.mark.parametrize("name", [b"Authorization", b"AUTHORIZATION"])
def test_a_doubled_key_field_is_refused_even_with_equal_values(name: bytes) -> None:
    line = name + b": Bearer " + KEY.encode()
    assert code(COURT.judge(request("upstream", None, line, line))) == "key_doubled"
    assert code(COURT.judge(request("upstream", KEY, line))) == "key_doubled"


def test_a_doubled_x_api_key_is_refused() -> None:
    line = b"X-Api-Key: " + KEY.encode()
    assert code(COURT.judge(request("upstream", None, line, line))) == "key_doubled"
    assert code(COURT.judge(request("upstream", KEY, line))) == "forwarded"  # one of each is no doubling


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Type",
        b"Last-Event-ID",
        b"Mcp-Method",
        b"Mcp-Name",
        b"MCP-Protocol-Version",
        b"Mcp-Session-Id",
        b"X-Keystile-User",
        b"X-Keystile-Trace-Id",
        b"X-Keystile-Metadata",
        b"X-Igris-User",
        b"X-Igris-Trace-Id",
        b"X-Igris-Metadata",
        b"Content-Encoding",
    ],
)
def test_a_field_that_decides_something_may_not_be_doubled(name: bytes) -> None:
    head = request("upstream", KEY, name + b": application/json", name.lower() + b": application/json")
    assert code(COURT.judge(head)) == "field_doubled"


def test_lists_may_come_in_several_fields() -> None:
    found = COURT.judge(request("upstream", KEY, b"Accept: application/json", b"Accept: text/event-stream"))
    assert isinstance(found, Forward)
    assert [value for name, value in fields_of(found) if name == b"accept"] == [
        b"application/json",
        b"text/event-stream",
    ]


# The order of the checks: a request that fails all of them fails them one after the other

FAULTS = [
    ("host_not_allowed", (b"host", b"evil.example"), (b"host", b"gate.example")),
    ("origin_not_allowed", (b"origin", b"null"), None),
    ("method_not_allowed", (b"method", b"PUT"), (b"method", b"POST")),
    ("key_doubled", (b"x-api-key", NOBODYS.encode()), None),
    ("field_doubled", (b"mcp-name", b"x"), None),
    ("media_type_unsupported", (b"content-encoding", b"gzip"), None),
    ("key_repeated", (b"mcp-protocol-version", NOBODYS.encode()), None),
]


def test_shape_is_judged_before_anything_else_host_first() -> None:
    wrong = {fault: bad for fault, bad, _ in FAULTS}
    for expected, _, good in FAULTS:
        chosen = dict(wrong.values())
        lines = [chosen.pop(b"method") + b" /v1/mcp/absent HTTP/1.1"]
        for name, value in chosen.items():
            lines += [name + b": " + value] * (2 if name in {b"x-api-key", b"mcp-name"} else 1)
        lines.append(b"content-type: application/json")
        assert code(COURT.admit(parsed(b"\r\n".join(lines) + b"\r\n\r\n"))) == expected
        del wrong[expected]
        if good is not None:
            wrong[expected] = good


@pytest.mark.parametrize("slug", ["upstream", "absent", "neighbours", "unreadable"])
def test_who_calls_is_asked_before_what_is_there(slug: str) -> None:
    assert code(COURT.judge(request(slug, None))) == "key_missing"
    assert code(COURT.judge(request(slug, NOBODYS))) == "key_invalid"
    expired = COURT.key(expires_at=NOW)
    assert code(COURT.judge(request(slug, expired))) == "key_expired"


def test_another_organizations_slug_is_like_an_absent_one() -> None:
    absent = COURT.judge(request("absent", KEY))
    theirs = COURT.judge(request("neighbours", KEY))
    assert absent == theirs
    assert isinstance(theirs, Turned)
    assert theirs.refusal == REFUSALS["connection_unknown"]
    assert theirs.connection is None  # nor does our trail say that it exists


@pytest.mark.parametrize("role", Role)
def test_role_scope_and_switch_are_judged_in_this_order(role: Role) -> None:
    court = Court()
    key = court.key(role=role, connections=())
    court.connect(slug="upstream", enabled=False)
    expected = "role_cannot_call" if role is Role.AUDITOR else "out_of_scope"
    assert code(court.judge(request("upstream", key, b"X-Keystile-User: \t"))) == expected


@pytest.mark.parametrize(
    ("role", "scoped", "own", "expected"),
    [
        *((role, None, False, "forwarded") for role in (Role.CLIENT, Role.ADMIN, Role.OWNER)),
        *((role, True, False, "forwarded") for role in (Role.CLIENT, Role.ADMIN, Role.OWNER, Role.DEVELOPER)),
        *((role, False, False, "out_of_scope") for role in (Role.CLIENT, Role.ADMIN, Role.OWNER, Role.DEVELOPER)),
        *((Role.DEVELOPER, scoped, True, "forwarded") for scoped in (None, True, False)),
        (Role.DEVELOPER, None, False, "out_of_scope"),
        *((Role.AUDITOR, scoped, own, "role_cannot_call") for scoped in (None, True, False) for own in (True, False)),
    ],
)
def test_roles_and_scopes(role: Role, scoped: bool | None, own: bool, expected: str) -> None:  # noqa: FBT001 — columns
    court = Court()
    key = court.key(role=role)
    row = court.row_of(key)
    connection = court.connect(slug="upstream", created_by=row.id if own else "somebody")
    scope = None if scoped is None else (connection.id,) if scoped else ("another",)
    court.registry.apply(msgspec.structs.replace(row, connections=scope))
    assert code(court.judge(request("upstream", key))) == expected


def test_a_disabled_connection_is_refused_before_the_callers_context_is_read() -> None:
    court = Court()
    key = court.key(pinned_user="ada")
    court.connect(slug="upstream", enabled=False)
    assert code(court.judge(request("upstream", key, b"X-Keystile-User: eve"))) == "connection_disabled"


def test_a_malformed_context_is_refused_before_the_session_is_looked_at() -> None:
    for line, expected in (
        (b"X-Keystile-User: " + b"x" * 300, "user_malformed"),
        (b"X-Keystile-Trace-Id: a b", "trace_id_malformed"),
        (b"X-Keystile-Metadata: []", "metadata_malformed"),
    ):
        assert code(COURT.judge(request("upstream", KEY, line, b"Mcp-Session-Id: forged"))) == expected


def test_a_pinned_key_calls_for_its_user_only() -> None:
    court = Court()
    key = court.key(pinned_user="ada")
    court.connect(slug="upstream")
    assert code(court.judge(request("upstream", key, b"X-Keystile-User: eve"))) == "user_mismatch"
    assert code(court.judge(request("upstream", key, b"X-Igris-User: eve"))) == "user_mismatch"
    found = court.admit(request("upstream", key))
    assert isinstance(found, Admitted)
    assert found.context.user == "ada"


def test_a_refusal_carries_what_was_known_when_it_fell() -> None:
    unknown = COURT.judge(request("upstream", NOBODYS, b"X-Keystile-User: eve"))
    assert isinstance(unknown, Turned)
    assert (unknown.connection, unknown.key, unknown.context) == (UPSTREAM, None, None)
    mismatched = COURT.judge(request("upstream", KEY, b"X-Keystile-User: eve", b"Mcp-Name: other"))
    assert isinstance(mismatched, Turned)
    assert mismatched.refusal == REFUSALS["header_mismatch"]
    assert mismatched.context is not None
    assert (mismatched.connection, mismatched.key, mismatched.context.user) == (UPSTREAM, COURT.row_of(KEY), "eve")
    assert mismatched.id == b"7"


def test_without_a_key_a_slug_that_two_organizations_share_names_no_connection() -> None:
    court = Court()
    court.connect(OURS, slug="upstream")
    court.connect(THEIRS, slug="upstream")
    found = court.judge(request("upstream", NOBODYS))
    assert isinstance(found, Turned)
    assert found.connection is None


def test_standing_is_asked_again_of_what_is_open() -> None:
    row = COURT.row_of(KEY)
    assert standing(row, UPSTREAM) is None
    assert standing(row, None) == REFUSALS["connection_unknown"]
    assert standing(row, NEIGHBOURS) == REFUSALS["out_of_scope"]
    assert standing(row, msgspec.structs.replace(UPSTREAM, enabled=False)) == REFUSALS["connection_disabled"]
    assert standing(a_row(1, connections=()), UPSTREAM) == REFUSALS["out_of_scope"]
    assert standing(a_row(1, role=Role.AUDITOR), UPSTREAM) == REFUSALS["role_cannot_call"]


# Sessions


def wrapped(key: str = KEY, connection: str = UPSTREAM.id, origin: str = "https://mcp.example:443") -> bytes:
    row = COURT.row_of(key)
    signed = Holder(COURT.registry.ring, row.organization, connection, row.id, origin).sign(b"upstream-session")
    assert signed is not None
    return signed


SECOND = COURT.key()
SESSIONFUL = [None, b"2024-11-05", b"2025-03-26", b"2025-06-18", b"2025-11-25", b"2026-07-27", b""]
UNDATED = [b"zzzz", b"2026-07-28-draft", b"2026-7-28", b"9999", b"v3", b"2026-07-281", b"draft"]
STATELESS = [b"2026-07-28", b"2026-07-29", b"2027-01-01", b"9999-12-31"]


def versioned(version: bytes | None) -> list[bytes]:
    return [] if version is None else [b"MCP-Protocol-Version: " + version]


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
@pytest.mark.parametrize("version", [*SESSIONFUL, *UNDATED])
def test_a_callers_own_session_goes_upstream_unwrapped(version: bytes | None, method: bytes) -> None:
    head = request(
        "upstream", KEY, *versioned(version), b"Mcp-Session-Id: " + wrapped(), b"Last-Event-ID: 5", method=method
    )
    found = COURT.judge(head)
    assert isinstance(found, Forward)
    sent = fields_of(found)
    assert [value for name, value in sent if name == b"mcp-session-id"] == [b"upstream-session"]
    assert dict(sent)[b"last-event-id"] == b"5"


@pytest.mark.parametrize("method", [b"POST", b"GET", b"DELETE"])
@pytest.mark.parametrize("version", [*SESSIONFUL, *UNDATED])
def test_a_foreign_or_forged_session_is_unknown(version: bytes | None, method: bytes) -> None:
    foreign = [
        wrapped(SECOND),
        wrapped(connection=NEIGHBOURS.id),
        wrapped(origin="https://old.example:443"),
        b"upstream-session",
        wrapped()[:-1],
        wrapped() + b"x",
        b"",
        b"1.." + wrapped(),
    ]
    for session in foreign:
        for more in ((), (b"Last-Event-ID: 5",)):
            head = request("upstream", KEY, *versioned(version), b"Mcp-Session-Id: " + session, *more, method=method)
            assert code(COURT.judge(head)) == "session_unknown"


@pytest.mark.parametrize("version", [*SESSIONFUL, *UNDATED])
def test_nothing_is_resumed_without_a_session(version: bytes | None) -> None:
    for event_id in (b"5", b""):
        head = request("upstream", KEY, *versioned(version), b"Last-Event-ID: " + event_id, method=b"GET")
        assert code(COURT.judge(head)) == "resume_without_session"


@pytest.mark.parametrize("version", STATELESS)
@pytest.mark.parametrize("session", [b"forged", wrapped()])
def test_versions_without_sessions_drop_both_fields(version: bytes, session: bytes) -> None:
    head = request("upstream", KEY, *versioned(version), b"Mcp-Session-Id: " + session, b"Last-Event-ID: 5")
    found = COURT.judge(head)
    assert isinstance(found, Forward)
    assert not {b"mcp-session-id", b"last-event-id"} & dict(fields_of(found)).keys()
    assert dict(fields_of(found))[b"mcp-protocol-version"] == version


@given(st.from_regex(rb"[\x21-\x7e]{0,12}", fullmatch=True), st.booleans())
def test_whatever_the_version_says_no_unverified_id_goes_upstream(version: bytes, resumes: bool) -> None:  # noqa: FBT001
    lines = [b"MCP-Protocol-Version: " + version, b"Mcp-Session-Id: upstream-session"]
    if resumes:
        lines.append(b"Last-Event-ID: event-of-another")
    found = COURT.judge(request("upstream", KEY, *lines))
    if isinstance(found, Forward):
        assert version >= STATELESS_SINCE
        assert b"upstream-session" not in found.head
        assert b"event-of-another" not in found.head


# The caller's key: never upstream, never in the trail


def recorded(found: Admitted | Forward | Turned) -> str:
    """Everything of a judgement that `gateway/record.py` may put into an event."""
    admitted = found.admitted if isinstance(found, Forward) else found
    parts: list[object] = [admitted.context]
    if isinstance(admitted, Admitted):
        parts.append(admitted.protocol)
    if not isinstance(found, Admitted):
        parts += [text for each in found.operations for text in (each.method, each.name, each.version)]
    return repr(parts)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in text)


LINES = [
    b"Accept: {key}",
    b"Accept: application/json;q={key}x",
    b"Mcp-Method: {key}",
    b"Mcp-Name: {key}",
    b"Mcp-Param-Token: {key}",
    b"Mcp-Param-{key}: 1",
    b"mcp-x: {key}",
    b"MCP-Protocol-Version: {key}",
    b"MCP-Protocol-Version: 2025-06-18{key}",
    b"X-Keystile-User: {key}",
    b"X-Keystile-Trace-Id: {key}",
    b'X-Keystile-Metadata: {"a":"{key}"}',
    b"X-Igris-User: {key}",
    b"traceparent: {key}",
    b"tracestate: a={key}",
    b"X-Team: {key}",
    b"Last-Event-ID: {key}",
    b"Mcp-Session-Id: {key}",
]
BODIES = [
    '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"{key}"}}',
    '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"token":"{key}"}}}',
    '{"jsonrpc":"2.0","id":1,"method":"{key}"}',
    '{"jsonrpc":"2.0","id":"{key}","method":"ping"}',
    '{"jsonrpc":"2.0","method":"{key}"}',
    '{"jsonrpc":"2.0","id":"{key}","result":{}}',
    '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"{key}"}}',
    '{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"{key}"}}}',
    '[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"prompts/get","params":{"name":"{key}"}}]',
]
SHOWN_AS = [b"Authorization: Bearer {key}", b"x-api-key: {key}"]
BOTH = [
    *SHOWN_AS,
    b"Authorization: Bearer {key}\r\nX-API-KEY: {key}",
    b"Authorization: Basic {key}\r\nx-api-key: {key}",
]
TEAM = COURT.connect(slug="team", forward_headers=("X-Team",))


@pytest.mark.parametrize("shown", BOTH)
def test_the_key_is_taken_off_however_it_was_shown(shown: bytes) -> None:
    found = COURT.judge(request("team", None, shown.replace(b"{key}", KEY.encode())))
    assert isinstance(found, Forward)
    assert KEY.encode() not in found.head
    assert dict(fields_of(found))[b"authorization"] == b"Bearer " + CREDENTIAL.encode()
    assert b"x-api-key" not in dict(fields_of(found))


@pytest.mark.parametrize("shown", SHOWN_AS)
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("which", [KEY, SECOND, NOBODYS])
def test_a_key_repeated_in_a_field_goes_nowhere(line: bytes, which: str, shown: bytes) -> None:
    head = request("team", None, shown.replace(b"{key}", KEY.encode()), line.replace(b"{key}", which.encode()))
    admitted, found = COURT.admit(head), COURT.judge(head)
    assert isinstance(found, Turned)
    assert which not in recorded(admitted)
    assert which not in recorded(found)
    assert which.lower() not in recorded(found).lower()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("which", [KEY, SECOND, NOBODYS])
def test_a_key_repeated_in_a_body_goes_nowhere(body: str, which: str) -> None:
    found = COURT.judge(request("team", KEY), body.replace("{key}", which).encode())
    assert code(found) == "key_repeated"
    assert which not in recorded(found)


@pytest.mark.parametrize("body", BODIES)
def test_a_key_behind_escapes_is_not_recorded(body: str) -> None:
    for spelling in (escaped(KEY), escaped(KEY[0]) + KEY[1:], KEY[:-1] + escaped(KEY[-1])):
        found = COURT.judge(request("team", KEY), body.replace("{key}", spelling).encode())
        assert KEY not in recorded(found)


def test_a_key_in_the_query_is_dropped_with_it() -> None:
    head = parsed(
        b"GET /v1/mcp/team?key=%b HTTP/1.1\r\nhost: localhost\r\nx-api-key: %b\r\n\r\n" % (KEY.encode(), KEY.encode())
    )
    found = COURT.judge(head)
    assert isinstance(found, Forward)
    assert KEY.encode() not in found.head


def test_what_only_looks_like_a_key_passes() -> None:
    mistyped = KEY[:-1] + ("0" if KEY[-1] != "0" else "1")
    found = COURT.judge(request("team", KEY, b"X-Team: " + mistyped.encode()), CALL.replace(b"hi", mistyped.encode()))
    assert isinstance(found, Forward)


def test_no_judgement_shows_a_key_or_a_credential_in_its_repr() -> None:
    head = request("team", KEY, b"x-api-key: " + KEY.encode())
    admitted, found = COURT.admit(head), COURT.judge(head)
    assert isinstance(found, Forward)
    for value in (head, admitted, found, admitted.endpoint, admitted.holder, COURT.judge(request("absent", KEY))):
        assert KEY not in repr(value)
        assert CREDENTIAL not in repr(value)
        assert KEY[10:30] not in repr(value)


# The credential


@pytest.mark.parametrize("slug", ["unreadable", "spoilt"])
def test_a_row_that_does_not_open_is_refused_and_said_to_be_ours_to_mend(slug: str) -> None:
    found = COURT.judge(request(slug, KEY))
    assert isinstance(found, Turned)
    assert found.refusal == REFUSALS["credential_unreadable"]
    assert found.key == COURT.row_of(KEY)
    assert found.connection is not None
    assert found.connection.slug == slug


def test_who_may_not_call_does_not_learn_that_a_credential_is_unreadable() -> None:
    narrowed = COURT.key(connections=())
    assert code(COURT.judge(request("unreadable", narrowed))) == "out_of_scope"


def test_a_rotated_credential_is_the_one_that_goes_out_next() -> None:
    court = Court()
    key = court.key()
    row = court.connect(slug="upstream")
    head = request("upstream", key)
    admitted = court.admit(head)
    assert isinstance(admitted, Admitted)
    court.registry.apply(published(msgspec.structs.replace(row, active_version=2), "made-up-second-credential"))
    found = court.judge(head)
    assert isinstance(found, Forward)
    assert b"made-up-second-credential" in found.head
    assert found.credential == b"made-up-second-credential"


def test_a_connection_without_auth_gets_no_credential() -> None:
    court = Court()
    key = court.key()
    court.connect(slug="upstream", auth_type=AuthType.NONE)
    found = court.judge(request("upstream", key))
    assert isinstance(found, Forward)
    assert found.credential is None
    assert b"authorization" not in dict(fields_of(found))


def test_a_key_revoked_while_the_body_came_is_refused_when_judged_again() -> None:
    court = Court()
    key = court.key()
    court.connect(slug="upstream")
    head = request("upstream", key)
    assert isinstance(court.admit(head), Admitted)
    row: ApiKey = court.row_of(key)
    court.registry.apply(Dropped(kind="key", id=row.id))
    assert code(court.admit(head)) == "key_invalid"


# The message


@pytest.mark.parametrize(
    ("body", "expected", "request_id"),
    [
        (b"", "parse_error", None),
        (b"{", "parse_error", None),
        (b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"other"}}', "header_mismatch", b"7"),
        (b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"echo"}}', "request_id_missing", None),
        (b'{"jsonrpc":"2.0","id":7,"Method":"x","method":"tools/call"}', "message_ambiguous", None),
        (CALL, "forwarded", None),
    ],
)
def test_a_message_is_judged_by_its_body(body: bytes, expected: str, request_id: bytes | None) -> None:
    found = COURT.judge(request("upstream", KEY, b"Mcp-Method: tools/call", b"Mcp-Name: echo"), body)
    assert code(found) == expected
    if isinstance(found, Turned):
        assert found.id == request_id


def test_the_body_of_a_post_is_announced_to_the_byte_and_no_other_method_has_one() -> None:
    for method, expected in ((b"POST", [b"97"]), (b"GET", []), (b"DELETE", [])):
        found = COURT.judge(request("upstream", KEY, method=method))
        assert isinstance(found, Forward)
        assert [value for name, value in fields_of(found) if name == b"content-length"] == expected
    assert len(CALL) == 97
