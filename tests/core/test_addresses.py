"""core/addresses.py: which addresses may be dialled."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.core.addresses import judge, reach

NOWHERE = reach([])
EVERYWHERE = reach(["0.0.0.0/0", "::/0"])
LAPTOP = reach(["127.0.0.0/8", "::1/128"])


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("8.8.8.8", None),
        ("140.82.112.3", None),
        ("2606:4700:4700::1111", None),
        ("64:ff9b::808:808", None),
        ("::ffff:8.8.8.8", None),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "loopback"),  # noqa: S104 - nothing is bound here
        ("::", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:0.0.0.0", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("172.32.0.1", None),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("100.127.255.255", "private"),
        ("fd12:3456::1", "private"),
        ("fec0::1", "private"),
        ("64:ff9b:1::808:808", "private"),
        ("64:ff9b::a00:1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("2606:4700::5efe:a00:1", "private"),
        ("2606:4700::200:5efe:a00:1", "private"),
        ("0.1.2.3", "reserved"),
        ("192.0.2.1", "reserved"),
        ("198.18.0.1", "reserved"),
        ("224.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("2001:db8::1", "reserved"),
        ("2001:0:808:808::f7f7:f7f7", "reserved"),
        ("2002:808:808::1", "reserved"),
        ("ff02::1", "reserved"),
        ("::8.8.8.8", "reserved"),
        ("4000::1", "reserved"),
        ("", "reserved"),
        ("localhost", "reserved"),
        ("127.1", "reserved"),
        ("0177.0.0.1", "reserved"),
    ],
)
def test_address_has_its_reason(address: str, reason: str | None) -> None:
    assert judge(NOWHERE, address, "https") == reason


METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fe80::1",
    "fe80::1%lo",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "::ffff:0:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::f7f7:f7f7",
    "2001:0:808:808::5601:5601",
    "2606:4700::5efe:a9fe:a9fe",
    "::ffff:100.100.100.200",
]


@pytest.mark.parametrize("address", METADATA)
def test_metadata_address_is_refused_whatever_is_allowed(address: str) -> None:
    for scheme in ("http", "https"):
        assert judge(NOWHERE, address, scheme) == "metadata"
        assert judge(EVERYWHERE, address, scheme) == "metadata"
        assert judge(reach(["169.254.0.0/16", "fe80::/10", "fd00::/8"]), address, scheme) == "metadata"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
def test_range_allowed_by_name_may_be_dialled_by_plain_http_too(address: str) -> None:
    assert judge(LAPTOP, address, "https") is None
    assert judge(LAPTOP, address, "http") is None


def test_plain_http_goes_nowhere_else() -> None:
    assert judge(LAPTOP, "8.8.8.8", "https") is None
    assert judge(LAPTOP, "8.8.8.8", "http") == "plain_http"
    assert judge(LAPTOP, "10.0.0.1", "http") == "private"
    assert judge(reach(["8.8.8.0/24"]), "8.8.8.8", "http") is None
    assert judge(EVERYWHERE, "not an address", "http") == "reserved"


def test_wrapped_address_must_pass_as_what_it_carries_too() -> None:
    assert judge(reach(["2002::/16"]), "2002:7f00:1::1", "https") == "loopback"
    assert judge(reach(["2002::/16", "127.0.0.0/8"]), "2002:7f00:1::1", "https") is None
    assert judge(reach(["64:ff9b:1::/48"]), "64:ff9b:1:808:8:800::", "https") is None
    assert judge(reach(["64:ff9b:1::/48"]), "64:ff9b:1::a00:1", "https") == "private"


def test_range_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="host bits"):
        reach(["10.0.0.1/8"])


@given(st.one_of(st.ip_addresses(), st.text(max_size=40)))
def test_any_text_is_judged(address: IPv4Address | IPv6Address | str) -> None:
    reasons = {judge(NOWHERE, str(address), scheme) for scheme in ("http", "https")}
    assert reasons <= {None, "metadata", "loopback", "private", "reserved", "plain_http"}


@given(st.ip_addresses())
def test_what_the_standard_library_calls_private_is_not_dialled(address: IPv4Address | IPv6Address) -> None:
    stands_for_another = isinstance(address, IPv6Address) and (
        address.ipv4_mapped is not None or address in IPv6Network("64:ff9b::/96")
    )
    if not stands_for_another and (address.is_private or address.is_multicast or address.is_reserved):
        assert judge(NOWHERE, str(address), "https") is not None
