"""The tables of the configuration database, as the newest migration leaves them (a test compares the two).

Rules: every row carries its organization; columns are named as the fields of the model, so that a row is read by
`reader` and written by `msgspec.structs.asdict`; times are milliseconds, lists and maps are JSON in text;
nothing here is one database's own dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Row,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

T = TypeVar("T")


def reader(table: Table, noun: type[T]) -> Callable[[Row[Any]], T]:
    """What makes a noun of a row that begins with the table's columns. Columns that the noun lacks are left out."""
    names = [str(column.name) for column in table.c]  # SQLAlchemy's are of a class that msgspec does not take
    return lambda row: msgspec.convert(dict(zip(names, row, strict=False)), noun)


def _blob(value: object) -> bytes | None:
    return value if value is None or isinstance(value, bytes) else b""


class Sealed(LargeBinary):
    """Sealed bytes. What is no blob is read as b"", which opens nowhere: a row changed by hand stops no other row."""

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:  # noqa: ARG002 — SQLAlchemy's signature
        """From the database."""
        return _blob


class Json(TypeDecorator[Any]):
    """A list or map as JSON in text; None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 — SQLAlchemy's signature
        """To the database."""
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002 — the same
        """From the database."""
        return None if value is None else msgspec.json.decode(value)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

organizations = Table(
    "organizations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("slug", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("slug"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("organization", Text, ForeignKey("organizations.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text),
    Column("expires_at", BigInteger),
    Column("connections", Json),
    Column("pinned_user", Text),
    Column("revision", BigInteger, nullable=False, server_default="1"),
    Column("revoked_at", BigInteger),
    UniqueConstraint("digest"),
    Index(None, "organization", "created_at", "id"),
    Index(None, "organization", "created_by", "created_at", "id"),
)

connections = Table(
    "connections",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("organization", Text, ForeignKey("organizations.id"), nullable=False),
    Column("slug", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("upstream_url", Text, nullable=False),
    Column("auth_type", Text, nullable=False),
    Column("auth_header_name", Text),
    Column("headers", Json, nullable=False),
    Column("forward_headers", Json, nullable=False),
    Column("ca_pem", Text),
    Column("max_in_flight", BigInteger),
    Column("enabled", Boolean, nullable=False),
    Column("active_version", BigInteger, nullable=False),
    Column("created_by", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("rotated_at", BigInteger),
    Column("revision", BigInteger, nullable=False),
    UniqueConstraint("number"),
    UniqueConstraint("organization", "slug"),
    Index(None, "organization", "created_at", "id"),
    Index(None, "organization", "created_by", "created_at", "id"),
)

credential_versions = Table(
    "credential_versions",
    metadata,
    Column("connection", Text, ForeignKey("connections.id"), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("organization", Text, ForeignKey("organizations.id"), nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("auth_type", Text, nullable=False),
    Column("auth_header_name", Text),
    Column("origin", Text, nullable=False),
    Column("sealed", Sealed),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text),
    Column("destroyed_at", BigInteger),
    Index(None, "organization", "term"),
)

data_keys = Table(
    "data_keys",
    metadata,
    Column("organization", Text, ForeignKey("organizations.id"), primary_key=True),
    Column("term", BigInteger, primary_key=True, autoincrement=False),
    Column("wrapped", LargeBinary, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
