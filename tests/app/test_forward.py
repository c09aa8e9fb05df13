"""What of a client's request goes upstream, and what of the answer comes back: declared routes."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.session import SignedCookieSessionFactory

from tests.support.origin import MakeOrigin, Script, answering, echo
from tests.support.site import NOWHERE, MakeSite, Policy, route, with_policy
from tests.support.wire import received


def pattern(name: str, pattern: str, upstream: str, **keys: str) -> dict[str, str]:
    """Settings of a public pattern route."""
    settings = route(name, upstream, pattern=pattern, **keys)
    del settings[f"proxy.routes.{name}.prefix"]
    return settings


def sets(name: str, **templates: str) -> dict[str, str]:
    """`request.set` of a route, with ``-`` for ``_``."""
    return {f"proxy.routes.{name}.request.set.{key.replace('_', '-')}": value for key, value in templates.items()}


def answers(*fields: str, status: str = "200 OK") -> Script:
    """An upstream with these fields on its answer."""
    return answering("\r\n".join([f"HTTP/1.1 {status}", *fields, "Content-Length: 2", "", "hi"]).encode("latin-1"))


# Pattern routes


@pytest.mark.parametrize(
    ("declared", "upstream", "path", "target"),
    [
        ("/a/{id}", "/x/{id}/y", "/a/1", "/x/1/y"),
        ("/a/{id}", "/x/{id}", "/a/%C3%A9%20%25", "/x/%C3%A9%20%25"),
        ("/a/{id}", "/x/{id}", "/a/b%3Fc%23d%26e", "/x/b%3Fc%23d%26e"),
        ("/a/{id:.*}", "/x/{id}", "/a/b/c%20d", "/x/b/c%20d"),
        (r"/a/{id:\d+}-{n}", "/x?id={id}&n={n}", "/a/12-b%26c?q=1", "/x?id=12&n=b%26c&q=1"),
        ("/a/*rest", "/x/{rest}", "/a/b/c%20d", "/x/b/c%20d"),
        ("/a/{id}", "/fixed", "/a/b?q=%zz", "/fixed?q=%zz"),
        ("/a", "", "/a", "/"),
        ("/a/{id:[^/]+}", "/x/{id}", "/a/b%2Bc+d", "/x/b%2Bc%2Bd"),
    ],
)
def test_a_patterns_placeholders(
    declared: str, upstream: str, path: str, target: str, origin: MakeOrigin, site: MakeSite
) -> None:
    """A placeholder's value is escaped as one segment, as several where the pattern matches them, or in the query."""
    made = site(pattern("p", declared, origin(echo).url + upstream))
    request = received(made.get(path))
    assert request.target == target
    assert request.one("X-Forwarded-Prefix") is None


@pytest.mark.parametrize("path", ["/a/..", "/a/%2e%2e", "/a/b%5Cc", "/a/b%0Ac", "/a/%00"])
def test_a_placeholder_is_no_way_out(path: str, site: MakeSite) -> None:
    """A value that would climb, or hold a control, is refused."""
    assert site(pattern("p", "/a/{id}", NOWHERE + "/x/{id}")).get(path).status == 400


def test_placeholders_in_fields(origin: MakeOrigin, site: MakeSite) -> None:
    """A field sent upstream may hold the pattern's placeholders, unescaped, in UTF-8."""
    made = site(pattern("p", "/a/{id}/*rest", origin(echo).url) | sets("p", X_Id="id={id}", X_Rest="{rest}"))
    request = received(made.get("/a/%C3%A9/b/c%20d"))
    assert request.one("X-Id") == "id=\xc3\xa9"
    assert request.one("X-Rest") == "b/c d"


@pytest.mark.parametrize("path", ["/a/b%0Dc", "/a/b%0Ac", "/a/b%00c", "/a/b%7Fc"])
def test_control_characters_in_placeholders(path: str, site: MakeSite) -> None:
    """A placeholder is no way to put a line end into a field."""
    made = site(pattern("p", "/a/{id}", NOWHERE + "/x") | sets("p", X_Id="{id}"))
    assert made.get(path).status == 400


# Who asked


