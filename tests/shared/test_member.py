"""Users' places in all processes, in a real Redis; each `Process` stands for one of them."""

from __future__ import annotations

import random
import statistics
import threading
import time

import pytest

from pyramid_threaded_proxy.shared import commands, listener, member
from tests.shared.conftest import MakeProcess, Process
from tests.support.leaks import own_threads
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until


def test_places_count_in_all_processes(process: MakeProcess) -> None:
    """Two for each user, wherever they are taken; one that is given back is there for the others."""
    one, other = process(), process()
    assert one.take()
    assert other.take()
    assert not one.take()
    assert not other.take()
    assert other.take("bob")
    one.give_back()
    wait_until(lambda: other.take(), "a place that was given back elsewhere")
    assert not one.take()


def test_what_many_threads_take(process: MakeProcess, redis_server: RedisServer) -> None:
    """Of forty threads in four processes that ask at once, as many get a place as there are."""
    processes = [process() for _ in range(4)]
    begin, got = threading.Barrier(40), []

    def ask(number: int) -> None:
        begin.wait()
        got.append(processes[number % 4].take(most=10))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(True) == 10
    wait_until(lambda: redis_server.places() == {"r ann": 10})


def test_the_first_one_waits_for_the_joining(apart: Process, redis_server: RedisServer) -> None:
    """A process that has not joined yet does so with its first question, whose answer counts already."""
    assert apart.take(most=1)
    assert not apart.take(most=1)
    wait_until(lambda: redis_server.places() == {"r ann": 1})


