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
from pyramid_threaded_proxy.upstream.health import Health, Trial
from tests.support.clock import Clock
from tests.support.leaks import own_threads
from tests.support.origin import MakeOrigin, answering, echo, in_turn
from tests.support.site import MakeSite, Site, route, with_policy
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire

DEAD = "http://127.0.0.1:9"
OTHER = "http://127.0.0.1:1"
TWO_DEAD = f"{DEAD} {OTHER}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that upstreams rest by."""
    made = Clock(still=True)
    monkeypatch.setattr(health_module, "time", made)
    return made


# By itself


def test_so_many_in_a_row(clock: Clock) -> None:
    """Only failures in a row count, and the last of them alone begins the rest."""
    health = Health(3, 10.0)
    assert [health.failed(), health.failed(), health.succeeded(1.0)] == [False, False, False]
    assert [health.failed() for _ in range(5)] == [False, False, True, False, False]
    assert (health.down, health.trial("")) == (True, None)


def test_one_trial_a_pause(clock: Clock) -> None:
    """When the pause is over one exchange may try; what becomes of it begins the next pause or ends the matter."""
    health = Health(1, 10.0)
    health.failed("a")
    clock.ahead += 9.9
    assert not health.trial("b")
    clock.ahead += 0.2
    trial = health.trial("a")
    assert trial
    assert not health.trial("a")
    assert not health.failed("a", trial)
    health.give_back(trial)
    assert not health.trial("b")
    clock.ahead += 10.1
    trial = health.trial("b")
    assert trial
    assert health.succeeded(clock.monotonic())
    assert not health.down


def test_a_trial_without_a_verdict(clock: Clock) -> None:
    """A trial that ends without a word is given to the next; so is one that nobody holds any more, or that is long."""
    health = Health(1, 10.0)
    health.failed("a")
    clock.ahead += 10.1
    first = health.trial("b")
    assert first
    assert not health.trial("c")
    health.give_back(first)
    second = health.trial("c")
    assert second
    health.give_back(first)  # once more: it is another's by now
    assert not health.trial("d")
    del second
    third = health.trial("d")
    assert third
    clock.ahead += 10.1
    assert health.trial("e")


def test_who_made_it_fail_does_not_try_early(clock: Clock) -> None:
    """Where no other is up a trial may come at once, but not from those whose requests failed since it did well."""
    health = Health(2, 10.0)
    health.failed("a")
    health.failed("b")
    assert [health.trial(user, early=True) for user in "ab"] == [None, None]
    trial = health.trial("c", early=True)
    assert trial
    assert not health.trial("d", early=True)
    health.failed("c", trial)
    health.give_back(trial)
    assert not health.trial("c", early=True)
    trial = health.trial("d", early=True)
    assert trial
    assert health.succeeded(clock.monotonic())
    health.give_back(trial)
    health.failed("d")
    health.failed("d")
    assert health.trial("a", early=True)


def test_who_made_it_fail_keeps_nobody_from_a_trial(clock: Clock) -> None:
    """While the pause is over and it is tried by somebody whose requests break, somebody else may try as well."""
    health = Health(1, 10.0)
    health.failed("a")
    clock.ahead += 10.1
    slow = health.trial("a")
    assert slow
    assert not health.trial("a")
    other = health.trial("b")
    assert other
    assert not health.trial("c")
    health.give_back(slow)
    assert not health.trial("c")


def test_the_blamed_are_not_remembered_without_end(clock: Clock) -> None:
    """Where requests of very many users failed, it is not the users."""
    health = Health(1, 10.0)
    for number in range(health_module.MOST_BLAMED + 9):
        health.failed(str(number))
    assert len(health._blamed) == health_module.MOST_BLAMED
    assert not health.trial("somebody new", early=True)
    clock.ahead += 10.1
    assert health.trial("somebody new")


def test_none_is_down_where_none_shall(clock: Clock) -> None:
    """With `health.fails` 0 failures mean nothing, nor do they where no other upstream could be asked instead."""
    for health in (Health(0, 10.0), Health(1, 10.0, alone=True)):
        assert not any(health.failed() for _ in range(100))
        assert not health.down


def test_a_probe_has_the_say(clock: Clock) -> None:
    """With an active probe, it alone brings an upstream back, and not before a pause for failed exchanges is over."""
    health = Health(2, 10.0, probed=True)
    assert [health.probe_failed(), health.probe_failed(), health.probe_failed()] == [False, True, False]
    assert [health.trial("a", early=True), health.succeeded(1.0), health.down] == [None, False, True]
    assert health.probe_succeeded()
    assert [health.failed("a"), health.failed("a")] == [False, True]
    assert not health.probe_succeeded()
    clock.ahead += 10.1
    assert not health.trial("b")
    assert health.probe_succeeded()
    assert not health.down


