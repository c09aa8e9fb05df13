"""The endpoint that front servers ask: the same gate as the view's, and nothing goes up."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.events import NewRequest
from pyramid.httpexceptions import HTTPFound
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from pyramid_retry import RetryableException

from pyramid_threaded_proxy import SettingsError
from tests.support.fronts import KEY, PREFIX, TRUSTED, ask, question, told, verifying, with_root
from tests.support.origin import MakeOrigin, echo
from tests.support.site import NOWHERE, MakeSite, Site, own_view, route

guarded = partial(route, permission="view")


def made(site: MakeSite, upstream: str = f"{NOWHERE}/base", engine: str = "nginx", **keys: str) -> Site:
    """A site with one guarded route and the endpoint."""
    return site({**guarded("r", upstream, **keys), **verifying(engine)}, configure=with_root)


# The contract


def test_a_yes_says_what_to_send(site: MakeSite) -> None:
    """Target, Host, names of all fields, and the settled ones: filtered cookies, who asks, what settings put there."""
    there = site(
        {
            **guarded("r", "http://up.example:9000/base", request__cookies="a", request__add__X="2"),
            "proxy.routes.r.request.set.X-Who": "{userid}", **verifying(),
        },
        configure=with_root, **TRUSTED,
    )  # fmt: skip
    answer = ask(
        there, "r", "/r/a%2Fb?x=%31", "POST",
        Cookie="a=1; session=2; b=3", Accept="text/x", X_Who="root", X="1", Authorization="Basic x",
        X_Remote_User="root", X_Forwarded_For="203.0.113.7", X_Forwarded_Proto="https", X_Forwarded_Prefix="/evil",
        Host="site.example",
    )  # fmt: skip
    assert answer.status == 200
    fields = told(answer)
    request_id = fields["x-request-id"]
    assert fields == {
        "cache-control": "no-store",
        "cookie": "a=1",
        "via": "1.1 pyramid_threaded_proxy",
        "x": "2",
        "x-forwarded-for": "203.0.113.7",
        "x-forwarded-host": "site.example",
        "x-forwarded-proto": "https",
        "x-forwarded-prefix": "/r",
        "x-proxy-answer-x-request-id": request_id,
        "x-proxy-fields": "accept, accept-encoding, cookie, via, x, x-forwarded-for, x-forwarded-host, "
        "x-forwarded-prefix, x-forwarded-proto, x-request-id, x-user, x-who",
        "x-proxy-host": "up.example:9000",
        "x-proxy-target": "/base/a%2Fb?x=%31",
        "x-request-id": request_id,
        "x-who": "alice",
    }


def test_what_goes_up_by_the_relay_is_what_a_front_is_told(origin: MakeOrigin, site: MakeSite) -> None:
    """The same request, relayed and asked about: the upstream gets what the answer says, and the client's own."""
    upstream = origin(echo)
    there = made(
        site, upstream.url + "/b", request__set__X="{route} {mount}", forwarded="both", request__origin="upstream"
    )
    fields = {
        "X-User": "alice",
        "Cookie": "a=1;session=2",
        "Accept": "x/y",
        "Origin": there.url,
        "Referer": f"{there.url}/r/q",
    }
    there.get("/r/a;b/c?d", fields)
    answer = ask(there, "r", "/r/a;b/c?d", **{name.replace("-", "_"): value for name, value in fields.items()})
    (relayed,) = upstream.requests
    assert upstream.accepted == 1
    assert relayed.target == answer.one("X-Proxy-Target")
    assert relayed.one("Host") == answer.one("X-Proxy-Host")
    named = str(answer.one("X-Proxy-Fields")).split(", ")
    assert named == sorted({name.lower() for name, _ in relayed.fields} - {"host"})
    for name in named:
        told_value = answer.one(name)
        if name not in ("accept", "accept-encoding", "x-user", "x-request-id"):
            assert told_value == relayed.one(name), name


