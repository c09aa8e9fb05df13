"""Upstreams that fail rest, are tried again, and are probed; everybody is told once."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPServiceUnavailable
from pyramid.response import Response
from webtest import TestApp

from pyramid_threaded_proxy import UpstreamDown, UpstreamUp
from pyramid_threaded_proxy.upstream import health as health_module
from pyramid_threaded_proxy.upstream.health import Health
from tests.support.peers import (
    Origin,
    OriginWire,
    Script,
    Site,
    answering,
    echo,
    in_turn,
    own_threads,
    route,
    wait_until,
)

MakeOrigin = Callable[[Script], Origin]
MakeSite = Callable[..., Site]

DEAD = "http://127.0.0.1:9"


class Clock:
    """Stands still until it is told to go on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that upstreams rest by."""
    made = Clock()
    monkeypatch.setattr(health_module, "time", made)
    return made


# By itself


def test_so_many_in_a_row(clock: Clock) -> None:
    """Only failures in a row count, and the last of them alone begins the rest."""
    health = Health(3, 10.0)
    assert [health.failed(), health.failed(), health.succeeded()] == [False, False, False]
    assert [health.failed() for _ in range(5)] == [False, False, True, False, False]
    assert (health.down, health.available()) == (True, False)


def test_one_trial_a_pause(clock: Clock) -> None:
    """When the pause is over one exchange may try; what becomes of it begins the next pause or ends the rest."""
    health = Health(1, 10.0)
    health.failed()
    clock.now += 9.9
    assert not health.available()
    clock.now += 0.2
    assert [health.available(), health.available()] == [True, False]
    assert not health.failed()
    assert not health.available()
    clock.now += 10.1
    assert health.available()
    assert health.succeeded()
    assert [health.available(), health.available()] == [True, True]


def test_a_trial_that_is_never_heard_of(clock: Clock) -> None:
    """A trial whose exchange never ends is followed by another one after a pause."""
    health = Health(1, 10.0)
    health.failed()
    clock.now += 10.1
    assert health.available()
    clock.now += 10.1
    assert health.available()


def test_none_rests_where_none_shall(clock: Clock) -> None:
    """With `health.fails` 0 failures mean nothing."""
    health = Health(0, 10.0)
    assert not any(health.failed() for _ in range(100))
    assert health.available()


def test_a_probe_has_the_say(clock: Clock) -> None:
    """With an active probe, it alone brings an upstream back, and not before a pause for failed exchanges is over."""
    health = Health(2, 10.0, probed=True)
    assert [health.probe_failed(), health.probe_failed(), health.probe_failed()] == [False, True, False]
    assert [health.available(), health.succeeded(), health.down] == [False, False, True]
    assert health.probe_succeeded()
    assert [health.failed(), health.failed()] == [False, True]
    assert not health.probe_succeeded()
    clock.now += 10.1
    assert not health.available()
    assert health.probe_succeeded()
    assert health.available()


def test_changes_are_told_once_to_many_threads() -> None:
    """Of many threads that see the same failure or success one alone is to tell of it."""
    health, gate, told = Health(1, 10.0), threading.Barrier(8), []

    def run() -> None:
        for _ in range(200):
            gate.wait(10)
            told.append(("down", health.failed()))
            gate.wait(10)
            told.append(("up", health.succeeded()))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert Counter(what for what, news in told if news) == {"down": 200, "up": 200}


# Under a site


def listening(events: list[Any]) -> Callable[[Configurator], None]:
    """Subscribes to both events."""

    def configure(config: Configurator) -> None:
        config.add_subscriber(events.append, UpstreamDown)
        config.add_subscriber(events.append, UpstreamUp)

    return configure


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of upstreams."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("upstream ")]


def test_all_down(origin: MakeOrigin, site: MakeSite, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """After the failures that it takes, requests get 503 with Retry-After before anything is detached or sent.

    Then one of them tries, and what it finds is told once: by an event and a line in the log.
    """
    events: list[Any] = []
    upstream = origin(in_turn(answering(b""), answering(b""), echo))
    where = site(route("r", upstream.url, health__fails="2", health__pause="7s"), configure=listening(events))
    assert [where.get("/r/").status for _ in range(2)] == [502, 502]
    wait_until(lambda: events == [UpstreamDown(upstream.url, "r")])
    refused = where.get("/r/")
    assert (refused.status, refused.one("Retry-After"), upstream.accepted) == (503, "7", 2)
    assert "does not answer" in refused.body.decode()
    clock.now += 7.1
    assert [where.get("/r/").status for _ in range(2)] == [200, 200]
    wait_until(lambda: events[1:] == [UpstreamUp(upstream.url, "r")])
    assert lines(caplog) == [
        f"upstream {upstream.url} of r is down: closed without an answer",
        f"upstream {upstream.url} of r is up again",
    ]


def test_the_trial_is_one_request(origin: MakeOrigin, site: MakeSite, clock: Clock) -> None:
    """While one request tries, the others still get 503."""
    gate = threading.Event()

    def slow(wire: OriginWire) -> None:
        wire.request()
        gate.wait(10)
        wire.answer(b"back")

    upstream = origin(in_turn(answering(b""), slow, echo))
    where = site(route("r", upstream.url, health__fails="1"))
    assert where.get("/r/").status == 502
    clock.now += 10.1
    trial = where.client()
    trial.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: upstream.accepted == 2)
    assert [where.get("/r/").status for _ in range(3)] == [503] * 3
    gate.set()
    assert trial.head()[0] == "HTTP/1.1 200 OK"
    trial.close()
    assert where.get("/r/").status == 200


def test_the_applications_own_page_is_shown(site: MakeSite) -> None:
    """The refusal comes from the tween: an exception view renders it, as it does every other."""

    def configure(config: Configurator) -> None:
        config.add_view(
            lambda error, request: Response(f"ours, again in {error.headers['Retry-After']}", 503),
            context=HTTPServiceUnavailable,
        )

    where = site(route("r", DEAD, health__fails="1", health__pause="30s"), configure=configure)
    assert where.get("/r/").status == 502
    assert where.get("/r/").body in (b"ours, again in 30", b"ours, again in 29")


def test_other_servers_say_the_same(site: MakeSite) -> None:
    """Where nothing is detached, failures count and 503 is said all the same, and events are sent."""
    events: list[Any] = []
    application = TestApp(site(route("r", DEAD, health__fails="1"), configure=listening(events)).application)
    answers = [application.get("/r/", expect_errors=True) for _ in range(2)]
    assert [answer.status_int for answer in answers] == [502, 503]
    assert answers[1].headers["Retry-After"] == "10"
    assert events == [UpstreamDown(DEAD, "r")]


FAULTS = {
    "refused": (None, True),
    "closed": (answering(b""), True),
    "half a head": (answering(b"HTTP/1.1 200 OK\r\nA"), True),
    "garbage": (answering(b"garbage\r\n\r\n"), True),
    "ambiguous": (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), True),
    "silent": (lambda wire: wire.wait_closed(), True),
    "half a body": (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), False),
    "500": (answering(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"), False),
    "503": (answering(b"HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n"), False),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_counts(origin: MakeOrigin, site: MakeSite, fault: str) -> None:
    """No connection, and no valid head in time, are failures of the upstream's; whatever has a valid head is none."""
    script, counts = FAULTS[fault]
    url = DEAD if script is None else origin(script).url
    where = site(route("r", url, health__fails="1", read_timeout="100ms"))
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    client.head()
    if fault == "half a body":
        client.wait_closed()
    client.close()
    wait_until(lambda: where.engine.admission.in_flight == 0)
    assert where.engine.routes["r"].balancer.upstreams[0].health.down == counts


