"""Kinto, devpi-server, pyramid_debugtoolbar, pyramid_openapi3, SQLAlchemy with its transactions, PasteDeploy: each with
a proxied download, a refusal and an error.

What they log is looked at as well: none of them may meet with an exception on the way.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import recipes
from tests.support.origin import Gate, Origin, Script
from tests.support.processes import LOGGING, Process, pserve
from tests.support.programs import applications_module
from tests.support.waiting import PATIENCE
from tests.support.wire import Answer, OriginWire

MakeOrigin = Callable[[Script], Origin]

BIG = bytes(range(256)) * 2000
PAGE = b"<html><body>theirs</body></html>"
BOB = {"X-User": "bob"}

#: A site whose users are whoever X-User says, with two proxied routes, and whatever `configure` adds.
COMMON = """
import os
from pyramid.config import Configurator
from pyramid.response import Response

class Policy:
    def identity(self, request):
        return request.headers.get("X-User")
    authenticated_userid = identity
    def permits(self, request, context, permission):
        return self.identity(request) == "bob"
    def remember(self, request, userid, **kw):
        return []
    def forget(self, request, **kw):
        return []

def own(request):
    return Response("own")

def main(global_config, **settings):
    config = Configurator(settings=settings)
    config.set_security_policy(Policy())
    config.add_route("own", "/own")
    config.add_view(own, route_name="own")
    configure(config)
    return config.make_wsgi_app()

def configure(config):
    pass
"""

SERVER = """
[server:main]
use = egg:waitress#main
listen = 127.0.0.1:0
"""
#: The logger of a request's summary says more than the others.
SUMMARY = """
[logger_summary]
level = DEBUG
handlers =
qualname = request.summary
"""

ROUTES = """
proxy.own_cookies = session
proxy.routes.files.prefix = /files
proxy.routes.files.upstream = {upstream}
proxy.routes.files.permission = {permission}
proxy.routes.down.prefix = /down
proxy.routes.down.upstream = http://127.0.0.1:9
proxy.routes.down.permission = {permission}
"""

SITE = """
[app:main]
use = call:application:main
pyramid.includes = {includes} pyramid_threaded_proxy
{settings}
"""


def serving(wire: OriginWire) -> None:
    while (request := wire.request()) is not None:
        if request.target.endswith("/page"):
            wire.answer(PAGE, "Content-Type: text/html")
        else:
            wire.answer(BIG, "Content-Type: application/octet-stream")


def start(folder: Path, ini: str, application: str = "") -> Process:
    """pserve with this ini file, and the module `application` that it may name."""
    (folder / "application.py").write_text(COMMON + application, encoding="utf-8")
    (folder / "site.ini").write_text(
        ini + SERVER + LOGGING.replace("root", "root, summary", 1) + SUMMARY, encoding="utf-8"
    )
    return pserve(folder / "site.ini")


def ask(port: int, path: str, fields: dict[str, str] | None = None, method: str = "GET") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, headers=fields or {})
        response = connection.getresponse()
        return Answer(response.status, response.reason, response.getheaders(), response.read())
    finally:
        connection.close()


def check_three(process: Process, port: int, user: dict[str, str], refused: int = 403, below: str = "") -> None:
    """A download, a refusal and an error; then one more download, since none of them may have left anything behind."""
    for _ in range(2):
        answer = ask(port, f"{below}/files/big", user)
        assert (answer.status, answer.body == BIG) == (200, True), process.text
        assert ask(port, f"{below}/files/big").status == refused
        assert ask(port, f"{below}/down/x", user).status == 502
    assert "Traceback" not in process.text


def test_kinto(origin: MakeOrigin, tmp_path: Path) -> None:
    """Its subscriber logs the bodies of all responses; its own policy guards the routes, which stand below /v1."""
    applications_module("kinto")
    settings = ROUTES.format(upstream=origin(serving).url, permission="private")
    kinto = "[app:main]\nuse = egg:kinto\nkinto.includes = pyramid_threaded_proxy\nkinto.userid_hmac_secret = x\n"
    kinto += "multiauth.policies = basicauth\n"
    bob = {"Authorization": "Basic " + base64.b64encode(b"bob:secret").decode()}
    with start(tmp_path, kinto + settings) as process:
        (port,) = process.ports()
        check_three(process, port, bob, refused=401, below="/v1")
        assert b'"project_name"' in ask(port, "/v1/").body
        assert process.wait_for("a proxied response of files was read in .*kinto/core/initialization.py:")


#: devpi-server is configured by plugins, and reads who asks from a field of its own.
DEVPI = """
from devpi_server import config as devpi, main as server
from pluggy import HookimplMarker

