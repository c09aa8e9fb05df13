"""The documentation's examples: settings load, commands exist, and the Python of each page runs as an application."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.request import Request
from waitress.adjustments import Adjustments
from webob import Response

from pyramid_threaded_proxy.settings.load import load_settings
from tests.support.certificates import Authority
from tests.support.docs import BIN, PAGES, Block, blocks, every, ini, prose, quoted, rows, section
from tests.support.origin import MakeOrigin, Origin
from tests.support.paths import ROOT
from tests.support.programs import applications_module, program_path
from tests.support.site import MakeSite, Site, route
from tests.support.tracing import tracer_provider
from tests.support.waiting import wait_until
from tests.support.wire import Answer, OriginWire, Wire

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

# Settings


@pytest.mark.parametrize("block", every("ini"))
def test_ini_examples_load(block: Block) -> None:
    """The settings of an ini example are known, and waitress takes its server's."""
    parser = ini()
    parser.read_string(block.text if block.text.lstrip().startswith("[") else "[app:main]\n" + block.text)
    settings = dict(parser["app:main"]) if parser.has_section("app:main") else {}
    for name in {key.split(".")[2] for key in settings if key.startswith("proxy.routes.")}:
        # A page adds to a route step by step.
        place = {} if f"proxy.routes.{name}.pattern" in settings else {"prefix": "/x"}
        for key, value in {**place, "upstream": "http://x", "permission": "read"}.items():
            settings.setdefault(f"proxy.routes.{name}.{key}", value)
    load_settings(settings, str)
    if parser.has_section("server:main"):
        Adjustments(**{name: value for name, value in parser["server:main"].items() if name != "use"})


@pytest.mark.parametrize("block", every("yaml"))
def test_yaml_examples_load(block: Block, tmp_path: Path) -> None:
    """A YAML example is a whole file of settings."""
    path = tmp_path / "proxy.yaml"
    path.write_text(block.text, encoding="utf-8")
    assert load_settings({"proxy.file": str(path)}, str).routes


# Commands


@pytest.mark.parametrize("block", every("console"))
def test_commands_exist(block: Block, need_program: Callable[[str], str]) -> None:
    """A command is installed, and a target of make is in the Makefile."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in re.findall(r"^\$ (.*)$", block.text, re.MULTILINE):
        program, *arguments = line.split()
        if program == "make":
            assert set(arguments) <= set(targets)
        elif program in ("curl", "nginx", "haproxy"):
            need_program(program)
        else:
            assert shutil.which(program, path=BIN), line


def test_the_demo_is_where_the_readme_says() -> None:
    """The README names the demo's address and a user of it."""
    address = re.search(r"^listen = (.*)$", (ROOT / "development.ini").read_text(encoding="utf-8"), re.MULTILINE)
    assert address is not None
    assert f"http://{address[1]} and log in as `alice` with the password `alice`" in prose("README.md")
    from pyramid_threaded_proxy.demo import security, views

    assert security.password_matches("alice", "alice")
    assert f"opens {views.COUNT} slow requests" in prose("README.md")


# Python: the examples of a page are the files of a small application


