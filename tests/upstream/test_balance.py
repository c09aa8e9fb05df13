"""Several upstreams behind one route: who is asked, and that each is asked as if it were the only one."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.config import Configurator

from pyramid_threaded_proxy.exchange import UpstreamRequest
from pyramid_threaded_proxy.relay.destination import UpstreamChoice
from pyramid_threaded_proxy.upstream.balance import Balancer, Upstream
from pyramid_threaded_proxy.upstream.health import Health
from pyramid_threaded_proxy.upstream.origin import Origin as Address
from tests.support.origin import MakeOrigin, Script, echo
from tests.support.site import MakeSite, route, with_policy
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire, received


def named(name: str) -> Script:
    """A script that answers with its name and the target."""

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            wire.answer(f"{name} {request.target} {request.one('Host')}".encode())

    return script


def set_of(count: int, method: Any) -> tuple[Balancer, tuple[Upstream, ...]]:
    """A balance without any site."""
    upstreams = tuple(
        Upstream(f"http://u{number}", Address("http", f"u{number}", 80), "", None, Health(1, 60.0))
        for number in range(count)
    )
    return Balancer(upstreams, method), upstreams


def picked(balance: Balancer) -> Upstream:
    """The upstream of the next exchange."""
    return picked_for(balance, "")


def picked_for(balance: Balancer, user: str) -> Upstream:
    """The upstream of the next exchange of `user`."""
    found = balance.choose(user)
    assert found is not None
    return found[0]


# By themselves


def test_round_robin_asks_each_in_turn() -> None:
    """Each is asked as often as the others; one that rests leaves its turns to the next."""
    balance, upstreams = set_of(3, "round_robin")
    assert Counter(picked(balance).url for _ in range(9)) == {one.url: 3 for one in upstreams}
    upstreams[1].health.failed()
    chosen = [picked(balance) for _ in range(6)]
    assert upstreams[1] not in chosen
    assert set(chosen) == {upstreams[0], upstreams[2]}


def test_least_exchanges_asks_the_one_with_fewest() -> None:
    """The number of exchanges under way decides; among equals it goes round."""
    balance, upstreams = set_of(3, "least_exchanges")
    upstreams[0].flights.extend([None, None])
    upstreams[1].flights.append(None)
    assert picked(balance) is upstreams[2]
    upstreams[2].flights.extend([None] * 3)
    assert picked(balance) is upstreams[1]
    upstreams[1].flights.extend([None])
    assert {picked(balance) for _ in range(6)} == {upstreams[0], upstreams[1]}


@given(st.text(), st.integers(2, 8), st.data())
def test_a_user_stays_while_the_set_is_whole(user: str, count: int, data: Any) -> None:
    """One user always has the same upstream; when another one rests, nothing changes for this user."""
    balance, upstreams = set_of(count, "user_hash")
    own = picked_for(balance, user)
    assert picked_for(balance, user) is own
    data.draw(st.sampled_from([one for one in upstreams if one is not own])).health.failed()
    assert picked_for(balance, user) is own


def test_users_are_spread() -> None:
    """A thousand users are about evenly spread, and those of an upstream that rests are spread over the others."""
    balance, upstreams = set_of(4, "user_hash")
    before = {user: picked_for(balance, user) for user in map(str, range(1000))}
    assert min(Counter(before.values()).values()) > 180
    upstreams[0].health.failed()
    moved = Counter(picked_for(balance, user) for user, upstream in before.items() if upstream is upstreams[0])
    assert set(moved) == set(upstreams[1:])
    assert min(moved.values()) > 40


def test_nobody_is_left() -> None:
    """While all rest the choice says so; each is tried once only."""
    balance, upstreams = set_of(2, "round_robin")
    sent = UpstreamRequest("GET", "", "", [], None)
    choice = UpstreamChoice(balance, "", lambda upstream: upstream.url)
    asked = [choice.upstream]
    assert choice.next_upstream(sent)
    asked.append(choice.upstream)
    assert (set(asked), sent.target) == (set(upstreams), choice.upstream.url)
    assert not choice.next_upstream(sent)
    for upstream in upstreams:
        upstream.health.failed()
    assert balance.choose("") is None
    assert UpstreamChoice(balance, "", lambda upstream: upstream.url).resting
    assert 50 < balance.retry_after() <= 60


# Under a site


def test_each_has_its_own_base_host_and_location(origin: MakeOrigin, site: MakeSite) -> None:
    """The list's URLs each have a base and a Host of their own, and a Location of any of them is mapped back."""

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            body = f"{request.target} {request.one('Host')}".encode()
            wire.answer(body, f"Location: {second.url}/two/there", status="201 Created")

    first, second = origin(script), origin(script)
    where = site(route("r", f"{first.url}/one {second.url}/two"))
    answers = [where.get("/r/x?y") for _ in range(4)]
    assert Counter(answer.body.decode() for answer in answers) == {
        f"/one/x?y {first.authority}": 2,
        f"/two/x?y {second.authority}": 2,
    }
    assert {answer.one("Location") for answer in answers} == {f"{where.url}/r/there"}


