"""A name is resolved once per dial, the judged address itself is dialled, and TLS is always verified."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keystile.core.addresses import Reach, reach
from keystile.core.target import Target, parse_target
from keystile.dial import DialError, dial, tls
from tests.gateway.stage import RESULT, Asked, answer_of, answer_result, replying, staged

pytestmark = pytest.mark.anyio

LOOPBACK = reach(("127.0.0.0/8",))


class Naming(uvloop.Loop):
    """The real event loop with a resolver of the test's own: each look-up of a name takes its next answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self.answering = asyncio.Event()
        """Until it is set, a look-up that takes "never" does not end: it occupies its thread."""

    async def getaddrinfo(self, host, port, **_):
        self.asked.append(host)
        if host not in self.answers:
            return await super().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        answers = self.answers[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        if found == ["never"]:
            await self.answering.wait()
            found = answers.pop(0) if len(answers) > 1 else answers[0]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in found
        ]


@pytest.fixture
def anyio_backend():
    return "asyncio", {"loop_factory": Naming}


def named(host: str, *answers: list[str]) -> Naming:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Naming)
    loop.answers[host] = list(answers)
    return loop


def target_of(url: str) -> Target:
    target = parse_target(url)
    assert isinstance(target, Target), target
    return target


async def dialled(
    url: str, within: Reach = LOOPBACK, ca_pem: str | None = None, seconds: float = 5
) -> asyncio.Transport:
    transport, _ = await dial(target_of(url), within, ca_pem, seconds, asyncio.Protocol)
    return transport


async def refusal(url: str, within: Reach = LOOPBACK, ca_pem: str | None = None, seconds: float = 5) -> tuple[str, str]:
    with pytest.raises(DialError) as caught:
        await dialled(url, within, ca_pem, seconds)
    return caught.value.refusal.code, caught.value.reason


