"""The page about front servers: its nginx and its HAProxy, with TLS, before an application as it says."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pyramid.config import Configurator
from pyramid.response import Response

from tests.support.certificates import Authority
from tests.support.docs import blocks, ini
from tests.support.origin import MakeOrigin, Origin
from tests.support.processes import free_port, listening
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import PATIENCE
from tests.support.wire import OriginWire, Wire

PAGE = "behind-a-front.md"
HOST = "www.example.com"
#: RFC 6455 1.3's own example; HAProxy looks at both.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
SWITCHED = (
    f"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
)


def backend(wire: OriginWire) -> None:
    """Echoes a request, redirects to itself, switches to websocket, or sends an event and then waits."""
    while (request := wire.request()) is not None:
        name = request.target.rpartition("/")[2]
        if name == "moved":
            wire.answer(b"", f"Location: http://{request.one('Host')}/here", status="302 Found")
        elif name == "switch":
            wire.send(SWITCHED.encode() + b"hello")
            wire.wait_closed()
        elif name == "events":
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            wire.send(head + b"9\r\ndata: 1\n\n\r\n")
            wire.wait_closed()
        else:
            wire.answer(request.raw, "Content-Type: text/plain")


def own_url(config: Configurator) -> None:
    config.add_route("own", "/own")
    config.add_view(lambda request: Response(request.host_url), route_name="own")


@pytest.fixture
def behind(site: MakeSite, origin: MakeOrigin) -> Site:
    """The application, with the page's lines for waitress."""
    parser = ini()
    for block in blocks(PAGE, "ini"):
        parser.read_string(block.text)
    told = {name: value for name, value in parser["server:main"].items() if name.startswith("trusted_proxy")}
    upstream: Origin = origin(backend)
    return site(route("r", upstream.url, upgrade="websocket"), configure=own_url, **told)


def nginx_file(text: str, folder: Path, certificate: str, key: str) -> str:
    """The page's servers in a file that an ordinary user can start nginx with."""
    for path, own in (("/etc/ssl/site.pem", certificate), ("/etc/ssl/site.key", key)):
        text = text.replace(path, own)
    paths = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    http = f"access_log off; client_body_temp_path {folder}/body; {paths}\n{text}"
    own = f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;"
    return f"{own}\nevents {{ }}\nhttp {{ {http} }}\n"


def command_of(front: str, program: str, text: str, folder: Path, certificate: str, key: str) -> list[str]:
    path = folder / f"{front}.conf"
    if front == "nginx":
        path.write_text(nginx_file(text, folder, certificate, key), encoding="utf-8")
        return [program, "-e", str(folder / "error.log"), "-c", str(path)]
    together = folder / "together.pem"
    together.write_bytes(Path(certificate).read_bytes() + Path(key).read_bytes())
    path.write_text(text.replace("/etc/ssl/site.pem", str(together)), encoding="utf-8")
    return [program, "-db", "-f", str(path)]


@pytest.fixture(params=["nginx", "haproxy"])
def front(
    request: pytest.FixtureRequest,
    behind: Site,
    authority: Authority,
    tmp_path: Path,
    need_program: Callable[[str], str],
) -> Iterator[int]:
    """The port of one of the page's front servers, before the application."""
    texts = dict(zip(["nginx", "haproxy"], blocks(PAGE, "text"), strict=True))
    port = free_port()
    text = texts[request.param].text.replace("127.0.0.1:6543", behind.authority)
    text = re.sub(r"(listen|bind) :?443", rf"\1 127.0.0.1:{port}", text)
    certificate, key = authority.issue(HOST)
    command = command_of(request.param, need_program(request.param), text, tmp_path, certificate, key)
    with (tmp_path / "said").open("wb") as said, listening(command, port, said, cwd=tmp_path):
        yield port


def ask(port: int, target: str, *fields: str) -> Wire:
    """A request by TLS; the certificate is the tests' own."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    wire = Wire(context.wrap_socket(plain, server_hostname=HOST))
    lines = [f"GET {target} HTTP/1.1", f"Host: {HOST}", *fields, "", ""]
    wire.send("\r\n".join(lines).encode())
    return wire


def whole_answer(port: int, target: str, *fields: str) -> bytes:
    """All that comes until the front closes."""
    with closing(ask(port, target, *fields, "Connection: close")) as wire:
        return wire.rest()


def test_the_application_knows_what_the_browser_asked(front: int) -> None:
    """Scheme, host and address reach the application and the upstream; what a client claims of itself does not; escapes
    stay as they were sent; a redirect of the upstream's leads to the public address."""
    assert whole_answer(front, "/own").endswith(f"https://{HOST}".encode())
    lying = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-Proto: http", "X-Forwarded-Host: evil.example")
    echoed = whole_answer(front, "/r/a%2Fb", *lying)
    assert b"GET /a%2Fb HTTP/1.1" in echoed
    # The client's address and the front's are the same here, and stand there in this order.
    for line in ("X-Forwarded-For: 127.0.0.1, 127.0.0.1", "X-Forwarded-Proto: https", f"X-Forwarded-Host: {HOST}"):
        assert line.lower().encode() + b"\r\n" in echoed.lower()
    assert b"203.0.113.9" not in echoed
    assert b"evil" not in echoed
    moved = whole_answer(front, "/r/moved")
    assert f"location: https://{HOST}/r/here\r\n".encode() in moved.lower()


def test_a_websocket_and_events_pass(front: int) -> None:
    """A page of the public origin may open a WebSocket; another one may not; an event comes before the next one."""
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
    switched = ask(front, "/r/switch", *upgrade, f"Origin: https://{HOST}")
    assert switched.until(b"hello").startswith(b"HTTP/1.1 101 ")
    switched.close()
    refused = ask(front, "/r/switch", *upgrade, "Origin: https://evil.example")
    assert refused.until(b"\r\n").startswith(b"HTTP/1.1 403 ")
    refused.close()
    events = ask(front, "/r/events")
    assert events.until(b"data: 1\n\n").startswith(b"HTTP/1.1 200 ")
    events.close()
