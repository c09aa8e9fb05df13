"""``request.proxy_exchanges``: what is in flight in this process, and the way to end it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pyramid_threaded_proxy import Exchange, InFlight
from pyramid_threaded_proxy.exceptions import ExchangeClosed
from pyramid_threaded_proxy.exchange import UpstreamRequest
from pyramid_threaded_proxy.tween import ENGINE
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Policy, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\n"


def staged(wire: OriginWire) -> None:
    """Goes as far as the target says, to the head or to a 101 or nowhere, and then waits for the proxy to close."""
    request = wire.request()
    if request is None:
        return
    if "head" in request.target:
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    elif "tunnel" in request.target:
        wire.send(SWITCH)
    elif "big" in request.target:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n")
        while True:
            wire.send(bytes(1 << 20))
    wire.wait_closed()


class Numeric(Policy):
    """User ids of digits are integers, as primary keys are."""

    def identity(self, request: Any) -> Any:
        user = request.headers.get("X-User")
        return int(user) if user and user.isdigit() else user

    authenticated_userid = identity


def configure(config: Configurator) -> None:
    """A logout view that ends the user's own exchanges, and one that shows what there is."""
    config.set_security_policy(Numeric())
    config.add_route("logout", "/logout")
    config.add_view(
        lambda request: Response(str(request.proxy_exchanges.close(userid=request.authenticated_userid))),
        route_name="logout",
    )
    config.add_route("list", "/list")
    config.add_view(
        lambda request: Response(
            " ".join(sorted(f"{found.route}:{found.userid}" for found in request.proxy_exchanges))
            + f" {len(request.proxy_exchanges)}"
        ),
        route_name="list",
    )


@pytest.fixture
def made(origin: MakeOrigin, site: MakeSite) -> Site:
    upstream = origin(staged).url
    return site(route("r", upstream, upgrade="websocket") | route("s", upstream), configure=configure)


def ask(site: Site, path: str, user: str, more: str = "") -> Wire:
    """A client whose exchange is listed."""
    before = len(site.engine.in_flight)
    client = site.client()
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n{more}\r\n".encode())
    wait_until(lambda: len(site.engine.in_flight) > before, "the exchange")
    return client


def test_it_lists_what_is_in_flight(made: Site) -> None:
    """Iterating gives the exchanges with their route and user, len() counts them, and what has ended is gone."""
    clients = [ask(made, "/r/x", "alice"), ask(made, "/s/x", "bob"), ask(made, "/s/y", "alice")]
    assert made.get("/list").body == b"r:alice s:alice s:bob 3"
    clients[1].close()
    wait_until(lambda: len(made.engine.in_flight) == 2, "the end of bob's")
    assert made.get("/list").body == b"r:alice s:alice 2"
    assert made.engine.in_flight.close(route="s") == 1
    assert made.engine.in_flight.close(route="r") == 1
    for client in (clients[0], clients[2]):
        assert client.head()[0] == "HTTP/1.1 503 Service Unavailable"
        client.close()
    wait_until(lambda: made.get("/list").body == b" 0", "an empty list")


def test_a_logout_ends_the_users_exchanges(made: Site) -> None:
    """A view closes by user id, of which ever type: 503 before the head, a broken connection after it; others stay."""
    waiting = ask(made, "/r/x", "17")
    begun = ask(made, "/r/head", "17")
    begun.until(b"hello\r\n")
    tunnel = ask(made, "/r/tunnel", "17", UPGRADE)
    assert tunnel.head()[0].startswith("HTTP/1.1 101 ")
    other, anonymous = ask(made, "/r/x", "18"), ask(made, "/r/x", "")
    assert made.get("/logout", {"X-User": "17"}).body == b"3"
    first, fields = waiting.head()
    assert (first, fields["retry-after"]) == ("HTTP/1.1 503 Service Unavailable", "1")
    assert b"ended by this server" in waiting.exactly(int(fields["content-length"]))
    waiting.close()
    assert begun.is_reset()
    assert tunnel.is_reset()
    wait_until(lambda: len(made.engine.in_flight) == 2, "the ends")
    assert not other.is_closed()
    assert not anonymous.is_closed()
    assert made.get("/logout", {"X-User": "17"}).body == b"0"
    other.close()
    anonymous.close()


def test_one_is_closed_by_its_id(made: Site) -> None:
    """`request_id` names one exchange, and all that is given must match."""
    clients = {name: ask(made, "/r/x", name) for name in ("alice", "bob")}
    exchanges = made.engine.in_flight
    ids = {found.userid: found.request_id for found in exchanges}
    assert exchanges.close(request_id=ids["bob"], userid="alice") == 0
    assert exchanges.close(request_id=ids["bob"], route="s") == 0
    assert exchanges.close(request_id="0" * 32) == 0
    assert exchanges.close(request_id=ids["bob"], userid="bob", route="r") == 1
    assert clients["bob"].head()[0] == "HTTP/1.1 503 Service Unavailable"
    wait_until(lambda: [found.userid for found in exchanges] == ["alice"], "the end of bob's alone")
    assert not clients["alice"].is_closed()
    for client in clients.values():
        client.close()