def test_clients_and_hooks_that_fail_do_not_count(origin: MakeOrigin, site: MakeSite) -> None:
    """A client that leaves while it waits, and a hook that raises, say nothing of the upstream."""
    asked = threading.Event()

    def silent(wire: OriginWire) -> None:
        wire.request()
        asked.set()
        wire.wait_closed()

    where = site(
        route("r", origin(silent).url, health__fails="1")
        | route("s", origin(echo).url, health__fails="1", hooks__headers=f"{__name__}.raising")
    )
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(10)
    client.close()
    assert where.get("/s/").status == 500
    wait_until(lambda: where.engine.admission.in_flight == 0)
    assert not any(where.engine.routes[name].balancer.upstreams[0].health.down for name in "rs")


def raising(exchange: Any) -> None:
    raise RuntimeError("on purpose")


def test_one_of_two_rests(origin: MakeOrigin, site: MakeSite) -> None:
    """The one that rests is left out at once; nobody waits for it and nobody hears of it."""
    alive, events = origin(echo), []
    where = site(route("r", f"{DEAD} {alive.url}", health__fails="1", retries="0"), configure=listening(events))
    statuses = Counter(where.get("/r/").status for _ in range(9))
    assert statuses == {200: 8, 502: 1}
    wait_until(lambda: events == [UpstreamDown(DEAD, "r")])