def test_what_the_upstream_is_told(origin: MakeOrigin, site: MakeSite) -> None:
    """By default it gets its own Host, Via, and X-Forwarded-For, -Host, -Proto and -Prefix."""
    upstream = origin(echo)
    made = site(route("r", upstream.url))
    request = received(made.get("/r/x", {"Host": "public.example:8080"}))
    assert request.all("Host") == [upstream.authority]
    assert request.all("Via") == ["1.1 pyramid_threaded_proxy"]
    assert request.all("X-Forwarded-For") == ["127.0.0.1"]
    assert request.all("X-Forwarded-Host") == ["public.example:8080"]
    assert request.all("X-Forwarded-Proto") == ["http"]
    assert request.all("X-Forwarded-Prefix") == ["/r"]
    assert request.one("Forwarded") is None


def test_host_and_via_can_be_changed(origin: MakeOrigin, site: MakeSite) -> None:
    """`preserve_host` sends the client's Host; an empty `via` sends no Via, though the client's own goes up."""
    made = site({**route("r", origin(echo).url, preserve_host="true"), "proxy.via": ""})
    request = received(made.get("/r/x", {"Host": "public.example", "Via": "1.0 other"}))
    assert request.all("Host") == ["public.example"]
    assert request.all("Via") == ["1.0 other"]


def test_via_is_added(origin: MakeOrigin, site: MakeSite) -> None:
    """Our Via stands behind the client's (RFC 9110 7.6.3)."""
    made = site({**route("r", origin(echo).url), "proxy.via": "edge:80"})
    values = ", ".join(received(made.get("/r/x", {"Via": "1.0 other"})).all("Via"))
    assert values == "1.0 other, 1.1 edge:80"


FORGED = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Host": "evil",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Anything": "evil",
    "Forwarded": "for=6.6.6.6",
    "X-Real-IP": "6.6.6.6",
    "Proxy": "http://evil",
}


@pytest.mark.parametrize("mode", ["x-forwarded", "rfc7239", "both", "none"])
def test_an_untrusted_client_can_forge_nothing(mode: str, origin: MakeOrigin, site: MakeSite) -> None:
    """What the client sends under these names never goes up, whatever is sent under them."""
    made = site(route("r", origin(echo).url, forwarded=mode))
    request = received(made.get("/r/x", {**FORGED, "Host": "h"}))
    assert b"evil" not in request.raw
    assert b"6.6.6.6" not in request.raw
    assert b"https" not in request.raw
    assert (request.one("Forwarded") == "for=127.0.0.1;host=h;proto=http") == (mode in ("rfc7239", "both"))
    assert (request.one("X-Forwarded-For") == "127.0.0.1") == (mode in ("x-forwarded", "both"))


TRUSTED_NAMES = "x-forwarded-for x-forwarded-host x-forwarded-proto"


@pytest.mark.parametrize("peer", ["*", "127.0.0.1"])
def test_a_trusted_peer(peer: str, origin: MakeOrigin, site: MakeSite) -> None:
    """A peer that waitress trusts: its address and the mount are appended, -Host and -Proto stay as they came."""
    made = site(
        route("r", origin(echo).url) | sets("r", X_Addr="{client_addr}", X_Host="{host}", X_Scheme="{scheme}"),
        trusted_proxy=peer,
        trusted_proxy_headers=TRUSTED_NAMES,
        clear_untrusted_proxy_headers=True,
    )
    request = received(made.get("/r/x", FORGED))
    assert request.all("X-Forwarded-For") == ["6.6.6.6, 127.0.0.1"]
    assert request.all("X-Forwarded-Host") == ["evil"]
    assert request.all("X-Forwarded-Proto") == ["https"]
    assert request.all("X-Forwarded-Prefix") == ["/evil, /r"]
    assert (request.one("X-Addr"), request.one("X-Host"), request.one("X-Scheme")) == ("6.6.6.6", "evil", "https")
    for name in ("X-Forwarded-Anything", "Forwarded", "X-Real-IP", "Proxy"):
        assert request.one(name) is None


