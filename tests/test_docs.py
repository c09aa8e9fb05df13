"""The documentation: every example runs, every link and name in it exists, every figure is the code's."""

from __future__ import annotations

import ast
import builtins
import configparser
import doctest
import inspect
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import waitress.channel
import waitress.server
from pyramid.config import Configurator
from pyramid.path import DottedNameResolver
from pyramid.request import Request
from support import Origin, OriginWire, Script, Site, wait_until
from waitress.adjustments import Adjustments
from webob import Response

import pyramid_threaded_proxy
from pyramid_threaded_proxy import exceptions, fields, framing, head, relay, target, tasks, transfer, upstream
from pyramid_threaded_proxy.exchange import UpstreamAnswer, UpstreamRequest
from pyramid_threaded_proxy.request import proxy_fetch, proxy_forward
from pyramid_threaded_proxy.settings import load_settings
from pyramid_threaded_proxy.settings_table import PROCESS_KEYS, ROUTE_KEYS

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *DOCS]}
#: Made from the settings table; `test_settings` holds it to that.
GENERATED = "settings.md"
BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A fenced example."""

    page: str
    language: str
    text: str


def blocks(page: str, language: str = "") -> list[Block]:
    """The examples of a page, or those in one language, from top to bottom."""
    found = [Block(page, *match) for match in _FENCE.findall(PAGES[page])]
    return [block for block in found if language in ("", block.language)]


def every(language: str) -> list[Any]:
    found = [block for page in PAGES for block in blocks(page, language)]
    return [pytest.param(block, id=f"{block.page}-{index}") for index, block in enumerate(found)]


def prose(page: str) -> str:
    """A page without its examples."""
    return _FENCE.sub("", PAGES[page])


# Form and links


@pytest.mark.parametrize("page", PAGES)
def test_every_example_is_in_a_language_that_runs(page: str) -> None:
    """An example in a language that no test here runs would never be run."""
    assert {block.language for block in blocks(page)} <= {"python", "ini", "yaml", "console"}
    assert "```" not in prose(page)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    """A link leads to a file of the project, and to a heading that it has; none leads outside."""
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for link in _LINK.findall(prose(page)):
        name, _, fragment = link.partition("#")
        path = folder / name if name else folder / page
        assert path.is_file(), f"{page} links to {link}"
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not fragment or fragment in map(anchor, headings), f"{page} links to {link}"


def test_every_page_is_on_the_index() -> None:
    """The index links every page but itself."""
    assert set(_LINK.findall(PAGES["index.md"])) >= {path.name for path in DOCS} - {"index.md"}


# Names


WAITRESS_SETTINGS = {
    "asyncore_use_poll", "connection_limit", "recv_bytes", "max_request_body_size", "max_request_header_size",
    "inbuf_overflow", "trusted_proxy", "trusted_proxy_headers", "threads",
}  # fmt: skip
#: What of other packages is named on the pages, in full or by its last part.
FOREIGN_PATHS = {
    "zope.interface", "logging.handlers.QueueHandler", "wsgiref", "urllib.parse.quote", "time.monotonic",
    "pyramid.threadlocal.get_current_request", "pyramid_retry", "pyramid_tm", "waitress.server.BaseWSGIServer",
    "waitress.channel.HTTPChannel",
}  # fmt: skip
#: PEP 3333, and what `detach` relies on in waitress; `test_waitress_contract` looks for that.
OTHER_NAMES = {
    "start_response", "app_iter", "channel_class", "channel.requests", "outbuf_lock", "server.trigger.pull_trigger",
}  # fmt: skip
_LOOKS_LIKE_A_NAME = re.compile(r"[a-z][a-z0-9]*(?:[._][a-z0-9_]+)+(?:\(\))?")
_LOOKS_LIKE_A_CLASS = re.compile(r"(?:[A-Z][a-z]+){2,}|[A-Z]+[a-z]\w+(?:\.\w+)*")


def attributes(prefix: str, thing: Any) -> set[str]:
    """The public attributes of a class, with those that only its instances have."""
    names = {name for name in dir(thing) if not name.startswith("_")}
    assigned = re.findall(r"self\.([a-z]\w*)(?::[^=\n]*)? = ", inspect.getsource(thing))
    return {prefix + name for name in names.union(assigned)}


@cache
def known_names() -> set[str]:
    """Everything that a name in backticks may stand for."""
    settings = {key.path for key in (*PROCESS_KEYS, *ROUTE_KEYS)} | {f"routes.NAME.{key.path}" for key in ROUTE_KEYS}
    settings |= {key.attribute for key in ROUTE_KEYS} | {"file", "proxy.file"}
    functions = {f"request.{one.__name__}" for one in (proxy_fetch, proxy_forward)} | {"config.add_proxy_route"}
    arguments = set(inspect.signature(proxy_fetch).parameters) | set(inspect.signature(proxy_forward).parameters)
    values = (
        attributes("exchange.", pyramid_threaded_proxy.Exchange)
        | attributes("exchange.stats.", pyramid_threaded_proxy.Stats)
        | attributes("", pyramid_threaded_proxy.Stats)
        | attributes("exchange.request.", UpstreamRequest)
        | attributes("exchange.response.", UpstreamAnswer)
        | {"event.exchange", "request.params", "request.cookies"}
    )
    own = {*settings, *(f"proxy.{name}" for name in settings)}
    foreign = FOREIGN_PATHS | {path.rpartition(".")[2] for path in FOREIGN_PATHS}
    return own | functions | arguments | values | foreign | WAITRESS_SETTINGS | OTHER_NAMES


def is_file(name: str) -> bool:
    folders = (ROOT, ROOT / "docs", ROOT / "pyramid_threaded_proxy", ROOT / "tests")
    return any((folder / name).is_file() for folder in folders)


def is_class(name: str) -> bool:
    homes = (pyramid_threaded_proxy, waitress.channel, waitress.server)
    first, *rest = name.split(".")
    found = next((getattr(home, first) for home in homes if hasattr(home, first)), vars(builtins).get(first))
    for attribute in rest:
        found = getattr(found, attribute, None)
    return found is not None


@pytest.mark.parametrize("page", sorted(set(PAGES) - {GENERATED}))
def test_names_exist(page: str) -> None:
    """What looks like a setting, a function, an attribute, a class or a file is one."""
    for quoted in re.findall(r"`([^`\n]+)`", prose(page)):
        name = re.split(r" = |=|\(\)", quoted)[0]
        if _LOOKS_LIKE_A_NAME.fullmatch(name):
            assert name in known_names() or is_file(name) or is_word_of_the_examples(page, name), f"{page}: {quoted}"
        elif _LOOKS_LIKE_A_CLASS.fullmatch(name):
            known = name in known_names() or is_class(name) or name in HEADER_NAMES
            assert known or is_word_of_the_examples(page, name), f"{page}: {quoted}"


#: Field names that look like classes.
HEADER_NAMES = {"Connection", "Trailer", "Upgrade", "Expect", "Forwarded", "Host", "Location", "Range", "Via", "Vary",
                "Link", "Domain", "Path", "Proxy", "Cookie", "Authorization"}  # fmt: skip


def is_word_of_the_examples(page: str, name: str) -> bool:
    """Whether the page's own examples, which run, have it."""
    return any(re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", block.text) for block in blocks(page))


@pytest.mark.parametrize("path", sorted(FOREIGN_PATHS))
def test_foreign_names_exist(path: str) -> None:
    """What the pages say of other packages is there."""
    assert DottedNameResolver().resolve(path) is not None


def test_names_of_waitress_exist() -> None:
    """The settings of waitress that the pages name are its own."""
    assert {name for name, _ in Adjustments._params} >= WAITRESS_SETTINGS


def test_figures_are_those_of_the_code() -> None:
    """A figure in the text is the constant that it stands for."""
    for page, phrase in {
        "limits.md": f"{tasks.LASTING * 1000:.0f} milliseconds",
        "how-detaching-works.md": f"{transfer.WORTH_MOVING // 1024} KiB or more to go",
        "accepted-and-refused.md": f"more than {relay.MOST_INTERIM} interim answers",
    }.items():
        assert phrase in prose(page)
    assert f"{upstream.KEEPALIVE} idle connections" in prose("limits.md")
    assert f"{Adjustments.recv_bytes} bytes at a time" in prose("limits.md")
    assert f"default of {Adjustments.connection_limit} counts" in prose("limits.md")
    chunks = section("accepted-and-refused.md", "Chunks")
    assert f"over {framing._MAX_LINE} bytes" in chunks
    assert f"over {framing._MAX_TRAILERS} bytes, over {framing._MAX_TRAILER_FIELDS} fields" in chunks
    most = inspect.signature(head.HeadReader).parameters["max_fields"].default
    assert f"more than {most} fields" in prose("accepted-and-refused.md")


def test_dependencies_are_those_of_the_project() -> None:
    """The page names each dependency of pyproject.toml, and no other."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, heading in (("dependencies", "To run"), ("testing", "To test")):
        listed = re.search(rf"^{name} = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        assert listed is not None
        wanted = set(re.findall(r'"([\w-]+)', listed[1]))
        cells = [row[0] for row in rows(section("dependencies.md", heading))]
        assert {name for cell in cells for name in quoted(cell)} == wanted


# Settings


@pytest.mark.parametrize("block", every("ini"))
def test_ini_examples_load(block: Block) -> None:
    """The settings of an ini example are known, and waitress takes its server's."""
    parser = ini()
    parser.read_string(block.text if block.text.lstrip().startswith("[") else "[app:main]\n" + block.text)
    settings = dict(parser["app:main"]) if parser.has_section("app:main") else {}
    for name in {key.split(".")[2] for key in settings if key.startswith("proxy.routes.")}:
        # A page adds to a route step by step.
        for key, value in {"prefix": "/x", "upstream": "http://x", "permission": "read"}.items():
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


def ini() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    return parser


# Commands


@pytest.mark.parametrize("block", every("console"))
def test_commands_exist(block: Block, need_program: Callable[[str], str]) -> None:
    """A command is installed, and a target of make is in the Makefile."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in re.findall(r"^\$ (.*)$", block.text, re.MULTILINE):
        program, *arguments = line.split()
        if program == "make":
            assert set(arguments) <= set(targets)
        elif program == "curl":
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

    def __init__(self, page: str, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.ran: set[str] = set()
        self.defined: set[str] = set()
        self.modules: list[ModuleType] = []
        self.settings: dict[str, str] = {}
        for block in blocks(page, "ini"):
            parser = ini()
            parser.read_string(self._at(url, block.text))
            self.settings.update(parser["app:main"])
        package = ModuleType("library")
        monkeypatch.setitem(sys.modules, "library", package)
        for name, source in example_files(page).items():
            module = ModuleType(f"library.{Path(name).stem}")
            monkeypatch.setitem(sys.modules, module.__name__, module)
            setattr(package, Path(name).stem, module)
            self._load(module, self._at(url, source))

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
        config.set_security_policy(_Policy())
        for module in self.modules:
            if hasattr(module, "includeme"):
                config.include(module.includeme)
            config.scan(module)

    def site(self, make: Callable[..., Site], **settings: str) -> Site:
        return make(self.settings | settings, configure=self.configure)


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
    """Whoever gives a name in X-User may read."""

    def identity(self, request: Request) -> str | None:
        return request.headers.get("X-User")

    authenticated_userid = identity

    def permits(self, request: Request, context: object, permission: str) -> bool:
        return permission == "read" and self.identity(request) is not None


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Library]]:
    """Makes the application of a page; when the test ends each of its functions must have run."""
    made: list[Library] = []

    def make(page: str, url: str) -> Library:
        made.append(Library(page, url, tmp_path, monkeypatch))
        return made[-1]

    yield make
    for one in made:
        assert one.ran == one.defined


ALICE = {"X-User": "alice"}


def test_pages_with_python_have_a_test() -> None:
    """A page with a Python example is one of those that are run below."""
    with_python = {page for page in PAGES if blocks(page, "python")}
    assert with_python == {"README.md", "hooks.md", "fetching.md", "tutorial.md"}


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


OriginMaker = Callable[[Script], Origin]


def test_readme(
    library: Callable[[str, str], Library], origin: OriginMaker, site: Callable[..., Site]
) -> None:
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
    origin: OriginMaker,
    site: Callable[..., Site],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The hooks of their page do what it says of them."""
    caplog.set_level("INFO", logger="library")
    running = library("hooks.md", origin(echo_or_move).url).site(
        site, **{"proxy.routes.reports.read_timeout": "200ms"}
    )
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


def test_fetching(library: Callable[[str, str], Library], origin: OriginMaker, site: Callable[..., Site]) -> None:
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


def test_fetching_tells_faults(origin: OriginMaker, site: Callable[..., Site]) -> None:
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
        fails(request, lambda: response.body)
        response.headers["X-Own"] = "1"
        assert response.status_int == 200
        return response

    def configure(config: Configurator) -> None:
        config.add_route("view", "/")
        config.add_view(view, route_name="view")

    answer = site(configure=configure).get("/")
    assert raised == ["ValueRefused", "ValueRefused", "TypeError", "SettingsError", "ProxyResponseError"]
    assert (answer.one("X-Frame-Options"), answer.one("X-Own"), answer.one("Cache-Control")) == ("DENY", "1", None)


# The page of rules: its examples are held to the code


RULES = "accepted-and-refused.md"


def section(page: str, heading: str) -> str:
    """What stands below one heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGES[page], re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, without their heads."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.removeprefix(" ").removesuffix(" ") for cell in line] for line in lines]
    rules = [index for index, line in enumerate(cells) if set("".join(line)) <= set("- ")]
    assert rules
    return [line for index, line in enumerate(cells) if index not in rules and index + 1 not in rules]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def examples(heading: str, word: str) -> Iterator[tuple[str, str]]:
    """Each example of the tables whose first column's head begins with `word`, and its source."""
    text = section(RULES, heading)
    tables = re.split(rf"^\| (?={word} \| such as)", text, flags=re.MULTILINE)[1:]
    assert tables
    for table in tables:
        for row in rows("| " + re.split(r"^$", table, flags=re.MULTILINE)[0]):
            for example in quoted(row[1]):
                yield example, row[2]


def check_refused(error: type[Exception], source: str, judge: Callable[[], object]) -> None:
    """The refusal names the standard that the page names."""
    with pytest.raises(error) as caught:
        judge()
    named = re.findall(r"RFC \d+", source)
    assert not named or any(standard in str(caught.value) for standard in named)


def test_targets_on_the_page() -> None:
    """Each example of a refused target is refused by that standard, each accepted one is accepted."""
    for example, source in examples("The request target", "refused"):
        check_refused(exceptions.TargetRefused, source, lambda raw=example: target.split_target(raw))
    for example, _ in examples("The request target", "accepted"):
        assert example.endswith("?".join(part for part in target.split_target(example) if part is not None))


def test_hosts_on_the_page() -> None:
    """Likewise for Host."""
    for example, source in examples("Host", "refused"):
        check_refused(exceptions.FieldRefused, source, lambda value=example: fields.check_host(value, "1.1"))
    check_refused(exceptions.FieldRefused, "", lambda: fields.check_host(None, "1.1"))
    accepted = re.search(r"^Accepted: (.*)$", section(RULES, "Host"), re.MULTILINE)
    assert accepted is not None
    for example in quoted(accepted[1]):
        fields.check_host(example, "1.1")


def test_heads_on_the_page() -> None:
    """Likewise for status lines and field lines of an answer."""
    for example, source in examples("The answer's head", "refused"):
        lines = [example] if re.match("HTTP|ICY", example) else ["HTTP/1.1 200 OK", example]
        text = "".join(f"{line}\r\n" for line in lines).encode()
        check_refused(exceptions.AnswerRefused, source, lambda text=text: head.parse_head(text, 200))
    assert head.parse_head(b"HTTP/1.1 200\r\n", 200).reason == ""


def test_framing_on_the_page() -> None:
    """Likewise for framing fields; a row with two different ones, or a repeated one, is about both together."""
    for row in rows(section(RULES, "The answer's framing")):
        together = [tuple(example.split(": ", 1)) for example in quoted(row[1])]
        alone = [[field] for field in together] if len(together) == 3 else [together] if together else []
        for one in alone:
            read = head.ResponseHead(1, 200, "OK", one)  # type: ignore[arg-type]
            check_refused(exceptions.AnswerRefused, row[2], lambda read=read: framing.answer_framing("HEAD", read))


def test_chunks_on_the_page() -> None:
    """Likewise for sizes of chunks."""
    for example, source in examples("Chunks", "refused"):
        data = f"{example}\r\nhello\r\n".encode()
        check_refused(exceptions.AnswerRefused, source, lambda data=data: framing.ChunkedReader(True).feed(data))


def test_hop_by_hop_fields_on_the_page() -> None:
    """The page names each hop-by-hop field that the code knows, and no other."""
    text = section(RULES, "The request's fields")
    named = [name for row in rows(text) if row[0].startswith("Never sent up") for name in quoted(row[0])]
    assert {name.lower() for name in named} == fields.HOP_BY_HOP


# The tutorial, as a reader would do it


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return str(listening.getsockname()[1])


def listens(port: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
    except OSError:
        return False
    return True


class Reader:
    """Does in a folder what the tutorial says, from top to bottom, on free ports."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.parser = ini()
        self.ports: dict[str, str] = {}
        self.server: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "PATH": BIN, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
        # What installing the library would leave.
        made = folder / "library-1.0.dist-info"
        made.mkdir()
        (made / "METADATA").write_text("Metadata-Version: 2.1\nName: library\nVersion: 1.0\n")
        (made / "entry_points.txt").write_text("[paste.app_factory]\nmain = library:main\n")

    def follow(self, block: Block) -> None:
        """Type a command, or write a file; who changed a file starts the server anew."""
        if block.language == "console":
            for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                self.type(command, output)
            return
        self.stop()
        if block.language == "python":
            path = self.folder / block.text.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        else:
            self.parser.read_string(block.text)
            with open(self.folder / "development.ini", "w", encoding="utf-8") as file:
                self.parser.write(file)

    def type(self, command: str, output: str) -> None:
        if command.startswith("pip "):
            return
        if command.startswith("python3 -m http.server "):
            self.start(command, "9000")
        elif command.startswith("pserve") and not output:
            self.serve()
        else:
            self.run(command, output)

    def serve(self) -> None:
        self.server = self.start("pserve development.ini", "6543")

    def start(self, command: str, port: str) -> subprocess.Popen[bytes]:
        """Start a server in the background, on a free port in place of `port`."""
        self.ports.setdefault(port, free_port())
        path = self.folder / "development.ini"
        path.write_text(self.on_free_ports(path.read_text(encoding="utf-8")), encoding="utf-8")
        log = self.folder / f"{port}.log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                command.replace(port, self.ports[port]).split(),
                cwd=self.folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.stack.callback(lambda: (process.terminate(), process.wait()))
        wait_until(lambda: process.poll() is not None or listens(self.ports[port]), command, timeout=30)
        assert process.poll() is None, log.read_text()
        return process

    def on_free_ports(self, text: str) -> str:
        for port, free in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        return text

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait()
            self.server = None

    def run(self, command: str, output: str) -> None:
        if command.startswith("curl") and self.server is None:
            self.serve()
        if command == "cat access.log":
            wait_until(lambda: (self.folder / "access.log").read_text().endswith("\n"), "the log's line")
        done = subprocess.run(
            self.on_free_ports(command),
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        got = (done.stdout + done.stderr).replace("\r\n", "\n")
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if command == "cat access.log":
            output, got = (re.sub(r"\d+", "0", re.sub(r"/[A-Z][a-z]{2}/", "/", text)) for text in (output, got))
        assert doctest.OutputChecker().check_output(output, got, flags), f"$ {command}\n{got}"


def test_tutorial(tmp_path: Path, stack: ExitStack, need_program: Callable[[str], str]) -> None:
    """Who does what the tutorial says sees what it shows."""
    need_program("curl")
    reader = Reader(tmp_path, stack)
    for block in blocks("tutorial.md"):
        reader.follow(block)
