"""The id of an exchange: on its way up, on its answer, on error pages, and in the log."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.config import Configurator
from pyramid.response import Response

from pyramid_threaded_proxy import accesslog
from pyramid_threaded_proxy.app.environ import _REQUEST_ID
from pyramid_threaded_proxy.exchange import new_request_id
from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import MakeSite, route
from tests.support.waiting import wait_until
from tests.support.wire import Answer, OriginWire, received

OURS = re.compile("[0-9a-f]{32}")
TRUSTING = {"trusted_proxy": "127.0.0.1", "trusted_proxy_headers": {"x-forwarded-for"}}


def sent_and_answered(answer: Answer, name: str = "X-Request-Id") -> tuple[str | None, str | None]:
    """The id as the upstream and as the client received it."""
    return received(answer).one(name), answer.one(name)


def test_upstream_answer_and_log_agree(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """One id, made by us, goes up, comes down and is in the log; what a stranger calls its request counts nothing."""
    caplog.set_level(logging.INFO, accesslog.access_log.name)
    where = site(route("r", origin(echo).url))
    sent, answered = sent_and_answered(where.get("/r/", {"X-Request-Id": "chosen-by-a-stranger"}))
    assert sent == answered
    assert OURS.fullmatch(sent or "")
    wait_until(lambda: caplog.records)
    assert [vars(record)["request_id"] for record in caplog.records] == [sent]


def test_a_trusted_peer_gives_the_id(origin: MakeOrigin, site: MakeSite) -> None:
    """A front server that waitress trusts has named the request already, unless the name could be anything."""
    where = site(route("r", origin(echo).url), **TRUSTING)
    assert sent_and_answered(where.get("/r/", {"X-Request-Id": "front.0815-a_b"})) == ("front.0815-a_b",) * 2
    for bad in ("short", "with blank", "x" * 129, 'quote"quote', "8charac\xe4"):
        sent, answered = sent_and_answered(where.get("/r/", {"X-Request-Id": bad}))
        assert sent == answered
        assert OURS.fullmatch(sent or "")


@given(st.text())
def test_what_is_taken_over_is_harmless(text: str) -> None:
    """No id that is taken over can break a line, a field or a page."""
    if _REQUEST_ID.fullmatch(text):
        assert re.fullmatch("[A-Za-z0-9._-]{8,128}", text, re.ASCII)
        assert "\n" not in text


def test_the_upstreams_own_id_is_replaced(origin: MakeOrigin, site: MakeSite) -> None:
    """The answer bears our id alone."""
    where = site(route("r", origin(answering(b"HTTP/1.1 204 No\r\nX-Request-ID: theirs\r\n\r\n")).url))
    assert OURS.fullmatch(where.get("/r/").one("X-Request-Id") or "")


def test_another_field_or_none(origin: MakeOrigin, site: MakeSite) -> None:
    """`request_id.header` names the field; empty, the client's and the upstream's pass untouched."""
    upstream = origin(echo).url
    where = site({"proxy.request_id.header": "X-Trace", **route("r", upstream)})
    sent, answered = sent_and_answered(where.get("/r/"), "X-Trace")
    assert sent == answered
    assert OURS.fullmatch(sent or "")
    where = site({"proxy.request_id.header": "", **route("r", upstream)})
    assert sent_and_answered(where.get("/r/", {"X-Request-Id": "mine"})) == ("mine", None)


@pytest.mark.parametrize("header", ["X-Request-Id", "X-Trace", ""])
def test_a_switched_connection_bears_it(origin: MakeOrigin, site: MakeSite, header: str) -> None:
    """The 101 has the id that went up, and not the upstream's own."""
    sent: list[str | None] = []

    def script(wire: OriginWire) -> None:
        request = wire.request()
        assert request is not None
        sent.append(request.one(header) if header else request.one("X-Request-Id"))
        wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"X-Request-Id: theirs\r\nX-Trace: theirs\r\n\r\n"
        )

    where = site({"proxy.request_id.header": header, **route("r", origin(script).url, upgrade="websocket")})
    answer = where.raw(b"GET /r/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    names = [line.partition(b": ") for line in answer.split(b"\r\n")]
    found = [value.decode() for name, _, value in names if name == (header or "X-Request-Id").encode()]
    assert answer.startswith(b"HTTP/1.1 101 ")
    if header:
        assert found == sent
        assert OURS.fullmatch(found[0])
    else:
        assert (found, sent) == (["theirs"], [None])


def test_error_pages_bear_it(origin: MakeOrigin, site: MakeSite) -> None:
    """A refusal before the exchange, and an error after it, can be told of by their id."""
    upstream = origin(answering(b"nonsense\r\n\r\n")).url
    where = site(route("r", upstream, methods="GET") | route("busy", upstream, max_exchanges="1"), **TRUSTING)
    known = {"X-Request-Id": "front-server-1"}
    slot = where.engine.admission.admit("busy")
    answers = [where.get("/r/%00", known), where.get("/r/", known, "PUT"), where.get("/r/%ff", known)]
    answers += [where.get("/busy/", known), where.get("/r/", known)]
    slot.release()
    assert [answer.status for answer in answers] == [400, 405, 400, 503, 502]
    assert {answer.one("X-Request-Id") for answer in answers} == {"front-server-1"}


def test_a_new_request_bears_it_too(origin: MakeOrigin, site: MakeSite) -> None:
    """`proxy_fetch` sends it, unless the view gives the field itself."""
    upstream = origin(echo)

    def fetch(request: Any) -> Response:
        return request.proxy_fetch(upstream.url, headers=dict(request.params))

    def configure(config: Configurator) -> None:
        config.add_route("fetch", "/fetch")
        config.add_view(fetch, route_name="fetch")

    where = site(configure=configure)
    sent, answered = sent_and_answered(where.get("/fetch"))
    assert sent == answered
    assert OURS.fullmatch(sent or "")
    assert sent_and_answered(where.get("/fetch?x-request-id=mine"))[0] == "mine"


@pytest.mark.parametrize(("trace", "passes"), [("pass", True), ("drop", False)])
def test_traces_pass_or_not(origin: MakeOrigin, site: MakeSite, trace: str, passes: bool) -> None:
    """`traceparent` and `tracestate` go up untouched, or not at all."""
    where = site({"proxy.trace": trace, **route("r", origin(echo).url)})
    given = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2"}
    request = received(where.get("/r/", given))
    assert {name: request.one(name) for name in given} == (given if passes else dict.fromkeys(given))


def test_ids_differ() -> None:
    """None is given out twice."""
    made = [new_request_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(map(OURS.fullmatch, made))