class Plugin:
    def __init__(self, settings):
        self.settings = settings
    @HookimplMarker("devpiserver")
    def devpiserver_pyramid_configure(self, config, pyramid_config):
        pyramid_config.add_settings(self.settings)
        pyramid_config.include("pyramid_threaded_proxy")

def devpi_main(global_config, **settings):
    plugins = devpi.get_pluginmanager()
    plugins.register(Plugin(settings))
    arguments = ["devpi-server", "--serverdir", settings["folder"], "--secretfile", settings["secret"]]
    arguments += ["--argon2-memory-cost", "8192", "--argon2-parallelism", "1", "--argon2-time-cost", "1"]
    return server.xom_from_config(devpi.parseoptions(plugins, arguments)).create_app()
"""

DEVPI_SITE = """
[app:main]
use = call:application:devpi_main
folder = {folder}/server
secret = {folder}/secret
proxy.own_fields = X-Devpi-Auth
proxy.routes.files.before = true
proxy.routes.down.before = true
{settings}
"""


@pytest.fixture
def devpi(tmp_path: Path, origin: MakeOrigin) -> Iterator[tuple[Process, Origin]]:
    """devpi-server with proxied routes in front of its catch-all ones, and their upstream."""
    applications_module("devpi_server", heavy=True)
    (tmp_path / "secret").write_text(secrets.token_urlsafe(32), encoding="ascii")
    (tmp_path / "secret").chmod(0o600)
    init = [
        str(Path(sys.executable).with_name("devpi-init")),
        "--serverdir",
        str(tmp_path / "server"),
        "--root-passwd",
        "secret",
        "--no-root-pypi",
    ]
    subprocess.run(init, check=True, capture_output=True)
    upstream = origin(serving)
    settings = ROUTES.format(upstream=upstream.url, permission="user_modify")  # which root alone has there
    with start(tmp_path, DEVPI_SITE.format(folder=tmp_path, settings=settings), DEVPI) as process:
        yield process, upstream


def devpi_login(port: int) -> dict[str, str]:
    """The field by which devpi-server knows its user root."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = json.dumps({"user": "root", "password": "secret"})
    client.request("POST", "/+login", body, {"Accept": "application/json", "Content-Type": "application/json"})
    token = json.loads(client.getresponse().read())["result"]["password"]
    client.close()
    return {"X-Devpi-Auth": base64.b64encode(f"root:{token}".encode()).decode()}


def test_devpi_server(devpi: tuple[Process, Origin]) -> None:
    """Its own policy, tweens and middleware stand around the routes, which go before `/{user}/{index}`; the field that
    it reads its users from does not go up."""
    process, upstream = devpi
    (port,) = process.ports()
    root = devpi_login(port)
    check_three(process, port, root)
    assert all(request.one("X-Devpi-Auth") is None for request in upstream.requests)
    assert len(upstream.requests) == 2
    users = json.loads(ask(port, "/", {"Accept": "application/json"}).body)
    assert list(users["result"]) == ["root"]


