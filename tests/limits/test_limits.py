"""Limits: of the process, of a route, of one user on a route; and the longest that an exchange may take."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.config import Configurator

from pyramid_threaded_proxy import TooManyExchanges
from pyramid_threaded_proxy.limits.admission import Admission, Limits
from tests.support.origin import Gate, MakeOrigin
from tests.support.site import MakeSite, Policy, Site, route
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, Wire


def with_users(config: Configurator) -> None:
    config.set_security_policy(Policy())


def ask(site: Site, path: str, user: str = "") -> Wire:
    client = site.client()
    field = f"X-User: {user}\r\n" if user else ""
    client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n{field}\r\n".encode())
    return client


def free(site: Site) -> None:
    """A client has its last byte a moment before its place is free."""
    wait_until(lambda: site.engine.admission.in_flight == 0, "free places")


def test_a_route_has_its_own_limit(origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """Above a route's max_exchanges it answers 503 with Retry-After while other routes go on; then it is free."""
    upstream = origin(gate)
    here = site(route("few", upstream.url, max_exchanges="2") | route("many", upstream.url))
    held = [ask(here, "/few/held"), ask(here, "/few/held"), ask(here, "/many/held")]
    wait_until(lambda: upstream.accepted == 3)
    refused = here.get("/few/")
    assert (refused.status, refused.one("Retry-After")) == (503, "1")
    gate.opened.set()
    for client in held:
        assert client.until(b"/held").startswith(b"HTTP/1.1 200 ")
        client.close()
    free(here)
    assert here.get("/few/").status == 200


def test_one_user_has_a_limit(origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """One user above max_exchanges_per_user gets 429, while another user and anonymous clients are let in."""
    upstream = origin(gate)
    here = site(
        route("r", upstream.url, max_exchanges_per_user="2") | {"proxy.own_cookies": "session"}, configure=with_users
    )
    held = [ask(here, "/r/held", "ann"), ask(here, "/r/held", "ann")]
    wait_until(lambda: upstream.accepted == 2)
    refused = here.get("/r/", {"X-User": "ann"})
    assert (refused.status, refused.one("Retry-After")) == (429, "1")
    held += [ask(here, "/r/held", "bob"), ask(here, "/r/held"), ask(here, "/r/held"), ask(here, "/r/held")]
    wait_until(lambda: upstream.accepted == 6)
    gate.opened.set()
    for client in held:
        client.until(b"/held")
        client.close()
    free(here)
    assert here.get("/r/", {"X-User": "ann"}).status == 200


def test_a_view_can_set_limits(origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """`proxy_fetch` takes the limits as keywords; they count what the view fetches."""
    upstream = origin(gate)

    def configure(config: Configurator) -> None:
        config.add_route("v", "/v")
        config.add_view(
            lambda request: request.proxy_fetch(upstream.url + "/held", max_exchanges=1, read_timeout="5s"),
            route_name="v",
        )

    here = site(configure=configure)
    client = ask(here, "/v")
    wait_until(lambda: upstream.accepted == 1)
    assert here.get("/v").status == 503
    gate.opened.set()
    client.until(b"/held")
    client.close()


def test_the_total_timeout_before_the_head(origin: MakeOrigin, site: MakeSite, gate: Gate) -> None:
    """An exchange that takes too long in all gets 504, however patient the other time-outs are."""
    here = site(route("r", origin(gate).url, total_timeout="150ms"))
    assert here.get("/r/").status == 504


def test_the_total_timeout_after_the_head(origin: MakeOrigin, site: MakeSite) -> None:
    """A stream that goes on and on is broken off, and the client can tell."""
    over = threading.Event()

    def script(wire: OriginWire) -> None:
        if wire.request() is None:
            return
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not over.wait(0.02):
            wire.send(b"1\r\nx\r\n")

    here = site(route("r", origin(script).url, total_timeout="300ms"))
    client = ask(here, "/r/held")
    began = time.monotonic()
    with pytest.raises(ConnectionResetError):
        client.rest()
    assert time.monotonic() - began < 5
    assert b"0\r\n\r\n" not in client.buffer
    over.set()
    client.close()


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([None, "u", "v"]), st.booleans()), min_size=1, max_size=60
    ),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_admission_counts_as_a_list_would(
    steps: list[tuple[str, str | None, bool]], process: int, per_route: int, per_user: int
) -> None:
    """Whatever is taken and given back in whatever order, no limit is passed and none refuses too early."""
    admission, limits = Admission(process), Limits(per_route, per_user)
    held: list[tuple[str, str | None, object]] = []
    for name, user, take in steps:
        if not take:
            if held:
                held.pop(0)[2].release()  # type: ignore[attr-defined]
            continue
        mine = sum(1 for one in held if one[:2] == (name, user))
        fits = (
            len(held) < process
            and sum(1 for one in held if one[0] == name) < per_route
            and (user is None or mine < per_user)
        )
        if fits:
            held.append((name, user, admission.admit(name, user, limits)))
        else:
            with pytest.raises(TooManyExchanges) as caught:
                admission.admit(name, user, limits)
            assert caught.value.status == (429 if user is not None and mine >= per_user else 503)
        assert admission.in_flight == len(held)


def test_who_has_nothing_in_flight_is_forgotten() -> None:
    """The counts of ten thousand users leave nothing behind once they are gone."""
    admission = Admission(20_000)
    places = [admission.admit("r", str(number), Limits(None, 1)) for number in range(10_000)]
    for place in places:
        place.release()
        place.release()
    admission.admit().release()
    assert admission.in_flight == 0
    assert len(admission._users) == 0


def test_a_limit_is_told_of_once(
    origin: MakeOrigin, site: MakeSite, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """The first refusal is a line that names the setting; the next hundred are not."""
    upstream = origin(gate)
    here = site(route("r", upstream.url, max_exchanges="1"))
    client = ask(here, "/r/held")
    wait_until(lambda: upstream.accepted == 1)
    for _ in range(20):
        assert here.get("/r/").status == 503
    gate.opened.set()
    client.until(b"/held")
    client.close()
    lines = [record.getMessage() for record in caplog.records if "limit" in record.getMessage()]
    assert lines == ["a request was refused with 503: the limit is reached: proxy.routes.r.max_exchanges (1)"]