def test_a_no_says_what_the_client_should_see(site: MakeSite) -> None:
    """401 and 403 as they are, redirects and other errors as 403, with the real status and Location beside it."""

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_forbidden_view(lambda request: HTTPFound("/login?next=x") if "go" in request.url else Response("?"))

    there = site({**guarded("r", NOWHERE), **verifying()}, configure=configure)
    redirected = ask(there, "r", "/r/go", X_User="bob")
    assert (redirected.status, redirected.one("X-Proxy-Status")) == (403, "302")
    assert redirected.one("X-Proxy-Location") == f"{there.url}/login?next=x"
    page = ask(there, "r", "/r/stay", X_User="bob")
    assert (page.status, page.one("X-Proxy-Status"), page.body) == (403, "403", b"")  # a login page with 200 is no yes
    method = ask(there, "r", "/r/stay", "TRACE")
    assert (method.status, method.one("X-Proxy-Status")) == (403, "405")


@pytest.mark.parametrize("engine", ["caddy", "traefik", "envoy"])
def test_fronts_that_show_the_answer_get_the_applications_own(site: MakeSite, engine: str) -> None:
    """Its status, Location and page; but a refusal that would count as a yes stays 403."""

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_forbidden_view(
            lambda request: HTTPFound("/login") if "go" in request.url else Response("please log in")
        )

    there = site({**guarded("r", NOWHERE), **verifying(engine)}, configure=configure)
    for target, status in (("/r/go", 302), ("/r/stay", 403)):
        path = PREFIX + target if engine == "envoy" else PREFIX
        answer = there.get(path, question(there, "r", target, engine=engine))
        assert answer.status == status
        assert answer.one("X-Proxy-Status") == str(status)


# The key, the digest, the source


@pytest.mark.parametrize("key", [None, "", "x", KEY + "x", KEY.upper(), f"{KEY}, {KEY}", "\xff"])
def test_without_the_key_there_is_nothing(site: MakeSite, key: str | None) -> None:
    """A plain 404, in a field's other spelling, doubled, or in the query as well."""
    there = made(site)
    assert ask(there, "r", "/r/x", X_Proxy_Key=key).status == 404
    there.get(f"{PREFIX}?X-Proxy-Key={KEY}&x-proxy-key={KEY}", question(there, "r", "/r/x") | {"X-Proxy-Key": "x"})
    lines = [f"{name}: {value}" for name, value in question(there, "r", "/r/x").items() if name != "X-Proxy-Key"]
    head = "\r\n".join([f"GET {PREFIX} HTTP/1.0", "Host: x", *lines, f"X_Proxy_Key: {KEY}", "", ""])
    assert there.raw(head.encode()).startswith(b"HTTP/1.0 404")
    doubled = "\r\n".join([f"GET {PREFIX} HTTP/1.0", "Host: x", *lines, *[f"X-Proxy-Key: {KEY}"] * 2, "", ""])
    assert there.raw(doubled.encode()).startswith(b"HTTP/1.0 404")


@pytest.mark.parametrize("digest", [None, "", "0" * 32])
def test_a_stale_configuration_is_told_of(site: MakeSite, caplog: pytest.LogCaptureFixture, digest: str | None) -> None:
    """503, and one line in the log however often it asks."""
    there = made(site)
    assert [ask(there, "r", "/r/x", X_Proxy_Digest=digest).status for _ in range(3)] == [503] * 3
    assert caplog.text.count("export it anew") == 1


@pytest.mark.parametrize("engine", ["nginx", "haproxy", "caddy", "traefik", "envoy"])
def test_each_engine_has_one_source(site: MakeSite, engine: str) -> None:
    """What is asked is read in the engine's own place, whatever stands in all others."""
    there = made(site, engine=engine)
    everything = {
        "X-Original-Method": "DELETE", "X-Original-Uri": "/r/original", "X-Original-Url": "/r/url",
        "X-Forwarded-Method": "PUT", "X-Forwarded-Uri": "/r/forwarded", "X-Rewrite-Url": "/r/rewrite",
        "X-Http-Method-Override": "PATCH", "X-User": "alice",
    }  # fmt: skip
    fields = everything | question(there, "r", "/r/right", engine=engine)
    path = f"{PREFIX}/r/right?q" if engine == "envoy" else f"{PREFIX}?r=/r/query"
    answer = there.get(path, fields)
    assert answer.one("X-Proxy-Target") == ("/base/right?q" if engine == "envoy" else "/base/right")
    kind = {"nginx": "Original", "haproxy": "Original", "envoy": None}.get(engine, "Forwarded")
    if kind is not None:
        for what in ("Method", "Uri"):
            missing = {name: value for name, value in fields.items() if name != f"X-{kind}-{what}"}
            assert there.get(path, missing).status == 503
        doubled = fields | {f"X-{kind}-Uri": "/r/right, /r/other"}
        assert there.get(path, doubled).status >= 400


