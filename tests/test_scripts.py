"""`pproxy`, as a site's operator runs it: what it prints, and how it exits."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyramid.authentication import AuthTktCookieHelper, SessionAuthenticationHelper
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from pyramid_threaded_proxy import scripts
from pyramid_threaded_proxy.app.explain import environ_of, masked
from pyramid_threaded_proxy.hooks import NAMES
from tests.support.certificates import Authority
from tests.support.fronts import ACCEPTED, StartedFront
from tests.support.origin import MakeOrigin, Origin, echo
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer

CALLS: list[str] = []


class Root:
    """Ann may view, everybody else may not."""

    __acl__ = ((Allow, "ann", "view"),)

    def __init__(self, request: Any) -> None:
        pass


class TicketPolicy:
    """Cookies of `AuthTktCookieHelper`."""

    def __init__(self) -> None:
        self.helper: Any = AuthTktCookieHelper("secret")
        self.acl = ACLHelper()

    def authenticated_userid(self, request: Any) -> str | None:
        identity = self.helper.identify(request)
        return None if identity is None else str(identity["userid"])

    def permits(self, request: Any, context: Any, permission: str) -> Any:
        userid = self.authenticated_userid(request)
        return self.acl.permits(context, [Everyone, *([Authenticated, userid] if userid else [])], permission)

    def remember(self, request: Any, userid: str, **kw: Any) -> Any:
        return self.helper.remember(request, userid, **kw)

    def forget(self, request: Any, **kw: Any) -> Any:
        return self.helper.forget(request, **kw)


class SessionPolicy(TicketPolicy):
    """The user id stands in the session."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = SessionAuthenticationHelper()

    def authenticated_userid(self, request: Any) -> str | None:
        found: str | None = self.helper.authenticated_userid(request)
        return found


class OwnPolicy(TicketPolicy):
    """A cookie of one's own."""

    def authenticated_userid(self, request: Any) -> str | None:
        found: str | None = request.cookies.get("who")
        return found

    def remember(self, request: Any, userid: str, **kw: Any) -> Any:
        return [("Set-Cookie", f"who={userid}; Path=/")]


class HeaderPolicy(OwnPolicy):
    """Whoever a front server says, so that nothing can be remembered."""

    def authenticated_userid(self, request: Any) -> str | None:
        found: str | None = request.headers.get("X-User")
        return found

    def remember(self, request: Any, userid: str, **kw: Any) -> Any:
        return []


POLICIES = {kind.__name__: kind for kind in (TicketPolicy, SessionPolicy, OwnPolicy, HeaderPolicy)}


def hook(request: Any, exchange: Any) -> None:
    """A request hook that leaves a trace."""
    CALLS.append("hook")


def own_view(request: Any) -> Response:
    """Must never be called by an explanation."""
    CALLS.append("own view")
    return Response("own")


def application(global_config: dict[str, str], **settings: str) -> Any:
    """What the tests' ini files load."""
    policy = settings.pop("test.policy", "TicketPolicy")
    with Configurator(settings=settings, root_factory=Root) as config:
        config.set_session_factory(SignedCookieSessionFactory("secret"))
        config.set_security_policy(POLICIES[policy]())
        config.add_route("own", "/reports/own")
        config.add_view(own_view, route_name="own")
        config.include("pyramid_threaded_proxy")
        return config.make_wsgi_app()


@pytest.fixture
def ini(tmp_path: Path) -> Callable[..., str]:
    """Writes an ini file; keyword arguments are settings of the route `reports`, with ``__`` for ``.``."""

    def write(upstream: str = "http://127.0.0.1:9", policy: str = "TicketPolicy", **keys: str) -> str:
        values = {"prefix": "/reports", "upstream": upstream, "permission": "view", **keys}
        lines = [f"proxy.routes.reports.{key.replace('__', '.')} = {value}" for key, value in values.items()]
        path = tmp_path / "site.ini"
        path.write_text(
            f"[app:main]\nuse = call:{__name__}:application\ntest.policy = {policy}\nproxy.own_cookies = session "
            "auth_tkt who\n" + "\n".join(lines)
        )
        return str(path)

    return write


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The exit status, and what was printed."""
    before = set(threading.enumerate())
    status = scripts.main(arguments)
    if "--check" not in arguments:
        assert set(threading.enumerate()) <= before  # nothing was started
    out, err = capsys.readouterr()
    return status, out, err


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `--explain` says, as JSON; its status agrees with it."""
    status, out, _ = run(capsys, *arguments, "--format", "json")
    found: dict[str, Any] = json.loads(out)
    assert status == (0 if found["outcome"] == "pass" else 1)
    return found


