"""https upstreams: who is believed, and that the bytes come and go as over plain sockets."""

from __future__ import annotations

import hashlib
import logging
import os
import select
import socket
import ssl
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import waitress
from pyramid.config import Configurator
from waitress import wasyncore

from pyramid_threaded_proxy import SettingsError
from pyramid_threaded_proxy.detach.access import install
from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut, ValueRefused
from pyramid_threaded_proxy.loop.poller import READ
from pyramid_threaded_proxy.upstream.connections import Upstreams
from pyramid_threaded_proxy.upstream.tls import Tls, TlsSocket, new_context
from pyramid_threaded_proxy.upstream.urls import split_url
from tests.support.certificates import Authority
from tests.support.origin import MakeOrigin, MakeTls, answering, echo, in_turn
from tests.support.programs import program_path
from tests.support.site import MakeSite, route
from tests.support.upstreams import connected
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, received

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def connecting(url: str, **tls: Any) -> None:
    """Connect to an upstream and close the connection again."""
    pool = Upstreams(lambda: pytest.fail("nobody asked for a loop")).pool(split_url(url)[0], False, Tls(**tls))
    connection = connected(pool, 5.0)
    assert isinstance(connection.sock, TlsSocket)
    connection.close()


# Who is believed


def test_an_authority_of_ones_own(tls_origin: MakeTls, authority: Authority, site: MakeSite) -> None:
    """With `tls.ca_file` a private authority's certificate is believed, by name and by address; Host has the port."""
    upstream = tls_origin(echo)
    for url in (upstream.url, f"https://localhost:{upstream.port}"):
        answer = site(route("r", url + "/base", tls__ca_file=authority.ca_file)).get("/r/x")
        assert received(answer).target == "/base/x"
        assert received(answer).one("Host") == url.removeprefix("https://")


def test_the_system_is_trusted_and_nobody_else(tls_origin: MakeTls, site: MakeSite) -> None:
    """Without `tls.ca_file` a private authority's certificate is 502, and the request is not sent."""
    upstream = tls_origin(echo)
    where = site(route("r", upstream.url))
    assert where.get("/r/x").status == 502
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("names", "tls", "problem"),
    [
        (("DNS:other",), {}, "IP address mismatch"),
        ((), {"server_name": "other"}, "Hostname mismatch"),
        ((), {"ca_file": None}, "self-signed certificate|self signed certificate|unable to get"),
    ],
)
def test_a_certificate_that_is_not_believed(
    tls_origin: MakeTls, authority: Authority, names: tuple[str, ...], tls: dict[str, Any], problem: str
) -> None:
    """The name is checked, and so is who vouches for it; the message says which of them is wrong."""
    with pytest.raises(ConnectFailed, match=f"TLS failed: its certificate is not valid: .*({problem})"):
        connecting(tls_origin(echo, *names).url, **{"ca_file": authority.ca_file, **tls})


def test_server_name(tls_origin: MakeTls, authority: Authority) -> None:
    """`tls.server_name` is the name that the certificate must have, whatever the URL says."""
    upstream = tls_origin(echo, "DNS:service.internal")
    connecting(upstream.url, ca_file=authority.ca_file, server_name="service.internal")


