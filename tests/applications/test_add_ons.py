"""The application of docs/pyramid-add-ons.md, with all of the packages at once, and each row of its table.

Its files are the page's own. It runs under pserve, as the composite and behind the filter of the page, with one thread
of waitress: whatever held that thread would hold everybody.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import brotli
import pytest

from tests.support.docs import PAGES, blocks, rows
from tests.support.origin import Gate, Origin
from tests.support.processes import LOGGING, pserve
from tests.support.programs import leave_out, program_path
from tests.support.redis_server import RedisServer
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Answer, OriginWire, over_http

PAGE = "pyramid-add-ons.md"
MODULES = (
    "beaker", "cornice", "opentelemetry.instrumentation", "opentelemetry.sdk", "paste", "pyramid_beaker",
    "pyramid_debugtoolbar", "pyramid_openapi3", "pyramid_session_redis", "sentry_sdk",
)  # fmt: skip
#: Below this the front server has the application.
MOUNT = "/site/library"
REDIS, BEAKER = "pyramid_session_redis", "pyramid_beaker"
THEIRS = b"<html><body>theirs</body></html>"
ROUTES = {
    "/v2/page": (THEIRS, "Content-Type: text/html", "X-Kind: final"),
    "/v2/kindless": (b"nothing", "Content-Type: text/plain"),
}


class Running:
    """The application in a process of its own, with what it speaks to."""

    def __init__(self, folder: Path, stack: ExitStack, sessions: str) -> None:
        self.gate = Gate()
        self.reports = stack.enter_context(Origin(self._reports))
        self.sentry = stack.enter_context(Origin(self._sentry))
        self.events: list[dict[str, Any]] = []
        stack.callback(self.gate.opened.set)
        redis = RedisServer(program_path("redis-server"), folder)
        stack.callback(redis.close)
        self._write(folder, sessions, redis.url)
        self.process = stack.enter_context(pserve(folder / "site.ini"))
        (self.port,) = self.process.ports()
        self.cookie = ""

    def _reports(self, wire: OriginWire) -> None:
        """A backend: some answers of its own, one that waits for the gate, else the request's own bytes."""
        while (request := wire.request()) is not None:
            path = request.target.partition("?")[0]
            if path.endswith("/held"):
                self.gate.asked.release()
                assert self.gate.opened.wait(PATIENCE)
            body, *fields = ROUTES.get(path, (request.raw, "Content-Type: text/plain", "X-Kind: final"))
            assert isinstance(body, bytes)
            wire.answer(body, *map(str, fields))

    def _sentry(self, wire: OriginWire) -> None:
        """Takes reports as Sentry does: an envelope is lines of JSON."""
        while (request := wire.request()) is not None:
            undo = {"gzip": gzip.decompress, "br": brotli.decompress}[request.one("Content-Encoding") or ""]
            found = [json.loads(line) for line in undo(request.body).splitlines() if line.startswith(b"{")]
            self.events += [one for one in found if "exception" in one]
            wire.answer(b"{}", "Content-Type: application/json")

    def _write(self, folder: Path, sessions: str, redis_url: str) -> None:
        """The page's files, and what installing them would leave."""
        package = folder / "library"
        for made in (package, folder / "welcome", folder / "library-1.0.dist-info"):
            made.mkdir()
        (folder / "welcome/index.html").write_text("welcome", encoding="utf-8")
        (folder / "library-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: library\nVersion: 1.0\n")
        (folder / "library-1.0.dist-info/entry_points.txt").write_text("[paste.app_factory]\nmain = library:main\n")
        for page, block in [(PAGE, block) for block in blocks(PAGE, "python")] + [
            ("monitoring.md", block) for block in blocks("monitoring.md", "python")[:1]
        ]:
            name = block.text.partition("\n")[0].removeprefix("# library/")
            assert name.endswith(".py"), page
            (package / name).write_text(block.text, encoding="utf-8")
        beaker, document = (block.text for block in blocks(PAGE, "text"))
        (package / "openapi.yaml").write_text(document, encoding="utf-8")
        (ini,) = (block.text for block in blocks(PAGE, "ini"))
        if sessions == BEAKER:
            ini = re.sub(r"^redis\.sessions.*\n", "", ini, flags=re.MULTILINE).replace(REDIS, BEAKER)
            ini = ini.replace("[server:main]", f"{beaker}\n[server:main]")
        ini = ini.replace("https://KEY@sentry.internal/1", f"http://key@{self.sentry.authority}/1")
        ini = ini.replace("redis://sessions.internal:6379/0", redis_url)
        ini = re.sub(r"http://\w+\.internal(:\d+)?", self.reports.url, ini)
        ini = ini.replace("127.0.0.1:6543", "127.0.0.1:0\nthreads = 1")
        (folder / "site.ini").write_text(ini + LOGGING, encoding="utf-8")

    def ask(self, path: str, method: str = "GET", body: Any = None, below: str = MOUNT, **fields: str) -> Answer:
        """By whoever is logged in, where the front server has it; fields have ``_`` for ``-``."""
        headers = {name.replace("_", "-"): value for name, value in fields.items()}
        headers |= {"Cookie": f"session={self.cookie}; theme=dark"} if self.cookie else {}
        return over_http(self.port, below + path, method, body, headers)

    def login(self) -> None:
        answer = self.ask("/login", "POST", "user=ann", Content_Type="application/x-www-form-urlencoded")
        assert answer.status == 303, self.process.text
        self.cookie = session_of(answer)

    def last(self) -> Any:
        """What the backend was asked last."""
        return self.reports.requests[-1]


