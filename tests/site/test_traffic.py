"""What real backends and clients send, byte by byte: public URLs, second targets, cookies, chains and overrides.

Each test runs under both of waitress's loops, and streamed, unless it is about the connection's own peer or bytes,
which only a detached exchange knows.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
from pyramid.authorization import Allow
from pyramid.config import Configurator

from tests.support.origin import MakeOrigin, Script, answering, echo
from tests.support.site import DETACHED, MakeSite, Policy, Site, route, with_policy
from tests.support.wire import Answer, received

TRUSTING = {"trusted_proxy": "*", "trusted_proxy_headers": "x-forwarded-proto x-forwarded-host x-forwarded-for"}


def saying(*fields: str) -> Script:
    return answering("\r\n".join(["HTTP/1.1 302 Found", *fields, "Content-Length: 0", "", ""]).encode("latin-1"))


@pytest.fixture
def site(site: MakeSite, mode: dict[str, Any]) -> MakeSite:
    """Sites of one mode."""
    return lambda *arguments, **options: site(*arguments, **{**mode, **options})


#: For tests of what only a detached exchange knows.
detached = pytest.mark.parametrize("mode", DETACHED, indirect=True)


# Public URLs


@pytest.mark.parametrize("name", ["Location", "Content-Location"])
@pytest.mark.parametrize(
    ("said", "seen"), [("/tool/login", "/tool/login"), ("/login", "/tool/login"), ("/toolbox", "/tool/toolbox")]
)
def test_a_prefix_that_the_upstream_believes(
    name: str, said: str, seen: str, origin: MakeOrigin, site: MakeSite
) -> None:
    """The upstream is told X-Forwarded-Prefix and answers with it: what is below the mount is left alone."""
    upstream = origin(saying(f"{name}: {said}", f"Refresh: 1; url={said}", f"Set-Cookie: a=1; Path={said}"))
    made = site(route("tool", upstream.url))
    answer = made.get("/tool/x")
    assert answer.one(name) == seen
    assert answer.one("Refresh") == f"1; url={seen}"
    assert answer.one("Set-Cookie") == f"a=1; Path={seen}"


@pytest.mark.parametrize(
    "keys", [{"forwarded": "none"}, {"forwarded": "rfc7239"}, {"request__remove": "X-Forwarded-Prefix"}]
)
def test_a_prefix_that_was_not_sent(keys: dict[str, str], origin: MakeOrigin, site: MakeSite) -> None:
    """Where no prefix goes up, the upstream's paths are its own, whatever they look like."""
    upstream = origin(saying("Location: /tool/login"))
    assert site(route("tool", upstream.url, **keys)).get("/tool/x").one("Location") == "/tool/tool/login"


@detached
def test_the_scheme_that_the_upstream_was_told(origin: MakeOrigin, site: MakeSite) -> None:
    """A trusted front says https; the upstream's own authority under https is the upstream."""
    upstream = origin(lambda wire: saying(f"Location: https://{upstream.authority}/v1/items/")(wire))
    made = site(route("api", upstream.url + "/v1"), **TRUSTING)
    fields = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "www.example"}
    assert made.get("/api/items", fields).one("Location") == "https://www.example/api/items/"


@pytest.mark.parametrize("keys", [{"preserve_host": "true", "forwarded": "none"}, {}])
def test_the_host_that_the_upstream_was_told(keys: dict[str, str], origin: MakeOrigin, site: MakeSite) -> None:
    """By Host or by X-Forwarded-Host: a redirect to the public origin is mapped as one to its own is."""
    upstream = origin(saying("Location: http://site.example/dir/", "Refresh: 0; url=http://site.example/dir/"))
    answer = site(route("httpdp", upstream.url, **keys)).get("/httpdp/dir", {"Host": "site.example"})
    assert answer.one("Location") == "http://site.example/httpdp/dir/"
    assert answer.one("Refresh") == "0; url=http://site.example/httpdp/dir/"


