"""Requests that wait for a worker thread: the application's own do not wait for a crowd of proxied ones."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.response import Response
from waitress.task import ThreadedTaskDispatcher

from pyramid_threaded_proxy.detach import turns
from pyramid_threaded_proxy.detach.turns import FEW, TaskQueue
from tests.support.origin import Gate, MakeOrigin, echo
from tests.support.site import MODES, MakeSite, route, with_view
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Wire, get

CROWD = 20
KINDS = ("own", "proxied")


def channel(name: Any) -> Any:
    return SimpleNamespace(name=name, requests=[SimpleNamespace(error="no request")])


def kind_of(taken: Any) -> str:
    return str(taken.name[0])


@pytest.fixture(autouse=True, scope="module")
def told_by_name() -> Iterator[None]:
    """Channels of `channel` are told apart by their names, all others as they are."""
    told = turns._is_proxied
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            turns, "_is_proxied", lambda one: kind_of(one) == "proxied" if hasattr(one, "name") else told(one)
        )
        yield


@given(st.lists(st.sampled_from(["own", "proxied", "take"])), st.integers(0, 3))
def test_each_comes_in_its_turn(steps: list[str], threads: int) -> None:
    """Nobody is lost, and who comes waits for one of the other kind for each of its own, and once more.

    A few may stand before it besides: of these nobody asks what they are.
    """
    queue, places, taken = TaskQueue(threads=range(threads)), dict[Any, int](), list[Any]()
    for number, step in enumerate(steps):
        if step != "take":
            before = sum(kind_of(one) == step for one in queue)
            places[step, number] = len(taken) + 2 * before + 1 + FEW * threads
            queue.append(channel((step, number)))
        elif queue:
            taken.append(queue.popleft())
        else:
            with pytest.raises(IndexError):
                queue.popleft()
        assert len(queue) == len(places) - len(taken)
    taken += [queue.popleft() for _ in range(len(queue))]
    assert {one.name for one in taken} == set(places)
    assert all(place <= places[one.name] for place, one in enumerate(taken))
    if not threads:  # everybody was asked
        for kind in KINDS:
            numbers = [one.name[1] for one in taken if kind_of(one) == kind]
            assert numbers == sorted(numbers)


@given(*[st.lists(st.sampled_from(["own", "proxied"]), max_size=12) for _ in range(3)], st.integers(0, 3))
def test_who_is_held(before: list[str], meanwhile: list[str], behind: list[str], threads: int) -> None:
    """While proxied ones are held, it is as if they had not come: those from before are held too. Then turns begin."""
    queue: Any = TaskQueue(threads=[0, *range(threads)])
    rows = {kind: [(kind, number) for number, one in enumerate(before + meanwhile) if one == kind] for kind in KINDS}
    for number, kind in enumerate(before):
        queue.append(channel((kind, number)))
    queue = queue.held()
    for number, kind in enumerate(meanwhile, len(before)):
        queue.append(channel((kind, number)))
    assert len(queue) == len(rows["own"])
    assert bool(queue) == bool(rows["own"])
    taken = [queue.popleft() for _ in rows["own"][:2]]
    queue = queue.let_go()
    for number, kind in enumerate(behind):
        queue.append(channel((kind, len(before + meanwhile) + number)))
    taken += [queue.popleft() for _ in range(len(queue))]
    assert sorted(one.name[1] for one in taken) == list(range(len(before + meanwhile + behind)))
    with pytest.raises(IndexError):
        queue.popleft()


def test_nobody_but_own_pages_is_taken_from_what_is_held() -> None:
    """A worker that looks finds nothing."""
    queue = TaskQueue(threads=[0]).held()
    queue.append(channel(("proxied", 0)))
    assert not queue
    with pytest.raises(IndexError):
        queue.popleft()


@pytest.mark.parametrize("own", [0, 1, 5, 9])
def test_turns_when_they_are_let_go(own: int) -> None:
    """One of each kind, as long as there are both."""
    queue = TaskQueue(threads=[0]).held()
    for kind, count in (("proxied", 5), ("own", own)):
        for number in range(count):
            queue.append(channel((kind, number)))
    let_go = queue.let_go()
    kinds = [kind_of(let_go.popleft()) for _ in range(5 + own)]
    both = 2 * min(5, own)
    assert all(one != other for one, other in itertools.pairwise(kinds[:both]))
    assert len(set(kinds[both:])) <= 1


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
    """It is called before the proxied ones that came before it, but for the first few; nobody is lost."""
    gate = Gate()
    crowd = Crowd(site, route("r", origin(gate).url), **MODES[mode])
    clients = crowd.send(*[get("/r/x")] * CROWD, get("/own/last"))
    crowd.open()
    wait_until(lambda: len(crowd.before) == 2, "the own page")
    gate.opened.set()
    answered(clients)
    assert crowd.before == [0, FEW]


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
    assert crowd.before == [0, FEW]


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
    assert crowd.before == [0, FEW]  # the gate itself was the first that it heard of


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
    waiting = [channel(("own", number)) for number in range(3)]
    dispatcher.queue.extend(waiting)
    turns.take_turns(dispatcher)
    turns.take_turns(dispatcher)  # once is enough
    assert sorted(dispatcher.queue.popleft().name[1] for _ in waiting) == [0, 1, 2]


@pytest.mark.parametrize("held", [False, True])
def test_a_dispatcher_that_ends_cancels_all(held: bool) -> None:
    """Waitress cancels whoever waits, in both rows, and those of a crowd too."""
    dispatcher, cancelled = ThreadedTaskDispatcher(), list[int]()
    turns.take_turns(dispatcher)
    if held:
        dispatcher.queue = dispatcher.queue.held()
    for number in range(3):
        dispatcher.queue.append(
            SimpleNamespace(
                requests=[SimpleNamespace(error="none")], cancel=lambda number=number: cancelled.append(number)
            )
        )
    assert dispatcher.shutdown(timeout=0)
    assert sorted(cancelled) == [0, 1, 2]
    assert not dispatcher.queue