def session_of(answer: Answer) -> str:
    """The value of the session's cookie, which an answer sets once."""
    (set_cookie,) = [value for value in answer.all("Set-Cookie") if value.startswith("session=")]
    return set_cookie.partition(";")[0].removeprefix("session=")


def running(sessions: str, factory: pytest.TempPathFactory) -> Iterator[Running]:
    if any(find_spec(name.partition(".")[0]) is None for name in MODULES):
        leave_out("the extra `addons` is not installed")
    with ExitStack() as stack, pytest.MonkeyPatch.context() as environ:
        environ.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        made = Running(factory.mktemp("library"), stack, sessions)
        yield made


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The application with sessions in Redis, with somebody who is logged in."""
    for made in running(REDIS, tmp_path_factory):
        made.login()
        yield made


def spans(made: Running, count: int, **attributes: Any) -> list[dict[str, Any]]:
    """The spans that have been exported with these attributes, so many at least."""

    def found() -> list[dict[str, Any]]:
        every = [json.loads(line) for line in list(made.process.log) if line.startswith('{"name"')]
        chosen = [one for one in every if all(one["attributes"].get(name) == attributes[name] for name in attributes)]
        return chosen if len(chosen) >= count else []

    return wait_until(found, "the spans")


def test_the_table_is_whole() -> None:
    """Each package of the page's table has a test here, of its name."""
    names = [row[0].lower().replace("-", "_") for row in rows(PAGES[PAGE])]
    assert names
    assert {f"test_{name}" for name in names} <= set(globals())


def check_sessions(made: Running) -> None:
    """Who has no login in the session is refused; with one the backend is asked, and never learns the session."""
    made.cookie = ""
    before = len(made.reports.requests)
    assert made.ask("/reports/page").status == 403
    assert len(made.reports.requests) == before
    made.login()
    assert made.ask("/reports/page").body == THEIRS
    assert made.last().one("Cookie") == "theme=dark"
    assert made.ask("/orders/9").status == 200
    assert json.loads(made.ask("/shelves/a").body) == {"shelf": "a", "ordered": "9"}


def test_pyramid_session_redis(library: Running) -> None:
    """A login in Redis guards a proxied route, and a view that fetches writes into its session."""
    check_sessions(library)