def test_a_trusted_peer_is_trusted_with_what_is_named(origin: MakeOrigin, site: MakeSite) -> None:
    """Only the fields among waitress's ``trusted_proxy_headers`` are taken from it."""
    made = site(
        route("r", origin(echo).url),
        trusted_proxy="*",
        trusted_proxy_headers="x-forwarded-for",
        clear_untrusted_proxy_headers=False,
    )
    request = received(made.get("/r/x", {**FORGED, "Host": "h"}))
    assert request.all("X-Forwarded-For") == ["6.6.6.6, 127.0.0.1"]
    assert request.all("X-Forwarded-Host") == ["h"]
    assert request.all("X-Forwarded-Proto") == ["http"]


def test_another_peer_is_not_trusted(origin: MakeOrigin, site: MakeSite) -> None:
    """Where waitress trusts an address that the peer does not have, nothing is taken from the client."""
    made = site(
        route("r", origin(echo).url),
        trusted_proxy="10.9.8.7",
        trusted_proxy_headers=TRUSTED_NAMES,
        clear_untrusted_proxy_headers=False,
    )
    request = received(made.get("/r/x", {**FORGED, "Host": "h"}))
    assert request.all("X-Forwarded-For") == ["127.0.0.1"]
    assert request.all("X-Forwarded-Host") == ["h"]


def test_a_trusted_peer_with_forwarded(origin: MakeOrigin, site: MakeSite) -> None:
    """A trusted peer's Forwarded gets an element of ours behind it."""
    made = site(
        route("r", origin(echo).url, forwarded="rfc7239"),
        trusted_proxy="*",
        trusted_proxy_headers="forwarded",
        clear_untrusted_proxy_headers=True,
    )
    value = received(made.get("/r/x", {"Forwarded": "for=6.6.6.6;host=public", "Host": "h"})).one("Forwarded")
    assert value == "for=6.6.6.6;host=public, for=127.0.0.1;host=public;proto=http"


# Overrides


def test_templates(origin: MakeOrigin, site: MakeSite) -> None:
    """Fields sent upstream may hold what is known of the request; what the client sent under their names is gone."""
    templates = sets(
        "r", X_User="u={userid}", X_Addr="{client_addr}", X_Host="{host}", X_Scheme="{scheme}", X_Route="{route}",
        X_Id="{request_id}", X_Text="{{literal}}",
    )  # fmt: skip
    made = site(route("r", origin(echo).url) | templates, configure=with_policy)
    forged = dict.fromkeys(("X-Addr", "X-Host", "X-Route", "X-Id", "x-text", "X_Route"), "forged")
    request = received(made.get("/r/x", {**forged, "X-User": "\xe9va".encode().decode("latin-1"), "Host": "h:1"}))
    assert b"forged" not in request.raw
    values = [request.one(name) for name in ("X-Addr", "X-Host", "X-Scheme", "X-Route", "X-Text")]
    assert values == ["127.0.0.1", "h:1", "http", "r", "{literal}"]
    assert len(request.one("X-Id") or "") == 32


def test_an_anonymous_user(origin: MakeOrigin, site: MakeSite) -> None:
    """A field with ``{userid}`` is left out for an anonymous client, and the client's own one is gone as well."""

    class Nobody(Policy):
        def authenticated_userid(self, request: Any) -> None:
            return None

    made = site(
        route("r", origin(echo).url) | sets("r", X_Remote_User="{userid}"),
        configure=lambda config: config.set_security_policy(Nobody()),
    )
    assert received(made.get("/r/x", {"X-Remote-User": "mallory"})).one("X-Remote-User") is None


@pytest.mark.parametrize("userid", ["a\r\nX-Admin: 1", "a\nb", "a\0b"])
def test_a_users_name_is_no_way_to_add_fields(userid: str, site: MakeSite) -> None:
    """A user id with a control character is an error, and nothing is sent."""

    class Strange(Policy):
        def authenticated_userid(self, request: Any) -> str:
            return userid

    made = site(
        route("r", NOWHERE) | sets("r", X_Remote_User="{userid}"),
        configure=lambda config: config.set_security_policy(Strange()),
    )
    assert made.get("/r/x").status == 500