def test_who_was_killed_gives_back(process: MakeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that says nothing any more loses its places within its lease."""
    monkeypatch.setattr(commands, "_LEASE", 700)
    monkeypatch.setattr(member, "BEAT", 0.2)
    one, other = process(), process()
    assert one.take()
    assert one.take()
    assert not other.take()
    dead = one.site._here().member
    monkeypatch.setattr(dead, "_turn", lambda: time.sleep(0.01))  # from here on it is as good as killed
    began = time.monotonic()
    wait_until(other.take, "a dead process's place")
    assert time.monotonic() - began < 3


def test_who_leaves_gives_back_at_once(process: MakeProcess, redis_server: RedisServer) -> None:
    """A process that stops takes nothing with it, and its threads are gone."""
    one, other = process(), process()
    assert one.take()
    assert one.take()
    one.site.stop(5.0)
    assert redis_server.places() == {}
    assert other.take()
    other.site.stop(5.0)
    assert own_threads("pproxy") == []


def test_who_was_taken_for_dead_comes_back(process: MakeProcess, redis_server: RedisServer) -> None:
    """A process whose lease ran out while it stood still has its places again as soon as it goes on."""
    one, other = process(), process()
    assert one.take()
    redis_server.ask("ZREM", "pproxy:processes", *redis_server.ask("ZRANGE", "pproxy:processes", 0, -1))
    wait_until(lambda: redis_server.places() == {"r ann": 1}, "places that are told anew")
    other.joined()
    wait_until(lambda: not other.take(most=1), "a place that counts again")


def test_a_late_command_of_an_earlier_life_does_nothing(process: MakeProcess, redis_server: RedisServer) -> None:
    """What Redis reads from a closed connection, after a pause, is of a name that has left."""
    one = process()
    earlier = one.site._here().member._joining
    redis_server.restart()
    wait_until(lambda: one.site._here().member._joining != earlier and one.site._here().member.ready)
    for late in (
        commands.take(earlier, "x", 5),
        commands.tell(earlier, [("x", 1)]),
        commands.beat(earlier),
    ):
        assert int(redis_server.ask(*late)) == commands.NOT_THERE
    assert redis_server.places() == {}


@pytest.mark.parametrize("fault", ["killed", "held", "restarted", "full"])
def test_counts_agree_after_a_fault(process: MakeProcess, redis_server: RedisServer, fault: str) -> None:
    """Places are taken and given back before, during and after; nobody waits longer than 50 ms, and in the end Redis
    knows what each process holds."""
    processes = [process() for _ in range(3)]
    held: list[list[str]] = [[] for _ in processes]
    took: list[float] = []
    stop = threading.Event()

    def work(number: int) -> None:
        chance = random.Random(number)
        one, mine = processes[number], held[number]
        while not stop.is_set():
            user = chance.choice("abcd")
            if len(mine) > 6 or (mine and chance.random() < 0.4):
                one.give_back(mine.pop(chance.randrange(len(mine))))
            else:
                began = time.monotonic()
                got = one.take(user, 1000)
                took.append(time.monotonic() - began)
                if got:
                    mine.append(user)
            stop.wait(0.001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    stop.wait(0.3)
    begin_fault(redis_server, fault)
    wait_until(lambda: not any(one.site._here().member.ready for one in processes), "a fault that is noticed")
    stop.wait(0.3)
    end_fault(redis_server, fault)
    for one in processes:
        one.joined()
    stop.set()
    for thread in threads:
        thread.join()
    truth = {f"r {user}": sum(mine.count(user) for mine in held) for user in "abcd"}
    wait_until(lambda: redis_server.places() == {key: count for key, count in truth.items() if count}, "counts")
    assert sorted(took)[len(took) * 99 // 100] < 0.05
    assert max(took) < 0.1  # 50 ms, and what one thread of several waits for the processor


def test_who_asks_a_store_that_hangs_waits_less_than_50_ms(process: MakeProcess, redis_server: RedisServer) -> None:
    """The median of those who are the first to notice: one alone may have waited for the processor as well."""
    one = process()
    took = []
    for _ in range(7):
        redis_server.hold()
        began = time.monotonic()
        assert one.take(most=1000)
        took.append(time.monotonic() - began)
        redis_server.go_on()
        one.joined()
    assert member.PATIENCE <= statistics.median(took) < 0.05


@pytest.mark.parametrize("fault", ["killed", "held", "full"])
def test_it_is_told_of_once(
    process: MakeProcess, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """However often a process tries to join meanwhile, one line says that it can't, and one that it could again."""
    one = process()
    member_here = one.site._here().member
    begin_fault(redis_server, fault)
    wait_until(lambda: "can't be used" in caplog.text)
    tried = member_here._joining
    wait_until(lambda: int(member_here._joining[-1]) >= int(tried[-1]) + 3, "some tries")
    assert not member_here.ready
    end_fault(redis_server, fault)
    wait_until(lambda: "can be used again" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [("can't" in line, "again: " in line) for line in lines] == [(True, False), (False, True)]


def begin_fault(server: RedisServer, fault: str) -> None:
    if fault == "held":
        server.hold()
    elif fault == "full":
        server.fill()
    else:
        server.kill()


def end_fault(server: RedisServer, fault: str) -> None:
    if fault == "held":
        server.go_on()
    elif fault == "full":
        server.make_room()
    else:
        server.start()


def test_while_it_is_away_each_counts_alone(
    process: MakeProcess, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The process's own counts have said yes before it asks, so it says yes; the log says once that it is away, and
    once that it is back, without the password."""
    one = process()
    redis_server.kill()
    wait_until(lambda: "can't be used" in caplog.text, "a line in the log")
    began = time.monotonic()
    assert all(one.take() for _ in range(100))
    assert time.monotonic() - began < 1
    redis_server.start()
    wait_until(lambda: "can be used again" in caplog.text, "another line")
    wait_until(lambda: redis_server.places() == {"r ann": 100})
    assert not one.take()
    lines = [record.getMessage() for record in caplog.records if "proxy.shared" in record.getMessage()]
    assert len(lines) == 2
    assert f"redis://127.0.0.1:{redis_server.port}/0 can't be used: " in lines[0]


def test_one_that_is_always_slow_is_not_waited_for(
    process: MakeProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where an answer takes longer than anybody may wait, it is told of once, and nobody waits any more."""
    one = process()
    monkeypatch.setattr(member, "PATIENCE", 0.0)
    wait_until(lambda: "ms to answer" in caplog.text, "a line in the log")
    assert not one.site._here().member.ready
    monkeypatch.setattr(member, "PATIENCE", 0.04)
    wait_until(lambda: "can be used again" in caplog.text, "another line")
    assert one.site._here().member.ready


def test_figures_leave_room() -> None:
    """Who asks waits less than 50 ms; a lease outlasts several signs of life, and the tries to join."""
    assert member.PATIENCE < 0.05
    assert commands.LEASE >= 4 * member.BEAT
    assert commands.LEASE > member.BEAT + member.TIMEOUT + member.RETRY
    assert listener.REPORT_KEPT > 2 * listener.REPORT