class _NoteCalls(ast.NodeTransformer):
    """Has each function begin by telling that it runs."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        self.names.add(node.name)
        node.body.insert(0, ast.parse(f"__ran__({node.name!r})").body[0])
        return node


class Library:
    """The application `library` as one page writes it. Its backends are all at `url`."""

    def __init__(
        self, page: str, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, quick: Callable[[str], str] = str
    ) -> None:
        self.folder = folder
        self.policy = _Policy()
        self.ran: set[str] = set()
        self.defined: set[str] = set()
        self.modules: list[ModuleType] = []
        self.settings: dict[str, str] = {}
        self.server: dict[str, str] = {}
        for block in blocks(page, "ini"):
            parser = ini()
            parser.read_string(self._at(url, block.text))
            self.settings.update(parser["app:main"] if parser.has_section("app:main") else {})
            server = parser["server:main"] if parser.has_section("server:main") else {}
            self.server.update({name: value for name, value in server.items() if name not in ("use", "listen")})
        package = ModuleType("library")
        monkeypatch.setitem(sys.modules, "library", package)
        for name, source in example_files(page).items():
            module = ModuleType(f"library.{Path(name).stem}")
            monkeypatch.setitem(sys.modules, module.__name__, module)
            setattr(package, Path(name).stem, module)
            self._load(module, self._at(url, quick(source)))

    @staticmethod
    def _at(url: str, text: str) -> str:
        return re.sub(r"http://\w+\.internal(:\d+)?", url, text)

    def _load(self, module: ModuleType, source: str) -> None:
        # A file, because `view_config` looks for the line that it stands on.
        path = self.folder / f"{module.__name__}.py"
        path.write_text(source, encoding="utf-8")
        notes = _NoteCalls()
        tree = ast.fix_missing_locations(notes.visit(ast.parse(source)))
        module.__dict__["__ran__"] = self.ran.add
        exec(compile(tree, path, "exec"), module.__dict__)
        self.defined |= notes.names
        self.modules.append(module)

    def configure(self, config: Configurator) -> None:
        config.set_security_policy(self.policy)
        for module in self.modules:
            if hasattr(module, "includeme"):
                config.include(module.includeme)
            config.scan(module)

    def site(self, make: MakeSite, **settings: str) -> Site:
        return make(self.settings | settings, configure=self.configure, **self.server)


def example_files(page: str) -> dict[str, str]:
    """The Python examples of a page by the files that their first lines name; hooks come before what imports them."""
    files: dict[str, str] = {}
    for block in blocks(page, "python"):
        first, _, rest = block.text.partition("\n")
        assert re.fullmatch(r"# library/\w+\.py", first), f"{page}: {first}"
        name = first.removeprefix("# library/")
        files[name] = files.get(name, "") + rest + "\n"
    return dict(sorted(files.items(), key=lambda item: item[0] != "hooks.py"))


class _Policy:
    """Whoever gives a name in X-User may read, until that is withdrawn."""

    def __init__(self) -> None:
        self.withdrawn: set[str] = set()

    def identity(self, request: Request) -> str | None:
        return request.headers.get("X-User")

    authenticated_userid = identity

    def permits(self, request: Request, context: object, permission: str) -> bool:
        user = self.identity(request)
        return permission == "read" and user is not None and user not in self.withdrawn

    def forget(self, request: Request, **kw: object) -> list[tuple[str, str]]:
        self.withdrawn.add(request.headers["X-User"])
        return [("Set-Cookie", "session=; Max-Age=0")]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Library]]:
    """Makes the application of a page; when the test ends each of its functions must have run."""
    made: list[Library] = []

    def make(page: str, url: str, quick: Callable[[str], str] = str) -> Library:
        made.append(Library(page, url, tmp_path, monkeypatch, quick))
        return made[-1]

    yield make
    for one in made:
        assert one.ran == one.defined


ALICE = {"X-User": "alice"}


def test_pages_with_python_have_a_test() -> None:
    """A page with a Python example is one of those that are run below, by the tutorial's test, or with processes."""
    with_python = {page for page in PAGES if blocks(page, "python")}
    here = {"README.md", "hooks.md", "fetching.md", "upgrades.md", "long-exchanges.md", "upstreams.md", "filters.md"}
    here |= {"cors.md", "monitoring.md", "real-sites.md"}
    # `test_tutorial`, `test_several_processes`, `test_operating_pages`, `test_testing_page`, `test_deploying`,
    # and `test_add_ons`
    assert with_python == here | {"tutorial.md", "operating.md", "metrics.md", "testing.md", "deploying.md"} | {
        "pyramid-add-ons.md"
    }


def echo_or_move(wire: OriginWire) -> None:
    """A backend: 404 for /missing, silence for /slow, a redirect for /moved, else the request's own bytes."""
    while (request := wire.request()) is not None:
        name = request.target.rpartition("/")[2]
        if name == "slow":
            wire.wait_closed()
        elif name == "missing":
            wire.answer(b"nothing", status="404 Not Found")
        elif name == "moved":
            wire.answer(b"", "Location: /v2/2024/here", status="302 Found")
        else:
            wire.answer(request.raw)


def test_readme(library: Callable[[str, str], Library], origin: MakeOrigin, site: MakeSite) -> None:
    """The README's settings and view answer as it says."""
    running = library("README.md", origin(echo_or_move).url).site(site)
    assert running.get("/reports/a").status == 403
    answer = running.get("/reports/a", ALICE | {"Cookie": "session=secret; theme=dark"})
    assert answer.one("Content-Security-Policy") == "sandbox"
    assert answer.body.startswith(b"GET /v2/a HTTP/1.1\r\n")
    assert b"X-Remote-User: alice" in answer.body
    assert b"theme=dark" in answer.body
    assert b"secret" not in answer.body
    assert running.get("/invoices/12", ALICE).body.startswith(b"GET /pdf/12 HTTP/1.1\r\n")


