"""core/target.py: one URL, one reading."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystile.core.target import Target, parse_target


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://mcp.github.com", Target("https", "mcp.github.com", 443, "/"), "mcp.github.com"),
        ("HTTPS://MCP.GitHub.com:443/A?b=%20", Target("https", "mcp.github.com", 443, "/A?b=%20"), "mcp.github.com"),
        ("http://a:8080?x=1", Target("http", "a", 8080, "/?x=1"), "a:8080"),
        ("http://127.0.0.1:80/", Target("http", "127.0.0.1", 80, "/"), "127.0.0.1"),
        ("http://[::1]:8080/mcp", Target("http", "::1", 8080, "/mcp"), "[::1]:8080"),
        ("https://[2001:DB8::0:1]", Target("https", "2001:db8::1", 443, "/"), "[2001:db8::1]"),
        ("https://xn--bcher-kva.example", Target("https", "xn--bcher-kva.example", 443, "/"), "xn--bcher-kva.example"),
        ("https://my_service/a//b/../c", Target("https", "my_service", 443, "/a//b/../c"), "my_service"),
    ],
)
def test_url_is_taken_apart(url: str, target: Target, authority: str) -> None:
    assert parse_target(url) == target
    assert target.authority == authority


def test_origin_is_written_out() -> None:
    assert Target("https", "mcp.github.com", 443, "/mcp").origin == "https://mcp.github.com:443"
    assert Target("http", "::1", 80, "/").origin == "http://[::1]:80"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mcp.github.com",
        "https:mcp.github.com",
        "https:///path",
        "https://",
        "ftp://a/",
        "file:///etc/passwd",
        "unix:/run/control.sock",
        "https://user@a/",
        "https://user:pass@a/",
        "https://a\\@b/",
        "https://a/#fragment",
        "https://a/?x#",
        "https://a b/",
        "https://a/ b",
        "https://a/\r\nHost: b",
        "https://a\n",
        "\thttps://a",
        "https://a/\x00",
        "https://a/\x7f",
        "https://bücher.example/",
        "https://faß.example/",
        "https://a。b/",
        "https://a/ä",
        "https://a/%2",
        "https://a/\\b",
        "https://a//b",
        "https://a/[",
        "https://a:",
        "https://a:0/",
        "https://a:080/",
        "https://a:65536/",
        "https://a:80:80/",
        "https://a:b/",
        "https://a./",
        "https://.a/",
        "https://a..b/",
        "https://-a/",
        "https://a-.b/",
        "https://a%2eb/",
        "https://a,b/",
        "https://" + "a" * 64 + "/",
        "https://" + "a." * 127 + "a/",
        "http://0x7f.1/",
        "http://0X7F000001/",
        "http://0x/",
        "http://2130706433/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://127.0.0.256/",
        "http://1.2.3.4.5/",
        "http://a.1/",
        "http://[::1/",
        "http://::1/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[127.0.0.1]/",
        "http://[v1.a]/",
        "http://[::1]a/",
    ],
)
def test_odd_url_is_refused_with_a_sentence(url: str) -> None:
    refused = parse_target(url)
    assert isinstance(refused, str) and refused.endswith(".")


def test_refusal_repeats_nothing_of_the_url() -> None:
    assert "made-up-secret" not in str(parse_target("https://user:made-up-secret@a/"))


@given(
    st.one_of(st.text(max_size=40), st.text("abc0123456789.:/?#@[]%\\-_xX \t\r\n", max_size=30).map("http://{}".format))
)
def test_whatever_is_accepted_the_standard_library_reads_alike(url: str) -> None:
    target = parse_target(url)
    if isinstance(target, Target):
        split = urlsplit(url)
        assert split.scheme == target.scheme
        assert split.username is None and split.password is None and not split.fragment
        assert (split.port or {"http": 80, "https": 443}[target.scheme]) == target.port
        assert (split.path or "/") + (f"?{split.query}" if "?" in url else "") == target.path
        assert ":" in target.host or split.hostname == target.host
        assert parse_target(f"{target.origin}{target.path}") == target