def test_envoys_path_counts_byte_for_byte(site: MakeSite) -> None:
    """What stands behind the prefix is the target; the bare prefix asks nothing."""
    there = made(site, engine="envoy")
    fields = {**question(there, "r", "", engine="envoy"), "X-User": "alice"}
    assert there.get(f"{PREFIX}/r/a%2Fb%20c", fields).one("X-Proxy-Target") == "/base/a%2Fb%20c"
    assert there.get(f"{PREFIX}/r/x", fields, "DELETE").one("X-Proxy-Target") == "/base/x"
    assert there.get(PREFIX, fields).status == 503
    assert there.get(f"{PREFIX}//r/x", fields).status == 400
    assert there.get("/%5fverify/r/x", fields).status == 503  # read escaped, it is nobody's prefix


@pytest.mark.parametrize(
    "target",
    ["/r/../x", "/r/%2e%2e/x", "/r/..%2fx", "/r/x#f", "//r/x", "/r%2Fx", "/r/%zz", "/r/%ff", "/r/a\\b", "r/x", "*",
     "http://site/r/../x", "http:/r/x", "/r/%00", "/x/../r/x", "/r/x y", "/R/x", "/rx", "/"],
)  # fmt: skip
def test_targets_are_judged_raw(site: MakeSite, target: str) -> None:
    """What the view refuses, and what no route takes, is a no."""
    there = made(site)
    answer = ask(there, "r", target)
    assert answer.status == 403
    assert answer.one("X-Proxy-Target") is None
    assert answer.one("X-Proxy-Status") in ("400", "404")


@pytest.mark.parametrize("target", ["http://elsewhere/r/x?y", "HTTP://elsewhere/r/x?y"])
def test_of_an_absolute_target_the_path_counts(site: MakeSite, target: str) -> None:
    """As in the relay (RFC 9112 3.2.2)."""
    assert ask(made(site), "r", target).one("X-Proxy-Target") == "/base/x?y"


def test_methods(site: MakeSite) -> None:
    """The asked one counts, as the view's own rules have it, and one that is no token is no question."""
    there = made(site, methods="GET PUT")
    assert [ask(there, "r", "/r/x", method).status for method in ("GET", "HEAD", "PUT", "POST", "get")] == [
        200, 200, 200, 403, 403,
    ]  # fmt: skip
    assert ask(there, "r", "/r/x", "GE T").status == 503


# The same gate


def test_csrf_is_checked_by_its_header(site: MakeSite) -> None:
    """A request that changes something needs the token in its header; a body has no say, and the header stays home."""

    def configure(config: Configurator) -> None:
        with_root(config)
        config.set_session_factory(SignedCookieSessionFactory("secret", cookie_name="session"))
        config.add_route("token", "/token")
        config.add_view(lambda request: Response(request.session.get_csrf_token()), route_name="token")

    there = site({**guarded("r", NOWHERE, require_csrf="true"), **verifying()}, configure=configure)
    page = there.get("/token")
    cookie, token = page.all("Set-Cookie")[0].partition(";")[0], page.body.decode()
    assert ask(there, "r", "/r/x", "POST", Cookie=cookie).one("X-Proxy-Status") == "400"
    form = "application/x-www-form-urlencoded"
    body = f"csrf_token={token}".encode()
    with_body = there.get(
        PREFIX, question(there, "r", "/r/x", "POST") | {"X-User": "alice", "Cookie": cookie, "Content-Type": form},
        "POST", body,
    )  # fmt: skip
    assert with_body.status == 403
    answer = ask(there, "r", "/r/x", "POST", Cookie=cookie, X_CSRF_Token=token, Content_Type=form)
    assert answer.status == 200
    assert "x-csrf-token" not in str(answer.one("X-Proxy-Fields"))


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "multipart/form-data", "text/x", "é"])
def test_a_body_is_never_there(site: MakeSite, kind: str) -> None:
    """Whatever kind the client's body has: a policy that reads it finds nothing, and the question's own is ignored."""
    seen: list[tuple[bytes, Any]] = []

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_subscriber(
            lambda event: seen.append((event.request.body, event.request.content_length or 0)), NewRequest
        )

    there = site({**guarded("r", NOWHERE), **verifying()}, configure=configure)
    fields = question(there, "r", "/r/x", "POST") | {"X-User": "alice", "Content-Type": kind}
    assert there.get(PREFIX, fields, "POST", b"body").status == 200
    assert seen == [(b"", 0)]


