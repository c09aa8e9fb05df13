"""Which fields pass at all: `own_fields`, `request.only`, `response.only`, and a hook that deletes Host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyramid.authentication import BasicAuthAuthenticationPolicy, RemoteUserAuthenticationPolicy
from pyramid.authorization import ACLAuthorizationPolicy
from pyramid.config import Configurator

from tests.support.origin import Origin, Script, answering, echo
from tests.support.site import Policy, Site, route
from tests.support.wire import received

MakeOrigin = Callable[[Script], Origin]
MakeSite = Callable[..., Site]


def test_own_fields_never_go_up(origin: MakeOrigin, site: MakeSite) -> None:
    """A credential of the application's stays home, whatever the case of its name; an override may put one there."""
    upstream = origin(echo)
    settings = {
        "proxy.own_fields": "X-API-Key x-devpi-auth",
        **route("r", upstream.url),
        **route("keyed", upstream.url, request__set__X_API_Key="theirs"),
    }
    settings["proxy.routes.keyed.request.set.X-API-Key"] = settings.pop("proxy.routes.keyed.request.set.X_API_Key")
    made = site(settings)
    sent = {"X-Api-Key": "secret", "X-Devpi-Auth": "secret", "X-Other": "1"}
    plain = received(made.get("/r/", sent))
    assert b"secret" not in plain.raw
    assert plain.one("X-Other") == "1"
    assert received(made.get("/keyed/", sent)).all("X-API-Key") == ["theirs"]


def under(policy: Any) -> Callable[[Configurator], None]:
    def configure(config: Configurator) -> None:
        if hasattr(policy, "permits"):
            config.set_security_policy(policy)
        else:
            config.set_authorization_policy(ACLAuthorizationPolicy())
            config.set_authentication_policy(policy)

    return configure


class JWT(Policy):
    """As pyramid_jwt's: it says which field it reads."""

    http_header = "X-Token"


@pytest.mark.filterwarnings("ignore:Authentication and authorization policies:DeprecationWarning")
@pytest.mark.parametrize(
    ("policy", "settings", "told"),
    [
        (JWT(), {}, "X-Token"),
        (RemoteUserAuthenticationPolicy(environ_key="HTTP_X_REMOTE_USER"), {}, "X-Remote-User"),
        (JWT(), {"proxy.own_fields": "x-token"}, None),
        (JWT(), {"proxy.routes.r.request.remove": "X-Token"}, None),
        (JWT(), {"proxy.routes.r.request.only": "Accept"}, None),
        (RemoteUserAuthenticationPolicy(), {}, None),
        (BasicAuthAuthenticationPolicy(lambda *_: None), {}, None),
        (Policy(), {}, None),
    ],
)
def test_a_policy_that_reads_a_field(
    policy: Any,
    settings: dict[str, str],
    told: str | None,
    origin: MakeOrigin,
    site: MakeSite,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At start one line names the field that a known policy reads, where a route would send it; no other policy's."""
    site({**route("r", origin(echo).url), **settings}, configure=under(policy))
    lines = [record.getMessage() for record in caplog.records if "own_fields" in record.getMessage()]
    assert len(lines) == (1 if told else 0)
    assert all(f"does not name {told}, which {type(policy).__name__} reads" in line for line in lines)


@pytest.mark.filterwarnings("ignore:Authentication and authorization policies:DeprecationWarning")
def test_a_policy_that_reads_no_cookie(origin: MakeOrigin, site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    """Own cookies are not warned of where nobody reads one."""
    upstream = origin(echo)
    site(route("r", upstream.url), configure=under(BasicAuthAuthenticationPolicy(lambda *_: None)))
    assert "own_cookies" not in caplog.text
    site(route("r", upstream.url), configure=under(Policy()))
    assert "own_cookies" in caplog.text


def test_request_only(origin: MakeOrigin, site: MakeSite) -> None:
    """Of the client's fields those named go up; Host, framing and what is set here go besides."""
    settings = route("r", origin(echo).url, request__only="X-One content-type")
    settings["proxy.routes.r.request.set.X-Ours"] = "1"
    sent = {"X-One": "1", "X-Two": "2", "Cookie": "a=b", "Content-Type": "a/b", "Accept": "*/*"}
    request = received(site(settings).get("/r/", sent, method="POST", body=b"hi"))
    names = {name.lower() for name, _ in request.fields}
    ours = {"x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "via", "x-ours"}
    assert names >= {"x-one", "content-type", "host", "content-length"} | ours
    assert not names & {"x-two", "cookie", "accept"}
    none = received(site(route("r", origin(echo).url, request__only="")).get("/r/", sent))
    assert not {name.lower() for name, _ in none.fields} & {"x-one", "x-two", "cookie", "accept", "content-type"}


def test_response_only(origin: MakeOrigin, site: MakeSite) -> None:
    """Of the upstream's fields those named go down; framing, the application's and what is set here go besides."""
    upstream = origin(
        answering(
            b"HTTP/1.1 200 OK\r\nX-One: 1\r\nServer: secret/1\r\nSet-Cookie: a=b\r\nContent-Type: a/b\r\n"
            b"Content-Length: 2\r\n\r\nhi"
        )
    )
    settings = route("r", upstream.url, response__only="x-one Content-Type", response__set__X="1")
    answer = site(settings).get("/r/")
    assert (answer.one("X-One"), answer.one("Content-Type"), answer.one("X"), answer.body) == ("1", "a/b", "1", b"hi")
    assert (answer.one("Set-Cookie"), answer.one("Content-Length")) == (None, "2")
    assert answer.one("Server") != "secret/1"


def test_a_hook_that_deletes_host(origin: MakeOrigin, site: MakeSite) -> None:
    """The request gets it back: nothing is sent without one."""

    def hook(request: Any, exchange: Any) -> None:
        del exchange.request.headers["Host"]

    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        config.add_proxy_route("h", prefix="/h", upstream=upstream.url, public=True, hooks_request=hook)

    request = received(site(configure=configure).get("/h/"))
    assert request.fields[0] == ("Host", upstream.authority)