def test_a_pattern_over_several(origin: MakeOrigin, site: MakeSite) -> None:
    """Each upstream of a pattern route has its own use of the placeholders."""
    first, second = origin(named("a")), origin(named("b"))
    keys = {"pattern": "/x/{id}", "upstream": [f"{first.url}/{{id}}", f"{second.url}/?id={{id}}"], "public": True}
    where = site(configure=lambda config: config.add_proxy_route("r", **keys))
    found = {where.get("/x/7").body for _ in range(2)}
    assert found == {f"a /7 {first.authority}".encode(), f"b /?id=7 {second.authority}".encode()}


def test_which_one_was_used(origin: MakeOrigin, site: MakeSite) -> None:
    """`exchange.stats.upstream` is the URL from the settings, `proxy_exchanges` and the hooks see the same."""
    first, second, seen = origin(echo), origin(echo), []

    def configure(config: Configurator) -> None:
        config.add_proxy_route(
            "r", prefix="/r", upstream=[first.url + "/a", second.url], public=True,
            hooks_complete=lambda exchange: seen.append(exchange.stats.upstream),
        )  # fmt: skip

    where = site(configure=configure)
    targets = [received(where.get("/r/x")).target for _ in range(2)]
    wait_until(lambda: len(seen) == 2)
    assert {(url, "/a/x" if url.endswith("/a") else "/x") for url in seen} == set(zip(seen, targets, strict=True))
    assert set(seen) == {first.url + "/a", second.url}


def test_one_user_one_upstream(origin: MakeOrigin, site: MakeSite) -> None:
    """With `user_hash` a user's requests all go to one upstream, and so do an address's where nobody is logged in."""
    upstreams = [origin(named(str(number))) for number in range(4)]
    where = site(
        route("r", " ".join(upstream.url for upstream in upstreams), balance="user_hash"),
        configure=with_policy,
    )
    asked = {
        user: {where.get("/r/", {"X-User": user} if user else {}).body for _ in range(3)}
        for user in ("", *map(str, range(12)))
    }
    assert {len(names) for names in asked.values()} == {1}
    assert len(set().union(*asked.values())) > 1


def test_least_exchanges_under_way(origin: MakeOrigin, site: MakeSite) -> None:
    """Whoever is slow gets no more until the others have as many; afterwards none is counted any more."""
    gate = threading.Event()

    def slow(wire: OriginWire) -> None:
        while wire.request() is not None:
            gate.wait(10)
            wire.answer(b"slow")

    first, second = origin(slow), origin(named("fast"))
    where = site(route("r", f"{first.url} {second.url}", balance="least_exchanges"))
    balance, client = where.engine.routes["r"].balancer, where.client()
    client.send(b"GET /r/ HTTP/1.1\r\nHost: a\r\n\r\n")
    wait_until(lambda: first.accepted)
    assert {where.get("/r/").body.split()[0] for _ in range(5)} == {b"fast"}
    gate.set()
    client.head()
    client.close()
    wait_until(lambda: not any(upstream.flights for upstream in balance.upstreams), "nobody to be counted")


def test_a_url_that_a_hook_sets_is_not_balanced(origin: MakeOrigin, site: MakeSite) -> None:
    """What a `request` hook points elsewhere goes there, whatever state the route's own upstreams are in."""
    elsewhere = origin(named("elsewhere"))

    def configure(config: Configurator) -> None:
        def hook(request: Any, exchange: Any) -> None:
            exchange.request.url = elsewhere.url + "/there"

        config.add_proxy_route(
            "r", prefix="/r", upstream=["http://127.0.0.1:9", "http://127.0.0.1:1"], public=True, hooks_request=hook
        )

    where = site(configure=configure)
    for upstream in where.engine.routes["r"].balancer.upstreams:
        for _ in range(3):
            upstream.health.failed()
    assert where.get("/r/x").body == f"elsewhere /there {elsewhere.authority}".encode()


def test_forwarding_to_a_set(origin: MakeOrigin, site: MakeSite) -> None:
    """`proxy_forward` to a route by its name balances as the route does, and goes on with the next one."""
    alive = origin(named("alive"))

    def configure(config: Configurator) -> None:
        config.add_route("v", "/v")
        config.add_view(lambda request: request.proxy_forward("r", "/x", read_timeout=5), route_name="v")

    where = site(route("r", f"http://127.0.0.1:1/dead {alive.url}/base"), configure=configure)
    assert {where.get("/v").body for _ in range(4)} == {f"alive /base/x {alive.authority}".encode()}


@pytest.mark.parametrize("key", ["balance", "health_fails", "health_path"])
def test_fetches_know_no_sets(key: str, site: MakeSite) -> None:
    """What is said of several upstreams belongs to a declared route."""

    def configure(config: Configurator) -> None:
        config.add_route("v", "/v")
        config.add_view(lambda request: request.proxy_fetch("http://h", **{key: "1"}), route_name="v")
        config.add_view(lambda error, request: _text(request, str(error)), context=Exception)

    assert "belongs to a declared route" in site(configure=configure).get("/v").body.decode()


def _text(request: Any, text: str) -> Any:
    request.response.text = text
    return request.response
