from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keystile.core import apikey
from keystile.core.registry import Registry, opened, reaches
from keystile.errors import Unreadable
from keystile.model import ApiKey, AuthType, Change, Connection, DataKey, Dropped, Published, Role
from tests.core.courtroom import (
    CREDENTIAL,
    NODE_KEY,
    OURS,
    THEIRS,
    Court,
    a_connection,
    a_key,
    a_row,
    data_key,
    published,
)

organizations = st.sampled_from([OURS, THEIRS])
slugs = st.sampled_from(["alpha", "beta"])
numbers = st.integers(1, 4)


def told(registry: Registry) -> dict[str, object]:
    """Everything a registry answers."""
    return {
        "keys": {number: registry.key(apikey.digest(a_key(number).encode())) for number in range(1, 5)},
        "named": {slug: registry.connection_named(slug) for slug in ("alpha", "beta")},
        "rows": {number: registry.connection(f"connection{number}") for number in range(1, 5)},
        "called": {
            (organization, slug): (endpoint.connection, opened(endpoint, registry.ring), endpoint.opening)
            for organization in (OURS, THEIRS)
            for slug in ("alpha", "beta")
            if (endpoint := registry.endpoint(organization, slug)) is not None
        },
        "repr": repr(registry),
    }


class Folding(RuleBasedStateMachine):
    """Any sequence of changes that the store can bring about, folded, is the registry of the rows that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, ApiKey] = {}
        self.rows: dict[str, Published] = {}
        self.court = Court()

    def put(self, change: Change) -> None:
        self.court.registry.apply(change)

    @rule(number=numbers, organization=organizations, slug=slugs)
    def connect(self, number: int, organization: str, slug: str) -> None:
        connection = a_connection(number, organization, slug=slug)
        taken = {(row.connection.organization, row.connection.slug) for row in self.rows.values()}
        if connection.id not in self.rows and (organization, slug) not in taken:
            self.rows[connection.id] = published(connection)
            self.put(self.rows[connection.id])

    @rule(number=numbers, enabled=st.booleans(), version=st.integers(1, 3), url=st.sampled_from(["one", "two"]))
    def change(self, number: int, enabled: bool, version: int, url: str) -> None:  # noqa: FBT001 — hypothesis names them
        row = self.rows.get(f"connection{number}")
        if row is not None:
            connection = msgspec.structs.replace(
                row.connection, enabled=enabled, active_version=version, upstream_url=f"https://{url}.example/mcp"
            )
            self.rows[connection.id] = published(connection, f"{CREDENTIAL}-{version}")
            self.put(self.rows[connection.id])

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        self.rows.pop(f"connection{number}", None)
        self.put(Dropped(kind="connection", id=f"connection{number}"))

    @rule(number=numbers, organization=organizations, scope=st.none() | st.tuples(st.just("connection1")))
    def mint(self, number: int, organization: str, scope: tuple[str, ...] | None) -> None:
        self.keys[f"key{number}"] = a_row(number, organization, connections=scope)
        self.put(self.keys[f"key{number}"])

    @rule(number=numbers)
    def revoke(self, number: int) -> None:
        self.keys.pop(f"key{number}", None)
        self.put(Dropped(kind="key", id=f"key{number}"))

    @rule(slug=slugs, organization=organizations)
    def look(self, slug: str, organization: str) -> None:
        """A look-up compiles; what it compiled must not outlive the row."""
        self.court.registry.endpoint(organization, slug)

    @invariant()
    def equals_the_registry_of_what_is_left(self) -> None:
        assert told(self.court.registry) == told(Court(*self.rows.values(), *self.keys.values()).registry)


Folding.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestFolding = Folding.TestCase


def test_a_change_touches_its_own_row_and_nothing_else() -> None:
    court = Court()
    rows = [court.connect() for _ in range(50)]
    compiled = {row.id: court.registry.endpoint(OURS, row.slug) for row in rows}
    changed = msgspec.structs.replace(rows[7], enabled=False)
    assert court.registry.apply(published(changed)) == changed.id
    court.registry.apply(Dropped(kind="connection", id=rows[9].id))
    for row in rows:
        same = court.registry.endpoint(OURS, row.slug) is compiled[row.id]
        assert same == (row not in (rows[7], rows[9]))


def test_dropping_one_of_many_connections_that_share_a_slug_looks_at_no_other() -> None:
    registry = Court().registry
    rows = [a_connection(number, f"organization{number}", slug="github") for number in range(2000)]
    for row in rows:
        registry.apply(Published(connection=row))
    assert registry.connection_named("github") is None
    held = registry._named["github"]
    assert isinstance(held, set)  # a list would be searched from its start
    for row in rows[1:]:
        registry.apply(Dropped(kind="connection", id=row.id))
    assert registry.connection_named("github") == rows[0]
    registry.apply(Dropped(kind="connection", id=rows[0].id))
    assert registry.connection_named("github") is None
    assert not registry._named


def test_a_revoked_key_is_gone() -> None:
    court = Court()
    key = court.key()
    row = court.row_of(key)
    assert court.registry.apply(Dropped(kind="key", id=row.id)) == row.id
    assert court.registry.key(row.digest) is None
    court.registry.apply(Dropped(kind="key", id=row.id))  # once more does no harm


def test_another_organizations_slug_is_an_absent_one() -> None:
    court = Court()
    connection = court.connect(THEIRS, slug="github")
    assert court.registry.endpoint(OURS, "github") is None
    assert court.registry.endpoint(THEIRS, "github") is not None
    assert court.registry.connection_named("github") == connection


def test_a_deleted_slug_may_be_taken_again_by_another_row() -> None:
    court = Court()
    first = court.connect(slug="github")
    court.registry.apply(Dropped(kind="connection", id=first.id))
    second = court.connect(slug="github")
    endpoint = court.registry.endpoint(OURS, "github")
    assert endpoint is not None
    assert endpoint.connection == second
    assert court.registry.connection(first.id) is None


def test_a_data_key_sealed_for_another_node_or_organization_is_not_taken_in() -> None:
    with pytest.raises(Unreadable):
        Registry(bytes([9] * 32)).apply(data_key(OURS))
    ours = data_key(OURS)
    with pytest.raises(Unreadable):
        Registry(NODE_KEY).apply(DataKey(organization=THEIRS, term=ours.term, sealed=ours.sealed))


@pytest.mark.parametrize(
    "moved",
    [
        {"id": "another"},
        {"organization": THEIRS},
        {"upstream_url": "https://evil.example/mcp"},
        {"upstream_url": "http://mcp.example:443/mcp"},
        {"upstream_url": "https://mcp.example:444/mcp"},
        {"auth_type": AuthType.HEADER, "auth_header_name": "X-Token"},
        {"auth_type": AuthType.NONE},
        {"active_version": 2},
    ],
)
def test_a_credential_whose_binding_moved_does_not_open(moved: dict[str, object]) -> None:
    court = Court()
    row = published(a_connection(1, slug="github"))
    changed = msgspec.structs.replace(row.connection, **moved)
    court.registry.apply(Published(connection=changed, sealed=row.sealed))
    endpoint = court.registry.endpoint(changed.organization, "github")
    assert endpoint is not None
    with pytest.raises(Unreadable):
        opened(endpoint, court.registry.ring)


@pytest.mark.parametrize("moved", [{"slug": "other"}, {"name": "x"}, {"upstream_url": "https://MCP.example:443/v2?x"}])
def test_a_credential_opens_wherever_its_binding_still_holds(moved: dict[str, object]) -> None:
    row = published(a_connection(1, slug="github"))
    changed = msgspec.structs.replace(row.connection, **moved)
    court = Court(Published(connection=changed, sealed=row.sealed))
    endpoint = court.registry.endpoint(OURS, changed.slug)
    assert endpoint is not None
    assert opened(endpoint, court.registry.ring) == CREDENTIAL.encode()


@pytest.mark.parametrize("sealed", [None, b"", b"\x01", b"\x09" + bytes(60), bytes(60)])
def test_a_connection_without_a_readable_credential_does_not_open(sealed: bytes | None) -> None:
    court = Court(Published(connection=a_connection(1), sealed=sealed))
    endpoint = court.registry.endpoint(OURS, "slug1")
    assert endpoint is not None
    with pytest.raises(Unreadable):
        opened(endpoint, court.registry.ring)


@pytest.mark.parametrize(
    "change",
    [
        {"upstream_url": "no url"},
        {"auth_type": AuthType.HEADER, "auth_header_name": "X-Tökén"},
        {"headers": {"X-Team": "blau-grün"}},
        {"forward_headers": ("X-Tëam",)},
    ],
)
def test_a_row_we_could_not_have_written_is_unreadable(change: dict[str, object]) -> None:
    court = Court(Published(connection=a_connection(1, **change)))
    with pytest.raises(Unreadable) as caught:
        court.registry.endpoint(OURS, "slug1")
    assert "no url" not in str(caught.value)


def test_no_credential_is_kept_in_the_open() -> None:
    court = Court()
    court.connect(slug="github")
    endpoint = court.registry.endpoint(OURS, "github")
    assert endpoint is not None
    assert opened(endpoint, court.registry.ring) == CREDENTIAL.encode()
    for name in endpoint.__slots__:
        assert CREDENTIAL not in repr(getattr(endpoint, name))
    assert CREDENTIAL not in repr(endpoint) + repr(court.registry) + repr(court.registry.__dict__)


OWN, FOREIGN = a_connection(1, created_by="key1"), a_connection(2, created_by="key9")


@pytest.mark.parametrize(
    ("role", "scope", "own", "foreign"),
    [
        *((role, None, True, True) for role in (Role.CLIENT, Role.ADMIN, Role.OWNER)),
        *((role, (), False, False) for role in (Role.CLIENT, Role.ADMIN, Role.OWNER)),
        *((role, (FOREIGN.id,), False, True) for role in (Role.CLIENT, Role.ADMIN, Role.OWNER)),
        (Role.DEVELOPER, None, True, False),
        (Role.DEVELOPER, (), True, False),
        (Role.DEVELOPER, (FOREIGN.id,), True, True),
        (Role.AUDITOR, None, False, False),
        (Role.AUDITOR, (OWN.id, FOREIGN.id), False, False),
    ],
)
def test_a_key_reaches_what_its_role_and_scope_say(
    role: Role,
    scope: tuple[str, ...] | None,
    own: bool,  # noqa: FBT001 — a column of the table
    foreign: bool,  # noqa: FBT001 — a column of the table
) -> None:
    key = a_row(1, role=role, connections=scope)
    assert (reaches(key, OWN), reaches(key, FOREIGN)) == (own, foreign)


@pytest.mark.parametrize("role", Role)
def test_no_key_reaches_another_organizations_connection_even_when_named(role: Role) -> None:
    theirs: Connection = a_connection(1, THEIRS, created_by="key1")
    assert not reaches(a_row(1, role=role, connections=(theirs.id,)), theirs)
    assert not reaches(a_row(1, role=role), theirs)
