"""Which resolved addresses may be dialled.

What this module guarantees: link-local and cloud metadata addresses are never dialled, whatever is allowed and
however they are wrapped. Of the rest, public addresses may be dialled, others only where the configuration allows
their range by name.

The rules:

- An IPv6 address that stands for an IPv4 host is judged as that host: IPv4-mapped, and NAT64's well-known prefix.
  One that carries an IPv4 address inside (6to4, Teredo, ISATAP, IPv4-compatible and -translated, local NAT64) must
  pass both as what it is and as what it carries.
- The table below is IANA's special-purpose registries (RFC 6890), read strictly: IPv6 outside 2000::/3 is reserved.
- Plain http goes only to ranges that are allowed by name.
- What is no address at all is `reserved`.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

import msgspec

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Reason = Literal["metadata", "loopback", "private", "reserved", "plain_http"]

_RANGES: tuple[tuple[Reason, str], ...] = (
    # What hands out credentials to whoever asks from the same machine. Never dialled.
    ("metadata", "169.254.0.0/16"),  # link-local: AWS, Azure, Google, Oracle, DigitalOcean, Scaleway, ECS, EKS
    ("metadata", "fe80::/10"),  # link-local
    ("metadata", "fd00:ec2::/32"),  # AWS
    ("metadata", "fd20:ce::254/128"),  # Google
    ("metadata", "fd00:c1::a9fe:a9fe/128"),  # Oracle
    ("metadata", "fd00:42::42/128"),  # Scaleway
    ("metadata", "fd00:a9fe:a9fe::1/128"),  # Linode
    ("metadata", "fd00:100::100:200/128"),  # Alibaba
    ("metadata", "100.100.100.200/32"),  # Alibaba
    ("metadata", "168.63.129.16/32"),  # Azure's wire server
    ("metadata", "192.0.0.192/32"),  # Oracle
    ("loopback", "127.0.0.0/8"),
    ("loopback", "::1/128"),
    ("loopback", "0.0.0.0/32"),  # the unspecified address: Linux dials itself
    ("loopback", "::/128"),
    ("private", "10.0.0.0/8"),  # RFC 1918
    ("private", "172.16.0.0/12"),
    ("private", "192.168.0.0/16"),
    ("private", "100.64.0.0/10"),  # carrier-grade NAT, RFC 6598
    ("private", "fc00::/7"),  # unique local, RFC 4193
    ("private", "fec0::/10"),  # site-local, RFC 3879
    ("private", "64:ff9b:1::/48"),  # local NAT64, RFC 8215
    ("reserved", "0.0.0.0/8"),  # this network
    ("reserved", "192.0.0.0/24"),  # protocol assignments
    ("reserved", "192.0.2.0/24"),  # documentation
    ("reserved", "198.51.100.0/24"),
    ("reserved", "203.0.113.0/24"),
    ("reserved", "192.88.99.0/24"),  # 6to4 relays
    ("reserved", "198.18.0.0/15"),  # benchmarks
    ("reserved", "224.0.0.0/4"),  # multicast
    ("reserved", "240.0.0.0/4"),  # future use, broadcast
    ("reserved", "2001::/23"),  # protocol assignments, Teredo among them
    ("reserved", "2001:db8::/32"),  # documentation
    ("reserved", "3fff::/20"),
    ("reserved", "2002::/16"),  # 6to4
    ("reserved", "::/3"),  # all outside 2000::/3, multicast with it
    ("reserved", "4000::/2"),
    ("reserved", "8000::/1"),
)
"""From the first that holds, an address has its reason; with none, it is public."""

_TABLE: tuple[tuple[Reason, Network], ...] = tuple((reason, ip_network(text)) for reason, text in _RANGES)

_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_LOW_CARRIERS = (
    IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 2.5.5.1
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765
    _LOCAL_NAT64,  # with a prefix of 96 bits
)
_ISATAP = 0x5EFE  # RFC 5214 6.1, with or without the universal bit


class Reach(msgspec.Struct, frozen=True):
    """The ranges that the configuration allows by name."""

    allowed: tuple[Network, ...]


def reach(allow: Sequence[str]) -> Reach:
    """From the configuration's texts. Raises `ValueError` for one that is no range."""
    return Reach(tuple(ip_network(text) for text in allow))


def judge(reach: Reach, address: str, scheme: str) -> Reason | None:
    """Why `address` must not be dialled for a URL of `scheme`; `None` if it may be."""
    try:
        forms = tuple(_forms(ip_address(address)))
    except ValueError:
        return "reserved"
    reasons: list[Reason | None] = [_reason(form) for form in forms]
    if "metadata" in reasons:
        return "metadata"
    for form, reason in zip(forms, reasons, strict=True):
        if reason is not None and not _named(reach, form):
            return reason
    return "plain_http" if scheme == "http" and not all(_named(reach, form) for form in forms) else None


def _named(reach: Reach, address: Address) -> bool:
    return any(address in network for network in reach.allowed)


def _reason(address: Address) -> Reason | None:
    return next((reason for reason, network in _TABLE if address in network), None)


def _forms(address: Address) -> Iterator[Address]:
    """The hosts that `address` stands for."""
    if isinstance(address, IPv4Address):
        yield address
        return
    value = int(address)
    low = IPv4Address(value & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        yield low
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if (value >> 32) & 0xFDFFFFFF == _ISATAP or any(address in network for network in _LOW_CARRIERS):
        yield from _carried(low)
    if address in _LOCAL_NAT64:  # with a prefix of 48 bits, RFC 6052 2.2: 16 bits, an empty octet, 16 bits
        yield from _carried(IPv4Address((value >> 48 & 0xFFFF0000) | (value >> 40 & 0xFFFF)))


def _carried(inner: IPv4Address) -> Iterator[IPv4Address]:
    if int(inner) > 1:  # `::` and `::1` carry nothing, nor do bits that the other NAT64 form leaves zero
        yield inner
