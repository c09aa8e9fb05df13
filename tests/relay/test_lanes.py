"""Lanes: hooks, rechecks and probes have threads that the others can't take, and one route can't take all of them."""

from __future__ import annotations

import select
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from pyramid.authorization import Allow
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_threaded_proxy import UpstreamDown
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.loop.scheduler import RECHECKERS
from tests.support.origin import MakeOrigin, answering, beginning, echo, in_turn
from tests.support.site import MakeSite, Policy, Site, route
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import OriginWire, Wire

#: Seconds that rechecks are apart in these tests, and within which the last of them is answered.
INTERVAL = 0.5
ANSWERED = INTERVAL + 1.0

#: What the hook by dotted name waits for, how many do, and whom it lets pass.
gate = threading.Event()
inside: list[str] = []


def hanging(exchange: Exchange) -> None:
    """A hook by dotted name that does not return."""
    if not gate.is_set():
        inside.append(exchange.route)
        assert gate.wait(3 * PATIENCE)


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    gate.clear()
    inside.clear()
    yield
    gate.set()


class Permissions:
    """Who may view; while `hangs` is a route's name its questions do not return, until the test is over."""

    def __init__(self) -> None:
        self.allowed = {"alice"}
        self.hangs = ""
        self.asked: list[tuple[str, float]] = []
        self.times: defaultdict[str, list[float]] = defaultdict(list)  # by path

    def factory(self, request: Request) -> Any:
        name = request.path_info.split("/")[1]
        self.asked.append((name, time.monotonic()))
        self.times[request.path_info].append(time.monotonic())
        if name == self.hangs:
            gate.wait(3 * PATIENCE)

        class Context:
            __acl__ = tuple((Allow, user, "view") for user in self.allowed)

        return Context()

    def configure(self, config: Configurator) -> None:
        config.set_security_policy(Policy())
        config.set_root_factory(self.factory)


def rechecked(name: str, url: str, **keys: str) -> dict[str, str]:
    """A route that asks for its permission again."""
    return route(name, url, permission="view", recheck=f"{INTERVAL}s", **keys)


def get(name: str, number: int) -> bytes:
    return f"GET /{name}/{number} HTTP/1.1\r\nHost: a\r\nX-User: alice\r\n\r\n".encode()


def clients(site: Site, name: str, count: int) -> list[Wire]:
    """So many that have asked a route."""
    made = [site.client() for _ in range(count)]
    for number, client in enumerate(made):
        client.send(get(name, number))
    return made


def streams(site: Site, name: str, count: int = 1) -> list[Wire]:
    """So many that have the beginning of an endless answer."""
    made = clients(site, name, count)
    for client in made:
        client.until(b"hello\r\n")
    return made


def seconds_until_closed(client: Wire, since: float) -> float:
    client.wait_closed()
    return time.monotonic() - since


def close(*clients: Wire) -> None:
    gate.set()
    for client in clients:
        client.close()


