"""A page in a real browser opens a WebSocket through the site."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.support.browser import DEADLINE, Browser
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until

PAGE = """<!doctype html><title>echo</title><p id=log></p><p id=state>opening</p><script>
const socket = new WebSocket("ws://" + (location.hash.slice(1) || location.host) + "/ws/chat?from=page", ["echo.v1"])
const big = "x".repeat(1 << 20)
const say = (id, text) => { document.getElementById(id).textContent = text }
socket.onopen = () => { say("state", "open " + socket.protocol); socket.send("hello"); socket.send(big) }
socket.onmessage = event => {
  if (event.data === big) { say("log", "big came back"); socket.close(4000, "done") }
  else say("log", event.data)
}
socket.onerror = () => say("log", "error")
socket.onclose = event => say("state", `closed ${event.code} ${event.reason} ${event.wasClean}`)
</script>"""


class Upstream:
    """An echo of messages that remembers the handshakes and the ends of its connections."""

    def __init__(self) -> None:
        self.handshakes: list[Any] = []
        self.ends: list[tuple[Any, Any]] = []
        self.server = serve(self._echo, "127.0.0.1", 0, subprotocols=["echo.v1"], max_size=None)  # type: ignore[list-item]
        self.url = f"http://127.0.0.1:{self.server.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def _echo(self, connection: ServerConnection) -> None:
        self.handshakes.append(connection.request)
        with suppress(ConnectionClosed):
            for message in connection:
                connection.send(message)
        self.ends.append((connection.close_code, connection.close_reason))

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(10)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


def configure(config: Configurator) -> None:
    config.add_route("page", "/page")
    config.add_view(lambda request: Response(PAGE), route_name="page")


def test_a_page_talks_through_the_site(browser: Browser, site: MakeSite, upstream: Upstream) -> None:
    """Handshake, subprotocol, a short and a long message, and the page's close code all pass."""
    here = site(route("ws", upstream.url, upgrade="websocket"), configure=configure)
    browser.open(f"{here.url}/page", "session=secret")
    wait_until(lambda: browser.text("#state").startswith("closed"), timeout=DEADLINE)
    assert browser.text("#log") == "big came back"
    assert browser.text("#state") == "closed 4000 done true"
    wait_until(lambda: bool(upstream.ends), timeout=DEADLINE)
    assert upstream.ends == [(4000, "done")]
    handshake = upstream.handshakes[0]
    assert handshake.path == "/chat?from=page"
    assert "Cookie" not in handshake.headers
    assert handshake.headers["Origin"] == here.url


def test_a_page_of_another_site_is_refused(browser: Browser, site: MakeSite, upstream: Upstream) -> None:
    """The browser names the page's own origin, so another site's page gets no connection."""
    here = site(route("ws", upstream.url, upgrade="websocket"), configure=configure)
    other = site(configure=configure)
    browser.open(f"{other.url}/page#{here.authority}", "session=secret")
    wait_until(lambda: browser.text("#state").startswith("closed"), timeout=DEADLINE)
    assert browser.text("#state") == "closed 1006  false"
    assert upstream.handshakes == []