def test_rules_of_the_site(origin: MakeOrigin, site: MakeSite) -> None:
    """Rules go before the usual mapping, for Location and for cookies' paths."""
    upstream = origin(
        saying("Location: http://internal:8080/app/x", "Set-Cookie: a=1; Path=/app", "Set-Cookie: b=1; Path=/")
    )
    keys = {"rewrite_location": "http://internal:8080/app/ -> /tool/", "rewrite_cookies": "/app -> /"}
    answer = site(route("tool", upstream.url, **keys)).get("/tool/x")
    assert (answer.one("Location"), answer.all("Set-Cookie")) == ("/tool/x", ["a=1; Path=/", "b=1; Path=/tool"])


# The mount without its slash


@pytest.mark.parametrize(
    ("base", "slash", "moved"),
    [
        ("", None, True), ("/", None, True), ("/app/", None, True), ("/app", None, False), ("/app", "redirect", True),
        ("", "pass", False),
    ],
)  # fmt: skip
def test_the_mount_without_its_slash(
    base: str, slash: str | None, moved: bool, origin: MakeOrigin, site: MakeSite
) -> None:
    """It is redirected to the one with it where the upstream's base has one, with the query as it came."""
    made = site(route("r", origin(echo).url + base, **({"slash": slash} if slash else {})))
    answer = made.get("/r?a=%zz&b", {"Host": "site.example"})
    assert (answer.status, answer.one("Location")) == (
        (301, "http://site.example/r/?a=%zz&b") if moved else (200, None)
    )
    assert received(made.get("/r/?a")).target == (base or "/") + ("" if base.endswith("/") or not base else "/") + "?a"


def test_what_is_not_redirected(origin: MakeOrigin, site: MakeSite) -> None:
    """Only pages have relative links: other methods go where they say, and a mount at the root has its slash."""
    made = site({**route("r", origin(echo).url), **route("root", origin(echo).url, prefix="/")})
    assert received(made.get("/r", method="POST", body=b"x")).target == "/"
    assert made.get("/r", method="HEAD").status == 301
    assert received(made.get("/r", {"Upgrade": "websocket", "Connection": "upgrade"})).target == "/"
    assert received(made.get("/")).target == "/"


def test_who_may_not_use_it_is_not_redirected(site: MakeSite) -> None:
    """The permission is asked first."""
    settings = route("r", "http://127.0.0.1:9", permission="never")
    made = site(settings, configure=with_policy)
    assert made.get("/r").status == 403


# Destination and If


class Root:
    """Alice may use /dav, and nobody but root what is below /dav/private."""

    def __init__(self, request: Any) -> None:
        self.__acl__ = [(Allow, "alice", "use"), (Allow, "root", ["use", "admin"])]


def dav(site: MakeSite, url: str, base: str = "/dav", **more: str) -> Site:
    settings = {
        **route("dav", url + base, permission="use", **more),
        **route("private", f"{url}{base}/private", permission="admin", prefix="/dav/private"),
        **route("other", "http://127.0.0.1:9", permission="use"),
        **route("reading", url + "/reading", permission="use", methods="GET"),
    }
    settings = {key: value for key, value in settings.items() if not key.endswith(".public")}

    def configure(config: Configurator) -> None:
        config.set_security_policy(Policy())
        config.set_root_factory(Root)
        config.add_route("own", "/dav/own")
        config.add_view(lambda request: pytest.fail("the application's own view ran"), route_name="own")

    return site(settings, configure=configure)


def copied(made: Site, destination: str, user: str = "alice", method: str = "COPY", **fields: str) -> Answer:
    sent = {"X-User": user, "Host": "site.example", "Destination": destination, **fields}
    return made.get("/dav/a.txt", sent, method=method)


