"""File + environment + flags → one frozen `Config`, or every problem at once.

What is accepted here starts: no other process finds later that a value is out of its bounds or means nothing.
Precedence: defaults < file (TOML) < environment `KEYSTILE_…` < flags. A field `limits.head_bytes` is
`[limits] head_bytes` in the file and `KEYSTILE_LIMITS_HEAD_BYTES` in the environment. An unknown key is an error.
Configuration is an argument everywhere else; only this file reads the environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_type_hints

import msgspec
from msgspec import Meta

PREFIX = "KEYSTILE_"
T = TypeVar("T", bound=msgspec.Struct)
SDK_VARIABLES = frozenset({"KEYSTILE_API_KEY", "KEYSTILE_BASE_URL"})
# A Kubernetes service named `keystile` injects these into every pod of its namespace.
_KUBERNETES = re.compile(
    r"KEYSTILE_(PORT|SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)"
)

_PUBLIC = re.compile(r"https?://([^/?#@\s:\[\]]+|\[[^\]]+\])(:[0-9]{1,5})?/?")
_NAME = re.compile(rb"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
# As browsers write it (RFC 6454 6.2): lower case, A-labels. Extensions and embedded pages have schemes of their own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~:\[\]-]+/?")
_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 — what these mean, not a place to listen on

Positive = Annotated[int, Meta(gt=0, le=1 << 40)]
Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]


class ConfigError(Exception):
    """Every problem found, one line each, saying which key and what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every bound of the gateway. Sizes in bytes, times in seconds."""

    head_bytes: Annotated[Positive, Meta(description="largest request head")] = 32 * 1024
    fields: Annotated[Positive, Meta(description="most header fields in a request or an answer")] = 128
    body_bytes: Annotated[Positive, Meta(description="largest request body for an endpoint")] = 4 * 1024 * 1024
    bodies_bytes: Annotated[Positive, Meta(description="request bodies held by one worker, all together")] = (
        64 * 1024 * 1024
    )
    api_body_bytes: Annotated[Positive, Meta(description="largest request body for the REST API")] = 1024 * 1024
    api_bodies_bytes: Annotated[Positive, Meta(description="REST request bodies held by one worker, all together")] = (
        16 * 1024 * 1024
    )
    buffer_bytes: Annotated[
        int, Meta(ge=4096, le=1 << 30, description="bytes of an answer held for a slow reader, per exchange")
    ] = 128 * 1024
    head_seconds: Annotated[Seconds, Meta(description="a request head must be complete within this")] = 10.0
    body_seconds: Annotated[Seconds, Meta(description="a request body must make progress within this")] = 30.0
    dial_seconds: Annotated[Seconds, Meta(description="resolving, connecting and TLS to an upstream")] = 10.0
    first_byte_seconds: Annotated[Seconds, Meta(description="from the request's last byte to the answer's first")] = (
        300.0
    )
    idle_seconds: Annotated[Seconds, Meta(description="a stream without a byte in either direction ends")] = 3600.0
    keepalive_seconds: Annotated[Seconds, Meta(description="an idle client connection is closed")] = 75.0
    comment_seconds: Annotated[Seconds, Meta(description="a comment line on an idle SSE stream, at event borders")] = (
        15.0
    )
    drain_seconds: Annotated[Seconds, Meta(description="running streams get this long after SIGTERM")] = 10.0
    check_seconds: Annotated[Seconds, Meta(description="how often deadlines and open streams are looked at")] = 0.25
    pool_idle_seconds: Annotated[Seconds, Meta(description="an idle upstream connection is retired")] = 4.0
    pool_idle: Annotated[Positive, Meta(description="idle upstream connections kept per connection and worker")] = 128
    in_flight: Annotated[Positive, Meta(description="exchanges in flight per connection, all workers together")] = (
        10_000
    )
    sockets: Annotated[Positive, Meta(description="client sockets of one worker")] = 20_000
    spool_segment_bytes: Annotated[int, Meta(ge=128 * 1024, le=1 << 30, description="size of one spool segment")] = (
        8 * 1024 * 1024
    )
    spool_bytes: Annotated[Positive, Meta(description="spool of one node that is not yet in the ledger")] = (
        1024 * 1024 * 1024
    )


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a node. Secrets among them never show in `repr`."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on")] = 8080
    workers: Annotated[
        int, Meta(ge=1, le=256, description="gateway workers; the default is one a core, at most four")
    ] = min(4, os.cpu_count() or 1)
    data_dir: Annotated[str, Meta(description="folder of database, ledger, spool and root key file")] = "./data"
    public_url: Annotated[str | None, Meta(description="the gateway's URL as clients see it")] = None
    hosts: Annotated[tuple[str, ...], Meta(description="further host names this gateway answers to")] = ()
    origins: Annotated[tuple[str, ...], Meta(description="web origins allowed besides the gateway's own hosts")] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], Meta(description="ranges whose X-Forwarded-For is believed, for events only")
    ] = ()
    upstreams_allow: Annotated[
        tuple[str, ...], Meta(description="loopback, private or other refused ranges that upstreams may have")
    ] = ()
    root_key: Annotated[str | None, Meta(description="the root key itself: 32 bytes, base64")] = None
    root_key_file: Annotated[
        str | None, Meta(description="file that holds it (default: root.key in the data folder)")
    ] = None
    root_key_command: Annotated[
        str | None, Meta(description="command that prints it; split like a shell, run without one")
    ] = None
    bootstrap_key: Annotated[str | None, Meta(description="first admin key, used on an empty data folder only")] = None
    log_format: Annotated[Literal["text", "json"], Meta(description="`text` or `json`")] = "text"
    limits: Limits = Limits()

    def __repr__(self) -> str:
        return f"<Config {self.host}:{self.port} workers={self.workers} data={self.data_dir}>"


def load(environment: Mapping[str, str], file: Path | None = None, flags: Mapping[str, object] | None = None) -> Config:
    """The configuration, or `ConfigError` with every problem.

    `flags` holds top-level fields; a `None` among them means not given.
    """
    problems: list[str] = []
    merged: dict[str, Any] = _from_file(file, problems) if file else {}
    limits = _table(merged.pop("limits", {}), problems)
    for field, value in _from_environment(environment, problems).items():
        if field.startswith("limits."):
            limits[field.removeprefix("limits.")] = value
        else:
            merged[field] = value
    merged |= {name: value for name, value in (flags or {}).items() if value is not None}
    checked = _convert(Limits, limits, "limits.", problems)
    config = _convert(Config, merged, "", problems)
    if config is not None and checked is not None:
        config = msgspec.structs.replace(config, limits=checked)
        problems += _contradictions(config)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def named(config: Config) -> list[tuple[str, str]]:
    """The hosts that settings name, each with its setting. Listening on every address names none."""
    found = [("hosts", host) for host in config.hosts]
    if config.host not in _EVERY_ADDRESS:
        found.append(("host", config.host))
    if config.public_url and (match := _PUBLIC.fullmatch(config.public_url)):
        found.append(("public_url", match[1]))
    return found


def host_name(text: str) -> bytes:
    """A host as requests name it in `Host`: lower case, A-labels, an IPv6 address in brackets. Raises ValueError."""
    if ":" in text:
        return b"[%b]" % str(ipaddress.IPv6Address(text.removeprefix("[").removesuffix("]"))).encode("ascii")
    found = text.lower().encode("ascii" if text.isascii() else "idna")
    if not _NAME.fullmatch(found):
        raise ValueError("not a host name or an address")
    return found


def variable(field: str) -> str:
    """The environment variable of a field: `limits.head_bytes` → `KEYSTILE_LIMITS_HEAD_BYTES`."""
    return PREFIX + field.replace(".", "_").upper()


def settings() -> dict[str, tuple[type[msgspec.Struct], msgspec.structs.FieldInfo]]:
    """Every setting by its dotted name, with the struct it stands in. The documentation test reads this."""
    found: dict[str, tuple[type[msgspec.Struct], msgspec.structs.FieldInfo]] = {}
    for prefix, struct in (("", Config), ("limits.", Limits)):
        for info in msgspec.structs.fields(struct):
            if info.name != "limits":
                found[prefix + info.name] = (struct, info)
    return found


def _from_file(file: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        problems.append(f"{file}: cannot be read: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{file}: not valid TOML: {error}")
    return {}


def _table(value: object, problems: list[str]) -> dict[str, Any]:
    if isinstance(value, dict):
        return dict(cast("dict[str, Any]", value))
    problems.append("limits: must be a table, as [limits] in docs/config.md")
    return {}


def _from_environment(environment: Mapping[str, str], problems: list[str]) -> dict[str, object]:
    fields = {variable(name): (name, struct) for name, (struct, _) in settings().items()}
    found: dict[str, object] = {}
    for name, text in environment.items():
        if not name.startswith(PREFIX) or name in SDK_VARIABLES:
            continue
        if _KUBERNETES.fullmatch(name) and (name != variable("port") or "://" in text):
            continue
        if name not in fields:
            problems.append(f"{name}: unknown setting; see docs/config.md")
            continue
        field, struct = fields[name]
        hint = get_type_hints(struct)[field.rpartition(".")[2]]
        listed = hint == tuple[str, ...]
        found[field] = tuple(part.strip() for part in text.split(",") if part.strip()) if listed else text
    return found


def _convert(struct: type[T], values: dict[str, Any], prefix: str, problems: list[str]) -> T | None:
    known = {info.name: info for info in msgspec.structs.fields(struct)}
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            problems.append(f"{prefix}{name}: unknown setting; see docs/config.md")
            continue
        try:
            accepted[name] = msgspec.convert(value, known[name].type, strict=False)
        except msgspec.ValidationError as error:
            problems.append(f"{prefix}{name} ({variable(prefix + name)}): {error}")
    return struct(**accepted) if not problems else None


def _contradictions(config: Config) -> list[str]:
    problems: list[str] = []
    for field in ("trusted_proxies", "upstreams_allow"):
        for text in getattr(config, field):
            try:
                ipaddress.ip_network(text)
            except ValueError as error:
                problems.append(f"{field} ({variable(field)}): {error}")
    keys = [name for name in ("root_key", "root_key_file", "root_key_command") if getattr(config, name)]
    if len(keys) > 1:
        problems.append(f"{', '.join(keys)}: give one source of the root key, not {len(keys)}")
    if config.public_url and not _PUBLIC.fullmatch(config.public_url):
        problems.append(f"public_url ({variable('public_url')}): must be http(s)://host[:port]")
    for field, host in named(config):
        try:
            host_name(host)
        except ValueError:  # UnicodeError is one
            problems.append(f"{field} ({variable(field)}): {host!r} is not a host name or an address, without port")
    problems += [
        f"origins ({variable('origins')}): {origin!r} is not scheme://host[:port] in lower-case ASCII"
        for origin in config.origins
        if not _ORIGIN.fullmatch(origin)
    ]
    # Each worker writes to one segment and has the next at hand: with less, it would never be ready for long.
    least = 2 * config.workers * config.limits.spool_segment_bytes
    if config.limits.spool_bytes < least:
        problems.append(
            f"limits.spool_bytes ({variable('limits.spool_bytes')}): must be at least {least}: two segments "
            f"(limits.spool_segment_bytes) for each of {config.workers} workers"
        )
    return problems
