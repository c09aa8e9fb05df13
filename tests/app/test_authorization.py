"""Pyramid decides who may pass: permissions, contexts, methods, CSRF, and the application's own pages for refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pyramid.authorization import Allow, Authenticated
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPForbidden
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from tests.support.origin import MakeOrigin, answering, echo
from tests.support.site import NOWHERE, MakeSite, Policy, Site, route
from tests.support.wire import received

ALICE = {"X-User": "alice"}


class Root:
    """The application's root: alice may view."""

    __acl__ = ((Allow, "alice", "view"),)

    def __init__(self, request: Any) -> None:
        self.request = request


class Reports:
    """A route's own context: bob may view."""

    __acl__ = ((Allow, "bob", "view"),)

    def __init__(self, request: Any) -> None:
        pass


class Documents:
    """The documents of whoever the URL names."""

    def __init__(self, request: Any) -> None:
        self.__acl__ = [(Allow, request.matchdict["owner"], "view")]


#: Settings of a route with the permission "view".
guarded = partial(route, permission="view")


def with_root(config: Configurator) -> None:
    config.set_security_policy(Policy())
    config.set_root_factory(Root)


def status(site: Site, path: str, user: str = "", method: str = "GET") -> int:
    return site.get(path, {"X-User": user} if user else {}, method).status


# Permissions


def test_the_root_factorys_acl_is_asked(origin: MakeOrigin, site: MakeSite) -> None:
    """The ACL of the application's root lets in who has the permission, nobody else, and nothing goes up for them."""
    upstream = origin(echo)
    made = site(guarded("r", upstream.url), configure=with_root)
    assert status(made, "/r/x") == 403
    assert status(made, "/r/x", "bob") == 403
    assert upstream.accepted == 0
    assert status(made, "/r/x", "alice") == 200


def test_the_routes_factory_is_asked(origin: MakeOrigin, site: MakeSite) -> None:
    """With a `factory` the ACL is that of the route's own context."""
    made = site(guarded("r", origin(echo).url, factory=f"{__name__}.Reports"), configure=with_root)
    assert status(made, "/r/x", "alice") == 403
    assert status(made, "/r/x", "bob") == 200


def test_a_factory_knows_what_matched(origin: MakeOrigin, site: MakeSite) -> None:
    """A pattern route's factory makes the context of what the URL names, so each owner has documents of their own."""
    url = origin(echo).url

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_proxy_route(
            "d", pattern="/docs/{owner}/{name}", upstream=url + "/{owner}/{name}", permission="view", factory=Documents
        )

    made = site(configure=configure)
    assert status(made, "/docs/bob/x", "bob") == 200
    assert status(made, "/docs/bob/x", "alice") == 403


class Tree(dict[str, Any]):
    """A folder that alice may view, with one that bob may view."""

    def __init__(self, request: Any = None, viewer: str = "alice") -> None:
        super().__init__({"bobs": Tree(viewer="bob")} if request is not None else {})
        self.__acl__ = [(Allow, viewer, "view")]