def test_nothing_given_is_an_error(made: Site) -> None:
    """A user id that is None, as for nobody logged in, ends no exchanges: TypeError."""
    client = ask(made, "/r/x", "")
    for given in ({}, {"userid": None}, {"userid": None, "route": None, "request_id": None}):
        with pytest.raises(TypeError, match="userid, route or request_id"):
            made.engine.in_flight.close(**given)
    with pytest.raises(TypeError):
        made.engine.in_flight.close("alice")
    assert not client.is_closed()
    client.close()


def test_an_answer_that_a_mover_has_breaks(made: Site) -> None:
    """Closing reaches an answer that passes in the kernel, whose client takes it as fast as it comes."""
    client = ask(made, "/r/big", "alice")
    client.until(b"\r\n\r\n")
    reader = threading.Thread(target=client.wait_closed)
    reader.start()
    wait_until(lambda: next(iter(made.engine.in_flight)).stats.bytes_down > 8 << 20, "some of the body")
    assert made.engine.in_flight.close(userid="alice") == 1
    reader.join(10)
    assert not reader.is_alive()
    client.close()


def test_the_same_exchange_closed_twice_ends_once(made: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Two logouts at once are as good as one: no second answer, nothing in the error log."""
    client = ask(made, "/r/x", "alice")
    gate = threading.Barrier(4)
    told: list[int] = []

    def close() -> None:
        gate.wait()
        told.append(made.engine.in_flight.close(userid="alice"))

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(told) >= 1
    first, fields = client.head()
    assert first == "HTTP/1.1 503 Service Unavailable"
    client.exactly(int(fields["content-length"]))
    client.send(b"GET /list HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert client.rest().startswith(b"HTTP/1.1 200 OK")
    client.close()
    assert [entry for entry in caplog.records if entry.levelname in ("ERROR", "CRITICAL")] == []


@pytest.mark.parametrize("path", ["/r/x", "/r/head", "/r/big"])
def test_streamed_exchanges_are_listed_and_closed(made: Site, path: str) -> None:
    """Where nothing is detached the worker thread hears of it too: 503 before the head, an exception after it."""
    ended: list[str] = []

    def run() -> None:
        status, _, body = Request.blank(path, headers={"X-User": "alice"}).call_application(made.application)
        ended.append(status)
        try:
            for _ in body:
                pass
        except Exception as error:
            ended.append(str(error))
        finally:
            body.close()

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: len(made.engine.in_flight) == 1, "the exchange")
    if path != "/r/x":
        wait_until(lambda: next(iter(made.engine.in_flight)).stats.bytes_down, "the head")
    assert made.engine.in_flight.close(userid="alice") == 1
    thread.join(10)
    assert ended == (["503 Service Unavailable"] if path == "/r/x" else ["200 OK", "closed by the application"])
    assert len(made.engine.in_flight) == 0


def close_it(exchange: Exchange) -> None:
    """A hook that ends its own exchange."""
    exchange.state["told"] = exchange.registry[ENGINE].in_flight.close(request_id=exchange.request_id)
    exchange.response.headers["X-Told"] = str(exchange.state["told"])


@pytest.mark.parametrize("streamed", [False, True])
def test_it_is_closed_when_its_head_is_about_to_be_sent(origin: MakeOrigin, site: MakeSite, streamed: bool) -> None:
    """Nothing ends it between the making of a head and its sending; with the head goes the small body behind it."""
    made = site(route("r", origin(echo).url, hooks__headers=f"{__name__}.close_it"), configure=configure)
    if streamed:
        status, fields, body = Request.blank("/r/x").call_application(made.application)
        assert (status, dict(fields)["X-Told"], next(iter(body))[:7]) == ("200 OK", "1", b"GET /x ")
        with pytest.raises(ExchangeClosed):
            next(iter(body))
    else:
        answer = made.get("/r/x")
        assert (answer.status, answer.one("X-Told"), answer.body[:7]) == (200, "1", b"GET /x ")
    wait_until(lambda: not made.engine.in_flight, "its end")


def test_applications_know_their_own_only(made: Site, site: MakeSite) -> None:
    """A second application in the same process neither lists nor closes what the first has in flight."""
    client = ask(made, "/r/x", "alice")
    other = site(configure=configure)
    assert other.get("/list").body == b" 0"
    assert other.get("/logout", {"X-User": "alice"}).body == b"0"
    assert made.get("/list").body == b"r:alice 1"
    client.close()


def test_what_other_processes_close() -> None:
    """Only what began before is meant; what is closed here is told to the others, and what they close is not."""
    told: list[Any] = []
    ended: list[int] = []
    in_flight = InFlight(told.append)
    for number in (1, 2):
        exchange = Exchange("r", UpstreamRequest("GET", "http://a", "/", [], None), "ann", None, None)
        exchange.stats.started = float(number)
        in_flight.add(exchange, lambda error, number=number: ended.append(number))  # type: ignore[misc]
    assert in_flight.end({"userid": "ann", "route": "r"}, before=2.0) == 1
    assert (ended, told) == ([1], [])
    assert in_flight.end({"userid": "bob"}, before=9.0) == in_flight.close(userid=5, route="r") == 0
    assert told == [{"userid": "5", "route": "r"}]