def test_what_connection_names_stays_home(site: MakeSite) -> None:
    """As in the relay: the policy may read it, and it does not go up (RFC 9110 7.6.1)."""
    answer = ask(made(site), "r", "/r/x", X_Original_Connection="close, X-User, Cookie", Cookie="a=b", X_Own="1")
    assert answer.status == 200
    assert answer.one("Cookie") is None
    assert {"x-user", "cookie"}.isdisjoint(str(answer.one("X-Proxy-Fields")).split(", "))
    assert "x-own" in str(answer.one("X-Proxy-Fields"))


def test_upgrades_are_judged_by_origin(site: MakeSite) -> None:
    """A WebSocket of the site's own page is let in with its protocol, a foreign page's is not."""
    there = made(site, upgrade="websocket")
    own = ask(there, "r", "/r/x", X_Original_Upgrade="websocket, h2c", Origin=there.url)
    assert own.one("X-Proxy-Upgrade") == "websocket"
    assert ask(there, "r", "/r/x", X_Original_Upgrade="websocket", Origin="http://evil").status == 403
    assert ask(there, "r", "/r/x", Origin="http://evil").one("X-Proxy-Upgrade") is None
    assert ask(made(site), "r", "/r/x", X_Original_Upgrade="websocket").one("X-Proxy-Upgrade") is None


def test_traefik_says_upgrade_by_the_key_of_a_websocket(site: MakeSite) -> None:
    """It keeps hop-by-hop fields to itself."""
    there = made(site, engine="traefik", upgrade="websocket")
    fields = question(there, "r", "/r/x", engine="traefik") | {"X-User": "alice", "Sec-WebSocket-Key": "x"}
    assert there.get(PREFIX, fields | {"Origin": there.url}).one("X-Proxy-Upgrade") == "websocket"
    assert there.get(PREFIX, fields | {"Origin": "http://evil"}).status == 403


def test_another_route_is_not_verified(origin: MakeOrigin, site: MakeSite) -> None:
    """Where another route would answer than the front means, or the application itself, no view runs and it is a no."""
    ran: list[str] = []

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_route("own", "/r/own")
        config.add_view(lambda request: ran.append(request.method) or Response("own"), route_name="own")

    settings = {**guarded("r", NOWHERE), **guarded("inner", NOWHERE, prefix="/r/inner"), **verifying()}
    there = site(settings, configure=configure)
    for name, target in (("r", "/r/own"), ("r", "/r/inner/x"), ("inner", "/r/x"), ("own", "/r/own"), ("", "/r/x")):
        assert ask(there, name, target, "POST").one("X-Proxy-Status") == "404"
    assert ran == []
    assert ask(there, "inner", "/r/inner/x").status == 200
    assert ask(there, "r", "/r//inner/x").one("X-Proxy-Status") == "400"


