"""The ways in which bytes may be moved by another server, each with that server before a site of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.relay.test_tunnel import echo_bytes
from tests.support.fronts import ACCEPTED, KEY, RealFront, verifying
from tests.support.site import route
from tests.support.wire import OriginWire

guarded = partial(route, permission="view")
#: What takes the place of the endpoint where nginx is handed what it is to fetch.
ACCEL = {"proxy.engine": "accel", "proxy.accel.secret": KEY, "proxy.own_cookies": "session auth_tkt"}
BY: dict[str, tuple[str, dict[str, str]]] = {
    "nginx": ("nginx", verifying()),
    "accel": ("nginx", ACCEL),
    "haproxy": ("haproxy", verifying("haproxy")),
    "envoy": ("envoy", verifying("envoy")),
    "caddy": ("caddy", verifying("caddy")),
    "traefik": ("traefik", verifying("traefik")),
}

#: Servers that show their clients the answer to the question.
SHOWING = ("envoy", "caddy", "traefik")

Front = Callable[..., RealFront]


def holding(*lacking: str) -> pytest.MarkDecorator:
    """All ways but those that can't hold what a test is about."""
    return pytest.mark.parametrize("way", [name for name in BY if name not in lacking], indirect=True)


class Way(NamedTuple):
    """One way in which bytes may be moved: the settings for it, and how its server is started."""

    engine: str
    settings: dict[str, str]
    start: Front


@pytest.fixture
def start(stack: ExitStack, tmp_path: Path, need_program: Callable[[str], str]) -> Callable[[str], Front]:
    """Starts a server in front of a site."""

    def starter(engine: str) -> Front:
        need_program(engine)
        accepted = ACCEPTED.get(engine, ())
        return lambda site, **options: stack.enter_context(
            RealFront(site, engine, tmp_path, accepted=accepted, **options)
        )

    return starter


@pytest.fixture(params=BY)
def way(request: pytest.FixtureRequest, start: Callable[[str], Front]) -> Way:
    """Each of the ways."""
    engine, settings = BY[request.param]
    return Way(engine, settings, start(engine))


@pytest.fixture(params=[name for name in BY if name != "accel"])
def asking(request: pytest.FixtureRequest, start: Callable[[str], Front]) -> Way:
    """Those in which the server asks first."""
    return Way(request.param, verifying(request.param), start(request.param))


@pytest.fixture
def accel(start: Callable[[str], Front]) -> Way:
    """The one in which nginx is handed what it is to fetch."""
    return Way("nginx", ACCEL, start("nginx"))


#: The handshake of RFC 6455 1.3: HAProxy looks at both ends of it.
HANDSHAKE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def switching(wire: OriginWire) -> None:
    """Switches every connection, and sends everything back."""
    request = wire.request()
    assert request is not None
    assert (str(request.one("Connection")).lower(), request.one("Upgrade")) == ("upgrade", "websocket")
    wire.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    echo_bytes(wire)