def test_one_routes_hooks_leave_threads_for_others(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """While ten of its exchanges hang in their hook, another route's hook is served at once, and one line says it."""
    url = origin(echo).url
    hooks = {"hooks__headers": f"{__name__}.hanging"}
    where = site(route("bad", url, **hooks) | route("good", url, hooks__headers=f"{__name__}.passing"))
    hung = clients(where, "bad", 10)
    wait_until(lambda: len(where.engine.in_flight) == 10 and len(inside) == 4, "half of the threads to hang")
    for _ in range(20):
        began = time.monotonic()
        assert where.get("/good/").status == 200
        assert time.monotonic() - began < 1
    assert len(inside) == 4
    said = [line for line in caplog.messages if "waits for a thread" in line]
    assert said == ["code of the application's for bad waits for a thread: see proxy.threads"]
    gate.set()
    assert [client.head()[0] for client in hung] == ["HTTP/1.1 200 OK"] * 10
    close(*hung)


def passing(exchange: Exchange) -> None:
    """A hook by dotted name that returns."""


def well(wire: OriginWire) -> None:
    """Answers once, and keeps the connection until it is asked again."""
    wire.request()
    wire.answer(b"well")
    wire.request()


def test_our_own_pages_need_no_thread(origin: MakeOrigin, site: MakeSite) -> None:
    """While hooks hold every thread a 502 comes at once, and so does the 503 of an exchange that waits for one."""
    where = site(
        {"proxy.threads": "1"}
        | route("bad", origin(echo).url, hooks__headers=f"{__name__}.hanging")
        | route("broken", origin(in_turn(well, answering(b"SSH-2.0 garbage\r\n\r\n"))).url)
    )
    assert where.get("/broken/").status == 200
    hung = clients(where, "bad", 3)
    wait_until(lambda: len(inside) == 1 and len(where.engine.in_flight) == 3, "all threads to hang")
    assert where.get("/broken/").status == 502
    assert where.engine.in_flight.close(route="bad") == 3
    wait_until(lambda: len(select.select([client.sock for client in hung], [], [], 0)[0]) == 2, "two answers")
    gate.set()  # the third one had begun, and so is not abandoned half-way
    heads = sorted(client.head()[0] for client in hung)
    assert heads == ["HTTP/1.1 200 OK", *["HTTP/1.1 503 Service Unavailable"] * 2]
    assert inside == ["bad"]
    close(*hung)


@pytest.mark.parametrize("asked", ["on its own route", "on another route"])
def test_a_recheck_is_answered_whatever_hooks_do(origin: MakeOrigin, site: MakeSite, asked: str) -> None:
    """While hooks hold every thread of the application's, a revoked user's stream ends in its interval and a second."""
    permissions, bad = Permissions(), "r" if asked == "on its own route" else "bad"
    hooks = {"hooks__complete": f"{__name__}.hanging"}
    where = site(
        {"proxy.threads": "1"}
        | rechecked("r", origin(beginning).url, **(hooks if bad == "r" else {}))
        | rechecked("bad", origin(echo).url, **hooks),
        configure=permissions.configure,
    )
    (stream,) = streams(where, "r")
    hung = clients(where, "bad", 3)
    wait_until(lambda: inside, "the thread to hang")
    time_of_revocation = time.monotonic()
    permissions.allowed.clear()
    assert seconds_until_closed(stream, time_of_revocation) < ANSWERED + 0.2
    close(stream, *hung)


def test_a_question_that_is_not_answered_is_a_no(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy whose database hangs: more streams than there are threads for questions end, and one line says why."""
    permissions = Permissions()
    where = site(rechecked("r", origin(beginning).url), configure=permissions.configure, threads=8)
    opened = streams(where, "r", 2 * RECHECKERS)
    hung_since = time.monotonic()
    permissions.hangs = "r"
    assert max(seconds_until_closed(client, hung_since) for client in opened) < ANSWERED + 0.2
    wait_until(lambda: not where.engine.in_flight, "their ends")
    assert not where.engine.scheduler.recheckers._waiting
    said = [line for line in caplog.messages if "could not be asked" in line]
    assert said == ["an exchange of r was ended: its permission could not be asked for again"]
    close(*opened)


def test_one_routes_questions_leave_threads_for_others(origin: MakeOrigin, site: MakeSite) -> None:
    """While a route's questions hang, those of another one are answered, and its streams go on."""
    permissions, url = Permissions(), origin(beginning).url
    where = site(rechecked("bad", url) | rechecked("good", url), configure=permissions.configure, threads=8)
    bad, (good,) = streams(where, "bad", 2 * RECHECKERS), streams(where, "good")
    permissions.hangs = "bad"
    for client in bad:
        client.wait_closed()

    def asked() -> int:
        return sum(name == "good" for name, _ in list(permissions.asked))

    before = asked()
    wait_until(lambda: asked() >= before + 3, "three more questions")
    assert not good.is_closed()
    close(good, *bad)


def test_exchanges_that_begin_together_do_not_ask_together(origin: MakeOrigin, site: MakeSite) -> None:
    """Their first questions are spread over half of the interval, none is late, and they stay apart."""
    permissions = Permissions()
    where = site(rechecked("r", origin(beginning).url), configure=permissions.configure)
    opened = streams(where, "r", 30)
    times = permissions.times
    wait_until(lambda: all(len(times[f"/r/{number}"]) > 1 for number in range(30)), "a question for each")
    first = sorted(asked[1] - asked[0] for asked in times.values())
    close(*opened)
    assert first[-1] - first[0] > INTERVAL / 4
    assert first[-1] < ANSWERED


def test_probes_go_on_whatever_hooks_and_subscribers_do(
    origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    """While hooks, and subscribers told of probes, hold every thread, upstreams are marked down, and are back."""
    well = threading.Event()
    well.set()

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            wire.answer(status="200 OK" if well.is_set() or request.target != "/health" else "503 No")

    def configure(config: Configurator) -> None:
        config.add_subscriber(lambda event: gate.wait(3 * PATIENCE), UpstreamDown)

    url = origin(script).url
    probed = {f"p{number}": url for number in range(5)}
    settings = route("bad", origin(echo).url, hooks__headers=f"{__name__}.hanging") | {"proxy.threads": "1"}
    for name in probed:
        settings |= route(name, url, health__path="/health", health__interval="50ms")
    where = site(settings, configure=configure)
    hung = clients(where, "bad", 2)
    wait_until(lambda: inside, "the thread to hang")
    well.clear()

    def said(words: str) -> int:
        return sum(words in line for line in caplog.messages)

    wait_until(lambda: said("is down: its probe") == len(probed), "all of them to be marked down")
    well.set()
    wait_until(lambda: said("is up again") == len(probed), "all of them to be back")
    close(*hung)