@pytest.mark.parametrize("method", ["COPY", "MOVE"])
@pytest.mark.parametrize(
    ("base", "sent", "seen"),
    [
        ("/dav", "http://site.example/dav/b%20c.txt", "http://{up}/dav/b%20c.txt"),
        ("/files", "http://site.example/dav/b.txt?q", "http://{up}/files/b.txt?q"),
        ("/files", "HTTPS://SITE.example:443/dav/b.txt", "http://{up}/files/b.txt"),
        ("", "/dav/b.txt", "/b.txt"),
        ("/files", "/dav", "/files"),
    ],
)
def test_a_destination_is_mapped(
    method: str, base: str, sent: str, seen: str, origin: MakeOrigin, site: MakeSite
) -> None:
    """A second target goes up as the first does: below the upstream's base, on the server that Host names."""
    upstream = origin(echo)
    request = received(copied(dav(site, upstream.url, base), sent, method=method))
    assert request.all("Destination") == [seen.format(up=upstream.authority)]
    assert (request.method, request.target) == (method, base + "/a.txt")


def test_a_destination_with_the_clients_host(origin: MakeOrigin, site: MakeSite) -> None:
    """With `preserve_host` the destination is on the client's host, as the request is."""
    made = dav(site, origin(echo).url, "/files", preserve_host="true")
    request = received(copied(made, "http://site.example/dav/b"))
    assert (request.one("Host"), request.one("Destination")) == ("site.example", "http://site.example/files/b")


@pytest.mark.parametrize(
    ("destination", "status"),
    [
        ("http://site.example/dav/private/x", 403),
        ("/dav/private", 403),
        ("/dav/%70rivate/x", 403),
        ("/dav/x/../private/x", 400),
        ("/dav/%2e%2e/dav/private/x", 400),
        ("/dav//private/x", 400),
        ("/dav/private;v=1/x", 400),
        ("/dav/x%2F..%2Fprivate/x", 400),
        ("/dav/\\private", 400),
        ("/reading/x", 403),
        ("/other/x", 502),
        ("/dav/own", 502),
        ("/elsewhere", 502),
        ("http://other.example/dav/x", 502),
        ("http://x@site.example/dav/x", 502),
        ("http://site.example:81/dav/x", 502),
        ("//site.example/dav/x", 502),
        ("dav/x", 400),
        ("ftp://site.example/dav/x", 400),
        ("", 400),
    ],
)
def test_a_destination_is_judged_as_a_target(destination: str, status: int, origin: MakeOrigin, site: MakeSite) -> None:
    """What alice may not use, what is nobody's and what could mean something else is refused, and nothing is sent."""
    upstream = origin(echo)
    made = dav(site, upstream.url)
    for method in ("COPY", "MOVE"):
        assert copied(made, destination, method=method).status == status
    tagged = made.get("/dav/a", {"X-User": "alice", "Host": "site.example", "If": f"<{destination}> (<urn:x>)"}, "PUT")
    assert tagged.status in (status, 403 if destination == "/reading/x" else status)
    assert not upstream.accepted


def test_a_destination_below_another_route(origin: MakeOrigin, site: MakeSite) -> None:
    """Who may use the route that it lies below may write there, through that route's base."""
    made = dav(site, origin(echo).url, "/files")
    assert received(copied(made, "/dav/private/x", user="root")).one("Destination") == "/files/private/x"
    assert copied(made, "/reading/x", user="root").status == 403


def test_tags_are_mapped(origin: MakeOrigin, site: MakeSite) -> None:
    """Resource tags in If are mapped as Destination is; states keep their bytes."""
    upstream = origin(echo)
    made = dav(site, upstream.url, "/files")
    condition = '<http://site.example/dav/b> (<urn:x> ["e"]) </dav/c> (Not <urn:y>)'
    request = received(copied(made, "/dav/b", If=condition))
    assert request.one("If") == f'<http://{upstream.authority}/files/b> (<urn:x> ["e"]) </files/c> (Not <urn:y>)'
    untagged = made.get("/dav/a", {"X-User": "alice", "If": "(<urn:x>)"}, "PUT", b"x")
    assert received(untagged).one("If") == "(<urn:x>)"