def test_traversal_finds_the_context(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the pattern has ``*traverse``, the ACL is that of the resource which the URL leads to."""
    url = origin(echo).url

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_proxy_route(
            "d", pattern="/docs/*traverse", upstream=url + "/{traverse}", permission="view", factory=Tree
        )

    made = site(configure=configure)
    assert [status(made, "/docs/", user) for user in ("alice", "bob")] == [200, 403]
    assert [status(made, "/docs/bobs", user) for user in ("alice", "bob")] == [403, 200]
    assert status(made, "/docs/none", "alice") == 404


def test_the_default_permission_is_asked(origin: MakeOrigin, site: MakeSite) -> None:
    """A route without a permission of its own has the application's default one; a public one has none."""
    url = origin(echo).url
    settings = guarded("r", url) | route("open", url)
    del settings["proxy.routes.r.permission"]

    def configure(config: Configurator) -> None:
        with_root(config)
        config.set_default_permission("view")

    made = site(settings, configure=configure)
    assert status(made, "/r/x") == 403
    assert status(made, "/r/x", "alice") == 200
    assert status(made, "/open/x") == 200


def test_the_user_is_known(origin: MakeOrigin, site: MakeSite) -> None:
    """The exchange, and so ``{userid}``, bears the user whom the policy has found, not whom the client names."""
    settings = guarded("r", origin(echo).url) | {"proxy.routes.r.request.set.X-Remote-User": "{userid}"}
    made = site(settings, configure=with_root)
    request = received(made.get("/r/x", {**ALICE, "X-Remote-User": "mallory"}))
    assert request.all("X-Remote-User") == ["alice"]


# Methods


def test_other_methods_are_refused(origin: MakeOrigin, site: MakeSite) -> None:
    """A method that is not allowed gets 405 with Allow; GET implies HEAD."""
    made = site(route("r", origin(echo).url, methods="GET POST"))
    assert made.get("/r/x", method="HEAD").status == 200
    assert made.get("/r/x", method="POST", body=b"a").status == 200
    answer = made.get("/r/x", method="DELETE")
    assert (answer.status, answer.one("Allow")) == (405, "GET, HEAD, POST")


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_connect_and_trace_never_pass(method: str, site: MakeSite) -> None:
    """CONNECT and TRACE are refused on a route that allows whatever there is."""
    answer = site(route("r", NOWHERE)).get("/r/x", method=method)
    assert answer.status == 405
    assert answer.one("Allow") == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


def test_a_method_of_ones_own_passes(origin: MakeOrigin, site: MakeSite) -> None:
    """Where nothing is said, methods that HTTP does not know go up."""
    assert received(site(route("r", origin(echo).url)).get("/r/x", method="REPORT")).method == "REPORT"


def test_authorization_goes_before_the_method(site: MakeSite) -> None:
    """Who may not use a route does not learn its methods: 403 goes before 405."""
    made = site(guarded("r", NOWHERE, methods="GET"), configure=with_root)
    assert status(made, "/r/x", method="POST") == 403
    assert status(made, "/r/x", "alice", "POST") == 405


# CSRF


def with_tokens(config: Configurator) -> None:
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    config.add_route("token", "/token")
    config.add_view(lambda request: Response(request.session.get_csrf_token()), route_name="token")


def with_csrf(config: Configurator) -> None:
    with_tokens(config)
    config.set_default_csrf_options(require_csrf=True, header="X-My-Token")


def with_token(site: Site) -> dict[str, str]:
    """Fields that pass the CSRF check."""
    answer = site.get("/token")
    cookie = (answer.one("Set-Cookie") or "").partition(";")[0]
    return {"Cookie": cookie, "X-My-Token": answer.body.decode()}


def test_csrf_is_checked_where_it_is_the_default(origin: MakeOrigin, site: MakeSite) -> None:
    """Under the application's CSRF default a POST needs the token, which does not go upstream."""
    made = site(route("r", origin(echo).url), configure=with_csrf)
    assert made.get("/r/x", method="POST", body=b"a").status == 400
    assert made.get("/r/x").status == 200
    request = received(made.get("/r/x", with_token(made), "POST", b"a"))
    assert request.one("X-My-Token") is None
    assert request.one("Cookie") is None
    assert request.body == b"a"


def test_csrf_is_not_checked_where_a_route_says_so(origin: MakeOrigin, site: MakeSite) -> None:
    """`require_csrf` false lets a POST in, and the field of that name is an ordinary one."""
    made = site(route("r", origin(echo).url, require_csrf="false"), configure=with_csrf)
    assert received(made.get("/r/x", {"X-My-Token": "t"}, "POST", b"a")).one("X-My-Token") == "t"


def test_csrf_is_checked_where_a_route_says_so(origin: MakeOrigin, site: MakeSite) -> None:
    """`require_csrf` true asks for the token in an application that has no default, in Pyramid's own field."""

    made = site(route("r", origin(echo).url, require_csrf="true"), configure=with_tokens)
    assert made.get("/r/x", method="POST", body=b"a").status == 400
    fields = with_token(made)
    request = received(made.get("/r/x", {"Cookie": fields["Cookie"], "X-CSRF-Token": fields["X-My-Token"]}, "POST"))
    assert request.one("X-CSRF-Token") is None


def test_csrf_goes_before_the_method(site: MakeSite) -> None:
    """Without the token a POST is refused for that, not for its method."""
    made = site(route("r", NOWHERE, methods="GET"), configure=with_csrf)
    assert made.get("/r/x", method="POST").status == 400
    assert made.get("/r/x", with_token(made), "POST").status == 405


def test_the_body_survives_a_csrf_check_of_the_form(origin: MakeOrigin, site: MakeSite) -> None:
    """Where the token is read from the form, the body goes up whole all the same."""
    made = site(route("r", origin(echo).url), configure=with_csrf)
    fields = with_token(made)
    body = f"a=1&csrf_token={fields.pop('X-My-Token')}".encode()
    fields["Content-Type"] = "application/x-www-form-urlencoded"
    request = received(made.get("/r/x", fields, "POST", body))
    assert request.body == body
    assert request.one("Content-Length") == str(len(body))


# The application's own pages


def test_the_forbidden_view_renders_the_refusal(site: MakeSite) -> None:
    """Who may not pass gets the application's own forbidden page."""

    def configure(config: Configurator) -> None:
        with_root(config)
        config.add_forbidden_view(lambda request: Response("please log in", status=401))

    answer = site(guarded("r", NOWHERE), configure=configure).get("/r/x")
    assert (answer.status, answer.body) == (401, b"please log in")


@pytest.mark.parametrize(
    ("path", "method", "body", "expected"),
    [
        ("/r/%2e%2e", "GET", None, 400),
        ("/r/%FF", "GET", None, 400),
        ("/r/x", "DELETE", None, 405),
        ("/r/x", "POST", b"12345678901", 413),
    ],
)
def test_exception_views_render_refusals(
    path: str, method: str, body: bytes | None, expected: int, site: MakeSite
) -> None:
    """What the view refuses is raised, and the application's exception view makes a page of it."""

    def refused(error: Any, request: Request) -> Response:
        return Response("our page", status=error.status, headerlist=error.headerlist)

    made = site(
        route("r", NOWHERE, methods="GET POST", max_body="10"),
        configure=lambda config: config.add_exception_view(refused, context="pyramid.httpexceptions.HTTPClientError"),
    )
    answer = made.get(path, method=method, body=body)
    assert (answer.status, answer.body) == (expected, b"our page")


def test_bodies_up_to_the_limit_pass(origin: MakeOrigin, site: MakeSite) -> None:
    """A body of exactly `max_body` bytes goes up."""
    made = site(route("r", origin(echo).url, max_body="10"))
    assert received(made.get("/r/x", method="PUT", body=b"1234567890")).body == b"1234567890"


# What the application puts on the answer


def test_sessions_callbacks_and_subscribers(origin: MakeOrigin, site: MakeSite) -> None:
    """A session's cookie, response callbacks' and NewResponse subscribers' fields are on the client's answer."""
    upstream = origin(answering(b"HTTP/1.1 200 OK\r\nX-Both: theirs\r\nVary: A\r\nContent-Length: 2\r\n\r\nhi"))

    def new_request(event: Any) -> None:
        event.request.session["seen"] = 1
        event.request.add_response_callback(lambda request, response: response.headers.update({"X-Both": "ours"}))

    def new_response(event: Any) -> None:
        event.response.headers["Strict-Transport-Security"] = "max-age=1"
        event.response.vary = ["B"]

    def configure(config: Configurator) -> None:
        config.set_session_factory(SignedCookieSessionFactory("secret"))
        config.add_subscriber(new_request, "pyramid.events.NewRequest")
        config.add_subscriber(new_response, "pyramid.events.NewResponse")

    answer = site(route("r", upstream.url), configure=configure).get("/r/x")
    assert (answer.status, answer.body) == (200, b"hi")
    assert (answer.one("Set-Cookie") or "").startswith("session=")
    assert answer.all("X-Both") == ["ours"]
    assert answer.one("Strict-Transport-Security") == "max-age=1"
    assert answer.all("Vary") == ["A", "B"]
    assert answer.one("Content-Type") is None


def test_application_fields_are_on_our_own_errors(site: MakeSite) -> None:
    """They are also on the error page for an upstream that is not there."""

    def configure(config: Configurator) -> None:
        config.add_subscriber(
            lambda event: event.response.headers.update({"X-Ours": "1"}), "pyramid.events.NewResponse"
        )

    answer = site(route("r", NOWHERE), configure=configure).get("/r/x")
    assert (answer.status, answer.one("X-Ours")) == (502, "1")


def test_finished_callbacks_run_before_the_upstream_is_asked(origin: MakeOrigin, site: MakeSite) -> None:
    """Finished callbacks are over before the relay starts: what they close is not held while bytes flow."""
    upstream = origin(echo)
    asked: list[int] = []

    def new_request(event: Any) -> None:
        event.request.add_finished_callback(lambda request: asked.append(upstream.accepted))

    def configure(config: Configurator) -> None:
        config.add_subscriber(new_request, "pyramid.events.NewRequest")

    made = site(route("r", upstream.url), configure=configure)
    assert made.get("/r/x").status == 200
    assert asked == [0]


def test_a_view_may_refuse_in_its_hook(site: MakeSite) -> None:
    """What a `request` hook raises is the view's own: the forbidden view renders it."""

    def configure(config: Configurator) -> None:
        def hook(request: Request, exchange: Any) -> None:
            raise HTTPForbidden("not now")

        config.add_proxy_route("r", prefix="/r", upstream=NOWHERE, public=True, hooks_request=hook)
        config.add_forbidden_view(lambda error, request: Response(error.detail, status=403))

    answer = site(configure=configure).get("/r/x")
    assert (answer.status, answer.body) == (403, b"not now")


def test_authenticated_users(origin: MakeOrigin, site: MakeSite) -> None:
    """A permission for whoever is logged in lets them in, and no one else."""

    class Members:
        __acl__ = ((Allow, Authenticated, "view"),)

        def __init__(self, request: Any) -> None:
            pass

    def configure(config: Configurator) -> None:
        config.set_security_policy(Policy())
        config.set_root_factory(Members)

    made = site(guarded("r", origin(echo).url), configure=configure)
    assert [status(made, "/r/x"), status(made, "/r/x", "anybody")] == [403, 200]