def test_hooks(
    library: Callable[[str, str], Library],
    origin: MakeOrigin,
    site: MakeSite,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The hooks of their page do what it says of them."""
    caplog.set_level("INFO", logger="library")
    running = library("hooks.md", origin(echo_or_move).url).site(site, **{"proxy.routes.reports.read_timeout": "200ms"})
    answer = running.get("/reports/a", ALICE)
    assert answer.one("Content-Disposition") == "attachment"
    assert b"X-Language: en" in answer.body
    missing = running.get("/reports/missing", ALICE)
    assert (missing.status, missing.body) == (404, b"There is no such report.")
    late = running.get("/reports/slow", ALICE)
    assert (late.status, late.one("Retry-After")) == (503, "60")
    assert running.get("/scans/a", ALICE).one("Content-Disposition") == "attachment"
    statement = running.get("/statements/2024", ALICE)
    assert statement.one("Content-Disposition") == 'attachment; filename="statement-2024.pdf"'
    running.registry.settings["library.closed"] = "yes"
    assert running.get("/reports/a", ALICE).status == 503
    wait_until(lambda: "reports ends: nothing moved" in caplog.text, "the line of the event")
    assert "alice read /reports/a: " in caplog.text
    assert "scans ends: whole" in caplog.text


def test_filters(library: Callable[[str, str], Library], origin: MakeOrigin, site: MakeSite) -> None:
    """Capabilities name the public address, wherever their pieces end; JSON loses what its reader may not see."""
    books = [{"name": "Dune", "draft": False}, {"name": "Next", "draft": True}]
    inside: list[str] = []

    def backend(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            name = request.target.rpartition("/")[2]
            if name == "capabilities":
                document = f"<a href='{inside[0]}/wms?a'/><b href='{inside[0]}/wms'/><c/>".encode()
                pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in document)
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n")
                wire.send(pieces + b"0\r\n\r\n")
            elif name == "map":
                wire.answer(f"{inside[0]}/wms".encode(), "Content-Type: image/png")
            elif name == "list":
                wire.answer(json.dumps(books).encode(), "Content-Type: application/json")
            elif name == "long":
                wire.answer(json.dumps(books * 20_000).encode(), "Content-Type: application/json")
            else:
                lines = "\n".join(map(json.dumps, books * 2))
                wire.answer(lines.encode(), "Content-Type: application/x-ndjson")

    upstream = origin(backend)
    inside.append(upstream.url)
    made = library("filters.md", upstream.url)
    running = made.site(site)
    outside = f"{running.url}/maps"
    found = running.get("/maps/capabilities", ALICE)
    assert found.body.decode() == f"<a href='{outside}?a'/><b href='{outside}'/><c/>"
    assert running.get("/maps/map", ALICE).body == f"{upstream.url}/wms".encode()
    assert json.loads(running.get("/books/list", ALICE).body) == books[:1]
    assert running.get("/books/long", ALICE).status == 502
    lines = running.get("/books/lines", ALICE).body.splitlines()
    assert list(map(json.loads, lines)) == books[:1] * 2
    made.policy.permits = lambda *asked: True  # type: ignore[method-assign]
    assert json.loads(running.get("/books/list", ALICE).body) == books
    assert list(map(json.loads, running.get("/books/lines", ALICE).body.splitlines())) == books * 2


def test_fetching(library: Callable[[str, str], Library], origin: MakeOrigin, site: MakeSite) -> None:
    """The views of their page fetch what it says."""
    running = library("fetching.md", origin(echo_or_move).url).site(site)
    book = running.get("/books/dune", ALICE | {"Range": "bytes=1-", "Cookie": "a=1", "Accept-Language": "de"}).body
    assert book.startswith(b"GET /books/17.epub HTTP/1.1\r\n")
    assert b"Range: bytes=1-" in book
    assert b"Via: 1.1 pyramid_threaded_proxy" in book
    assert not re.search(rb"Cookie|X-User|Accept-Language|Forwarded", book)
    assert running.get("/books/unknown", ALICE).status == 404
    search = running.get("/search?q=dune", ALICE).body
    assert search.startswith(b"POST /search HTTP/1.1\r\n")
    assert search.endswith(b'{"text": "dune", "user": "alice"}')
    imported = running.get("/import", ALICE | {"Content-Type": "text/csv"}, "POST", b"x" * 100).body
    assert b"Content-Type: text/csv" in imported
    assert imported.endswith(b"x" * 100)
    assert running.get("/import", ALICE, "POST", bytes(10 * 2**20 + 1)).status == 413
    dumped = running.get("/dump", ALICE, "POST").body
    assert dumped.startswith(b"PUT /dump HTTP/1.1\r\n")
    assert dumped.endswith(b"dune 17\n")
    assert running.get("/archive/2024/a%20b", ALICE).body.startswith(b"GET /v2/2024/a%20b HTTP/1.1\r\n")
    assert running.get("/archive/2024/moved", ALICE).one("Location") == "/archive/2024/here"
    uploaded = running.get("/upload?x=1", ALICE, "POST", b"text").body
    assert uploaded.startswith(b"POST /incoming?x=1 HTTP/1.1\r\n")
    assert b"X-Remote-User: alice" in uploaded


def test_fetching_tells_faults(origin: MakeOrigin, site: MakeSite) -> None:
    """The faults in the table of that page are raised as it says, and its further arguments are taken."""
    url = origin(echo_or_move).url
    raised: list[str] = []

    def fails(request: Request, wrong: Callable[[], object]) -> None:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            wrong()
        raised.append(caught.type.__name__)

    def view(request: Request) -> Response:
        fails(request, lambda: request.proxy_fetch("ftp://x/"))
        fails(request, lambda: request.proxy_fetch(url, headers={"A": "b\r\nc"}))
        fails(request, lambda: request.proxy_fetch(url, body="text"))
        fails(request, lambda: request.proxy_fetch(url, read_time="5m"))
        response = request.proxy_fetch(url, read_timeout="5m", response_set={"X-Frame-Options": "DENY"}, cache="keep")
        fails(request, lambda: setattr(response, "body", b"x"))
        response.headers["X-Own"] = "1"
        assert response.status_int == 200
        return response

    def configure(config: Configurator) -> None:
        config.add_route("view", "/")
        config.add_view(view, route_name="view")

    answer = site(configure=configure).get("/")
    assert raised == ["ValueRefused", "ValueRefused", "TypeError", "SettingsError", "ProxyResponseError"]
    assert (answer.one("X-Frame-Options"), answer.one("X-Own"), answer.one("Cache-Control")) == ("DENY", "1", None)


def test_upstreams(
    library: Callable[[str, str], Library],
    origin: MakeOrigin,
    site: MakeSite,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The page's authority is believed for the name it gives; an upstream that fails is told of, and its return."""
    caplog.set_level("INFO", logger="library")
    authority = Authority(tmp_path, program_path("openssl"))
    failing = threading.Event()
    failing.set()

    def moody(wire: OriginWire) -> None:
        while (request := wire.request()) is not None and not (failing.is_set() and request.target != "/ready"):
            wire.answer(request.raw)

    with Origin(echo_or_move, wrap=authority.server("DNS:accounts.library.example")) as secured:
        made = library("upstreams.md", origin(moody).url)
        running = made.site(
            site,
            **{
                "proxy.routes.accounts.upstream": f"{secured.url}/v1",
                "proxy.routes.accounts.tls.ca_file": str(authority.ca_file),
                "proxy.routes.search.upstream": " ".join(origin(moody).url for _ in range(2)),
                "proxy.routes.search.health.pause": "10ms",
                "proxy.routes.search.health.interval": "20ms",
                "proxy.routes.search.health.fails": "1",
            },
        )
        assert running.get("/accounts/7", ALICE).body.startswith(b"GET /v1/7 HTTP/1.1\r\n")
        assert running.get("/search/x", ALICE).status == 502
        wait_until(lambda: " of search is down" in caplog.text, "the line of a failure")
        failing.clear()
        wait_until(lambda: " of search is back" in caplog.text, "the line of a return")
        assert running.get("/search/x", ALICE).body.startswith(b"GET /x HTTP/1.1\r\n")


def feed(wire: OriginWire) -> None:
    """A backend: switches where it is asked to, and else sends an event and waits for the proxy to close."""
    request = wire.request()
    if request is None:
        return
    if request.one("Upgrade") is not None:
        wire.send(SWITCH + request.target.encode() + b" ")
        while data := wire.receive():
            wire.send(data)
    else:
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: yes\r\n\r\ndata: 1\n\n")
        wire.wait_closed()


def begun(site: Site, path: str, **fields: str) -> tuple[Wire, str, dict[str, str]]:
    """A client of alice's, and the head of the answer that it got."""
    client = site.client()
    lines = [f"GET {path} HTTP/1.1", "Host: library.example", "X-User: alice"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    client.send("\r\n".join([*lines, "", ""]).encode())
    return client, *client.head()


UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket"}
BEHIND_A_PROXY = {"X_Forwarded_For": "192.0.2.1", "X_Forwarded_Proto": "https", "X_Forwarded_Host": "library.example"}


def test_upgrades(library: Callable[..., Library], origin: MakeOrigin, site: MakeSite) -> None:
    """The settings and the view of that page switch, and its event stream runs."""
    upstream = origin(feed)
    running = library("upgrades.md", upstream.url).site(site)
    assert running.get("/chat/a", UPGRADE).status == 403
    for path, target in (("/chat/a", b"/a "), ("/rooms/r1", b"/rooms/r1 ")):
        client, first, _ = begun(running, path, **UPGRADE)
        assert first.startswith("HTTP/1.1 101 ")
        client.send(b"hello")
        client.half_close()
        assert client.rest() == target + b"hello"
        client.close()
    answer, first, fields = begun(running, "/news/all")
    assert first == "HTTP/1.1 200 OK"
    assert fields["x-accel-buffering"] == "no"
    assert answer.until(b"\n\n\r\n").endswith(b"data: 1\n\n\r\n")
    answer.close()
    wait_until(lambda: upstream.wires[-1].sock.fileno() < 0, "the upstream's end")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("http://library.example", "101"),
        ("https://www.example.com", "101"),
        ("https://evil.example", "403"),
        ("null", "403"),
        ("http://library.example https://evil.example", "403"),
        ("https://library.example", "403"),
    ],
)
def test_origins_on_the_page(
    library: Callable[..., Library],
    origin: MakeOrigin,
    site: MakeSite,
    caplog: pytest.LogCaptureFixture,
    sent: str,
    status: str,
) -> None:
    """Each row of the table of origins; behind the proxy that the page trusts, https is the application's own."""
    made = library("upgrades.md", origin(feed).url)
    made.defined = {"includeme"}  # the settings are what is looked at here
    running = made.site(site)
    client, first, _ = begun(running, "/chat/a", Origin=sent, **UPGRADE)
    client.close()
    assert first.split()[1] == status
    assert (status == "403") is ("trusted_proxy" in caplog.text)
    if sent == "https://library.example":
        client, first, _ = begun(running, "/chat/a", Origin=sent, **UPGRADE, **BEHIND_A_PROXY)
        assert first.split()[1] == "101"
        client.close()


