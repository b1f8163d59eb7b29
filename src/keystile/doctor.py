"""What may be wrong with an installation on this machine, and what to do about each.

Rules: it changes nothing, shows no secret, and runs beside a gateway that serves. Each check gives one finding; a check
that cannot run because an earlier one failed is left out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import shutil
import socket
import stat
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import msgspec
from sqlalchemy.exc import DBAPIError

from keystile import keys
from keystile.config import Config
from keystile.core.addresses import Reach, judge, reach
from keystile.core.target import parse_target
from keystile.dial import DialError, resolve
from keystile.errors import StartRefused
from keystile.model import Connection
from keystile.node import Folders, is_locked, sockets
from keystile.store import connections
from keystile.store.database import Database, sqlite
from keystile.vault import Vault

RESOLVE_SECONDS = 3.0
AT_ONCE = 16
_ROOT_KEY = "give the root key this database was made with: see docs/config.md"
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Finding(msgspec.Struct, frozen=True):
    """What was looked at and what was seen. `remedy` is None when all is well."""

    what: str
    said: str
    remedy: str | None = None


async def examine(config: Config) -> list[Finding]:
    """Every check, in order."""
    return [finding async for finding in _findings(config)]


async def _findings(config: Config) -> AsyncIterator[Finding]:
    folders = Folders(config.data_dir)
    running = is_locked(folders.lock)
    yield _port(config, running=running)
    yield _names(config)
    yield _descriptors(config)
    # SQLite would make something of an empty file.
    if not folders.database.exists() or folders.database.stat().st_size == 0:
        remedy = f"keystile init --data-dir {folders.data}, or keystile serve, makes one"
        yield Finding("data folder", f"{folders.data} holds no installation", remedy)
        return
    yield _folder(folders)
    yield _spool(config, folders)
    try:
        root_key = keys.root_key(config, folders)
    except StartRefused as error:
        said, _, remedy = error.message.partition(" Run: ")
        yield Finding("root key", said, remedy or _ROOT_KEY)
        return
    database = Database(sqlite(folders.database))
    try:
        await Vault.check(database, root_key)
        yield Finding("root key", f"opens this database (fingerprint {root_key.id})")
        async for finding in _database(database, reach(config.upstreams_allow)):
            yield finding
    except StartRefused as error:
        yield Finding("root key", error.message, _ROOT_KEY)
    except DBAPIError as error:
        remedy = "keystile init finishes one that was interrupted; else restore a backup"
        yield Finding("database", f"{folders.database} cannot be read: {error.orig}", remedy)
    finally:
        await database.close()


def _port(config: Config, *, running: bool) -> Finding:
    place = f"{config.host}:{config.port}"
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    if running:
        try:
            with socket.create_connection((config.host, config.port), RESOLVE_SECONDS):
                return Finding("port", f"a gateway of this data folder serves on {place}")
        except OSError:
            return Finding("port", f"a gateway runs, and not on {place}", "give doctor the settings that serve has")
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((config.host, config.port))
    except OSError as error:
        return Finding("port", f"{place} cannot be had: {error.strerror}", "set KEYSTILE_PORT or KEYSTILE_HOST")
    return Finding("port", f"{place} is free")


def _names(config: Config) -> Finding:
    """A gateway that others reach must know the name they reach it by."""
    try:
        outside = not ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        outside = config.host != "localhost"
    if not outside:
        return Finding("names", "only this machine reaches the gateway")
    if not config.public_url and not config.hosts:
        remedy = "set KEYSTILE_PUBLIC_URL, or KEYSTILE_HOSTS, to the name that clients use"
        return Finding("names", "other machines reach the gateway and it answers to no name of theirs", remedy)
    served = [*config.hosts, *([urlsplit(config.public_url).hostname or ""] if config.public_url else [])]
    return Finding("names", f"answers to {', '.join(served)}")


def _descriptors(config: Config) -> Finding:
    wanted, (_, most) = config.limits.sockets, resource.getrlimit(resource.RLIMIT_NOFILE)
    had = sockets(wanted, most)
    if had < wanted:
        remedy = "raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd), or set KEYSTILE_LIMITS_SOCKETS lower"
        return Finding("descriptors", f"{most} a process: a worker takes {had} clients and not {wanted}", remedy)
    return Finding("descriptors", f"enough for {wanted} clients a worker")


def _folder(folders: Folders) -> Finding:
    status = folders.data.stat()
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        return Finding("data folder", f"{folders.data} belongs to another user", "run as the user the gateway runs as")
    if status.st_mode & _OTHERS:
        return Finding("data folder", f"{folders.data} is open to others", f"chmod 700 {folders.data}")
    return Finding("data folder", f"{folders.data} is this user's alone")


def _spool(config: Config, folders: Folders) -> Finding:
    if not os.access(folders.spool, os.W_OK | os.X_OK):
        return Finding("spool", f"{folders.spool} cannot be written", "without it nothing is forwarded: mend its mode")
    held = sum(path.stat().st_size for path in folders.spool.iterdir() if path.is_file())
    free = shutil.disk_usage(folders.spool).free
    if free < config.limits.spool_segment_bytes * (config.workers + 1):
        return Finding("spool", f"{free >> 20} MiB are free", "make room: without it nothing is forwarded")
    damaged = list(folders.spool.glob("*.damaged"))
    if damaged:
        return Finding("spool", f"{len(damaged)} damaged segments are kept aside", "look at them, then delete them")
    return Finding("spool", f"{held >> 20} MiB held, {free >> 20} MiB free")


async def _database(database: Database, allowed: Reach) -> AsyncIterator[Finding]:
    async with database.read() as conn:
        verdict = (await conn.exec_driver_sql("PRAGMA quick_check")).scalar_one()
        rows = await conn.run_sync(lambda sync: [row.connection for row in connections.every_published(sync)])
    if verdict != "ok":
        yield Finding("database", "its pages are damaged", "restore a backup")
        return
    yield Finding("database", f"whole; connections: {len(rows)}")
    turn = asyncio.Semaphore(AT_ONCE)
    troubles = [
        trouble for trouble in await asyncio.gather(*(_upstream(row, allowed, turn) for row in rows)) if trouble
    ]
    for trouble in troubles:
        yield trouble
    if not troubles:
        yield Finding("addresses", "every upstream resolves to an address this gateway may dial")


async def _upstream(row: Connection, allowed: Reach, turn: asyncio.Semaphore) -> Finding | None:
    target = parse_target(row.upstream_url)
    if isinstance(target, str):
        return Finding("addresses", f"{row.slug}: its upstream URL is refused", target)
    async with turn:
        try:
            addresses = await asyncio.wait_for(resolve(target), RESOLVE_SECONDS)
        except (DialError, TimeoutError):
            return Finding(
                "addresses", f"{row.slug}: {target.host} does not resolve", "check the name, or the resolver"
            )
    for address in addresses:
        reason = judge(allowed, address, target.scheme)
        if reason is not None:
            remedy = f"add {address} to KEYSTILE_UPSTREAMS_ALLOW if it shall be dialled"
            if reason == "metadata":
                remedy = "point the connection elsewhere: this is never dialled"
            return Finding(
                "addresses", f"{row.slug}: {target.host} is {address}, refused as {reason} by these settings", remedy
            )
    return None