def test_not_verifying_is_said_at_each_start(
    tls_origin: MakeTls, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """`tls.verify: false` believes anybody, and each start of an application says so in the log."""
    upstream = tls_origin(echo, "DNS:other")
    for count in (1, 2):
        where = site(route("r", upstream.url, tls__verify="false"))
        said = [record for record in caplog.records if "tls.verify is false" in record.getMessage()]
        assert len(said) == count
        assert where.get("/r/x").status == 200


def test_old_tls_is_refused(authority: Authority, tls_origin: MakeTls) -> None:
    """TLS 1.2 is the least that we speak."""
    assert new_context(Tls()).minimum_version is ssl.TLSVersion.TLSv1_2
    connecting(tls_origin(echo, maximum=ssl.TLSVersion.TLSv1_2).url, ca_file=authority.ca_file)


def test_a_certificate_of_our_own(tls_origin: MakeTls, authority: Authority, site: MakeSite) -> None:
    """An upstream that asks for a certificate gets `tls.cert_file`; routes that say otherwise share no connection."""
    certificate, key = authority.issue("client")
    upstream = tls_origin(echo, wants_client=True)
    ours = {"tls__ca_file": authority.ca_file, "tls__cert_file": certificate, "tls__key_file": key}
    where = site(route("r", upstream.url, **ours) | route("s", upstream.url, tls__ca_file=authority.ca_file))
    assert where.get("/r/x").status == 200
    assert where.get("/s/x").status == 502
    assert where.get("/r/x").status == 200


def test_plain_servers_and_silent_ones(origin: MakeOrigin, authority: Authority) -> None:
    """A peer that speaks no TLS is told from one that says nothing; neither message holds more than the reason."""
    plain = origin(lambda wire: wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")).url.replace("http", "https")
    with pytest.raises(ConnectFailed, match=r"^https://127\.0\.0\.1:\d+: TLS failed: [a-z ]+$"):
        connecting(plain, ca_file=authority.ca_file)
    silent = origin(lambda wire: wire.wait_closed())
    pool = Upstreams(lambda: pytest.fail("no loop")).pool(split_url(silent.url.replace("http", "https"))[0], False)
    with pytest.raises(ConnectTimedOut, match=r"not connected after 0\.1 s"):
        connected(pool, 0.1)


# Files


def test_files_are_looked_into_at_start(tmp_path: Path, authority: Authority) -> None:
    """A missing or wrong file is a start-up error that names its setting."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing of use")
    certificate = authority.issue("client2")[0]
    faults = []
    for number, keys in enumerate([
        {"tls__ca_file": str(tmp_path / "none")}, {"tls__ca_file": str(wrong)},
        {"tls__cert_file": certificate}, {"tls__cert_file": certificate, "tls__key_file": str(wrong)},
    ]):  # fmt: skip
        config = Configurator(settings=route(f"r{number}", "https://h", **keys))
        with pytest.raises(
            SettingsError, match=rf"proxy.routes.r{number}.tls\.[a-z_]+ = '.*\.?.*' \(the ini"
        ) as raised:
            config.include("pyramid_threaded_proxy")
        faults.append(str(raised.value))
    assert ["tls.ca_file" in fault for fault in faults] == [True, True, False, False]
    assert "No such file" in faults[0]


def test_keys_that_do_not_fit_together(authority: Authority) -> None:
    """A key without its certificate, and an authority that nobody asks, are start-up errors."""
    settings = route("r", "https://h", tls__key_file="k") | route("s", "https://h", tls__verify="no", tls__ca_file="c")
    with pytest.raises(SettingsError) as raised:
        Configurator(settings=settings).include("pyramid_threaded_proxy")
    assert [line.split(" = ")[0] for line in str(raised.value).splitlines()] == [
        "proxy.routes.r.tls.key_file", "proxy.routes.s.tls.ca_file",
    ]  # fmt: skip


def test_a_key_with_a_password_asks_nobody(authority: Authority, tmp_path: Path) -> None:
    """OpenSSL would ask the terminal for it, and the start would hang."""
    certificate, key = authority.issue("locked")
    locked = tmp_path / "locked.key"
    subprocess.run(
        [program_path("openssl"), "ec", "-in", key, "-aes128", "-passout", "pass:secret", "-out", str(locked)],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(ValueRefused, match="needs a password"):
        new_context(Tls(cert_file=certificate, key_file=str(locked)))


# Bytes


VERSIONS = pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@VERSIONS
def test_big_bodies_both_ways(tls_origin: MakeTls, authority: Authority, site: MakeSite, maximum: Any) -> None:
    """Bodies of many TLS records arrive whole both ways, by length and in chunks, and the connection is kept."""
    body = os.urandom(3 << 20)

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            digest = hashlib.sha256(request.body).hexdigest()
            if request.target == "/length":
                wire.answer(body, f"X-Digest: {digest}")
            else:
                wire.send(f"HTTP/1.1 200 OK\r\nX-Digest: {digest}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
                for at in range(0, len(body), 50_000):
                    wire.send(b"%x\r\n%b\r\n" % (len(piece := body[at : at + 50_000]), piece))
                wire.send(b"0\r\n\r\n")

    upstream = tls_origin(script, maximum=maximum)
    where = site(route("r", upstream.url, tls__ca_file=authority.ca_file))
    for target in ("/r/length", "/r/chunks"):
        answer = where.get(target, method="PUT", body=body)
        assert answer.body == body
        assert answer.one("X-Digest") == hashlib.sha256(body).hexdigest()
    assert upstream.accepted == 1


def test_heads_in_small_records(tls_origin: MakeTls, authority: Authority, site: MakeSite) -> None:
    """An answer that comes byte by byte, each in a record of its own, is read as one that comes whole."""

    def script(wire: OriginWire) -> None:
        while wire.request() is not None:
            for byte in OK:
                wire.send(bytes([byte]))

    where = site(route("r", tls_origin(script).url, tls__ca_file=authority.ca_file))
    assert [where.get("/r/").body for _ in range(2)] == [b"ok", b"ok"]


def test_a_head_and_a_body_in_one_record(tls_origin: MakeTls, authority: Authority, site: MakeSite) -> None:
    """What lies in the TLS layer is not waited for: no poller would ever report it."""
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(head + bytes(9000))
        wire.wait_closed()

    where = site(route("r", tls_origin(script).url, tls__ca_file=authority.ca_file, buffer="4KiB"))
    assert len(where.get("/r/").body) == 9000


@VERSIONS
def test_a_ragged_end_breaks_the_answer(
    tls_origin: MakeTls, authority: Authority, site: MakeSite, maximum: Any
) -> None:
    """A body that ends with the connection is whole only if TLS was ended too (RFC 9112 9.8)."""

    def whole(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nall")
        assert isinstance(wire.sock, ssl.SSLSocket)
        wire.sock.settimeout(0.001)
        try:
            wire.sock.unwrap()
        except TimeoutError:
            pass

    def ragged(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")

    upstream = tls_origin(in_turn(whole, ragged), maximum=maximum)
    where = site(route("r", upstream.url, tls__ca_file=authority.ca_file))
    assert where.get("/r/").body == b"all"
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    client.until(b"half")
    with pytest.raises(ConnectionResetError):
        client.rest()
    client.close()


# Keeping


def test_what_tls_says_itself_keeps_a_connection(tls_origin: MakeTls, authority: Authority) -> None:
    """New session tickets on an idle connection are no answer that nobody asked for."""
    upstreams = Upstreams(lambda: pytest.fail("no loop"))
    upstream = tls_origin(lambda wire: wire.wait_closed())
    pool = upstreams.pool(split_url(upstream.url)[0], False, Tls(ca_file=authority.ca_file))
    connection = connected(pool, 5.0)
    pool.give_back(connection, 1)
    wait_until(lambda: select.select([connection.sock], [], [], 0)[0], "the tickets")
    pool.on_event(connection.endpoint, READ)
    assert not select.select([connection.sock], [], [], 0)[0]
    assert pool.take() is connection
    connection.close()


@pytest.mark.parametrize("end", ["close", "bytes"])
def test_an_idle_connection_that_ends_is_dropped(
    tls_origin: MakeTls, authority: Authority, site: MakeSite, end: str
) -> None:
    """The end of an idle TLS connection, and bytes that nobody asked for, are noticed at once."""
    may_end = threading.Event()

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(OK)
        may_end.wait(10)
        if end == "bytes":
            wire.send(b"HTTP/1.1 200 OK\r\n")
            wire.wait_closed()

    where = site(route("r", tls_origin(in_turn(script, echo)).url, tls__ca_file=authority.ca_file))
    where.get("/r/")
    wait_until(lambda: where.idle() == 1)
    may_end.set()
    wait_until(lambda: where.idle() == 0, "the connection to be dropped")
    assert where.get("/r/", method="POST", body=b"x").status == 200


def test_a_stale_connection_is_replaced(tls_origin: MakeTls, authority: Authority, site: MakeSite) -> None:
    """A kept TLS connection that is closed on the next request is replaced without the client noticing."""
    upstream = tls_origin(in_turn(answering(OK, b""), echo))
    where = site(route("r", upstream.url, tls__ca_file=authority.ca_file))
    assert [where.get("/r/").status for _ in range(2)] == [200, 200]
    assert upstream.accepted == 2


# Switched connections


@VERSIONS
def test_a_switched_connection(tls_origin: MakeTls, authority: Authority, site: MakeSite, maximum: Any) -> None:
    """Bytes go both ways over TLS, and each side's end reaches the other, upstream as TLS's own."""
    ended = threading.Event()
    load = os.urandom(1 << 20)

    def script(wire: OriginWire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhello")
        wire.send(wire.exactly(len(load)))
        assert isinstance(wire.sock, ssl.SSLSocket)
        wire.sock.suppress_ragged_eofs = False
        assert wire.receive() == b""  # close_notify, not a ragged end
        wire.sock.unwrap()
        ended.set()

    upstream = tls_origin(script, maximum=maximum)
    where = site(route("r", upstream.url, tls__ca_file=authority.ca_file, upgrade="echo"))
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
    client.until(b"hello")
    sender = threading.Thread(target=client.send, args=(load,))
    sender.start()
    assert client.exactly(len(load)) == load
    sender.join()
    client.half_close()
    assert client.rest() == b""
    assert ended.wait(10)
    client.close()


def test_half_a_close_with_bytes_on_their_way(authority: Authority) -> None:
    """Where bytes have come already the TCP stream ends instead: OpenSSL would lose them over its own farewell."""
    near, far = socket.socketpair()
    ready = threading.Event()

    def serve() -> None:
        sock = authority.server()(far)
        sock.sendall(b"news")
        ready.set()
        assert sock.recv(10) == b""
        sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    sock = new_context(Tls(ca_file=authority.ca_file)).wrap_socket(near, server_hostname="localhost")
    assert ready.wait(10)
    sock.setblocking(False)
    wait_until(lambda: select.select([sock], [], [], 0)[0])
    sock.shutdown(socket.SHUT_WR)
    assert wait_until(lambda: _received(sock)) == b"news"
    thread.join()
    sock.close()


def _received(sock: Any) -> bytes | None:
    try:
        return sock.recv(100)  # type: ignore[no-any-return]
    except BlockingIOError:
        return None


def test_the_log_names_no_file_contents(tls_origin: MakeTls, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """What failed is told in the log by its reason."""
    caplog.set_level(logging.DEBUG, "pyramid_threaded_proxy.access")
    where = site(route("r", tls_origin(echo).url))
    where.get("/r/x?secret=1")
    wait_until(lambda: any("not valid" in record.getMessage() for record in caplog.records))
    assert not any("secret" in record.getMessage() for record in caplog.records)


def test_probes_over_tls(tls_origin: MakeTls, authority: Authority, site: MakeSite) -> None:
    """An active probe speaks TLS as the route does, and doesn't wait for the upstream's farewell."""
    asked = []

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            asked.append(request.target)
            wire.answer(b"")

    upstream = tls_origin(script)
    keys = {"tls__ca_file": authority.ca_file, "health__path": "/well", "health__interval": "20ms"}
    where = site(route("r", upstream.url, **keys))
    assert where.get("/r/").status == 200
    wait_until(lambda: asked.count("/well") > 3, "some probes")
    assert not where.engine.routes["r"].balancer.upstreams[0].health.down


def test_an_application_behind_a_tls_listener_is_left_alone(stack: ExitStack, authority: Authority) -> None:
    """Waitress was given a socket that speaks TLS: what is received there is read through it, and never past it."""
    install()

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "3")])
        return [environ["PATH_INFO"].encode()[1:]]

    listener = authority.server()(stack.enter_context(socket.create_server(("127.0.0.1", 0))))
    server = waitress.create_server(application, sockets=[listener], threads=1)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    context = ssl.create_default_context(cafile=authority.ca_file)
    plain = socket.create_connection(listener.getsockname(), timeout=10)
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        for path in (b"one", b"two"):
            client.sendall(b"GET /" + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = b""
            while not answer.endswith(path):
                answer += client.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map, ignore_all=True))
    thread.join(10)
    server.task_dispatcher.shutdown()