def test_long_exchanges(library: Callable[..., Library], origin: MakeOrigin, site: MakeSite) -> None:
    """A withdrawn permission, a loan that is over and a logout each end what that page says."""
    made = library(
        "long-exchanges.md", origin(feed).url, lambda source: source.replace('recheck="1m"', 'recheck="20ms"')
    )
    running = made.site(site, **{"proxy.routes.feed.recheck": "20ms"})
    film, first, _ = begun(running, "/films/metropolis")
    assert first == "HTTP/1.1 200 OK"
    sys.modules["library.views"].LOANS.clear()
    assert film.is_reset()
    assert running.get("/films/metropolis", ALICE).status == 404
    news, _, _ = begun(running, "/feed/x")
    listed = running.get("/mine", ALICE).body
    assert re.fullmatch(rb'\[\{"id": ?"[0-9a-f]{32}", "route": ?"feed", "bytes": ?\d+\}\]', listed)
    assert running.get("/mine", {"X-User": "bob"}).body == b"[]"
    made.policy.withdrawn.add("alice")
    assert news.is_reset()
    made.policy.withdrawn.clear()
    assert running.get("/logout", ALICE, "POST").status == 303


def test_logout_on_the_page(library: Callable[..., Library], origin: MakeOrigin, site: MakeSite) -> None:
    """The logout view ends the user's exchanges at once, long before the page's interval is over."""
    made = library("long-exchanges.md", origin(feed).url)
    made.defined = {"logout", "includeme"}
    running = made.site(site)
    news, _, _ = begun(running, "/feed/x")
    answer = running.get("/logout", ALICE, "POST")
    assert (answer.status, answer.one("Set-Cookie")) == (303, "session=; Max-Age=0")
    assert news.is_reset()
    assert running.get("/feed/x", ALICE).status == 403