@asynccontextmanager
async def listening(context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
def blackhole() -> Iterator[int]:
    """A port on 127.0.0.2 where a connection is never accepted: the backlog is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.2", 0))
    listener.listen(0)
    port = listener.getsockname()[1]
    queued = [socket.socket() for _ in range(4)]
    for each in queued:
        each.setblocking(False)
        each.connect_ex(("127.0.0.2", port))
    yield port
    for each in (listener, *queued):
        each.close()


# Addresses


async def test_a_name_is_resolved_once_and_the_judged_address_is_dialled() -> None:
    async with listening() as port:
        loop = named("rebinding.example", ["127.0.0.1"], ["169.254.169.254"])
        transport = await dialled(f"http://rebinding.example:{port}/")
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"
        assert loop.asked == ["rebinding.example"]
        transport.close()
        assert await refusal(f"http://rebinding.example:{port}/") == ("address_refused", "metadata")
        assert loop.asked == ["rebinding.example"] * 2


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("2002:a9fe:a9fe::1", "metadata"),
        ("fe80::1%1", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("0.0.0.0", "loopback"),  # noqa: S104 — an address to refuse
        ("10.0.0.1", "private"),
        ("192.168.1.1", "private"),
    ],
)
async def test_what_a_name_resolves_to_is_judged(address: str, reason: str) -> None:
    named("upstream.example", [address])
    assert await refusal("https://upstream.example/", reach(())) == ("address_refused", reason)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fe80::1%1"])
async def test_link_local_is_refused_even_where_everything_is_allowed(address: str, scheme: str) -> None:
    named("upstream.example", [address])
    assert await refusal(f"{scheme}://upstream.example/", reach(("0.0.0.0/0", "::/0"))) == (
        "address_refused",
        "metadata",
    )


@pytest.mark.parametrize(
    "host", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]", "[::1]", "localhost"]
)
async def test_every_spelling_of_loopback_is_refused_unless_loopback_is_allowed(host: str) -> None:
    target = parse_target(f"https://{host}/")
    if isinstance(target, Target):
        assert await refusal(f"https://{host}/", reach(())) == ("address_refused", "loopback")


async def test_a_mapped_address_is_dialled_where_what_it_stands_for_is_allowed() -> None:
    async with listening() as port:
        (await dialled(f"http://[::ffff:127.0.0.1]:{port}/")).close()


async def test_plain_http_goes_only_where_it_is_allowed_by_name() -> None:
    named("upstream.example", ["93.184.215.14"])
    assert await refusal("http://upstream.example/") == ("address_refused", "plain_http")


async def test_a_refused_address_among_others_is_stepped_over() -> None:
    async with listening() as port:
        named("upstream.example", ["169.254.169.254", "10.0.0.1", "127.0.0.1"])
        transport = await dialled(f"http://upstream.example:{port}/")
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"
        transport.close()


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    named("upstream.example", [])
    assert await refusal("https://upstream.example/") == ("upstream_unreachable", "the name does not resolve")


async def test_a_port_nobody_listens_on_is_unreachable() -> None:
    async with listening() as port:
        pass
    assert (await refusal(f"http://127.0.0.1:{port}/"))[0] == "upstream_unreachable"


# Time


async def test_a_dial_that_nobody_accepts_ends_in_time(blackhole: int) -> None:
    assert (await refusal(f"http://127.0.0.2:{blackhole}/", seconds=0.05))[0] == "upstream_dial_timeout"


async def test_a_name_that_never_resolves_ends_in_time() -> None:
    named("upstream.example", ["never"])
    assert (await refusal("https://upstream.example/", seconds=0.05))[0] == "upstream_dial_timeout"


async def test_dials_of_a_name_that_never_resolves_share_one_look_up() -> None:
    """A look-up occupies a thread of the resolver until it ends, whoever gave up: one for a name, not more."""
    async with listening() as port:
        loop = named("upstream.example", ["never"], ["127.0.0.1"], ["169.254.169.254"])
        url = f"http://upstream.example:{port}/"
        for _ in range(3):
            refused = await asyncio.gather(*(refusal(url, seconds=0.01) for _ in range(20)))
            assert {code for code, _ in refused} == {"upstream_dial_timeout"}
        assert loop.asked == ["upstream.example"]
        (await dialled(f"http://127.0.0.1:{port}/")).close()

        async def met() -> None:
            (await dialled(url)).close()

        waiting = [asyncio.ensure_future(met()) for _ in range(2)]
        await asyncio.sleep(0)
        loop.answering.set()
        await asyncio.gather(*waiting)
        assert loop.asked.count("upstream.example") == 1
        # Nothing is kept beyond the flight: the next dial asks anew, and what it is told is judged.
        assert await refusal(url) == ("address_refused", "metadata")


async def test_a_look_up_that_fails_after_all_gave_up_harms_nobody() -> None:
    loop = named("upstream.example", ["never"], [])
    told: list[object] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    assert (await refusal("https://upstream.example/", seconds=0.01))[0] == "upstream_dial_timeout"
    waiting = asyncio.ensure_future(refusal("https://upstream.example/"))
    await asyncio.sleep(0)
    loop.answering.set()
    assert await waiting == ("upstream_unreachable", "the name does not resolve")
    gc.collect()
    assert told == []


async def test_an_address_that_swallows_packets_leaves_time_for_the_next(blackhole: int) -> None:
    """A broken IPv6 route must not make a host with a working IPv4 address unreachable."""
    served = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", blackhole)
    named("upstream.example", ["127.0.0.2", "127.0.0.1"])
    transport = await dialled(f"http://upstream.example:{blackhole}/", seconds=0.4)
    assert transport.get_extra_info("peername")[0] == "127.0.0.1"
    transport.close()
    served.close()


async def test_tls_that_is_never_agreed_ends_in_time() -> None:
    async with listening() as port:
        assert (await refusal(f"https://127.0.0.1:{port}/", seconds=0.05))[0] == "upstream_dial_timeout"


# Trust


class Authority:
    """A throw-away certificate authority."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throw-away authority")])
        self.certificate = self._sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=None))
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions, days: int = 30
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        ends = now + dt.timedelta(days=days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, ends) - dt.timedelta(days=1))
            .not_valid_after(ends)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def server(self, folder: Path, *hosts: str, days: int = 30) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host) for host in hosts]
        )
        certificate = self._sign(x509.Name([]), key, names, days=days)
        path = folder / "server.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


async def test_a_certificate_nobody_vouches_for_is_not_trusted(tmp_path: Path, authority: Authority) -> None:
    async with listening(authority.server(tmp_path, "127.0.0.1")) as port:
        url = f"https://127.0.0.1:{port}/"
        assert (await refusal(url))[0] == "upstream_untrusted"
        assert (await refusal(url, ca_pem=Authority().pem))[0] == "upstream_untrusted"
        transport = await dialled(url, ca_pem=authority.pem)
        assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        transport.abort()


async def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path, authority: Authority) -> None:
    async with listening(authority.server(tmp_path, "right.example")) as port:
        for name in ("right.example", "wrong.example"):
            named(name, ["127.0.0.1"])
        (await dialled(f"https://right.example:{port}/", ca_pem=authority.pem)).abort()
        assert (await refusal(f"https://wrong.example:{port}/", ca_pem=authority.pem))[0] == "upstream_untrusted"
        assert (await refusal(f"https://127.0.0.1:{port}/", ca_pem=authority.pem))[0] == "upstream_untrusted"


async def test_an_expired_certificate_is_not_trusted(tmp_path: Path, authority: Authority) -> None:
    async with listening(authority.server(tmp_path, "127.0.0.1", days=-1)) as port:
        assert (await refusal(f"https://127.0.0.1:{port}/", ca_pem=authority.pem))[0] == "upstream_untrusted"


def test_a_connections_own_authority_stands_in_for_the_systems(authority: Authority) -> None:
    (trusted,) = tls(authority.pem).get_ca_certs()
    assert int(trusted["serialNumber"], 16) == authority.certificate.serial_number
    assert tls(None).verify_mode is tls(authority.pem).verify_mode is ssl.CERT_REQUIRED
    assert tls(None).check_hostname and tls(authority.pem).check_hostname


