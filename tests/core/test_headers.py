from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from keystile.core.decide import Forward, Turned
from keystile.core.headers import (
    HOP_BY_HOP,
    banned,
    banned_from_client,
    control_head,
    from_control,
    named_by_connection,
    opening,
    passing,
    scrubbed,
)
from keystile.core.http1 import read_answer, read_request
from keystile.core.target import Target, parse_target
from keystile.model import AuthType
from tests.core.courtroom import CALL, CREDENTIAL, OURS, THEIRS, Court, code, fields_of, parsed, request

COURT = Court()
KEY = COURT.key(OURS)
FOREIGN_KEY = COURT.key(THEIRS)
FORWARDED = ("X-MCP-Toolsets", "x-team")
FIXED = {"X-Fixed": "ours", "X-Region": "eu"}
CONNECTIONS = {
    "bearer": COURT.connect(slug="bearer", headers=FIXED, forward_headers=FORWARDED),
    "header": COURT.connect(
        slug="header",
        auth_type=AuthType.HEADER,
        auth_header_name="X-Upstream-Token",
        headers=FIXED,
        forward_headers=FORWARDED,
    ),
    "raw": COURT.connect(
        slug="raw",
        auth_type=AuthType.HEADER,
        auth_header_name="Authorization",
        headers=FIXED,
        forward_headers=FORWARDED,
    ),
    "open": COURT.connect(slug="open", auth_type=AuthType.NONE, headers=FIXED, forward_headers=FORWARDED),
}
PLACES = {"bearer": b"authorization", "header": b"x-upstream-token", "raw": b"authorization", "open": None}
OURSELVES = [
    (b"host", b"mcp.example"),
    (b"user-agent", COURT.registry.mark),
    (b"accept-encoding", b"identity"),
    (b"x-fixed", b"ours"),
    (b"x-region", b"eu"),
]
NEVER = frozenset(
    b"cookie x-api-key forwarded origin referer via connection keep-alive te trailer transfer-encoding upgrade "
    b"proxy-authorization proxy-connection proxy-authenticate expect content-encoding x-forwarded-for "
    b"x-forwarded-host x-forwarded-proto x-real-ip x-original-url x-http-method-override x-keystile-user "
    b"x-keystile-trace-id x-keystile-metadata x-keystile-anything x-igris-user x-igris-trace-id "
    b"x-igris-metadata".split()
)
KNOWN = frozenset(
    b"accept content-type last-event-id traceparent tracestate x-mcp-toolsets x-team mcp-method mcp-name "
    b"mcp-protocol-version".split()
)

names = st.one_of(
    st.sampled_from(
        sorted(
            NEVER
            | KNOWN
            | set(PLACES.values()) - {None}
            | {b"mcp-session-id", b"mcp-session_id", b"mcp_session_id", b"mcp-session.id", b"mcp-param-user_id"}
            | {b"x_upstream_token", b"x-fixed", b"x-region", b"host2", b"content-length", b"user-agent", b"range"}
            | {b"authorization", b"mcp-unheard-of", b"accept-language", b"x-anything"}
        )
    ),
    st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True),
    st.from_regex(rb"[Mm]cp-[!#$%&'*+.^_`|~0-9A-Za-z-]{1,16}", fullmatch=True),
)
secrets = (KEY, KEY.lower(), KEY.upper(), f"Bearer {KEY}", f"x{KEY}x", FOREIGN_KEY)
values = st.one_of(
    st.from_regex(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]{0,30}[\x21-\x7e\x80-\xff])?)?", fullmatch=True),
    st.sampled_from(
        [b"close", b"keep-alive, mcp-name", b"Keep-Alive", b"accept , X-Team", b"2026-07-28", b"2025-06-18"]
    ),
    st.sampled_from([secret.encode() for secret in secrets]),
    st.just(b"trailers"),
)


@st.composite
def oddly_cased(draw: st.DrawFn) -> bytes:
    name = draw(names)
    return bytes(draw(st.sampled_from((each, each ^ 0x20))) if chr(each).isalpha() else each for each in name)


lines = st.lists(st.tuples(oddly_cased(), values).map(lambda pair: pair[0] + b": " + pair[1]), max_size=8)


