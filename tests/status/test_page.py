"""The status page: who may see it, what it says, and what its forms do."""

from __future__ import annotations

import json
import logging
import re
import threading
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.config import Configurator

from pyramid_threaded_proxy import SettingsError
from pyramid_threaded_proxy.exchange import Exchange, UpstreamRequest
from pyramid_threaded_proxy.status.document import document
from pyramid_threaded_proxy.status.plots import nice
from pyramid_threaded_proxy.status.report import Asked, report
from pyramid_threaded_proxy.status.status import Status
from pyramid_threaded_proxy.status.units import duration, size
from pyramid_threaded_proxy.status.views import COOKIE
from tests.support.observed import Nothing
from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Site, route
from tests.support.status import STATUS, act, page, watched
from tests.support.waiting import wait_until
from tests.support.wire import OriginWire


class Texts(HTMLParser):
    """What a browser would show, and the elements and attributes that it would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def held(origin: MakeOrigin, site: MakeSite) -> Any:
    """A site with one exchange in flight, its client, and what ends it."""
    go_on = threading.Event()

    def script(wire: OriginWire) -> None:
        while wire.request() is not None:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
            go_on.wait(30)
            wire.send(b"world")

    here = site(STATUS | route("r", f"{origin(script).url} {origin(echo).url}"), configure=watched)
    client = here.client()
    client.send(b"GET /r/held HTTP/1.1\r\nHost: a\r\nX-User: ann\r\n\r\n")
    client.until(b"hello")
    yield here, client
    go_on.set()
    client.close()


def status_json(site: Site, query: str = "") -> dict[str, Any]:
    """What the page asks for."""
    answer = site.get("/status/status.json" + query, {"X-User": "watcher"})
    assert (answer.status, answer.one("Content-Type")) == (200, "application/json")
    found: dict[str, Any] = json.loads(answer.body)
    return found


@pytest.mark.parametrize("path", ["/status", "/status/status.json", "/status/metrics"])
def test_a_stranger_sees_nothing(site: MakeSite, path: str) -> None:
    """Each address asks for the permission."""
    here = site(STATUS, configure=watched)
    assert here.get(path).status == 403
    assert here.get(path, {"X-User": "somebody"}).status == 403
    assert here.get(path, {"X-User": "watcher"}).status == 200


@pytest.mark.parametrize("user", ["", "watcher"])
@pytest.mark.parametrize("action", ["close", "rest", "drain", "wake"])
def test_who_may_not_act_gets_403_for_every_action(held: Any, action: str, user: str) -> None:
    """Neither a stranger, nor who may only look, nor with a token."""
    here, _ = held
    _, token, cookie = page(here)
    (one,) = status_json(here)["exchanges"]
    upstream = here.engine.routes["r"].balancer.upstreams[0].url
    answer = act(here, action, user, {"Cookie": cookie}, csrf=token, id=one["id"], route="r", upstream=upstream)
    assert answer.status == 403
    assert [row["state"] for row in status_json(here)["upstreams"]] == ["up", "up"]
    assert len(status_json(here)["exchanges"]) == 1


def test_a_forged_form_is_refused(held: Any) -> None:
    """Without the token, with another, without the cookie, or from another origin nothing is done."""
    here, _ = held
    _, token, cookie = page(here)
    (one,) = status_json(here)["exchanges"]
    good = {"Cookie": cookie}
    forged = [
        act(here, "close", headers=good, id=one["id"]),
        act(here, "close", headers=good, id=one["id"], csrf="0" * 32),
        act(here, "close", headers=good, id=one["id"], csrf=""),
        act(here, "close", id=one["id"], csrf=token),
        act(here, "close", headers={"Cookie": f"{COOKIE}="}, id=one["id"], csrf=""),
        act(here, "close", headers=good | {"Origin": "https://evil.example"}, id=one["id"], csrf=token),
        act(here, "close", headers=good | {"Origin": "null"}, id=one["id"], csrf=token),
    ]
    assert {answer.status for answer in forged} == {403}
    assert len(status_json(here)["exchanges"]) == 1
    assert here.get("/status/do/close", {"X-User": "operator"}).status == 404  # nothing is done by following a link


def test_closing_an_exchange_closes_it(held: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The form ends it; who did it stands in the log; the browser goes back to the page."""
    here, client = held
    text, token, cookie = page(here)
    (one,) = status_json(here)["exchanges"]
    assert one["user"] == "ann"
    assert (one["path"], one["stage"], one["down"]) == ("/r/held", "answering", 5)
    assert one["id"] in text
    answer = act(here, "close", headers={"Cookie": cookie}, csrf=token, id=one["id"])
    assert (answer.status, answer.one("Location")) == (303, f"{here.url}/status")
    client.wait_closed()
    wait_until(lambda: status_json(here)["exchanges"] == [])
    assert [line for line in caplog.messages if "'operator' did" in line] == [
        f"'operator' did on the status page: close {one['id']!r}: 1 told to end"
    ]
    (failure,) = status_json(here)["failures"]
    assert (failure["ended"], failure["userid"], failure["code"]) == ("closed", "ann", 200)