def test_fields_are_added_and_removed(origin: MakeOrigin, site: MakeSite) -> None:
    """`request.add` stands beside nothing of the client's, `request.remove` takes the client's away."""
    settings = route("r", origin(echo).url, request__remove="X-Gone Accept-Language")
    request = received(
        site({**settings, "proxy.routes.r.request.add.X-More": "1"}).get(
            "/r/x", {"X-Gone": "1", "Accept-Language": "de", "X-More": "2", "X-Kept": "3"}
        )
    )
    assert (request.one("X-Gone"), request.one("Accept-Language"), request.one("X-Kept")) == (None, None, "3")
    assert request.all("X-More") == ["1"]


def test_hop_by_hop_fields_stay_home(origin: MakeOrigin, site: MakeSite) -> None:
    """Hop-by-hop fields and whatever Connection names do not go up; naming our own there takes nothing away."""
    fields = {"Connection": "X-Private, X-Forwarded-For, Via, X-Set", "X-Private": "1", "TE": "trailers"}
    made = site(route("r", origin(echo).url) | sets("r", X_Set="ours"))
    request = received(made.get("/r/x", fields))
    for name in ("Connection", "X-Private", "TE"):
        assert request.one(name) is None, name
    assert request.one("X-Forwarded-For") == "127.0.0.1"
    assert request.one("Via") is not None
    assert request.one("X-Set") == "ours"


# Secrets stay home


def test_own_cookies_and_authorization_stay_home(origin: MakeOrigin, site: MakeSite) -> None:
    """The application's own cookies and Authorization never go up; other cookies do."""
    made = site(
        {**route("r", origin(echo).url), "proxy.own_cookies": "session tkt"},
        configure=lambda config: config.set_session_factory(SignedCookieSessionFactory("s")),
    )
    fields = {"Cookie": "a=1; session=S; tkt=T; TKT=U; b=2", "Authorization": "Basic x", "Proxy-Authorization": "y"}
    request = received(made.get("/r/x", fields))
    assert request.one("Cookie") == "a=1; TKT=U; b=2"
    assert request.one("Authorization") is None
    assert request.one("Proxy-Authorization") is None


@pytest.mark.parametrize(("cookies", "expected"), [("*", "a=1; b=2"), ("b", "b=2"), ("", None)])
def test_cookies_that_may_go_up(cookies: str, expected: str | None, origin: MakeOrigin, site: MakeSite) -> None:
    """`request.cookies` names what goes up, besides the application's own, which never do."""
    made = site(route("r", origin(echo).url, request__cookies=cookies))
    assert received(made.get("/r/x", {"Cookie": "a=1; session=S; b=2"})).one("Cookie") == expected


def test_authorization_that_may_go_up(origin: MakeOrigin, site: MakeSite) -> None:
    """`request.authorization` pass sends the client's own."""
    made = site(route("r", origin(echo).url, request__authorization="pass"))
    assert received(made.get("/r/x", {"Authorization": "Basic x"})).one("Authorization") == "Basic x"


# The answer


def test_answer_overrides(origin: MakeOrigin, site: MakeSite) -> None:
    """`response.set`, `.add`, `.default` and `.remove` act on the upstream's fields."""
    upstream = origin(answers("X-Set: theirs", "X-Add: theirs", "X-Default: theirs", "X-Gone: 1", "Server: them"))
    settings = route("r", upstream.url, response__remove="X-Gone")
    for key in ("set.X-Set", "add.X-Add", "default.X-Default", "default.X-New", "set.Clear-Site-Data"):
        settings[f"proxy.routes.r.response.{key}"] = "ours"
    answer = site(settings).get("/r/x")
    found = {name: answer.all(name) for name in ("X-Set", "X-Add", "X-Default", "X-New", "X-Gone", "Server")}
    assert found == {
        "X-Set": ["ours"], "X-Add": ["theirs", "ours"], "X-Default": ["theirs"], "X-New": ["ours"], "X-Gone": [],
        "Server": ["them"],
    }  # fmt: skip
    assert answer.all("Clear-Site-Data") == ["ours"]