def test_tweens_and_subscribers_see_what_is_asked(site: MakeSite) -> None:
    """Method, path, query, cookies and the client's address; what they put on the answer is told."""
    seen: list[Any] = []

    def factory(handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Any:
            seen.append((request.method, request.path_qs, request.cookies.get("a"), request.client_addr))
            seen.append([name for name in request.headers if name.startswith(("X-Proxy", "X-Original"))])
            response = handler(request)
            response.headers["Strict-Transport-Security"] = "max-age=1"
            return response

        return tween

    globals()["_tween"] = factory

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_tween(f"{__name__}._tween")
        config.set_session_factory(SignedCookieSessionFactory("secret", cookie_name="session"))
        config.add_subscriber(lambda event: event.request.session.setdefault("x", "y"), NewRequest)

    there = site({**guarded("r", NOWHERE), **verifying()}, configure=configure, **TRUSTED)
    answer = ask(there, "r", "/r/x?y=z", "PUT", Cookie="a=1", X_Forwarded_For="203.0.113.7")
    assert seen == [("PUT", "/r/x?y=z", "1", "203.0.113.7"), []]
    assert answer.one("X-Proxy-Answer-Strict-Transport-Security") == "max-age=1"
    assert str(answer.one("Set-Cookie")).startswith("session=")


def test_a_tween_may_still_refuse(site: MakeSite) -> None:
    """What is answered above the view counts, though the view has said yes."""

    def factory(handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Any:
            handler(request)
            return Response("no", status=409)

        return tween

    globals()["_refusing"] = factory

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_tween(f"{__name__}._refusing")

    there = site({**guarded("r", NOWHERE), **verifying()}, configure=configure)
    answer = ask(there, "r", "/r/x")
    assert (answer.status, answer.one("X-Proxy-Status"), answer.one("X-Proxy-Target")) == (403, "409", None)


def test_an_error_page_that_would_be_fetched_is_not(origin: MakeOrigin, site: MakeSite) -> None:
    """Nothing goes upstream for a question, also where the forbidden view is a fetch; and no slot is kept."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_forbidden_view(lambda request: request.proxy_fetch(upstream.url))

    there = site({**guarded("r", upstream.url), **verifying()}, configure=configure)
    assert ask(there, "r", "/r/x", X_User="bob").status == 403
    assert ask(there, "r", "/r/x").status == 200
    assert (upstream.accepted, there.engine.admission.in_flight) == (0, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda sent: sent.headers.update({"X-Role": "admin"}), "changed x-role"),
        (lambda sent: sent.headers.update({"Accept": "z"}), "changed accept"),
        (lambda sent: sent.headers.__delitem__("Accept"), "changed accept"),
        (lambda sent: setattr(sent, "method", "PUT"), "changed the method"),
        (lambda sent: setattr(sent, "body", b"x"), "or the body"),
        (lambda sent: setattr(sent, "url", "http://elsewhere/"), "another server"),
    ],
)
def test_what_a_hook_does_that_no_front_can_know(
    site: MakeSite, caplog: pytest.LogCaptureFixture, change: Any, says: str
) -> None:
    """It is refused with 503 and one clear line, so that no client's own field stands for what the hook would say."""

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_proxy_route(
            "r", prefix="/r", upstream=NOWHERE, permission="view",
            hooks_request=lambda request, exchange: change(exchange.request),
        )  # fmt: skip

    there = site(verifying(), configure=configure)
    assert ask(there, "r", "/r/x", Accept="x/y").status == 503
    assert says in caplog.text


def test_what_a_hook_does_that_fronts_are_told(site: MakeSite) -> None:
    """Another path on the same server, and fields that `request.remove` has the front delete."""

    def hook(request: Any, exchange: Any) -> None:
        exchange.request.url = exchange.request.url.replace("/x", "/y")
        exchange.request.headers["X-Role"] = "admin"

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_proxy_route(
            "r", prefix="/r", upstream=NOWHERE, permission="view", hooks_request=hook, request_remove="X-Role"
        )

    answer = ask(site(verifying(), configure=configure), "r", "/r/x", X_Role="root")
    assert (answer.one("X-Proxy-Target"), answer.one("X-Role")) == ("/y", "admin")


def test_a_question_is_tried_again_as_a_request_is(site: MakeSite) -> None:
    """pyramid_retry's execution policy stands below ours, and sees what is asked about."""
    tries: list[str] = []

    def fail_once(event: Any) -> None:
        tries.append(event.request.path)
        if len(tries) == 1:
            raise RetryableException

    def configure(config: Configurator) -> None:
        with_root(config)
        config.include("pyramid_retry")
        config.add_subscriber(fail_once, NewRequest)

    there = site({**guarded("r", NOWHERE), **verifying(), "retry.attempts": 2}, configure=configure)
    assert ask(there, "r", "/r/x").one("X-Proxy-Target") == "/x"
    assert tries == ["/r/x", "/r/x"]


# Around it


def test_other_requests_are_none_of_its_business(origin: MakeOrigin, site: MakeSite) -> None:
    """They are relayed as ever, and the fields of fronts never go up."""
    upstream = origin(echo)
    there = made(site, upstream.url)
    assert there.get("/r/x", question(there, "r", "/r/y") | {"X-User": "alice"}).status == 200
    (relayed,) = upstream.requests
    assert relayed.target == "/x"
    assert [name for name, _ in relayed.fields if name.lower().startswith(("x-proxy", "x-original"))] == []


def test_below_a_prefix_of_the_sites_own(site: MakeSite) -> None:
    """waitress's `url_prefix` is part of the public target; what is not below it is nobody's here."""
    there = site({**guarded("r", f"{NOWHERE}/base"), **verifying()}, configure=with_root, url_prefix="/app")
    fields = question(there, "r", "/app/r/x?y") | {"X-User": "alice"}
    answer = there.get(f"/app{PREFIX}", fields)
    assert answer.one("X-Proxy-Target") == "/base/x?y"
    assert answer.one("X-Forwarded-Prefix") == "/app/r"
    assert there.get(f"/app{PREFIX}", fields | {"X-Original-Uri": "/r/x"}).one("X-Proxy-Status") == "404"


def test_a_front_that_is_not_trusted_is_told_of(site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Its address counts as the client's then, which nobody wants."""
    there = made(site)
    assert ask(there, "r", "/r/x", X_Forwarded_For="203.0.113.7").one("X-Forwarded-For") == "127.0.0.1"
    assert "set trusted_proxy" in caplog.text


@pytest.mark.parametrize("left_out", ["prefix", "engine", "secret"])
def test_settings_belong_together(site: MakeSite, left_out: str) -> None:
    """One that is missing is a start-up error that names it."""
    settings = {name: value for name, value in verifying().items() if name != f"proxy.verify.{left_out}"}
    with pytest.raises(SettingsError, match=rf"proxy\.verify\.{left_out} .*is missing"):
        site(settings)


def test_the_settings_of_accel_belong_together(site: MakeSite) -> None:
    """Neither stands alone."""
    with pytest.raises(SettingsError, match=r"proxy\.accel\.secret .*is missing"):
        site({"proxy.engine": "accel"})
    with pytest.raises(
        SettingsError, match=r"proxy\.accel\.secret = \(hidden\).* stands without proxy\.engine = accel"
    ):
        site({"proxy.accel.secret": KEY})


def test_secrets_are_long_and_never_shown(site: MakeSite) -> None:
    """A short one, or one that no field can hold, is an error that does not repeat it."""
    for secret in ("short", "has a blank in its midst", ""):
        with pytest.raises(SettingsError) as caught:
            site(verifying() | {"proxy.verify.secret": secret})
        assert "(hidden)" in str(caught.value)
    with pytest.raises(SettingsError, match="would take every request"):
        site(verifying() | {"proxy.verify.prefix": "/"})


def test_questions_wait_as_what_they_are_about(site: MakeSite) -> None:
    """Among requests that wait for a thread they are in the row of the proxied ones, not in that of own pages."""
    mounts = made(site).engine.mounts
    assert mounts is not None
    assert [mounts.is_proxied(path, None) for path in (PREFIX, f"{PREFIX}/r/x", "/r/x", "/own")] == [True] * 3 + [False]


def test_the_applications_own_views_are_not_touched(site: MakeSite) -> None:
    """An application with the endpoint answers its own pages as before."""
    there = site(
        {**guarded("r", NOWHERE), **verifying()}, configure=lambda config: (with_root(config), own_view(config))[0]
    )
    assert there.get("/own").body == b"own"