def test_a_probe_over_failed_exchanges(clock: Clock) -> None:
    """Where exchanges alone failed a trial may come early; once its probe fails too, none may."""
    health = Health(2, 10.0, probed=True)
    assert [health.failed("a"), health.failed("a")] == [False, True]
    assert health.trial("b", early=True)
    assert [health.probe_failed(), health.probe_failed()] == [False, False]
    assert not health.trial("b", early=True)
    assert not health.succeeded(clock.monotonic())
    clock.ahead += 10.1
    assert health.probe_succeeded()


def test_a_lone_one_is_its_probes(clock: Clock) -> None:
    """An upstream that is alone is marked down by its probe, and by nothing else."""
    health = Health(1, 10.0, probed=True, alone=True)
    assert [health.failed(), health.probe_failed(), health.down] == [False, True, True]
    assert health.probe_succeeded()


def test_changes_are_told_once_to_many_threads() -> None:
    """Of many threads that see the same failure or success one alone is to tell of it."""
    health, gate, told = Health(1, 10.0), threading.Barrier(8), []

    def run() -> None:
        for _ in range(200):
            gate.wait(10)
            told.append(("down", health.failed()))
            gate.wait(10)
            told.append(("up", health.succeeded(1.0)))

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
    """Who made all of them fail gets 503 with Retry-After before anything is detached or sent, until the pause is over.

    Then one request tries, and what it finds is told once: by an event and a line in the log.
    """
    events: list[Any] = []
    first, second = (origin(in_turn(answering(b""), answering(b""), echo)) for _ in range(2))
    keys = {"health__fails": "2", "health__pause": "7s", "retries": "0"}
    where = site(route("r", f"{first.url} {second.url}", **keys), configure=listening(events))
    assert [where.get("/r/").status for _ in range(4)] == [502] * 4
    wait_until(lambda: len(events) == 2)
    assert events == [UpstreamDown(one.url, "r") for one in (first, second)]
    refused = where.get("/r/")
    assert (refused.status, refused.one("Retry-After"), first.accepted, second.accepted) == (503, "7", 2, 2)
    assert "does not answer" in refused.body.decode()
    clock.ahead += 7.1
    assert [where.get("/r/").status for _ in range(3)] == [200] * 3
    wait_until(lambda: set(events[2:]) == {UpstreamUp(one.url, "r") for one in (first, second)})
    said = [f"upstream {one.url} of r is down: closed without an answer" for one in (first, second)]
    assert lines(caplog)[:2] == said
    assert set(lines(caplog)[2:]) == {f"upstream {one.url} of r is up again" for one in (first, second)}


def test_the_trial_is_one_request(origin: MakeOrigin, site: MakeSite, clock: Clock) -> None:
    """While one request tries, the others still get 503."""
    gate = threading.Event()

    def slow(wire: OriginWire) -> None:
        wire.request()
        gate.wait(10)
        wire.answer(b"back")

    upstream = origin(in_turn(answering(b""), slow, echo))
    where = site(route("r", f"{upstream.url} {DEAD}", health__fails="1", retries="0"))
    assert [where.get("/r/").status for _ in range(2)] == [502, 502]
    clock.ahead += 10.1
    where.engine.routes["r"].balancer.upstreams[1].health.failed("", Trial(""))  # its pause begins once more
    trial = where.client()
    trial.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: upstream.accepted == 2)
    assert [where.get("/r/").status for _ in range(3)] == [503] * 3
    gate.set()
    assert trial.head()[0] == "HTTP/1.1 200 OK"
    trial.close()
    assert where.get("/r/").status == 200


def test_a_client_that_leaves_gives_the_trial_back(origin: MakeOrigin, site: MakeSite, clock: Clock) -> None:
    """A trial whose client goes away says nothing: the next request tries, and waits for no pause."""
    asked = threading.Event()

    def silent(wire: OriginWire) -> None:
        wire.request()
        asked.set()
        wire.wait_closed()

    upstream = origin(in_turn(answering(b""), silent, echo))
    where = site(route("r", f"{upstream.url} {DEAD}", health__fails="1", retries="0"))
    assert [where.get("/r/").status for _ in range(2)] == [502, 502]
    clock.ahead += 10.1
    where.engine.routes["r"].balancer.upstreams[1].health.failed("", Trial(""))
    client = where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(10)
    client.close()
    wait_until(lambda: where.engine.admission.in_flight == 0)
    assert where.get("/r/").status == 200


def test_a_refused_admission_gives_the_trial_back(origin: MakeOrigin, site: MakeSite, clock: Clock) -> None:
    """A request that may try, but is over a limit, leaves the trial to the next one."""
    gate = threading.Event()

    def slow(wire: OriginWire) -> None:
        wire.request()
        gate.wait(10)
        wire.answer(b"slow")

    first = origin(in_turn(slow, echo))
    where = site(route("r", f"{first.url} {DEAD}", health__fails="1", retries="0", max_exchanges="1"))
    busy = where.client()
    busy.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: first.accepted == 1)
    health = where.engine.routes["r"].balancer.upstreams[0].health
    health.failed("")
    clock.ahead += 10.1
    where.engine.routes["r"].balancer.upstreams[1].health.failed("")
    assert where.get("/r/").status == 503  # there was a trial, but no place
    assert health.trial("")
    gate.set()
    busy.head()
    busy.close()


