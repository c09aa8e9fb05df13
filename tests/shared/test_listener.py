"""Closings reach every process, whoever was away when they were said."""

from __future__ import annotations

import time

import pytest

from pyramid_threaded_proxy.shared import listener
from pyramid_threaded_proxy.shared.listener import GRACE
from tests.shared.conftest import MakeProcess, Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

ANN = {"userid": "ann"}


def hears(process: Process, count: int = 1) -> None:
    """Wait until it has been told to end something, `count` times."""
    wait_until(lambda: len(process.ended) >= count, "a closing")


def test_all_others_hear_of_it(process: MakeProcess) -> None:
    """What one closes the others close; it does so itself, and is not told."""
    one, two, three = (process() for _ in range(3))
    one.site.closed(ANN)
    for other in (two, three):
        hears(other)
        assert other.ended[0][0] == ANN
    two.site.closed({"route": "r"})
    hears(one)
    assert [what for what, _ in one.ended] == [{"route": "r"}]


def test_only_what_began_before_is_meant(process: MakeProcess, apart: Process) -> None:
    """Who joins hears what was closed before, and how long ago: an exchange of a later login is not ended."""
    one = process()
    said = time.monotonic()
    one.site.closed(ANN)
    wait_until(lambda: time.monotonic() > said + 0.3)  # so long it is away
    apart.joined()
    hears(apart)
    assert said - 0.1 < apart.ended[0][1] - GRACE < said + 0.25


def test_who_was_away_hears_of_it(process: MakeProcess, redis_server: RedisServer) -> None:
    """A closing that was said while Redis was killed reaches the others when it is back, said again by who said it."""
    one, other = process(), process()
    redis_server.kill()
    wait_until(lambda: not one.site._here().member.ready)
    said = time.monotonic()
    one.site.closed(ANN)
    redis_server.start()
    hears(other)
    assert said - 0.1 < other.ended[0][1] - GRACE < said + 0.25


def test_lost_data_are_said_again(process: MakeProcess, redis_server: RedisServer) -> None:
    """One that Redis had taken, and lost with its memory before a third process came, is said again."""
    one, other = process(), process()
    one.site.closed(ANN)
    hears(other)
    redis_server.restart()
    hears(other, 2)
    assert [what for what, _ in other.ended] == [ANN, ANN]


def test_what_is_left_to_say_is_said_at_the_end(process: MakeProcess) -> None:
    """A process that closes something and stops at once takes nothing with it unsaid."""
    one, other = process(), process()
    one.site.closed(ANN)
    one.site.stop(5.0)
    hears(other)


def test_a_stop_waits_while_something_is_to_be_said(process: MakeProcess, redis_server: RedisServer) -> None:
    """It is busy while it could tell the others; not while Redis is away, for which nothing waits."""
    one = process()
    assert not one.site.busy()
    redis_server.hold()
    one.site.closed(ANN)
    assert one.site.busy()
    wait_until(lambda: not one.site.busy())
    redis_server.go_on()


def test_processes_say_how_they_are(process: MakeProcess, redis_server: RedisServer) -> None:
    """Each hears what the others said of themselves a moment ago; who leaves is forgotten."""
    one, other = process(), process()
    other.says = '{"n": 1}'
    wait_until(lambda: one.site.others() == (True, [{"n": 1}]), "a report")
    other.site.stop(5.0)
    assert one.site.others() == (True, [])
    redis_server.kill()
    wait_until(lambda: one.site.others() == (False, []))


def test_who_was_killed_says_nothing_any_more(process: MakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last report is forgotten after a while."""
    monkeypatch.setattr(listener, "REPORT", 0.1)
    monkeypatch.setattr(listener, "REPORT_KEPT", 0.5)
    one, other = process(), process()
    one.says = other.says = "{}"
    wait_until(lambda: one.site.others() == (True, [{}]))
    other.says = None  # as good as killed
    wait_until(lambda: one.site.others() == (True, []))


def test_a_report_that_fails_ends_nothing(process: MakeProcess, caplog: pytest.LogCaptureFixture) -> None:
    """A fault in what makes it is logged, and closings are heard afterwards."""
    one, other = process(), process()

    def report(name: str) -> str:
        other.site._here().listener._report = lambda: None
        raise ZeroDivisionError

    other.site._here().listener._report = lambda: report("")
    wait_until(lambda: "closings of other processes are not heard" in caplog.text)
    one.site.closed(ANN)
    hears(other)


def test_what_is_no_closing_ends_nothing(process: MakeProcess, redis_server: RedisServer) -> None:
    """Entries of somebody else's, or of a release to come, are left out; what follows is heard."""
    one, other = process(), process()
    for what in ("{}", "[]", "no JSON", '{"userid": "ann", "weekday": "monday"}'):
        redis_server.ask("XADD", "pproxy:closings", "*", "process", "x", "age", "0", "what", what)
    redis_server.ask("XADD", "pproxy:closings", "*", "other", "fields")
    redis_server.ask("XADD", "pproxy:closings", "*", "process", "x", "age", "long", "what", '{"userid": "ann"}')
    one.site.closed(ANN)
    hears(other)
    assert [what for what, _ in other.ended] == [ANN]