@pytest.mark.parametrize("action", ["rest", "drain"])
def test_an_upstream_that_was_taken_out_gets_no_requests(origin: MakeOrigin, site: MakeSite, action: str) -> None:
    """All go to the other one, until it is woken."""
    first, second = origin(echo), origin(echo)
    here = site(STATUS | route("r", f"{first.url} {second.url}"), configure=watched)
    _, token, cookie = page(here)

    def do(what: str) -> None:
        answer = act(here, what, headers={"Cookie": cookie}, csrf=token, route="r", upstream=first.url)
        assert answer.status == 303

    do(action)
    for _ in range(6):
        assert here.get("/r/").status == 200
    assert (first.accepted, second.accepted) == (0, 6 if second.accepted > 1 else 1)
    row = status_json(here)["upstreams"][0]
    assert (row["state"], row["why"]) == (
        "resting" if action == "rest" else "drained",
        "by operator on the status page",
    )
    assert (row["seconds_left"] is None) == (action == "drain")
    do("wake")
    assert status_json(here)["upstreams"][0]["state"] == "up"
    for _ in range(4):
        here.get("/r/")
    assert first.accepted >= 1


def test_all_upstreams_drained_is_said(origin: MakeOrigin, site: MakeSite) -> None:
    """A lone upstream that is drained answers with 503, however well it is."""
    upstream = origin(echo)
    here = site(STATUS | route("r", upstream.url), configure=watched)
    _, token, cookie = page(here)
    act(here, "drain", headers={"Cookie": cookie}, csrf=token, route="r", upstream=upstream.url)
    answer = here.get("/r/")
    assert (answer.status, answer.one("Retry-After")) == (503, "3600")
    assert upstream.accepted == 0
    (process, row) = status_json(here)["limits"]
    assert (process["route"], row["refused"]) == ("", {"resting": 1})


def test_what_is_not_there_can_not_be_changed(site: MakeSite) -> None:
    """An unknown action or upstream is 404."""
    here = site(STATUS, configure=watched)
    _, token, cookie = page(here)
    assert act(here, "explode", headers={"Cookie": cookie}, csrf=token).status == 404
    assert act(here, "rest", headers={"Cookie": cookie}, csrf=token, route="r", upstream="http://x").status == 404


def test_without_a_control_permission_nobody_acts(site: MakeSite) -> None:
    """The page is read-only: no forms, and no address for them."""
    readable = {key: value for key, value in STATUS.items() if "control" not in key}
    here = site(readable, configure=watched)
    text, token, cookie = page(here)
    assert (token, cookie) == ("", "")
    assert 'method="post"' not in text
    assert act(here, "close", id="x").status == 404


def test_the_page_is_kept_by_nobody_and_framed_by_nobody(site: MakeSite) -> None:
    """The fields that say so, and a nonce that is new each time."""
    here = site(STATUS, configure=watched)
    first, second = (here.get("/status", {"X-User": "operator"}) for _ in range(2))
    policy = first.one("Content-Security-Policy") or ""
    assert policy != second.one("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    fields = {name: first.one(name) for name in ("Cache-Control", "X-Content-Type-Options", "X-Frame-Options")}
    assert fields == {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
    assert first.one("Referrer-Policy") == "same-origin"  # without any, a browser's form has the Origin null
    cookie = first.one("Set-Cookie") or ""
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/status"))


def test_the_page_asks_for_nothing_from_elsewhere(site: MakeSite) -> None:
    """No address in it leads off the site."""
    text, _, _ = page(site(STATUS, configure=watched))
    found = Texts(text)
    addresses = [value for name, value in found.attributes if name in ("src", "href", "action", "srcset", "data")]
    assert set(addresses) <= {"data:,", "/status"}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_page_reads_without_its_script(held: Any) -> None:
    """Plots with their values in tables, every table filled, every form whole."""
    here, _ = held
    text, token, _ = page(here)
    found = Texts(text)
    assert found.tags.count("figure") == found.tags.count("figcaption") == found.tags.count("details") == 4
    sparks = [value for name, value in found.attributes if (name, value) == ("class", "spark")]
    assert len(sparks) == 2 + 2  # the process and its route; two upstreams
    assert found.tags.count("svg") == 4 + len(sparks)
    assert {"ann", "GET /r/held", "answering"} <= set(found.texts)
    assert text.count(f'name="csrf" value="{token}"') == 1 + 2 * 2  # close; rest and drain of two upstreams


def test_a_filter_shows_some(held: Any) -> None:
    """By user and by route, on the page and in its JSON."""
    here, _ = held
    assert len(status_json(here, "?user=ann&route=r")["exchanges"]) == 1
    assert status_json(here, "?user=bob")["exchanges"] == []
    assert "GET /r/held" not in page(here, query="?route=other")[0]
    assert here.get("/status/status.json?since=x", {"X-User": "watcher"}).status == 400


def test_only_what_is_new_is_sent(held: Any) -> None:
    """With the number of the last step, only steps after it come."""
    here, _ = held
    wait_until(lambda: len(status_json(here)["seconds"]["series"]["whole"]) >= 2)
    found = status_json(here)
    since = found["seconds"]["next"] - 1
    news = status_json(here, f"?since={since}")
    assert len(news["seconds"]["series"]["whole"]) == news["seconds"]["next"] - found["seconds"]["next"]


def test_the_pages_own_requests_are_not_counted(site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Nor are they in the access log: they are no exchanges."""
    caplog.set_level(logging.INFO, "pyramid_threaded_proxy.access")
    here = site(STATUS, configure=watched)
    page(here)
    assert sum(sum(filter(None, line)) for line in status_json(here)["seconds"]["series"].values()) == 0
    assert caplog.records == []


def exchange(user: str, path: str, agent: str, upstream: str, error: Exception | None) -> Exchange:
    """One with whatever a client, a user's name or an upstream can bring along."""
    made = Exchange("r", UpstreamRequest("GET", "http://a", "/", [], None), user, None, None)
    made.log_values = (path[:5] or "GET", path, "HTTP/1.1", "-", agent)
    made.stats.upstream, made.error = upstream, error
    return made


#: What ends elements, attributes, scripts and data, and what runs.
NASTY = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "</script><script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "[[nonce]]",
            "<!--",
            "]]>",
            "' x='",
            "&lt;",
        ]
    ),
)


