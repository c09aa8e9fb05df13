"""Requests that wait for a worker thread: the application's own do not wait for a crowd of proxied ones."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.response import Response
from waitress.task import ThreadedTaskDispatcher

from pyramid_threaded_proxy.detach import turns
from pyramid_threaded_proxy.detach.turns import TaskQueue
from tests.support.origin import Gate, MakeOrigin, echo
from tests.support.site import MODES, MakeSite, route, with_view
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Wire, get

CROWD = 20


def channel(name: Any) -> Any:
    return SimpleNamespace(name=name, requests=[SimpleNamespace(error="no request")])


@given(st.lists(st.sampled_from(["own", "proxied", "take", "hold", "let go"])))
def test_each_comes_in_its_turn(steps: list[str]) -> None:
    """Nobody is lost, each row keeps its order, and who is the first of one waits for one of the other at most.

    While the proxied ones are held, it is as if they were not there.
    """
    queue, rows, last = TaskQueue(threads=[0]), {"own": deque[Any](), "proxied": deque[Any]()}, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "_is_proxied", lambda one: one.name[0] == "proxied")
        for number, step in enumerate(steps):
            seen = [kind for kind, row in rows.items() if row and not (queue.held and kind == "proxied")]
            if step in ("hold", "let go"):
                queue.held = step == "hold"
            elif step != "take":
                row = rows[step if any(rows.values()) or queue.held else "proxied"]  # who waits for nobody is not asked
                row.append(channel((step, number)))
                queue.append(row[-1])
            elif not seen:
                with pytest.raises(IndexError):
                    queue.popleft()
            else:
                taken = queue.popleft()
                kind = next(kind for kind in seen if rows[kind][0] is taken)
                rows[kind].popleft()
                assert kind != last or len(seen) == 1
                last = kind
            waiting = len(rows["own"]) + (0 if queue.held else len(rows["proxied"]))
            assert len(queue) == waiting
            assert bool(queue) == bool(waiting)


class Crowd:
    """An application with one worker thread, which one of its own pages holds until the crowd has come."""

    def __init__(self, site: MakeSite, settings: dict[str, str], **options: Any) -> None:
        self._called, self._opened = threading.Event(), threading.Event()
        self.before: list[int] = []
        self._site = site(settings, configure=with_view(self._view), threads=1, **options)

    def _view(self, request: Any) -> Response:
        if request.path_info == "/own/gate":
            self._called.set()
            assert self._opened.wait(PATIENCE)
        self.before.append(self._site.engine.admission.in_flight)
        return Response("own")

    def send(self, *requests: bytes) -> list[Wire]:
        """Each on a connection of its own, behind one for the gate; all wait in this order when this returns."""
        gate = self._site.client()
        gate.send(get("/own/gate"))
        assert self._called.wait(PATIENCE)
        clients = [gate]
        dispatcher = self._site.server.task_dispatcher
        for waiting, request in enumerate(requests, 1):
            clients.append(self._site.client())
            clients[-1].send(request)
            wait_until(lambda waiting=waiting: len(dispatcher.queue) == waiting, "its place in the queue")
        return clients

    def open(self) -> None:
        self._opened.set()


def answered(clients: list[Wire]) -> None:
    for client in clients:
        assert client.head()[0].endswith("200 OK")
        client.close()


@pytest.mark.parametrize("mode", ["poll", "select"])
def test_an_own_page_does_not_wait_for_a_crowd(mode: str, origin: MakeOrigin, site: MakeSite) -> None:
    """It is called before all the proxied requests that came before it; nobody is lost."""
    gate = Gate()
    crowd = Crowd(site, route("r", origin(gate).url), **MODES[mode])
    clients = crowd.send(*[get("/r/x")] * CROWD, get("/own/last"))
    crowd.open()
    wait_until(lambda: len(crowd.before) == 2, "the own page")
    gate.opened.set()
    answered(clients)
    assert crowd.before == [0, 0]


@pytest.mark.parametrize(
    ("keys", "request_"),
    [
        ({"host": "files.example.com", "prefix": "/"}, b"GET /x HTTP/1.1\r\nHost: files.example.com\r\n\r\n"),
        ({"pattern": "/shops/{shop}/*rest"}, get("/shops/7/x")),
        ({"prefix": "/%C3%A4%20b"}, get("/%C3%A4%20b/x")),
    ],
    ids=["host", "pattern", "escaped"],
)
def test_what_is_proxied(keys: dict[str, str], request_: bytes, origin: MakeOrigin, site: MakeSite) -> None:
    """A host, a pattern and escapes are told from the application's own pages too."""
    gate = Gate()
    given = {"upstream": origin(gate).url, "public": "true", **keys}
    crowd = Crowd(site, {f"proxy.routes.r.{key}": value for key, value in given.items()})
    clients = crowd.send(*[request_] * CROWD, get("/own/last"))
    crowd.open()
    wait_until(lambda: len(crowd.before) == 2, "the own page")
    gate.opened.set()
    answered(clients)
    assert crowd.before == [0, 0]


def test_a_script_name_is_learnt(origin: MakeOrigin, site: MakeSite) -> None:
    """Middleware tells where the application stands: from its first request on that is known."""
    gate = Gate()

    def below_app(application: Any) -> Any:
        def inner(environ: dict[str, Any], start_response: Any) -> Any:
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/app", environ["PATH_INFO"].removeprefix("/app")
            return application(environ, start_response)

        return inner

    crowd = Crowd(site, route("r", origin(gate).url), wrap=below_app)
    clients = crowd.send(*[get("/app/r/x")] * CROWD, get("/app/own/last"))
    crowd.open()
    wait_until(lambda: len(crowd.before) == 2, "the own page")
    gate.opened.set()
    answered(clients)
    assert crowd.before == [0, 0]  # the gate itself was the first that it heard of


def test_what_is_no_request_waits_too(origin: MakeOrigin, site: MakeSite) -> None:
    """A head that waitress refuses has no path, and gets its 400 in its turn."""
    crowd = Crowd(site, route("r", origin(echo).url))
    clients = crowd.send(b"GET /r/x HTTP/1.1\r\nHost: a\r\nA B: c\r\n\r\n", get("/r/x"))
    crowd.open()
    assert [client.head()[0].split()[1] for client in clients] == ["200", "400", "200"]
    for client in clients:
        client.close()


def test_who_waited_before_is_in_the_rows() -> None:
    """Tasks that waitress had before the first of our channels came are not lost."""
    dispatcher = ThreadedTaskDispatcher()
    waiting = [channel(number) for number in range(3)]
    dispatcher.queue.extend(waiting)
    turns.take_turns(dispatcher)
    turns.take_turns(dispatcher)  # once is enough
    assert sorted(dispatcher.queue.popleft().name for _ in waiting) == [0, 1, 2]


@pytest.mark.parametrize("held", [False, True])
def test_a_dispatcher_that_ends_cancels_all(held: bool) -> None:
    """Waitress cancels whoever waits, in both rows, and those of a crowd too."""
    dispatcher, cancelled = ThreadedTaskDispatcher(), list[int]()
    turns.take_turns(dispatcher)
    dispatcher.queue.held = held
    for number in range(3):
        dispatcher.queue.append(
            SimpleNamespace(
                requests=[SimpleNamespace(error="none")], cancel=lambda number=number: cancelled.append(number)
            )
        )
    assert dispatcher.shutdown(timeout=0)
    assert sorted(cancelled) == [0, 1, 2]
    assert not dispatcher.queue