# Active probes


def test_probes(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """A probe asks for its own path, not below the base; 2xx and 3xx are well, anything else is not."""
    statuses, events = ["204 No Content", "302 Found"], []

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            wire.answer(request.raw if request.target.startswith("/base") else b"", status=statuses[-1])
            upstream.requests.append(request)

    upstream = origin(script)
    url = upstream.url + "/base"
    where = site(
        route("r", url, health__path="/well?deep=1", health__interval="20ms", health__fails="2"),
        configure=listening(events),
    )
    assert not upstream.accepted  # nothing is probed before the first exchange
    assert where.get("/r/").status == 302
    wait_until(lambda: len([one for one in upstream.requests if one.target == "/well?deep=1"]) > 2, "some probes")
    probe = next(one for one in upstream.requests if one.target == "/well?deep=1")
    assert (probe.method, probe.fields) == ("GET", [("Host", upstream.authority), ("Connection", "close")])
    assert not events
    statuses.append("503 Service Unavailable")
    wait_until(lambda: events == [UpstreamDown(url, "r")], "the upstream to be down")
    assert where.get("/r/").status == 503
    assert lines(caplog) == [f"upstream {url} of r is down: its probe was answered with 503"]
    statuses.pop()
    wait_until(lambda: events[1:] == [UpstreamUp(url, "r")], "the upstream to be up")
    assert where.get("/r/").status == 302


def test_probes_find_what_is_gone_and_what_is_back(origin: MakeOrigin, site: MakeSite) -> None:
    """An upstream that can't be reached goes down by its probe, without any request that has to fail."""
    events: list[Any] = []
    alive, dying = origin(echo), origin(echo)
    where = site(
        route("r", f"{alive.url} {dying.url}", health__path="/", health__interval="20ms"),
        configure=listening(events),
    )
    where.get("/r/")
    dying.close()
    wait_until(lambda: events == [UpstreamDown(dying.url, "r")], "the upstream to be down")
    assert {where.get("/r/").status for _ in range(6)} == {200}


def test_probes_stop(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """With the engine the probes end; threads and connections are none the more for them."""
    caplog.set_level(logging.ERROR)
    upstream = origin(echo)
    with Site(route("r", upstream.url, health__path="/", health__interval="20ms")) as where:
        where.get("/r/")
        wait_until(lambda: upstream.accepted > 2)
        where.engine.close()
        asked = upstream.accepted
        assert own_threads("pproxy") == []
        assert upstream.accepted == asked
        assert not caplog.records


def test_probes_under_another_server(origin: MakeOrigin, site: MakeSite) -> None:
    """Where answers are streamed, the first one starts the probes too."""
    upstream = origin(echo)
    where = site(route("r", upstream.url, health__path="/well", health__interval="20ms"))
    TestApp(where.application).get("/r/")
    wait_until(lambda: upstream.accepted > 3, "some probes")


def test_a_probe_that_hangs(origin: MakeOrigin, site: MakeSite) -> None:
    """A probe waits no longer than the route's time-outs."""
    events: list[Any] = []

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if request.target == "/well":
                wire.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1")
                wire.wait_closed()
                return
            wire.answer(b"ok")

    upstream = origin(script)
    keys = {"health__path": "/well", "health__interval": "10ms", "health__fails": "2", "read_timeout": "50ms"}
    site(route("r", upstream.url, **keys), configure=listening(events)).get("/r/")
    wait_until(lambda: events == [UpstreamDown(upstream.url, "r")])