def passes(name: bytes) -> bool:
    """The allow-list, told a second time."""
    if name in KNOWN or (name.startswith(b"mcp-param-") and len(name) > len(b"mcp-param-")):
        return True
    rest = name.removeprefix(b"mcp-")
    return name != rest != b"session-id" and re.fullmatch(rb"[a-z0-9-]+", rest) is not None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(lines, st.sampled_from(sorted(CONNECTIONS)), st.sampled_from([b"POST", b"GET", b"DELETE"]))
def test_an_upstream_head_holds_what_is_allowed_and_nothing_else(extra: list[bytes], slug: str, method: bytes) -> None:
    content = [] if method != b"POST" else [b"content-type: application/json"]
    raw = b"\r\n".join(
        [
            b"%b /v1/mcp/%b?x=%b HTTP/1.1" % (method, slug.encode(), KEY.encode()),
            b"Host: gate.example",
            b"X-API-Key: " + KEY.encode(),
            *content,
            *extra,
        ]
    )
    read = read_request(raw + b"\r\n\r\n", 65536, 128)
    assume(isinstance(read, tuple))
    head = read[0]
    found = COURT.judge(head)
    event(code(found))
    if isinstance(found, Turned):
        assert KEY not in repr(found)
        return
    upstream = parsed(found.head)
    assert (upstream.method, upstream.target) == (method, b"/mcp?tenant=1")
    assert upstream.length == (len(CALL) if method == b"POST" else None)
    assert not upstream.chunked

    hop = {
        option.strip().lower() for name, value in head.fields if name == b"connection" for option in value.split(b",")
    }
    place = PLACES[slug]
    written = {place, b"x-fixed", b"x-region"}
    expected = OURSELVES + [
        (name, value)
        for name, value in head.fields
        if passes(name) and name not in hop | written and not (found.admitted.stateless and name == b"last-event-id")
    ]
    if method == b"POST":
        expected.append((b"content-length", b"%d" % len(CALL)))
    if place is not None:
        expected.append((place, (b"Bearer " if slug == "bearer" else b"") + CREDENTIAL.encode()))
    assert list(upstream.fields) == expected

    assert not NEVER & {name for name, _ in upstream.fields}
    assert found.head.count(CREDENTIAL.encode()) == (place is not None)
    assert KEY.encode() not in found.head
    assert FOREIGN_KEY.encode() not in found.head
    assert not any(KEY.lower().encode() in name for name, _ in upstream.fields)


@pytest.mark.parametrize("slug", sorted(CONNECTIONS))
def test_what_clients_send_in_earnest_arrives_once_and_in_order(slug: str) -> None:
    head = request(
        slug,
        KEY,
        b"Accept: application/json, text/event-stream",
        b"MCP-Protocol-Version: 2026-07-28",
        b"Mcp-Method: tools/call",
        b"Mcp-Name: echo",
        b"Mcp-Param-user_id: 7",
        b"X-MCP-Toolsets: issues",
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"Accept-Encoding: gzip, br",
        b"Cookie: session=1",
        b"Origin: https://app.example",
        b"X-Forwarded-For: 10.0.0.1",
        b"X-Upstream-Token: the-clients",
        b"x-fixed: the-clients",
        b"Connection: keep-alive",
    )
    found = COURT.judge(head)
    assert isinstance(found, Forward), found
    sent = fields_of(found)
    assert [name for name, _ in sent[5:]] == [
        b"content-type",
        b"accept",
        b"mcp-protocol-version",
        b"mcp-method",
        b"mcp-name",
        b"mcp-param-user_id",
        b"x-mcp-toolsets",
        b"traceparent",
        b"content-length",
    ] + [place for place in [PLACES[slug]] if place]
    assert b"the-clients" not in found.head


def test_names_listed_in_any_connection_field_do_not_pass() -> None:
    head = request("open", KEY, b"X-Team: blue", b"Connection: close, X-Team", b"Connection: keep-alive")
    found = COURT.judge(head)
    assert isinstance(found, Forward)
    assert b"x-team" not in dict(fields_of(found))


@pytest.mark.parametrize(
    "name", [b"Mcp-Session_Id", b"Mcp-Session.Id", b"mcp-session~id", b"Mcp_Session_Id", b"MCP-Protocol_Version"]
)
def test_what_a_cgi_server_would_read_as_a_session_id_does_not_pass(name: bytes) -> None:
    found = COURT.judge(request("open", KEY, name + b": somebody-elses"))
    assert isinstance(found, Forward)
    assert b"somebody-elses" not in found.head