def test_pyramid_beaker(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same with Beaker, by the page's lines for it, in a process of its own."""
    for made in running(BEAKER, tmp_path_factory):
        check_sessions(made)


def test_pyramid_tm(library: Running) -> None:
    """While the upstream has a request the transaction is over, and the one thread answers others."""
    library.gate.opened.clear()
    client = library.process.connect(library.port)
    fields = f"Host: a\r\nCookie: session={library.cookie}\r\nConnection: close"
    client.send(f"GET {MOUNT}/orders/held HTTP/1.1\r\n{fields}\r\n\r\n".encode())
    library.gate.wait_asked()
    library.process.wait_for("order held: committed True")
    assert library.ask("/").status == 200
    library.gate.opened.set()
    assert client.rest().startswith(b"HTTP/1.1 200 ")


def test_pyramid_retry(library: Running) -> None:
    """A view that is tried again is sent once, and commits once."""
    answer = library.ask("/orders/7")
    assert (answer.status, library.last().target) == (200, "/orders/7")
    assert [request.target for request in library.reports.requests].count("/orders/7") == 1
    assert len(library.process.wait_for("order 7: committed (.*)")) == 1


def test_pyramid_debugtoolbar(library: Running) -> None:
    """Its button is in the application's own page and not in a proxied one, which the toolbar lists."""
    assert b"pDebug" in library.ask("/").body
    assert library.ask("/reports/page").body == THEIRS
    toolbar = library.ask("/_debug_toolbar/")
    assert (toolbar.status, b"/reports/page" in toolbar.body) == (200, True)


def test_pyramid_openapi3(library: Running) -> None:
    """A view that it checks stands beside a proxied route that its document does not know."""
    assert (library.ask("/covers/3").status, library.last().target) == (200, "/covers/3")
    before = len(library.reports.requests)
    assert library.ask("/covers/three").status == 400
    assert len(library.reports.requests) == before
    assert library.ask("/reports/page").status == 200


def test_cornice(library: Running) -> None:
    """A service answers beside the routes, another returns what it fetches; its exception view renders our refusals."""
    assert json.loads(library.ask("/shelves/b").body)["shelf"] == "b"
    assert library.ask("/shelves/b", "PUT", b"books").status == 200
    assert (library.last().method, library.last().body) == ("PUT", b"books")
    assert library.ask("/reports/%2e%2e/x").status == 400


def reported(made: Running, kind: str, transaction: str) -> dict[str, Any]:
    """The event that Sentry got of an exception of this kind, in a request of this route."""

    def found() -> list[dict[str, Any]]:
        every = [one for one in list(made.events) if one.get("transaction") == transaction]
        return [one for one in every if one["exception"]["values"][-1]["type"] == kind]

    event: dict[str, Any] = wait_until(found, f"a report of {kind}")[0]
    return event


def test_sentry_sdk(library: Running) -> None:
    """A hook that fails after the view is over is reported with its route and user, and by its line in the log; a view
    that fails is reported as ever."""
    assert library.ask("/reports/kindless").status == 500
    event = reported(library, "HookFailed", "reports")
    assert (event["tags"]["route"], event["user"]["id"]) == ("reports", "ann")
    assert [one["type"] for one in event["exception"]["values"]] == ["KeyError", "HookFailed"]
    assert reported(library, "KeyError", "reports")["logger"] == "pyramid_threaded_proxy.hooks"
    library.ask("/login", "POST", "", Content_Type="application/x-www-form-urlencoded")
    assert reported(library, "KeyError", "login")["level"] == "error"


def test_opentelemetry(library: Running) -> None:
    """The exchange's span is the upstream's parent, and a child of the span that the instrumentation made."""
    library.ask("/reports/traced")
    (ours,) = spans(library, 1, **{"url.full": f"{library.reports.url}/v2/traced"})
    (theirs,) = spans(library, 1, **{"http.target": f"{MOUNT}/reports/traced"})
    assert (ours["kind"], theirs["kind"]) == ("SpanKind.CLIENT", "SpanKind.SERVER")
    assert ours["parent_id"] == theirs["context"]["span_id"]
    _, trace_id, parent, _ = (library.last().one("traceparent") or "").split("-")
    assert [f"0x{trace_id}", f"0x{parent}"] == [ours["context"]["trace_id"], ours["context"]["span_id"]]


@pytest.mark.parametrize("front", ["leaves it", "strips it"])
def test_pastedeploy(front: str, library: Running) -> None:
    """The composite's other application answers as well; the backend is told the whole public path."""
    prefix = {"leaves it": "/site", "strips it": ""}[front]
    assert library.ask("/", below=prefix).body == b"welcome"
    assert library.ask("/reports/x", below=f"{prefix}/library").status == 200
    assert library.last().one("X-Forwarded-Prefix") == f"{MOUNT}/reports"
    assert library.last().target == "/v2/x"