def test_the_applications_own_page_is_shown(site: MakeSite) -> None:
    """The refusal comes from the tween: an exception view renders it, as it does every other."""

    def configure(config: Configurator) -> None:
        config.add_view(
            lambda error, request: Response(f"ours, again in {error.headers['Retry-After']}", 503),
            context=HTTPServiceUnavailable,
        )

    where = site(route("r", TWO_DEAD, health__fails="1", health__pause="30s"), configure=configure)
    assert where.get("/r/").status == 502
    assert where.get("/r/").body in (b"ours, again in 30", b"ours, again in 29")


def test_other_servers_say_the_same(site: MakeSite) -> None:
    """Where nothing is detached, failures count and 503 is said all the same, and events are sent."""
    events: list[Any] = []
    application = TestApp(site(route("r", TWO_DEAD, health__fails="1"), configure=listening(events)).application)
    answers = [application.get("/r/", expect_errors=True) for _ in range(2)]
    assert [answer.status_int for answer in answers] == [502, 503]
    assert answers[1].headers["Retry-After"] == "10"
    assert events == [UpstreamDown(url, "r") for url in TWO_DEAD.split()]


# Nobody takes a route away from the others

BAD_PAGE = b"HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\nok"


def bad_pages(wire: OriginWire) -> None:
    """Three pages that break, each in its own way, beside others that are well."""
    while (request := wire.request()) is not None:
        if request.target == "/bad":
            return wire.send(BAD_PAGE)
        if request.target == "/crash":
            return
        if request.target == "/slow":
            return wire.wait_closed()
        wire.answer(b"well")


@pytest.mark.parametrize("page", ["bad", "crash", "slow"])
@pytest.mark.parametrize("count", [1, 2])
def test_one_users_bad_page(origin: MakeOrigin, site: MakeSite, page: str, count: int) -> None:
    """One user asks again and again for a page that breaks: nobody else ever gets a 503, with one upstream or two."""
    upstreams = " ".join(origin(bad_pages).url for _ in range(count))
    where = site(route("r", upstreams, read_timeout="100ms"), configure=with_policy)
    for _ in range(5):
        for _ in range(4):
            assert where.get(f"/r/{page}", {"X-User": "mallory"}).status in (502, 504, 503)
        assert [where.get("/r/", {"X-User": "alice"}).status for _ in range(2)] == [200, 200]
    expected = {"bad": {502}, "crash": {502}, "slow": {504}}[page]
    if count == 1 or page == "bad":
        assert {where.get(f"/r/{page}", {"X-User": "mallory"}).status for _ in range(4)} == expected


def test_while_others_have_answers(origin: MakeOrigin, site: MakeSite) -> None:
    """A request that gets no answer in time marks nothing down as long as others have had theirs meanwhile."""
    asked = threading.Event()

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if request.target == "/slow":
                asked.set()
                return wire.wait_closed()
            wire.answer(b"well")

    where = site(route("r", f"{origin(script).url} {DEAD}", health__fails="1", retries="0", read_timeout="300ms"))
    first, second = (one.health for one in where.engine.routes["r"].balancer.upstreams)
    second.failed("somebody")
    for others, down in ((1, False), (0, True)):
        asked.clear()
        slow = where.client()
        slow.send(b"GET /r/slow HTTP/1.1\r\nHost: a\r\n\r\n")
        assert asked.wait(10)
        assert [where.get("/r/").status for _ in range(others)] == [200] * others
        assert slow.head()[0].startswith("HTTP/1.1 504")
        slow.close()
        assert first.down == down


FAULTS = {
    "refused": (None, True),
    "closed": (answering(b""), True),
    "half a head": (answering(b"HTTP/1.1 200 OK\r\nA"), True),
    "garbage": (answering(b"garbage\r\n\r\n"), False),
    "ambiguous": (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), False),
    "silent": (lambda wire: wire.wait_closed(), True),
    "half a body": (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), False),
    "500": (answering(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"), False),
    "503": (answering(b"HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n"), False),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_what_counts(origin: MakeOrigin, site: MakeSite, fault: str) -> None:
    """No connection, an end without an answer and silence count; what is wrong with one answer does not."""
    script, counts = FAULTS[fault]
    url = DEAD if script is None else origin(script).url
    where = site(route("r", f"{url} {OTHER}", health__fails="1", read_timeout="100ms", retries="0"))
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
        route("r", f"{origin(silent).url} {DEAD}", health__fails="1", retries="0")
        | route("s", f"{origin(echo).url} {DEAD}", retries="0", health__fails="1", hooks__headers=f"{__name__}.raising")
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
