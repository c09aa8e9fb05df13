"""Places: every exchange has one, and it is given back, whatever tweens, transactions and retries do around it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import transaction
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from pyramid_retry import RetryableException

from pyramid_threaded_proxy import ExchangeStarted, ProxyResponse, TooManyExchanges
from pyramid_threaded_proxy.limits.admission import Admission, Limits
from tests.support.origin import Gate, MakeOrigin, Origin, echo
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until

EXCVIEW = "pyramid.tweens.excview_tween_factory"
TWEEN = "pyramid_threaded_proxy.tween.proxy_tween_factory"


# The count


def test_places_are_counted() -> None:
    """There are as many places as there may be; one that is released is there again, and counts once."""
    admission = Admission(2)
    first, second = admission.admit(), admission.admit()
    assert admission.in_flight == 2
    with pytest.raises(TooManyExchanges, match=r"proxy\.max_exchanges \(2\)"):
        admission.admit()
    first.release()
    first.release()
    assert (admission.in_flight, first.held, second.held) == (1, False, True)
    third = admission.admit()
    with pytest.raises(TooManyExchanges):
        admission.admit()
    assert third.held


def test_a_forgotten_place_is_given_back() -> None:
    """A place that nobody refers to any more is free."""
    admission = Admission(1)
    place = admission.admit()
    del place
    assert admission.in_flight == 0
    admission.admit().release()


class Elsewhere:
    """Other processes, in which users have `most` places together."""

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.taken: list[tuple[str, str]] = []

    def take(self, route: str, userid: str, most: int) -> bool:
        if len(self.taken) >= self.most:
            return False
        self.taken.append((route, userid))
        return True

    def give_back(self, route: str, userid: str) -> None:
        self.taken.remove((route, userid))


def test_other_processes_are_asked_for_users() -> None:
    """Where a user may have so many, those elsewhere count; what they refuse is not counted here either."""
    elsewhere, limits = Elsewhere(1), Limits(None, 2)
    admission = Admission(9, elsewhere)
    slot = admission.admit("r", "ann", limits)
    assert elsewhere.taken == [("r", "ann")]
    with pytest.raises(TooManyExchanges, match="max_exchanges_per_user") as caught:
        admission.admit("r", "ann", limits)
    assert (caught.value.status, admission.in_flight) == (429, 1)
    others = [admission.admit("r", None, limits), admission.admit("r", "ann", Limits(5))]
    assert elsewhere.taken == [("r", "ann")]
    slot.release()
    slot.release()
    assert elsewhere.taken == []
    del others
    assert admission.in_flight == 0


def test_own_counts_come_first() -> None:
    """Who has too many here is refused without a question, and a forgotten place is given back elsewhere too."""
    elsewhere = Elsewhere(9)
    admission = Admission(9, elsewhere)
    slot = admission.admit("r", "ann", Limits(None, 1))
    with pytest.raises(TooManyExchanges):
        admission.admit("r", "ann", Limits(None, 1))
    assert elsewhere.taken == [("r", "ann")]
    del slot
    assert elsewhere.taken == []


def test_places_from_many_threads() -> None:
    """Taken and released by several threads at once, places neither get lost nor multiply."""
    admission = Admission(3)
    most = []
    begin = threading.Barrier(4)

    def work() -> None:
        begin.wait()
        for _ in range(500):
            try:
                place = admission.admit()
            except TooManyExchanges:
                continue
            most.append(admission.in_flight)
            place.release()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert admission.in_flight == 0
    assert max(most) <= 3


# One place, and what happens around it


def outer_tween_factory(handler: Any, registry: Any) -> Any:
    """A tween above ours that does what `registry["outer"]` says."""
    return lambda request: registry["outer"](handler, request)


def with_outer(outer: Callable[[Any, Request], Response], above_exception_views: bool) -> Callable[..., None]:
    def configure(config: Configurator) -> None:
        config.registry["outer"] = outer
        place = {"over": EXCVIEW} if above_exception_views else {"under": EXCVIEW, "over": TWEEN}
        config.add_tween(f"{__name__}.outer_tween_factory", **place)

    return configure


def test_too_many_exchanges(origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """Above `max_exchanges` the application's exception view renders a 503 with Retry-After, until there is room."""
    upstream = origin(gate)

    def configure(config: Configurator) -> None:
        config.add_exception_view(
            lambda error, request: Response("full", status=503, headers={"Retry-After": error.headers["Retry-After"]}),
            context="pyramid.httpexceptions.HTTPServiceUnavailable",
        )

    made = site({**route("r", upstream.url), "proxy.max_exchanges": "1"}, configure=configure)
    client = made.client()
    client.send(b"GET /r/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    gate.wait_asked()
    answer = made.get("/r/2")
    assert (answer.status, answer.body, answer.one("Retry-After")) == (503, b"full", "1")
    assert upstream.accepted == 1
    gate.opened.set()
    assert client.rest().endswith(b"/1")
    client.close()
    wait_until(lambda: made.engine.admission.in_flight == 0)
    assert made.get("/r/3").body == b"/3"


def raises(handler: Any, request: Request) -> Response:
    handler(request)
    raise RuntimeError("a later tween failed")


def answers_anew(handler: Any, request: Request) -> Response:
    handler(request)
    return Response("anew", status=500)


@pytest.mark.parametrize("above", [True, False], ids=["above-exception-views", "below"])
@pytest.mark.parametrize("outer", [raises, answers_anew])
def test_a_response_that_is_never_called(outer: Any, above: bool, origin: MakeOrigin, site: MakeSite) -> None:
    """Where a later tween fails or answers anew, the place is free and nothing was sent upstream."""
    upstream = origin(echo)
    made = site({**route("r", upstream.url), "proxy.max_exchanges": "1"}, configure=with_outer(outer, above))
    gc.disable()
    try:
        for _ in range(3):
            assert made.get("/r/x").status == 500
            wait_until(lambda: made.engine.admission.in_flight == 0)
    finally:
        gc.enable()
    assert upstream.accepted == 0


def test_a_response_that_is_never_called_elsewhere(origin: MakeOrigin, site: MakeSite) -> None:
    """Under another server the place goes with the response, though the environ lives on."""
    made = site(route("r", origin(echo).url), configure=with_outer(answers_anew, True))
    request = Request.blank("/r/x?a=b")
    assert request.params
    gc.disable()
    try:
        assert request.get_response(made.application).body == b"anew"
        assert made.engine.admission.in_flight == 0
    finally:
        gc.enable()


def test_a_response_callback_that_fails(origin: MakeOrigin, site: MakeSite) -> None:
    """A response callback that raises, after all tweens, leaves no place behind."""
    upstream = origin(echo)

    def new_request(event: Any) -> None:
        def fails(request: Request, response: Response) -> None:
            raise RuntimeError("a callback failed")

        event.request.add_response_callback(fails)

    made = site(
        {**route("r", upstream.url), "proxy.max_exchanges": "1"},
        configure=lambda config: config.add_subscriber(new_request, "pyramid.events.NewRequest"),
    )
    for _ in range(2):
        assert made.get("/r/x").status == 500
        wait_until(lambda: made.engine.admission.in_flight == 0)
    assert upstream.accepted == 0


@pytest.mark.parametrize("where", ["exception-view", "upper-tween"])
def test_a_response_that_did_not_pass_the_tween(where: str, origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """A `ProxyResponse` of an exception view, or of a tween above ours, is admitted when it is called, or refused."""
    upstream = origin(gate)

    def broken(request: Request) -> Response:
        raise KeyError("broken")

    def fetch(request: Request) -> Any:
        return request.proxy_fetch(upstream.url + "/instead")

    def configure(config: Configurator) -> None:
        config.add_route("own", "/own")
        config.add_view(broken, route_name="own")
        if where == "exception-view":
            config.add_exception_view(lambda error, request: fetch(request), context=KeyError)
        else:
            with_outer(lambda handler, request: fetch(request), True)(config)

    made = site({"proxy.max_exchanges": "1"}, configure=configure)
    client = made.client()
    client.send(b"GET /own HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    gate.wait_asked()
    refused = made.get("/own", {"Accept": "application/json"})
    assert (refused.status, refused.one("Retry-After")) == (503, "1")
    assert refused.one("Content-Type") == "application/json"
    gate.opened.set()
    assert client.rest().endswith(b"/instead")
    client.close()
    assert upstream.accepted == 1


def test_a_subrequest_has_one_place(origin: MakeOrigin, site: MakeSite) -> None:
    """A response that passes the tween twice, in a subrequest and in the request, has one place and starts once."""
    started: list[Any] = []

    def configure(config: Configurator) -> None:
        config.add_route("own", "/own")
        config.add_view(
            lambda request: request.invoke_subrequest(Request.blank("/r/x"), use_tweens=True), route_name="own"
        )
        config.add_subscriber(started.append, ExchangeStarted)

    made = site({**route("r", origin(echo).url), "proxy.max_exchanges": "1"}, configure=configure)
    for _ in range(2):
        wait_until(lambda: made.engine.admission.in_flight == 0)
        assert made.get("/own").status == 200
    assert len(started) == 2


def test_middleware_that_calls_twice(origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """Where middleware drops our answer and calls the application again, the second exchange has a place of its own."""
    upstream = origin(gate)

    def twice(application: Any) -> Any:
        def call(environ: dict[str, Any], start_response: Any) -> Any:
            application(environ, lambda status, fields, error=None: None)
            return application(environ, start_response)

        return call

    made = site(route("r", upstream.url), wrap=twice)
    client = made.client()
    client.send(b"GET /r/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    gate.wait_asked()
    assert made.engine.admission.in_flight == 1
    gate.opened.set()
    assert client.rest().endswith(b"/1")
    client.close()
    assert upstream.accepted == 1


def test_started_exchanges_are_announced(origin: MakeOrigin, site: MakeSite) -> None:
    """`ExchangeStarted` is sent after admission, in the thread that runs the request."""
    threads: list[str] = []

    def configure(config: Configurator) -> None:
        config.add_subscriber(lambda event: threads.append(threading.current_thread().name), ExchangeStarted)
        config.add_subscriber(lambda event: threads.append(event.exchange.route), ExchangeStarted)

    assert site(route("r", origin(echo).url), configure=configure).get("/r/x").status == 200
    assert threads[0].startswith("waitress-")
    assert threads[1] == "r"


# Transactions and retries


class Recorder:
    """A synchronizer of transactions: how each of them ended, and how many connections the upstream had by then."""

    def __init__(self, upstream: Origin) -> None:
        self.upstream = upstream
        self.ended: list[tuple[str, int]] = []

    def beforeCompletion(self, txn: Any) -> None:
        pass

    def afterCompletion(self, txn: Any) -> None:
        self.ended.append((txn.status, self.upstream.accepted))

    def newTransaction(self, txn: Any) -> None:
        pass


def with_transactions(recorder: Recorder, veto: Any = None) -> Callable[[Configurator], None]:
    def manager(request: Request) -> Any:
        made = transaction.TransactionManager(explicit=True)
        made.registerSynch(recorder)
        return made

    def configure(config: Configurator) -> None:
        config.add_settings({"tm.manager_hook": manager, "tm.commit_veto": veto})
        config.include("pyramid_tm")

    return configure


def test_the_transaction_is_over_before_the_upstream_is_asked(origin: MakeOrigin, site: MakeSite) -> None:
    """pyramid_tm commits before anything is sent; the commit veto sees a response of status 200."""
    upstream = origin(echo)
    recorder = Recorder(upstream)
    seen: list[Any] = []

    def veto(request: Request, response: Response) -> bool:
        seen.append((type(response), response.status, response.status_int, response.headers.get("x-tm")))
        return False

    made = site(route("r", upstream.url), configure=with_transactions(recorder, veto))
    assert made.get("/r/x").status == 200
    assert recorder.ended == [("Committed", 0)]
    assert seen == [(ProxyResponse, "200 OK", 200, None)]


@pytest.mark.parametrize("fault", ["target", "full"])
def test_a_refusal_aborts_the_transaction(fault: str, origin: MakeOrigin, site: MakeSite) -> None:
    """Where the view or the tween refuses the request, the transaction is aborted."""
    upstream = origin(echo)
    recorder = Recorder(upstream)
    made = site({**route("r", upstream.url), "proxy.max_exchanges": "1"}, configure=with_transactions(recorder))
    if fault == "target":
        assert made.get("/r/%2e%2e").status == 400
    else:
        place = made.engine.admission.admit()
        assert made.get("/r/x").status == 503
        place.release()
    (ended,) = recorder.ended
    assert ended[0] != "Committed"
    assert ended[1] == 0


def test_a_failing_commit(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the commit fails there is an error, nothing was sent, and the place is free."""
    upstream = origin(echo)

    def new_request(event: Any) -> None:
        def fails() -> None:
            raise RuntimeError("can't commit")

        event.request.tm.get().addBeforeCommitHook(fails)

    def configure(config: Configurator) -> None:
        with_transactions(Recorder(upstream))(config)
        config.add_subscriber(new_request, "pyramid.events.ContextFound")

    made = site({**route("r", upstream.url), "proxy.max_exchanges": "1"}, configure=configure)
    for _ in range(2):
        assert made.get("/r/x").status == 500
        wait_until(lambda: made.engine.admission.in_flight == 0)
    assert upstream.accepted == 0


@pytest.mark.parametrize("through_waitress", [True, False], ids=["waitress", "elsewhere"])
def test_a_retried_request_has_not_been_detached(through_waitress: bool, origin: MakeOrigin, site: MakeSite) -> None:
    """pyramid_retry tries again after our tween gave a place: it is never refused its own, and asks upstream once."""
    upstream = origin(echo)
    tries: list[int] = []

    def fails_at_first(handler: Any, request: Request) -> Response:
        response = handler(request)
        tries.append(upstream.accepted)
        if len(tries) < 3:
            raise RetryableException("once more")
        return response  # type: ignore[no-any-return]

    def configure(config: Configurator) -> None:
        config.include("pyramid_retry")
        with_outer(fails_at_first, True)(config)

    made = site({**route("r", upstream.url), "proxy.max_exchanges": "1"}, configure=configure)
    if through_waitress:
        body = made.get("/r/x", method="POST", body=b"body").body
    else:
        body = Request.blank("/r/x", method="POST", body=b"body").get_response(made.application).body
    assert body.endswith(b"\r\n\r\nbody")
    assert tries == [0, 0, 0]
    assert upstream.accepted == 1