def test_devpi_server_as_a_backend(devpi: tuple[Process, Origin], tmp_path: Path) -> None:
    """By its recipe it is told where it stands, so that its own links lead through the proxy, not to itself; what it
    refuses is its own refusal."""
    (there,) = devpi[0].ports()
    page = recipes.settings("devpi", f"http://127.0.0.1:{there}")
    settings = "".join(f"{key} = {value}\n" for key, value in page.items() if key.startswith("proxy."))
    (tmp_path / "site").mkdir()
    json_of = {"Accept": "application/json"}
    assert json.loads(ask(there, "/+api", json_of).body)["result"]["login"] == f"http://127.0.0.1:{there}/+login"
    with start(tmp_path / "site", SITE.format(includes="", settings=settings)) as process:
        (port,) = process.ports()
        answer = ask(port, "/pypi/+api", BOB | {"Accept": "application/json"})
        assert json.loads(answer.body)["result"]["login"] == f"http://127.0.0.1:{port}/pypi/+login"
        assert ask(port, "/pypi/+api", {"Accept": "application/json"}).status == 403
        assert ask(port, "/pypi/nobody/nothing", BOB | {"Accept": "application/json"}).status == 404
        assert "Traceback" not in process.text


TOOLBAR = """
def page(request):
    response = request.proxy_fetch(request.registry.settings["upstream"] + "/page")
    response.content_type = "text/html"
    return response

def configure(config):
    config.add_route("page", "/page")
    config.add_view(page, route_name="page", permission="view")
"""


def test_debugtoolbar(origin: MakeOrigin, tmp_path: Path) -> None:
    """It looks for a place in every page; a proxied one is left as it is, and is listed in the toolbar."""
    applications_module("pyramid_debugtoolbar")
    upstream = origin(serving)
    settings = ROUTES.format(upstream=upstream.url, permission="view") + f"upstream = {upstream.url}\n"
    with start(tmp_path, SITE.format(includes="pyramid_debugtoolbar", settings=settings), TOOLBAR) as process:
        (port,) = process.ports()
        check_three(process, port, BOB)
        assert ask(port, "/page", BOB).body == PAGE
        toolbar = ask(port, "/_debug_toolbar/")
        assert (toolbar.status, b"/page" in toolbar.body) == (200, True)
        assert "Traceback" not in process.text


OPENAPI = """
def fetched(request):
    return request.proxy_fetch(request.registry.settings["upstream"] + "/big")

def described(request):
    request.environ["pyramid_openapi3.validate_response"] = False
    return fetched(request)

def configure(config):
    config.include("pyramid_openapi3")
    config.pyramid_openapi3_spec(os.path.join(os.path.dirname(__file__), "openapi.yaml"))
    for name, view in (("plain", fetched), ("described", described)):
        config.add_route(name, "/" + name + "/{number}")
        config.add_view(view, route_name=name, openapi=True, permission="view")
"""

SPECIFICATION = """
openapi: "3.1.0"
info: {version: "1", title: Files}
paths:
  /plain/{number}:
    get:
      parameters: &parameters
        - {name: number, in: path, required: true, schema: {type: integer}}
      responses:
        "200": {description: a file}
        "400": {description: no number}
        "403": {description: refused}
  /described/{number}:
    get:
      parameters: *parameters
      responses:
        "200": {description: JSON, content: {application/json: {schema: {type: object}}}}
        "400": {description: no number}
        "403": {description: refused}
"""


def test_openapi3(origin: MakeOrigin, tmp_path: Path) -> None:
    """Requests are validated, and responses where their body is not described; a described one is not here yet, so that
    its view turns that off."""
    applications_module("pyramid_openapi3")
    upstream = origin(serving)
    (tmp_path / "openapi.yaml").write_text(SPECIFICATION, encoding="utf-8")
    settings = ROUTES.format(upstream=upstream.url, permission="view") + f"upstream = {upstream.url}\n"
    with start(tmp_path, SITE.format(includes="", settings=settings), OPENAPI) as process:
        (port,) = process.ports()
        check_three(process, port, BOB)
        for name in ("plain", "described"):
            answer = ask(port, f"/{name}/7", BOB)
            assert (answer.status, answer.body == BIG) == (200, True), process.text
            assert ask(port, f"/{name}/seven", BOB).status == 400
            assert ask(port, f"/{name}/7").status == 403
        assert "Traceback" not in process.text