def test_the_routes_are_listed_in_matching_order(ini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, JSON for programs."""
    hooks = {f"hooks__{name}": f"{__name__}.hook" for name in NAMES}
    site = ini(max_exchanges="5", max_exchanges_per_user="2", **hooks)
    extra = "\nproxy.routes.deep.prefix = /reports/deep\nproxy.routes.deep.upstream = http://b\n"
    Path(site).write_text(Path(site).read_text() + extra + "proxy.routes.deep.public = true\n")
    status, out, err = run(capsys, site)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["name", "mount", "upstream", "permission", "limits", "hooks"],
        ["deep", "/reports/deep", "http://b", "(public)", "-", "-"],
        ["reports", "/reports", "http://127.0.0.1:9", "view", "5", "2/user", *NAMES],
    ]
    rows = json.loads(run(capsys, site, "--format", "json")[1])
    assert [row["name"] for row in rows] == ["deep", "reports"]


@pytest.mark.parametrize("policy", ["TicketPolicy", "SessionPolicy", "OwnPolicy"])
def test_a_user_is_who_the_applications_own_cookie_says(
    ini: Any, capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    """`--as` lets the policy's own `remember` make it; nothing of it goes up."""
    site = ini(policy=policy)
    found = explained(capsys, site, "--explain", "/reports/1?a=b", "--as", "ann")
    assert (found["outcome"], found["userid"], found["route"]) == ("pass", "ann", "reports")
    assert found["head"][:2] == ["GET /1?a=b HTTP/1.1", "Host: 127.0.0.1:9"]
    assert "'ann'" in found["decided"]
    assert not [line for line in found["head"] if line.startswith("Cookie")]
    found = explained(capsys, site, "--explain", "/reports/1", "--as", "bob")
    assert (found["outcome"], found["userid"]) == ("403", "bob")
    assert "default deny" in found["decided"]
    assert explained(capsys, site, "--explain", "/reports/1")["outcome"] == "403"


def test_an_explanation_opens_nothing(
    ini: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name is looked up and no socket is made, whatever becomes of the request."""
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was made"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    site = ini("http://backend.internal:9000", health__path="/well")
    assert explained(capsys, site, "--explain", "/reports/1", "--as", "ann")["outcome"] == "pass"
    assert explained(capsys, site, "--explain", "/reports/1", "--as", "bob")["outcome"] == "403"


def test_what_else_decides_is_told(ini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The context, CSRF, limits, and the address that a request comes from."""
    site = ini(require_csrf="true", max_exchanges="5", max_exchanges_per_user="2")
    found = explained(capsys, site, "--explain", "/reports/1", "-X", "POST", "--as", "ann")
    assert (found["outcome"], found["csrf"], found["context"]) == ("400", "checked", f"{__name__}.Root")
    assert ("5" in found["limits"], "2" in found["limits"]) == (True, True)
    found = explained(capsys, site, "--explain", "/reports/1", "--as", "ann", "--from", "203.0.113.7")
    assert "X-Forwarded-For: 203.0.113.7" in found["head"]


def test_a_policy_that_can_not_remember_is_said(ini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says what to do, and that works."""
    site = ini(policy="HeaderPolicy")
    status, _, err = run(capsys, site, "--explain", "/reports/1", "--as", "ann")
    assert status == 2
    assert "--header" in err
    assert explained(capsys, site, "--explain", "/reports/1", "--header", "X-User: ann")["outcome"] == "pass"


@pytest.mark.parametrize(
    ("arguments", "outcome", "why"),
    [
        (("/reports/%2e%2e/x",), "400", "dot segment"),
        (("/reports/%00",), "400", ""),
        (("/reports/%ff",), "400", "UTF-8"),
        (("/reports/1", "-X", "PUT"), "405", ""),
        (("/elsewhere",), "application", "no route"),
        (("/reports/own",), "application", "'own' takes it"),
    ],
)
def test_what_is_refused_says_why(
    ini: Any, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], outcome: str, why: str
) -> None:
    """Target, method, and routes of the application's own, whose views are not called."""
    CALLS.clear()
    found = explained(capsys, ini(methods="GET"), "--explain", *arguments, "--as", "ann")
    assert found["outcome"] == outcome
    assert why in found["why"]
    assert CALLS == []


def test_a_foreign_origin_may_not_switch(ini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """An upgrade is judged as a client's would be, though there is no connection to switch."""
    site = ini(upgrade="websocket")
    asked = ("http://site.example/reports/ws", "--as", "ann", "--header", "Upgrade: websocket")
    asked += ("--header", "Connection: Upgrade", "--header")
    found = explained(capsys, site, "--explain", *asked, "Origin: http://site.example")
    assert found["outcome"] == "pass"
    assert "Upgrade: websocket" in found["head"]
    found = explained(capsys, site, "--explain", *asked, "Origin: http://evil.example")
    assert (found["outcome"], "Origin" in found["why"]) == ("403", True)


def test_secrets_are_masked(ini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Values of cookies, credentials and keys are not shown; who calls a hook is told so."""
    site = ini(
        request__authorization="pass", request__set__X_Api_Key="hush", response__set__X_Frame_Options="DENY",
        hooks__request=f"{__name__}.hook",
    )  # fmt: skip
    text = Path(site).read_text().replace("X_Api_Key", "X-Api-Key").replace("X_Frame_Options", "X-Frame-Options")
    Path(site).write_text(text)
    fields = ("--header", "Cookie: a=hush; b=hush", "--header", "Authorization: Basic hush")
    status, out, err = run(capsys, site, "--explain", "http://site.example/reports/1", "--as", "ann", *fields)
    assert status == 0
    assert "hush" not in out
    assert "Authorization: Basic ***" in out
    assert "Cookie: a=***; b=***" in out
    assert "set X-Frame-Options: DENY" in out
    assert "X-Forwarded-Host: site.example" in out
    assert "the request hook was called" in err


@given(st.text(), st.text())
def test_no_cookie_survives_the_mask(name: str, value: str) -> None:
    """Of a cookie its name alone is shown."""
    secret = "s3cr3t"
    assert secret not in masked("Cookie", f"{name.replace('s3cr3t', '')}={secret}")
    assert secret not in masked("Authorization", f"Bearer {secret}")


def test_expectations_are_held(ini: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A site's own CI: every line is asked, a wrong one fails all, one that can't be read is wrong usage."""
    site, file = ini(), tmp_path / "expect"
    file.write_text("# who may\nGET /reports/1 as ann -> pass\nGET /reports/1 as bob -> 403\n\nGET /x -> application\n")
    status, out, _ = run(capsys, site, "--expect", str(file))
    assert (status, out.count(" ok")) == (0, 3)
    file.write_text("GET /reports/1 as bob -> pass\n")
    status, out, _ = run(capsys, site, "--expect", str(file), "--format", "json")
    assert (status, json.loads(out)[0]["found"]) == (1, "403")
    file.write_text("GET /reports/1\n")
    assert run(capsys, site, "--expect", str(file))[0] == 2
    assert run(capsys, site, "--expect", str(tmp_path / "nowhere"))[0] == 2


def test_upstreams_are_connected_to(ini: Any, origin: MakeOrigin, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be reached is told with its probe; what can't fails the check."""
    upstream = origin(echo)
    status, out, _ = run(capsys, ini(upstream.url, health__path="/well"), "--check", "--format", "json")
    (row,) = json.loads(out)
    assert (status, row["result"], row["probe"]) == (0, "ok", "200")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    status, out, _ = run(capsys, ini(f"{upstream.url} http://127.0.0.1:{port}"), "--check")
    assert status == 1
    assert "Connection refused" in out


def shared_row(capsys: pytest.CaptureFixture[str], site: str, url: str) -> tuple[int, dict[str, Any]]:
    """The exit status of a check of a site with `proxy.shared`, and what is said of its Redis."""
    with Path(site).open("a") as file:
        file.write(f"\nproxy.shared = {url}\n")
    status, out, _ = run(capsys, site, "--check", "--format", "json")
    row: dict[str, Any] = json.loads(out)[-1]
    return status, row


def test_redis_is_asked(
    ini: Any, origin: MakeOrigin, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it takes what a process says, all is well; nothing is left there."""
    status, row = shared_row(capsys, ini(origin(echo).url), redis_server.url)
    assert (status, row["route"], row["upstream"], row["result"]) == (0, "-", redis_server.url, "ok")
    assert redis_server.ask("DBSIZE") == 0


def test_redis_that_is_not_there(ini: Any, origin: MakeOrigin, capsys: pytest.CaptureFixture[str]) -> None:
    """The setting is named, and its password is not."""
    status, row = shared_row(capsys, ini(origin(echo).url), f"redis://ann:s3cret@127.0.0.1:{free_port()}/0")
    assert (status, row["result"].startswith("proxy.shared: "), "refused" in row["result"]) == (1, True, True)
    assert "s3cret" not in str(row)


def test_redis_that_hangs(
    ini: Any, origin: MakeOrigin, redis_server: RedisServer, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is not waited for without an end."""
    monkeypatch.setattr(scripts, "PATIENCE", 0.1)
    redis_server.hold()
    status, row = shared_row(capsys, ini(origin(echo).url), redis_server.url)
    assert (status, row["result"].lower().startswith("proxy.shared: time")) == (1, True)


def test_redis_that_takes_nothing(
    ini: Any, origin: MakeOrigin, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A replica answers, but what processes say has to be written."""
    redis_server.ask("REPLICAOF", "127.0.0.1", str(free_port()))
    status, row = shared_row(capsys, ini(origin(echo).url), redis_server.url)
    assert (status, row["result"].startswith("proxy.shared: ")) == (1, True)


def test_a_certificate_that_ends_soon_is_warned_of(
    ini: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, need_program: Callable[[str], str]
) -> None:
    """Days to its end are told; few of them are a warning, and a fault with `--strict`."""
    authority = Authority(tmp_path, need_program("openssl"))
    with Origin(echo, wrap=authority.server()) as upstream:
        site = ini(upstream.url, tls__ca_file=authority.ca_file)
        status, out, err = run(capsys, site, "--check", "--format", "json")
        (row,) = json.loads(out)
        assert (status, row["result"]) == (0, "ok")
        assert re.fullmatch(r"TLSv1\.\d, [12] days", row["tls"])
        assert re.search(r"its certificate ends in [12] days", err)
        assert run(capsys, site, "--check", "--strict")[0] == 1
        status, out, _ = run(capsys, ini(upstream.url), "--check")
        assert status == 1
        assert "its certificate is not valid" in out


def test_faults_in_the_settings_are_listed(ini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, as text and as JSON."""
    site = ini(retrys="1", buffer="x")
    status, out, _ = run(capsys, site, "--check")
    assert status == 1
    assert "retrys" in out
    assert "buffer" in out
    assert len(json.loads(run(capsys, site, "--check", "--format", "json")[1])["faults"]) == 2


@pytest.mark.parametrize(
    "arguments", [(), ("--wrong",), ("nowhere.ini",), ("SITE", "--explain", "/", "--header", "no colon")]
)
def test_wrong_usage_exits_with_2(ini: Any, arguments: tuple[str, ...]) -> None:
    """As every console script does; what was wrong is on standard error."""
    command = [sys.executable, "-m", "pyramid_threaded_proxy.scripts"]
    given = [ini() if word == "SITE" else word for word in arguments]
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr


ADDRESSES = ("--listen", "127.0.0.1:80", "--app", "127.0.0.1:6543")


@pytest.fixture
def verified(ini: Any) -> Callable[..., str]:
    """Writes an ini file of a site that a front server may ask."""

    def write(engine: str = "nginx", **keys: str) -> str:
        path = str(ini(**keys))
        lines = {"prefix": "/_verify", "engine": engine, "secret": "x" * 20}
        with Path(path).open("a") as file:
            file.writelines(f"\nproxy.verify.{key} = {value}" for key, value in lines.items())
        return path

    return write


def test_an_export_is_a_file(verified: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On standard output or in a folder, where nobody else may read it; what is held nearly is a warning."""
    site = verified()
    status, out, err = run(capsys, site, "--export", "nginx", *ADDRESSES)
    assert (status, out.startswith("# Made by"), "warning: own_cookies (reports)" in err) == (0, True, True)
    folder = tmp_path / "made"
    status, out, _ = run(capsys, site, "--export", "nginx", *ADDRESSES, "--output", str(folder), "--strict")
    assert (status, out) == (1, f"{folder}/nginx.conf\n")
    assert (folder / "nginx.conf").stat().st_mode & 0o777 == 0o600


#: The files of each engine.
EXPORTED = {
    "nginx": {"nginx.conf"},
    "haproxy": {"haproxy.cfg", "haproxy.lua"},
    "envoy": {"envoy.yaml"},
    "caddy": {"Caddyfile"},
    "traefik": {"traefik.yaml", "routes.yaml"},
}


@pytest.mark.parametrize("engine", EXPORTED)
def test_each_engine_starts_with_its_files(
    verified: Any, origin: MakeOrigin, capsys: pytest.CaptureFixture[str], tmp_path: Path, engine: str,
    need_program: Callable[[str], str],
) -> None:  # fmt: skip
    """As they are; and where something has to be accepted first, there is no file without, and each key is told."""
    need_program(engine)
    application = origin(lambda wire: wire.request() and wire.answer(status="403 Forbidden"))
    needed, port, folder = ACCEPTED.get(engine, ()), free_port(), tmp_path / "made"
    addresses = ("--listen", f"127.0.0.1:{port}", "--app", application.authority, "--output", str(folder))
    asked = (verified(engine), "--export", engine, *addresses)
    if needed:
        status, out, err = run(capsys, *asked)
        assert (status, out, folder.exists()) == (3, "", False)
        assert all(f"--accept {key} leaves it out" in err for key in needed)
    status, out, _ = run(capsys, *asked, *(part for key in needed for part in ("--accept", key)))
    assert (status, set(out.splitlines())) == (0, {f"{folder}/{name}" for name in EXPORTED[engine]})
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        EXPORTED[engine], 0o600
    )
    with StartedFront(engine, folder, port) as front:
        assert front.get("/reports/x").status == 403
    assert {request.one("X-Proxy-Key") for request in application.requests} >= {"x" * 20}


def test_what_cannot_be_exported_is_said(verified: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With status 3 and no file, until it is accepted by name."""
    site = verified(recheck="5s")
    status, out, err = run(capsys, site, "--export", "nginx", *ADDRESSES)
    assert (status, out) == (3, "")
    assert "can't be exported: recheck (reports): " in err
    status, out, _ = run(capsys, site, "--export", "nginx", *ADDRESSES, "--accept", "recheck")
    assert (status, out.startswith("# left out, and accepted: recheck")) == (0, True)
    told = json.loads(run(capsys, site, "--export", "nginx", *ADDRESSES, "--format", "json")[1])
    assert (told["files"], len(told["refused"])) == ({}, 1)


@pytest.mark.parametrize(
    ("engine", "arguments", "says"),
    [
        ("nginx", ("--export", "haproxy", *ADDRESSES), "set proxy.verify.engine = haproxy"),
        ("nginx", ("--export", "squid", *ADDRESSES), "it is one of nginx"),
        ("nginx", ("--export", "nginx", "--listen", "80", "--app", "a:1"), "needs --listen host:port"),
        ("nginx", ("--export", "nginx", "--listen", "a:80"), "needs --app host:port"),
        ("nginx", ("--export", "nginx", *ADDRESSES, "--accept", "recheque"), "there is no such key"),
        ("haproxy", ("--export", "haproxy", *ADDRESSES), "needs --output FOLDER"),
    ],
)
def test_an_export_that_is_asked_for_wrongly(
    verified: Any, capsys: pytest.CaptureFixture[str], engine: str, arguments: tuple[str, ...], says: str
) -> None:
    """Status 2, and what to do."""
    status, out, err = run(capsys, verified(engine), *arguments)
    assert (status, out) == (2, "")
    assert says in err


def test_an_environ_is_what_waitress_makes() -> None:
    """The raw target stays, PATH_INFO is unescaped, leading slashes are one."""
    from pyramid_threaded_proxy.app.explain import Asked

    environ = environ_of(Asked("GET", "https://a.example:8443//x%2Fy?q=%20", [("X-A", "1"), ("Content-Type", "t")]))
    wanted = {
        "PATH_INFO": "/x/y", "REQUEST_URI": "//x%2Fy?q=%20", "QUERY_STRING": "q=%20", "HTTP_HOST": "a.example:8443",
        "wsgi.url_scheme": "https", "SERVER_PORT": "8443", "HTTP_X_A": "1", "CONTENT_TYPE": "t",
    }  # fmt: skip
    assert {key: environ[key] for key in wanted} == wanted