@pytest.mark.parametrize("name", [b"mcp-param-" + KEY.encode(), b"Mcp-Param-x-" + KEY.upper().encode()])
def test_a_key_shown_as_a_field_name_is_refused(name: bytes) -> None:
    assert code(COURT.judge(request("open", KEY, name + b": 1"))) == "key_repeated"


def test_an_unverified_session_id_never_passes_even_where_a_row_was_tampered_with() -> None:
    court = Court()
    key = court.key()
    court.connect(slug="upstream", auth_type=AuthType.NONE, forward_headers=("Mcp-Session-Id",))
    found = court.judge(request("upstream", key, b"MCP-Protocol-Version: 2026-07-28", b"Mcp-Session-Id: foreign"))
    assert isinstance(found, Forward)
    assert b"foreign" not in found.head


# What the operator may name

HOP = ["Connection", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding", "Upgrade"]
OF_THE_ISSUE = ["Host", "Content-Type", "Content-Length", "Content-Encoding", "Accept", "Accept-Encoding", "Cookie"]
OF_THE_ISSUE += ["Mcp-Session-Id", "Mcp-Method", "MCP-Protocol-Version", "Mcp-Param-X", "X-Keystile-User"]
OURS_TOO = ["Proxy-Authorization", "X-Igris-User", "X-Forwarded-For", "X-Forwarded", "Forwarded", "Origin", "Expect"]
OURS_TOO += ["Set-Cookie", "Last-Event-ID", "User-Agent", "traceparent", "tracestate", "Via", "Referer", "X-Real-IP"]
OURS_TOO += ["X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "HTTP2-Settings", "Sec-Fetch-Site", "Cookie2"]


@pytest.mark.parametrize("name", HOP + OF_THE_ISSUE + OURS_TOO)
def test_a_name_the_gateway_writes_itself_is_banned_however_it_is_spelt(name: str) -> None:
    for spelling in (name, name.lower(), name.upper(), name.replace("-", "_")):
        assert banned(spelling)
        assert banned_from_client(spelling)


@pytest.mark.parametrize(
    "name", ["", "a b", "x:y", "x\r\ny", "x\n", "naïve", "x\0", "(x)", "x/y", "\u212aey", "\udc80"]
)
def test_what_is_no_token_is_banned(name: str) -> None:
    assert banned(name)
    assert banned_from_client(name)


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "X_API_KEY", "authorization"])
def test_callers_secrets_may_be_replaced_but_not_forwarded(name: str) -> None:
    assert banned(name) is None  # as authHeaderName: the credential goes there
    assert banned_from_client(name)


@pytest.mark.parametrize("name", ["X-MCP-Toolsets", "PRIVATE-TOKEN", "X-Vault-Token", "DD-API-KEY", "api_key", "X-Amz"])
def test_names_that_services_really_use_are_free(name: str) -> None:
    assert banned(name) is None
    assert banned_from_client(name) is None


@given(st.text(max_size=30))
def test_the_ban_never_raises_and_what_is_free_is_a_line_of_its_own(name: str) -> None:
    if banned(name) is None:
        raw = b"GET / HTTP/1.1\r\nhost: x\r\n" + name.encode("ascii") + b": 1\r\n\r\n"
        assert len(parsed(raw).fields) == 2


# Answers

STRIPPED = [
    *HOP,
    "Proxy-Authenticate",
    "Set-Cookie",
    "Set-Cookie2",
    "WWW-Authenticate",
    "Location",
    "Alt-Svc",
    "Server",
]
STRIPPED += ["X-Powered-By", "Strict-Transport-Security", "Access-Control-Allow-Origin", "Clear-Site-Data", "Refresh"]
STRIPPED += ["Access-Control-Expose-Headers", "Access-Control-Allow-Credentials", "Content-Length", "Via", "NEL"]
STRIPPED += [
    "Mcp-Session-Id",
    "X-Keystile-Trace-Id",
    "X-Igris-User",
    "X-Accel-Redirect",
    "Report-To",
    "Content-Location",
]
KEPT = ["Content-Type", "Mcp-Protocol-Version", "Mcp-Anything", "Cache-Control", "Retry-After", "Date", "ETag", "Allow"]
KEPT += ["X-RateLimit-Remaining", "Content-Language", "Vary"]