@pytest.mark.parametrize(
    "name", ["X-Accel-Redirect", "X-Sendfile", "X-Lighttpd-Send-File", "Clear-Site-Data", "Service-Worker-Allowed"]
)
def test_commands_of_an_upstream(name: str, origin: MakeOrigin, site: MakeSite) -> None:
    """What commands a front server or the whole site is never passed on."""
    assert site(route("r", origin(answers(f"{name}: x")).url)).get("/r/x").one(name) is None


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{url}/base/next?a", "http://public.example/r/next?a"),
        ("/base/next", "/r/next"),
        ("/base", "/r"),
        ("/elsewhere", "/elsewhere"),
        ("next", "next"),
        ("https://other.example/base/x", "https://other.example/base/x"),
    ],
)
def test_location(location: str, expected: str, origin: MakeOrigin, site: MakeSite) -> None:
    """A Location below the upstream's base is mapped to the public URL, as URL or as path."""
    upstream = origin(lambda wire: script(wire))
    script = answers(f"Location: {location.format(url=upstream.url)}", status="302 Found")
    answer = site(route("r", upstream.url + "/base")).get("/r/x", {"Host": "public.example"})
    assert (answer.status, answer.one("Location")) == (302, expected)


def test_location_can_be_left(origin: MakeOrigin, site: MakeSite) -> None:
    """`rewrite_location` false passes it on as it is."""
    upstream = origin(answers("Location: /base/x"))
    assert site(route("r", upstream.url + "/base", rewrite_location="false")).get("/r/x").one("Location") == "/base/x"


def test_cookies_of_an_upstream(origin: MakeOrigin, site: MakeSite) -> None:
    """A cookie loses its Domain and is confined to the mount with SCRIPT_NAME; the application's own are dropped."""
    cookies = ("a=1; Domain=example; Path=/", "b=2; Path=/base/sub; HttpOnly", "session=evil")
    upstream = origin(answers(*(f"Set-Cookie: {cookie}" for cookie in cookies)))
    answer = site(route("r", upstream.url + "/base"), url_prefix="/app").get("/app/r/x")
    assert answer.all("Set-Cookie") == ["a=1; Path=/app/r", "b=2; HttpOnly; Path=/app/r/sub"]


def test_cookies_of_an_upstream_can_be_left(origin: MakeOrigin, site: MakeSite) -> None:
    """`rewrite_cookies` false passes Domain and Path on; the application's own cookies stay guarded."""
    upstream = origin(answers("Set-Cookie: a=1; Domain=example; Path=/", "Set-Cookie: session=evil"))
    answer = site(route("r", upstream.url, rewrite_cookies="false")).get("/r/x")
    assert answer.all("Set-Cookie") == ["a=1; Domain=example; Path=/"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"permission": "view"}, ["private, max-age=60"]),
        ({"permission": "view", "cache": "keep"}, ["public, max-age=60"]),
        ({"public": "true"}, ["public, max-age=60"]),
    ],
)
def test_caching(keys: dict[str, str], expected: list[str], origin: MakeOrigin, site: MakeSite) -> None:
    """What needs a permission is kept out of shared caches, unless `cache` says otherwise."""
    upstream = origin(answers("Cache-Control: public, max-age=60"))
    settings = route("r", upstream.url, **keys)

    def configure(config: Configurator) -> None:
        config.set_security_policy(Everybody())

    assert site(settings, configure=configure).get("/r/x").all("Cache-Control") == expected


class Everybody(Policy):
    """Lets everybody do everything."""

    def permits(self, request: Any, context: Any, permission: str) -> bool:
        return True


@pytest.mark.parametrize("sent", ["/app/reports/x%2Fy", "/reports/x%2Fy"])
def test_a_url_prefix_may_be_stripped_in_front(origin: MakeOrigin, site: MakeSite, sent: str) -> None:
    """With waitress's url_prefix the same resource is meant whether the front server leaves the prefix or takes it."""
    upstream = origin(echo)
    answer = site(route("reports", upstream.url + "/v2"), url_prefix="/app").get(sent)
    assert received(answer).target == "/v2/x%2Fy"
    assert received(answer).one("X-Forwarded-Prefix") == "/app/reports"