def test_a_destination_goes_on_with_the_next_upstream(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the first upstream can't be reached, the second target is written for the next one."""
    upstream = origin(echo)
    settings = route("dav", f"http://127.0.0.1:9/a {upstream.url}/b")
    request = received(
        site(settings).get("/dav/x", {"Destination": "http://h/dav/y", "Host": "h", "If": "</dav/z> (<u:>)"}, "COPY")
    )
    assert (request.target, request.one("Host")) == ("/b/x", upstream.authority)
    assert (request.one("Destination"), request.one("If")) == (f"{upstream.url}/b/y", "</b/z> (<u:>)")


def test_destinations_of_two_servers(origin: MakeOrigin, site: MakeSite) -> None:
    """A second target on another server than the first is refused, whoever may use its route."""
    settings = {**route("a", origin(echo).url), **route("b", origin(echo).url)}
    answer = site(settings).get("/a/x", {"Destination": "/b/y"}, "COPY")
    assert (answer.status, b"another server" in answer.body) == (502, True)


def test_a_destination_of_another_method(origin: MakeOrigin, site: MakeSite) -> None:
    """Elsewhere Destination is an ordinary field, unless a field that goes up makes another method of it."""
    made = dav(site, origin(echo).url)
    assert received(copied(made, "a queue", method="POST")).one("Destination") == "a queue"
    overriding = dav(site, origin(echo).url, request__overrides="pass")
    answer = copied(overriding, "/dav/private/x", method="POST", **{"X-HTTP-Method-Override": "move"})
    assert answer.status == 403


def test_a_destination_where_a_view_forwards(origin: MakeOrigin, site: MakeSite) -> None:
    """A view that says what is public of an upstream lets it be below that; others let it be nowhere."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        config.set_security_policy(Policy())
        for name, keys in (("with", {"mount": "/with"}), ("without", {})):
            config.add_route(name, f"/{name}/*rest")
            config.add_view(
                lambda request, keys=keys: request.proxy_forward("r", request.matchdict["rest"][0], **keys),
                route_name=name,
            )

    made = site(route("r", upstream.url + "/base"), configure=configure)
    fields = {"Destination": "/with/b"}
    assert received(made.get("/with/a", fields, "COPY")).one("Destination") == "/base/b"
    assert made.get("/with/a", {"Destination": "/r/b"}, "COPY").status == 403
    assert made.get("/without/a", {"Destination": "/without/b"}, "COPY").status == 403


# Cookies


@detached
@pytest.mark.parametrize("own", ["", "Cookie: session=S\r\n"])
def test_several_cookie_fields(own: str, origin: MakeOrigin, site: MakeSite) -> None:
    """They are joined as cookies are, by semicolons; waitress joins them by commas (RFC 6265 4.2.1)."""
    made = site(route("r", origin(echo).url))
    head = f"GET /r/ HTTP/1.1\r\nHost: a\r\nCookie: a=1\r\n{own}cookie:b=x, y\r\nCookie:\r\nConnection: close\r\n\r\n"
    assert b"\r\nCookie: a=1; b=x, y\r\n" in made.raw(head.encode())


def test_one_cookie_with_a_comma(origin: MakeOrigin, site: MakeSite) -> None:
    """A comma in one field is the cookie's own."""
    made = site(route("r", origin(echo).url))
    assert received(made.get("/r/", {"Cookie": "p=en, q=de; a=1"})).one("Cookie") == "p=en, q=de; a=1"


def test_names_tell_cases_apart(origin: MakeOrigin, site: MakeSite) -> None:
    """A Spring backend's SESSION is not the application's session, up and down."""
    upstream = origin(saying("Set-Cookie: SESSION=1; Path=/", "Set-Cookie: session=2; Path=/"))
    assert site(route("r", upstream.url)).get("/r/").all("Set-Cookie") == ["SESSION=1; Path=/r"]
    up = site(route("r", origin(echo).url)).get("/r/", {"Cookie": "SESSION=1; session=2"})
    assert received(up).one("Cookie") == "SESSION=1"


def test_a_dropped_cookie_is_said_once(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """An own cookie that an upstream sets is named in the log, once a route."""
    script = lambda wire: [saying("Set-Cookie: session=1; Path=/")(wire) for _ in range(3)]  # noqa: E731
    made = site({**route("a", origin(script).url), **route("b", origin(script).url)})
    with caplog.at_level(logging.WARNING, "pyramid_threaded_proxy.route"):
        for path in ("/a/", "/a/", "/b/", "/a/"):
            assert made.get(path).all("Set-Cookie") == []
    said = [record.getMessage() for record in caplog.records if "'session'" in record.getMessage()]
    assert [line.partition(":")[0] for line in said] == ["a", "b"]
    assert "proxy.own_cookies" in said[0]


# Chains, Via, overrides


@detached
def test_chains_go_on_across_formats(origin: MakeOrigin, site: MakeSite) -> None:
    """What a trusted front tells in one format goes on in the one that the route sends."""
    up = origin(echo).url
    made = site(route("r", up, forwarded="rfc7239"), **TRUSTING)
    request = received(made.get("/r/", {"X-Forwarded-For": "203.0.113.9", "Host": "h"}))
    assert request.one("Forwarded") == "for=203.0.113.9, for=127.0.0.1;host=h;proto=http"
    assert request.one("X-Forwarded-For") is None
    back = site(route("r", up), trusted_proxy="*", trusted_proxy_headers="forwarded")
    request = received(back.get("/r/", {"Forwarded": 'for="[2001:db8::9]:80";proto=https;host=h'}))
    assert request.one("X-Forwarded-For") == "2001:db8::9, 127.0.0.1"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_via_names_the_version_that_was_received(version: str, origin: MakeOrigin, site: MakeSite) -> None:
    """RFC 9110 7.6.3."""
    made = site(route("r", origin(echo).url))
    answer = made.raw(f"GET /r/ HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert f"\r\nVia: {version} pyramid_threaded_proxy\r\n".encode() in answer


OVERRIDES = ["X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]
IDENTITY = [
    "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "Remote-User", "X-Remote-User",
]  # fmt: skip


def test_fields_that_name_another_request(origin: MakeOrigin, site: MakeSite) -> None:
    """They stay home, in any spelling of their names, unless the route says otherwise."""
    up = origin(echo).url
    made = site({**route("r", up), **route("pass", up, request__overrides="pass")})
    sent = {name.lower(): "/admin" for name in OVERRIDES}
    assert [received(made.get("/r/", sent)).one(name) for name in OVERRIDES] == [None] * 5
    assert [received(made.get("/pass/", sent)).one(name) for name in OVERRIDES] == ["/admin"] * 5


@detached
def test_fields_that_name_another_client(origin: MakeOrigin, site: MakeSite) -> None:
    """They are a front server's to set: of others they are dropped, and so is what an override sets itself."""
    up = origin(echo).url
    settings = {
        **route("r", up), **route("none", up, forwarded="none"),
        **route("ours", up, request__add__Remote__User="bob"),
    }  # fmt: skip
    settings = {key.replace("Remote.User", "Remote-User"): value for key, value in settings.items()}
    sent = dict.fromkeys(IDENTITY, "admin")
    stranger, front = site(settings), site(settings, **TRUSTING)
    assert [received(stranger.get("/r/", sent)).one(name) for name in IDENTITY] == [None] * 6
    assert [received(front.get("/r/", sent)).one(name) for name in IDENTITY] == ["admin"] * 6
    assert [received(front.get("/none/", sent)).one(name) for name in IDENTITY] == [None] * 6
    assert received(front.get("/ours/", sent)).all("Remote-User") == ["bob"]