@pytest.mark.parametrize("name", STRIPPED)
def test_an_answer_loses_what_is_the_upstreams_own(name: str) -> None:
    for spelling in (name, name.lower(), name.upper()):
        assert scrubbed(answer((spelling.encode(), b"close"))) == []


@pytest.mark.parametrize("name", KEPT)
def test_an_answer_keeps_what_is_the_clients(name: str) -> None:
    assert scrubbed(answer((name.encode(), b"5"))) == [name.lower().encode() + b": 5"]


def test_an_answer_loses_what_its_connection_fields_list() -> None:
    fields = answer((b"X-Hop", b"1"), (b"Connection", b"close, X-HOP"), (b"connection", b"x-two"), (b"X-Two", b"2"))
    assert scrubbed(fields) == []


@given(st.lists(st.tuples(oddly_cased(), values), max_size=10))
def test_a_scrubbed_answer_parses_and_invents_nothing(pairs: list[tuple[bytes, bytes]]) -> None:
    raw = b"HTTP/1.1 200 OK\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in pairs) + b"\r\n"
    read = read_answer(raw, 65536, 128)
    assume(isinstance(read, tuple))
    kept = scrubbed(read[0].fields)
    again = read_answer(b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in kept) + b"\r\n", 65536, 128)
    assert isinstance(again, tuple)
    assert [name + b": " + value for name, value in again[0].fields] == kept
    left = {name for name, _ in again[0].fields}
    assert not left & (HOP_BY_HOP | {b"set-cookie", b"location", b"server", b"mcp-session-id", b"content-length"})
    assert not left & named_by_connection(read[0].fields)


def answer(*pairs: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Fields as `read_answer` gives them: names in lower case."""
    return [(name.lower(), value) for name, value in pairs]


# The fixed part, and the control process


def test_the_opening_names_the_upstream_and_ourselves() -> None:
    target = parse_target("http://[::1]:8000/mcp")
    assert isinstance(target, Target)
    assert opening(target, {"X-Fixed": "1"}, b"us") == (
        b" /mcp HTTP/1.1\r\nhost: [::1]:8000\r\nuser-agent: us\r\naccept-encoding: identity\r\nX-Fixed: 1\r\n"
    )


def test_passing_drops_what_is_replaced_and_the_resumption_of_stateless_versions() -> None:
    fields = [(b"accept", b"*/*"), (b"x-a", b"1"), (b"last-event-id", b"9")]
    assert passing(fields, frozenset({b"x-a"}), frozenset(), stateless=False) == [
        b"accept: */*",
        b"x-a: 1",
        b"last-event-id: 9",
    ]
    assert passing(fields, frozenset({b"x-a"}), frozenset({b"x-a"}), stateless=True) == [b"accept: */*"]


@pytest.mark.parametrize("name", [b"mcp-session-id", b"mcp-session_id", b"mcp-", b"mcp", b"x-mcp-a"])
def test_a_session_id_and_what_only_resembles_the_family_is_not_passed(name: bytes) -> None:
    assert passing([(name, b"1")], frozenset(), frozenset(), stateless=False) == []


def test_the_control_process_gets_our_word_on_forwarding_and_nobody_elses() -> None:
    head = parsed(
        b"POST /api/v1/keys?a=1 HTTP/1.1\r\nHost: gate.example\r\nX-Forwarded-For: 1.2.3.4\r\n"
        b"Forwarded: for=1.2.3.4\r\nX-Forwarded-Proto: https\r\nAuthorization: Bearer made-up\r\nCookie: a=b\r\n"
        b"Connection: close, X-Hop\r\nX-Hop: 1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    sent = parsed(control_head(head, 5, "192.0.2.1"))
    assert sent.target == b"/api/v1/keys?a=1"
    assert list(sent.fields) == [
        (b"host", b"gate.example"),
        (b"authorization", b"Bearer made-up"),
        (b"cookie", b"a=b"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-forwarded-host", b"gate.example"),
        (b"x-forwarded-proto", b"http"),
        (b"content-length", b"5"),
    ]


def test_the_control_processes_answer_keeps_its_cookies_and_loses_its_framing() -> None:
    fields = [(b"set-cookie", b"a=b"), (b"content-length", b"5"), (b"connection", b"close"), (b"etag", b"1")]
    assert from_control(fields) == [b"set-cookie: a=b", b"etag: 1"]