# Through the gateway


async def test_a_call_over_tls_goes_through(tmp_path: Path, authority: Authority) -> None:
    async with staged(tmp_path) as stage:
        context = authority.server(tmp_path, "upstream.example")
        server = await asyncio.start_server(stage.upstream.serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        named("upstream.example", ["127.0.0.1"])
        stage.connect(upstream_url=f"https://upstream.example:{port}/mcp", ca_pem=authority.pem)
        for _ in range(2):
            answered = await stage.ask(stage.request())
            assert (answered.status, answered.body) == (200, RESULT)
        assert stage.upstream.connections == 1
        assert stage.upstream.asked[0].field(b"host") == [b"upstream.example:%d" % port]
        server.close()


@pytest.mark.parametrize(("answers", "code"), [(["169.254.169.254"], "address_refused"), ([], "upstream_unreachable")])
async def test_a_call_to_a_name_that_now_resolves_elsewhere_is_refused(
    tmp_path: Path, answers: list[str], code: str
) -> None:
    async with staged(tmp_path) as stage:
        named("upstream.example", ["127.0.0.1"], answers)
        connection = stage.connect(upstream_url=f"http://upstream.example:{stage.upstream.port}/mcp")
        assert (await stage.ask(stage.request())).status == 200
        stage.gate.pool.close()
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code) == (502, code)
        assert len(stage.upstream.asked) == 1
        await stage.quiet(connection)


async def test_an_untrusted_upstream_sees_no_request(tmp_path: Path, authority: Authority) -> None:
    async with staged(tmp_path) as stage:
        context = authority.server(tmp_path, "127.0.0.1")
        server = await asyncio.start_server(stage.upstream.serve, "127.0.0.1", 0, ssl=context)
        connection = stage.connect(upstream_url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp")
        answered = await stage.ask(stage.request())
        assert (answered.status, answered.code) == (502, "upstream_untrusted")
        assert stage.upstream.asked == []
        await stage.quiet(connection)
        server.close()


@pytest.mark.parametrize(
    ("pem", "code"), [("no certificate", "upstream_untrusted"), ("Zertifik\u00e4t", "internal_error")]
)
async def test_an_authority_that_is_no_certificate_is_an_answer_not_a_wait(tmp_path: Path, pem: str, code: str) -> None:
    async with staged(tmp_path) as stage:
        connection = stage.connect(upstream_url=f"https://127.0.0.1:{stage.upstream.port}/", ca_pem=pem)
        assert (await stage.ask(stage.request())).code == code
        assert (await stage.event()).outcome == "upstream_failed"
        await stage.quiet(connection)


@pytest.mark.parametrize("notified", [True, False])
async def test_an_answer_that_ends_by_closing_is_whole_only_if_tls_says_so(
    tmp_path: Path,
    authority: Authority,
    notified: bool,  # noqa: FBT001 — a parameter of the table
) -> None:
    """Anybody on the way can cut a TCP connection; only the upstream can end TLS (RFC 9112, section 9.8)."""

    async def answer(_: Asked, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + RESULT)
        await writer.drain()
        if notified:
            writer.close()
        else:
            writer.transport.abort()

    async with staged(tmp_path) as stage:
        context = authority.server(tmp_path, "127.0.0.1")
        server = await asyncio.start_server(stage.upstream.serve, "127.0.0.1", 0, ssl=context)
        stage.upstream.handler = answer
        port = server.sockets[0].getsockname()[1]
        connection = stage.connect(upstream_url=f"https://127.0.0.1:{port}/", ca_pem=authority.pem)
        answered = await stage.ask(stage.request())
        assert answered.complete == notified
        assert (await stage.event()).outcome == ("done" if notified else "upstream_failed")
        await stage.quiet(connection)
        server.close()


async def test_a_slow_reader_slows_an_upstream_behind_tls(tmp_path: Path, authority: Authority) -> None:
    async with staged(tmp_path) as stage:
        context = authority.server(tmp_path, "127.0.0.1")
        server = await asyncio.start_server(stage.upstream.serve, "127.0.0.1", 0, ssl=context, limit=1 << 22)
        total = 16 << 20
        stage.upstream.handler = replying(answer_of(b"x" * total))
        port = server.sockets[0].getsockname()[1]
        stage.connect(upstream_url=f"https://127.0.0.1:{port}/", ca_pem=authority.pem)
        client = await stage.client()
        client.send(stage.request())
        await client.head()
        client.writer.transport.pause_reading()
        (caller,) = stage.gate.callers
        await stage.until(lambda: caller._choked)
        await stage.turns(500)
        assert caller._transport.get_write_buffer_size() <= stage.gate.limits.buffer_bytes
        client.writer.transport.resume_reading()
        assert len(await client.reader.readexactly(total)) == total
        stage.upstream.handler = answer_result
        client.send(stage.request())
        assert (await client.answer()).status == 200
        server.close()