@given(NASTY, NASTY, NASTY, NASTY, NASTY)
def test_whatever_reaches_the_page_is_text(user: str, path: str, agent: str, upstream: str, words: str) -> None:
    """Attackers' texts make no element, no attribute and no way out of the data."""
    observed = Nothing()
    status = Status(observed, lambda route: frozenset())
    observed.under_way.append(exchange(user, path, agent, upstream, None))
    status.ended(exchange(user, path, agent, upstream, ValueError(words)))
    status.reasons["r", upstream] = words
    harmless = Status(quiet := Nothing(), lambda route: frozenset())
    quiet.under_way.append(exchange("u", "/p", "a", "http://u", None))
    harmless.ended(exchange("u", "/p", "a", "http://u", ValueError("w")))
    asked = Asked(user=user, route=path)
    found = Texts(document(report(status, Asked()) | {"process": 1}, asked, "/status", "token", "nonce"))
    expected = Texts(document(report(harmless, Asked()) | {"process": 1}, Asked(), "/status", "token", "nonce"))
    assert found.tags == expected.tags
    assert [name for name, _ in found.attributes] == [name for name, _ in expected.attributes]
    (data,) = [text for text in found.texts if text.startswith('{"time"')]
    assert json.loads(data)["exchanges"][0]["user"] == user[:200]
    assert (user[:200] or "\N{EN DASH}") in "".join(found.texts)


def test_a_page_that_nobody_guards_is_a_fault(site: MakeSite) -> None:
    """Without a permission, or without anybody to ask for it, the application doesn't start."""
    with pytest.raises(SettingsError, match=r"status\.prefix .* stands without proxy\.status\.permission"):
        site({"proxy.status.prefix": "/status"})
    with pytest.raises(SettingsError, match=r"status\.permission .* stands without proxy\.status\.prefix"):
        site({"proxy.status.permission": "watch"})
    with pytest.raises(SettingsError, match=r"proxy\.status\.permission: would be asked of nobody"):
        site(STATUS)


def test_a_policy_that_comes_too_late_is_a_fault(site: MakeSite) -> None:
    """Views that were made without it would not ask it."""

    def late(config: Configurator) -> None:
        config.commit()
        watched(config)

    with pytest.raises(SettingsError, match=r"proxy\.status: the security policy was set after its views were made"):
        site(STATUS, configure=late)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1536, "1.5 KiB"), (1.2 * 2**30, "1.2 GiB"), (2**50, "1024 TiB")],
)
def test_bytes_as_people_read_them(count: float, text: str) -> None:
    """Three digits at most, but of the largest unit."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"), (0.0042, "4.2 ms"), (0.25, "250 ms"), (2.5, "2.5 s"), (42.4, "42 s"), (60, "1 min"),
        (75, "1 min 15 s"), (11520, "3 h 12 min"), (86400 * 2, "2 d"),
    ],
)  # fmt: skip
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    """Two units at most."""
    assert duration(seconds) == text


@given(st.floats(0.001, 1e15))
def test_the_top_of_an_axis_is_round_and_above(most: float) -> None:
    """No curve leaves its plot, and none is pressed flat."""
    for of_bytes in (False, True):
        assert most <= nice(most, of_bytes) * 1.000001
        assert nice(most, of_bytes) <= most * 2.6 + 1