PREFLIGHT = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "PUT"}


def test_cors_by_the_backend(origin: MakeOrigin, site: Callable[..., Site]) -> None:
    """The page's first settings let a preflight through to the backend, and nothing else."""
    parser = ini()
    parser.read_string(blocks("cors.md", "ini")[0].text)
    upstream = origin(echo_or_move)
    settings = dict(parser["app:main"]) | {"proxy.routes.api.upstream": upstream.url}
    made = site(settings, configure=lambda config: config.set_security_policy(_Policy()))
    passed = made.get("/api/x", PREFLIGHT | {"Cookie": "a=b"}, method="OPTIONS").body
    assert passed.startswith(b"OPTIONS /x ")
    assert b"Cookie" not in passed
    assert made.get("/api/x", {"Origin": "https://app.example.com"}, method="OPTIONS").status == 403


def test_cors_by_the_application(
    library: Callable[[str, str], Library], origin: MakeOrigin, site: Callable[..., Site]
) -> None:
    """The page's view answers preflights, and its settings mark the proxied answers."""
    running = library("cors.md", origin(echo_or_move).url).site(site, **{"proxy.routes.api.preflight": "ask"})
    preflight = running.get("/api/x", PREFLIGHT, method="OPTIONS")
    assert (preflight.status, preflight.one("Access-Control-Allow-Methods")) == (204, "GET, PUT")
    foreign = running.get("/api/x", PREFLIGHT | {"Origin": "https://evil.example"}, method="OPTIONS")
    assert foreign.one("Access-Control-Allow-Origin") is None
    answer = running.get("/api/x", ALICE | {"Origin": "https://app.example.com"})
    assert answer.one("Access-Control-Allow-Origin") == "https://app.example.com"
    assert answer.all("Vary") == ["Origin"]