DATABASE = """
import json
import zope.sqlalchemy
from pyramid_retry import RetryableException
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

def dbsession(request):
    session = request.registry["sessions"]()
    zope.sqlalchemy.register(session, transaction_manager=request.tm)
    return session

def counted(request):
    request.dbsession.execute(text("insert into log values ('asked')"))
    zope.sqlalchemy.mark_changed(request.dbsession)
    if request.environ.get("retry.attempt") == 0:
        raise RetryableException
    return request.proxy_fetch(request.registry.settings["upstream"] + "/held")

def state(request):
    rows = request.dbsession.execute(text("select count(*) from log")).scalar()
    return Response(json_body=[rows, request.registry["engine"].pool.checkedout() - 1])

def configure(config):
    engine = create_engine("sqlite:///" + os.path.join(os.path.dirname(__file__), "site.db"))
    with engine.begin() as connection:
        connection.execute(text("create table log (what text)"))
    config.registry["engine"], config.registry["sessions"] = engine, sessionmaker(engine)
    config.add_request_method(dbsession, reify=True)
    for view in (counted, state):
        config.add_route(view.__name__, "/" + view.__name__)
        config.add_view(view, route_name=view.__name__, permission="view")
"""


def test_sqlalchemy_with_transactions(origin: MakeOrigin, tmp_path: Path) -> None:
    """A request that is tried again is sent once and has committed once; while its answer is awaited no connection to
    the database is held."""
    applications_module("zope.sqlalchemy")
    gate = Gate()

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            if request.target.endswith("/held"):
                gate.asked.release()
                assert gate.opened.wait(PATIENCE)
            wire.answer(BIG)

    upstream = origin(script)
    settings = ROUTES.format(upstream=upstream.url, permission="view") + (
        f"upstream = {upstream.url}\nretry.attempts = 3\ntm.manager_hook = pyramid_tm.explicit_manager\n"
    )
    with start(tmp_path, SITE.format(includes="pyramid_tm pyramid_retry", settings=settings), DATABASE) as process:
        (port,) = process.ports()
        check_three(process, port, BOB)
        client = process.connect(port)
        client.send(b"GET /counted HTTP/1.1\r\nHost: a\r\nX-User: bob\r\nConnection: close\r\n\r\n")
        gate.wait_asked()
        assert json.loads(ask(port, "/state", BOB).body) == [1, 0]
        gate.opened.set()
        assert client.rest().endswith(BIG)
        assert "Traceback" not in process.text


PREFIX = """
filter-with = prefix
[filter:prefix]
use = egg:PasteDeploy#prefix
prefix = /app
"""
URLMAP = """
[composite:main]
use = egg:Paste#urlmap
/ = other
/app = site
[app:other]
use = call:application:main
pyramid.includes =
"""


@pytest.mark.parametrize("below", ["/app", ""], ids=["left", "stripped"])
def test_the_prefix_filter(below: str, origin: MakeOrigin, tmp_path: Path) -> None:
    """PasteDeploy's `prefix`, behind a front server that leaves the prefix and behind one that strips it."""
    settings = ROUTES.format(upstream=origin(serving).url, permission="view") + PREFIX
    with start(tmp_path, SITE.format(includes="", settings=settings)) as process:
        (port,) = process.ports()
        check_three(process, port, BOB, below=below)
        assert ask(port, below + "/own").body == b"own"


def test_urlmap(origin: MakeOrigin, tmp_path: Path) -> None:
    """Two applications in one process, mapped by PasteDeploy's `urlmap`: one has proxied routes."""
    applications_module("paste.urlmap")
    settings = ROUTES.format(upstream=origin(serving).url, permission="view")
    site = SITE.format(includes="", settings=settings).replace("[app:main]", "[app:site]")
    with start(tmp_path, URLMAP + site) as process:
        (port,) = process.ports()
        check_three(process, port, BOB, below="/app")
        assert ask(port, "/own").body == b"own"
        assert ask(port, "/files/big", BOB).status == 404
