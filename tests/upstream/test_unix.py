"""Upstreams behind Unix sockets."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator

from pyramid_threaded_proxy.exceptions import ConnectFailed, ConnectTimedOut, ValueRefused
from pyramid_threaded_proxy.settings.allowlist import AllowList
from pyramid_threaded_proxy.upstream.names import addresses_of
from pyramid_threaded_proxy.upstream.urls import split_url
from tests.support.origin import Origin, echo
from tests.support.site import MakeSite, route
from tests.support.upstreams import connected, pool_at
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, received

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix sockets")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket, with a space and a capital in its path."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "An app.sock"))
        sock.listen(8)
        yield sock


def test_the_same_as_over_tcp(listener: socket.socket, site: MakeSite) -> None:
    """Paths are joined to the base, Host is localhost, and the connection is kept."""
    with Origin(echo, listener) as upstream:
        where = site(route("r", upstream.url + "/base"))
        first, second = (received(where.get(f"/r/{number}")) for number in (1, 2))
        assert (first.target, second.target) == ("/base/1", "/base/2")
        assert first.one("Host") == "localhost"
        assert upstream.accepted == 1


def test_big_bodies_both_ways(listener: socket.socket, site: MakeSite) -> None:
    """Bodies that are moved inside the kernel arrive whole."""
    body = os.urandom(3 << 20)

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            wire.answer(request.body)

    with Origin(script, listener) as upstream:
        assert site(route("r", upstream.url)).get("/r/", method="PUT", body=body).body == body


def test_its_location_is_mapped_back(listener: socket.socket, site: MakeSite) -> None:
    """A socket's own URLs are those below the Host that it was asked for."""

    def script(wire: OriginWire) -> None:
        for location in ("http://localhost/base/there", "/base/there", "http://localhost/elsewhere"):
            wire.request()
            wire.answer(b"", f"Location: {location}", status="302 Found")

    with Origin(script, listener) as upstream:
        where = site(route("r", upstream.url + "/base"))
        found = [where.get("/r/").one("Location") for _ in range(3)]
        assert found == [f"{where.url}/r/there", "/r/there", "http://localhost/elsewhere"]


def test_fetching_from_a_socket(listener: socket.socket, site: MakeSite) -> None:
    """`proxy_fetch` takes such a URL too, and the exchange says which one it was."""
    seen: list[str] = []

    def configure(config: Configurator) -> None:
        def view(request: Any) -> Any:
            return request.proxy_fetch(
                upstream.url + "/x", on_complete=lambda exchange: seen.append(exchange.stats.upstream)
            )

        config.add_route("f", "/f")
        config.add_view(view, route_name="f")

    with Origin(echo, listener) as upstream:
        where = site(configure=configure)
        assert received(where.get("/f")).target == "/x"
        wait_until(lambda: seen == [upstream.url], "the hook")


def test_a_socket_that_is_not_there(tmp_path: Path, site: MakeSite) -> None:
    """A missing socket is 502, and the message holds its URL and the reason."""
    url = "http+unix://" + str(tmp_path / "none").replace("/", "%2F")
    assert site(route("r", url)).get("/r/").status == 502
    with pytest.raises(ConnectFailed, match=r"none: No such file or directory$"):
        connected(pool_at(split_url(url)[0]), 1.0)
    with pytest.raises(ConnectFailed, match="too long"):
        connected(pool_at(split_url(url + "n" * 200)[0]), 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse at once")
def test_a_backlog_that_stays_full(tmp_path: Path) -> None:
    """A listener that accepts nothing is waited for, but no longer than the time-out."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen(0)
        pool = pool_at(split_url("http+unix://" + str(tmp_path / "s").replace("/", "%2F"))[0])
        first = connected(pool, 1.0)  # as many as a backlog of none has room for
        with pytest.raises(ConnectTimedOut, match=r"not connected after 0\.1 s"):
            connected(pool, 0.1)
        first.close()


@pytest.mark.parametrize("url", ["http+unix://", "http+unix://x", "http+unix:///run/x", "http+unix://%2Fa%00b"])
def test_urls_without_a_socket(url: str) -> None:
    """The path is absolute, escaped, and without NUL."""
    with pytest.raises(ValueRefused, match="http"):
        split_url(url)


def test_one_socket_has_one_name() -> None:
    """However its path is escaped, it is the same origin with the same connections."""
    assert split_url("http+unix://%2Fa%2fb.c/x")[0] == split_url("HTTP+UNIX://%2Fa%2Fb%2Ec/y")[0]
    assert str(split_url("http+unix://%2Fa%2Fb")[0]) == "http+unix://%2Fa%2Fb"


def test_no_entry_of_the_allow_list_lets_one_in() -> None:
    """A socket's path may end like a name that is let in; it is none, and has no address."""
    origin = split_url("http+unix://%2Frun%2Fx.internal")[0]
    allow = AllowList(["*.internal", "0.0.0.0/0", "::/0"])
    assert not allow.permits_name(origin.scheme, origin.host, origin.port)
    assert addresses_of(origin) == []