def test_monitoring(
    library: Callable[[str, str], Library],
    origin: MakeOrigin,
    site: Callable[..., Site],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Sentry, OpenTelemetry and the logger of pyramid_exclog, themselves, are told of a failure after the detach."""
    sentry = applications_module("sentry_sdk")
    export = applications_module("opentelemetry.sdk.trace.export")
    memory = applications_module("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    events: list[dict[str, Any]] = []
    sentry.init(
        dsn="http://key@127.0.0.1:9/1",
        before_send=lambda event, hint: events.append(event),
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    spans = memory.InMemorySpanExporter()
    processor = export.SimpleSpanProcessor(spans)
    tracer_provider().add_span_processor(processor)
    try:
        made = library("monitoring.md", "")
        settings = route("r", origin(echo_or_move).url) | route("down", "http://127.0.0.1:9")
        running = site(settings, configure=made.configure)
        assert (running.get("/r/x").status, running.get("/down/x", ALICE).status) == (200, 502)
        wait_until(lambda: any(record.name == "exc_logger" for record in caplog.records), "the logger's line")
        wait_until(lambda: len(spans.get_finished_spans()) == 2, "both spans")
        (event,) = wait_until(lambda: events, "the event")
    finally:
        sentry.init(default_integrations=False, auto_enabling_integrations=False)
        processor.shutdown()
    (line,) = [record for record in caplog.records if record.name == "exc_logger"]
    assert line.getMessage() == f"down, request {event['tags']['request_id']}"
    assert (event["tags"]["route"], event["tags"]["upstream"]) == ("down", "http://127.0.0.1:9")
    assert event["user"] == {"id": "alice"}
    assert [value["type"] for value in event["exception"]["values"]][-1] == "ConnectFailed"
    found = {span.name: span.status.is_ok for span in spans.get_finished_spans()}
    assert found == {"proxy r": True, "proxy down": False}


SITE_FIELDS = {
    "Host": "site.example", "Accept": "*/*", "Accept-Language": "rm", "Accept-Encoding": "gzip", "Cookie": "a=b",
    "X-Other": "1", "X-User": "alice",
}  # fmt: skip
SITE_QUERY = "?SERVICE=WMS&s_map=evil&USER_ID=eve&access_token=t"


def theirs(name: str) -> Callable[[Any, Answer], str | None]:
    """What the upstream got in a field."""
    return lambda request, answer: request.one(name)


def target_of(request: Any, answer: Answer) -> str | None:
    return str(request.target)


#: What a row of the page is to lead to: what is looked at, and what it must be.
SITE_NEEDS: dict[str, tuple[Callable[[Any, Answer], Any], Any]] = {
    "MapServer learns who asks by a parameter": (target_of, "/x?SERVICE=WMS&s_map=evil&access_token=t&user_id=alice"),
    "MapServer's own substitution variables": (target_of, "/x?SERVICE=WMS"),
    "GeoServer learns who asks": (theirs("sec-username"), "alice"),
    "the application's cookies": (theirs("Cookie"), None),
    "only fields on a list": (theirs("X-Other"), None),
    "fields on a list do not": (theirs("Accept-Language"), None),
    "some servers get the client's Host": (theirs("Host"), "site.example"),
    "both `Forwarded`": (lambda request, _: bool(request.one("Forwarded") and request.one("X-Forwarded-For")), True),
    "the request's id": (lambda request, _: len(request.one("X-Request-ID") or ""), 32),
    "no cache on the way": (theirs("Cache-Control"), "no-cache"),
    "`Content-Location`": (lambda _, answer: answer.one("Content-Location"), None),
    "what a backend says with an error": (lambda _, answer: (answer.status, b"theirs" in answer.body), (404, False)),
    "a service below its name": (target_of, "/wps/x" + SITE_QUERY),
    "of the answer's fields": (lambda _, answer: (answer.one("Content-Type"), answer.one("X-Theirs")), ("a/b", None)),
    "the client's `Accept-Encoding`": (theirs("Accept-Encoding"), None),
    "a token for twitcher": (target_of, "/x?SERVICE=WMS&s_map=evil&USER_ID=eve"),
    "a type of content": (lambda _, answer: (answer.status, b"a/b is not passed on" in answer.body), (403, True)),
    "layers that the user may not see": (
        lambda _, answer: [b">roads<" in answer.body, b"cables" in answer.body],
        [1, 0],
    ),
    "URLs in capabilities": (lambda _, answer: b'"http://site.example/r?SERVICE=WPS"' in answer.body, True),
    "a service whose certificate": (lambda _, answer: answer.status, 200),
}
SITE_ROWS = [row for heading in ("c2cgeoportal", "twitcher") for row in rows(section("real-sites.md", heading))]


def test_every_need_of_a_site_is_run() -> None:
    """Each row of the page is one of those below, and each of those is a row."""
    for need, _ in SITE_ROWS:
        assert sum(need.startswith(start) for start in SITE_NEEDS) == 1, need
    assert len(SITE_ROWS) == len(SITE_NEEDS)


@pytest.mark.parametrize("row", SITE_ROWS, ids=lambda row: row[0][:40])
def test_a_need_of_a_site(
    row: list[str], origin: MakeOrigin, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The row's lines do what it says."""
    ((look, expected),) = [value for start, value in SITE_NEEDS.items() if row[0].startswith(start)]
    status = "404 Not Found" if "error status" in row[0] else "200 OK"

    seen: list[Any] = []

    def script(wire: OriginWire) -> None:
        while (request := wire.request()) is not None:
            seen.append(request)
            if "capabilities" in row[0]:
                layers = "".join(f"<Layer><Name>{name}</Name></Layer>" for name in ("roads", "cables"))
                url = f"{upstream.url}/wps?SERVICE=WPS"
                wire.answer(f'<C url="{url}">{layers}</C>'.encode(), "Content-Type: text/xml")
                continue
            wire.answer(b"theirs", "Content-Type: a/b", "Content-Location: /v", "X-Theirs: 1", status=status)

    upstream = origin(script)
    made = Library("real-sites.md", upstream.url, tmp_path, monkeypatch)
    keys = dict(line.replace(" =", " = ").split(" = ", 1) for line in quoted(row[1]))
    lines = {f"proxy.routes.r.{key}": Library._at(upstream.url, value.strip()) for key, value in keys.items()}
    running = site(route("r", upstream.url) | lines, configure=made.configure)
    prefix = lines.get("proxy.routes.r.prefix", "/r")
    answer = running.get(f"{prefix}/x{SITE_QUERY}", SITE_FIELDS)
    (request,) = seen
    assert look(request, answer) == expected
