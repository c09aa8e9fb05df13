"""The documentation: every link and name in it exists, every figure is the code's."""

from __future__ import annotations

import builtins
import inspect
import os
import re
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import waitress.channel
import waitress.server
from pyramid.config import Configurator
from pyramid.path import DottedNameResolver
from waitress.adjustments import Adjustments

import pyramid_threaded_proxy
from pyramid_threaded_proxy import accesslog, hooks, testing
from pyramid_threaded_proxy.app.request_methods import proxy_fetch, proxy_forward
from pyramid_threaded_proxy.detach import defaults as waitress_defaults
from pyramid_threaded_proxy.detach.channel import MOST_EARLY
from pyramid_threaded_proxy.exchange import UpstreamAnswer, UpstreamRequest
from pyramid_threaded_proxy.hooks import NAMES
from pyramid_threaded_proxy.http import framing, head
from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.loop import lingering, log_writer, scheduler, timers
from pyramid_threaded_proxy.loop.loop import BATCH_SIZE
from pyramid_threaded_proxy.loop.task import LASTING
from pyramid_threaded_proxy.relay import answer_head, stream, transfer
from pyramid_threaded_proxy.settings import table
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS
from pyramid_threaded_proxy.shared import commands, listener, member
from pyramid_threaded_proxy.status.counts import REASONS
from pyramid_threaded_proxy.testing import ScriptedUpstream
from pyramid_threaded_proxy.upstream import balance
from pyramid_threaded_proxy.upstream import connections as upstream
from tests.docs.test_operating_pages import exposed
from tests.status.test_metrics import TABLE
from tests.support.docs import DOCS, GENERATED, LINK, PAGES, blocks, prose, quoted, rows, section
from tests.support.paths import ROOT

# Form and links


@pytest.mark.parametrize("page", PAGES)
def test_every_example_is_in_a_language_that_runs(page: str) -> None:
    """An example in a language that no test here runs would never be run."""
    assert {block.language for block in blocks(page)} <= {"python", "ini", "yaml", "console", "text"}
    assert "```" not in prose(page)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    """A link leads to a file of the project, and to a heading that it has; none leads outside."""
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for link in LINK.findall(prose(page)):
        name, _, fragment = link.partition("#")
        path = folder / name if name else folder / page
        assert path.is_file(), f"{page} links to {link}"
        text = path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert not fragment or fragment in map(anchor, headings), f"{page} links to {link}"


def test_every_page_is_on_the_index() -> None:
    """The index links every page but itself."""
    assert set(LINK.findall(PAGES["index.md"])) >= {path.name for path in DOCS} - {"index.md"}


# Names


WAITRESS_SETTINGS = {
    "asyncore_use_poll", "connection_limit", "recv_bytes", "max_request_body_size", "max_request_header_size",
    "inbuf_overflow", "clear_untrusted_proxy_headers", "trusted_proxy", "trusted_proxy_headers", "threads",
    "url_prefix",
}  # fmt: skip
#: What of other packages is named on the pages, in full or by its last part.
FOREIGN_PATHS = {
    "zope.interface", "logging.handlers.QueueHandler", "wsgiref", "urllib.parse.quote", "time.monotonic",
    "pyramid.threadlocal.get_current_request", "pyramid_retry", "pyramid_tm", "waitress.server.BaseWSGIServer",
    "waitress.channel.HTTPChannel", "pyramid.authentication.AuthTktCookieHelper",
    "cornice", "paste", "pyramid_beaker", "pyramid_session_redis", "sentry_sdk",
    "sentry_sdk.integrations.logging.ignore_logger",
    "pyramid_exclog", "pyramid_debugtoolbar", "pyramid_openapi3",
    "pyramid.authentication.SessionAuthenticationHelper", "prometheus_client",
    "opentelemetry.sdk.trace.export.BatchSpanProcessor", "werkzeug.middleware.proxy_fix.ProxyFix",
}  # fmt: skip
#: PEP 3333, and what `detach` relies on in waitress; `test_waitress_contract` looks for that.
OTHER_NAMES = {
    "start_response", "app_iter", "channel_class", "channel.requests", "outbuf_lock", "server.trigger.pull_trigger",
    "policy.settings.buffer", "pyramid_threaded_proxy.operator_log", "paste.app_factory", "exc_logger",
    # c2cgeoportal's, and a parameter of MapServer's.
    "headers_whitelist", "headers_blacklist", "host_forward_host", "query.set.user_id",
    "proxy_status_csrf", "status.json",
    # nginx's, Pyramid's, and an attribute of `ProxyResponse`.
    "auth_request", "route_prefix", "proxy_exchange",
    # What redis-py takes in a URL.
    "ssl_ca_certs", "ssl_certfile", "ssl_keyfile",
    # pyramid_retry's settings.
    "retry.attempts", "retry.activate_hook",
    # Beaker's cookie and its setting, and what Sentry's `ignore_logger` is told.
    "beaker.session.id", "session.key", "library/openapi.yaml",
    # boto3's arguments, and what a store says to a signature that is not for its host.
    "endpoint_url", "addressing_style", "SignatureDoesNotMatch",
}  # fmt: skip
_LOOKS_LIKE_A_NAME = re.compile(r"[a-z][a-z0-9]*(?:[._][a-z0-9_]+)+(?:\(\))?")
_LOOKS_LIKE_A_CLASS = re.compile(r"(?:[A-Z][a-z]+){2,}|[A-Z]+[a-z]\w+(?:\.\w+)*")


def source_of(thing: Any) -> str:
    """A class's own code; public ones bear the package's name, so that only their methods tell the file."""
    return "".join(inspect.getsource(one) for one in vars(thing).values() if inspect.isfunction(one))


def attributes(prefix: str, thing: Any) -> set[str]:
    """The public attributes of a class, with those that only its instances have."""
    names = {name for name in dir(thing) if not name.startswith("_")}
    assigned = re.findall(r"self\.([a-z]\w*)(?::[^=\n]*)? = ", source_of(thing))
    return {prefix + name for name in names.union(assigned)}


@cache
def known_names() -> set[str]:
    """Everything that a name in backticks may stand for."""
    settings = {key.path for key in (*PROCESS_KEYS, *ROUTE_KEYS)} | {f"routes.NAME.{key.path}" for key in ROUTE_KEYS}
    settings |= {key.attribute for key in ROUTE_KEYS} | {"file", "proxy.file"}
    functions = {f"request.{one.__name__}" for one in (proxy_fetch, proxy_forward)} | {"config.add_proxy_route"}
    functions |= {"request.proxy_exchanges"} | set(inspect.signature(InFlight.close).parameters)
    arguments = set(inspect.signature(proxy_fetch).parameters) | set(inspect.signature(proxy_forward).parameters)
    arguments |= {f"on_{name}" for name in NAMES}
    values = (
        attributes("exchange.", pyramid_threaded_proxy.Exchange)
        | attributes("exchange.stats.", pyramid_threaded_proxy.Stats)
        | attributes("", pyramid_threaded_proxy.Stats)
        | attributes("exchange.request.", UpstreamRequest)
        | attributes("exchange.response.", UpstreamAnswer)
        | {"event.exchange", "request.params", "request.cookies"}
    )
    functions |= {"request.proxy_exchanges.close", "config.proxy_collector"}
    functions |= {f"config.{name}" for name in dir(Configurator)}
    values |= attributes("", ScriptedUpstream)
    values |= {*accesslog.VALUES, *REASONS, *exposed(), *TABLE, *(f"proxy_{name}" for name in ("exchanges", "refused"))}
    own = {*settings, *(f"proxy.{name}" for name in settings)}
    foreign = FOREIGN_PATHS | {path.rpartition(".")[2] for path in FOREIGN_PATHS}
    return own | functions | arguments | values | foreign | WAITRESS_SETTINGS | OTHER_NAMES


def is_file(name: str) -> bool:
    folders = (ROOT, ROOT / "docs", ROOT / "pyramid_threaded_proxy", ROOT / "tests")
    return any((folder / name).is_file() for folder in folders)


def is_class(name: str) -> bool:
    homes = (pyramid_threaded_proxy, testing, accesslog, waitress.channel, waitress.server, table, balance, hooks)
    first, *rest = name.split(".")
    found = next((getattr(home, first) for home in homes if hasattr(home, first)), vars(builtins).get(first))
    for attribute in rest:
        found = getattr(found, attribute, None)
    return found is not None


@pytest.mark.parametrize("page", sorted(set(PAGES) - GENERATED))
def test_names_exist(page: str) -> None:
    """What looks like a setting, a function, an attribute, a class or a file is one."""
    for written in re.findall(r"`([^`\n]+)`", prose(page)):
        name = re.split(r" = |=|\(\)", written)[0]
        if _LOOKS_LIKE_A_NAME.fullmatch(name):
            assert name in known_names() or is_file(name) or is_word_of_the_examples(page, name), f"{page}: {written}"
        elif _LOOKS_LIKE_A_CLASS.fullmatch(name):
            known = name in known_names() or is_class(name) or name in HEADER_NAMES
            assert known or is_word_of_the_examples(page, name), f"{page}: {written}"


#: Field names that look like classes.
HEADER_NAMES = {
    "Allow", "Authorization", "Connection", "Cookie", "Destination", "Domain", "Expect", "Forwarded", "Host", "Link",
    "Location", "Origin", "Path", "Proxy", "Range", "Refresh", "Trailer", "Upgrade", "Vary", "Via",
}  # fmt: skip


def is_word_of_the_examples(page: str, name: str) -> bool:
    """Whether the page's own examples, which run, have it."""
    return any(re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", block.text) for block in blocks(page))


@pytest.mark.parametrize("path", sorted(FOREIGN_PATHS))
def test_foreign_names_exist(path: str) -> None:
    """What the pages say of other packages is there; some of these are installed with an extra alone."""
    if find_spec(path.partition(".")[0]) is None and not os.environ.get("CI"):
        pytest.skip(f"{path} is not installed")
    assert DottedNameResolver().resolve(path) is not None


def test_names_of_waitress_exist() -> None:
    """The settings of waitress that the pages name are its own."""
    assert {name for name, _ in Adjustments._params} >= WAITRESS_SETTINGS


def test_figures_are_those_of_the_code() -> None:
    """A figure in the text is the constant that it stands for."""
    for page, phrase in {
        "limits.md": f"{LASTING * 1000:.0f} milliseconds",
        "how-detaching-works.md": f"{transfer.WORTH_MOVING // 1024} KiB or more to go",
        "accepted-and-refused.md": f"more than {answer_head.MOST_INTERIM} interim answers",
    }.items():
        assert phrase in prose(page)
    assert f"{transfer.WORTH_A_HOP >> 20} MiB or more to go" in prose("how-detaching-works.md")
    for page in ("accepted-and-refused.md", "limits.md"):
        assert f"{MOST_EARLY} bytes" in prose(page)
    assert "slices of half a second" in prose("how-detaching-works.md")
    assert "every\nhalf second" in prose("long-exchanges.md")
    assert stream.SLICE == 0.5
    defaults = {key.path: key.default for key in ROUTE_KEYS}
    assert defaults["idle_timeout"] == "1h"
    assert "It is an hour\n  by default" in prose("upgrades.md")
    assert f"{defaults['keepalive']} idle connections" in prose("limits.md")
    assert (upstream.SURPLUS_SECONDS, upstream.MOST_SURPLUS) == (1.0, 4)
    assert "Four times as many are kept for one\nsecond" in prose("upstreams.md")
    assert BATCH_SIZE == 16
    assert "Sixteen wait for each other at most" in prose("built-for-speed.md")
    assert transfer.PIPE_SIZE == 1 << 20
    assert "Its pipes hold 1 MiB" in prose("built-for-speed.md")
    assert timers.GRANULARITY == 0.02
    assert "Sixteen lines, or those of 20 milliseconds" in prose("built-for-speed.md")
    assert timers.GRANULARITY + log_writer.GATHER < 0.05
    assert "some 50 milliseconds after its exchange" in prose("operating.md")
    assert log_writer.MOST_WAITING == 10_000
    assert "Ten thousand lines may wait" in prose("operating.md")
    assert scheduler.RECHECKERS == 8
    assert "one of eight threads that are there" in prose("limits.md")
    assert "| eight threads for `recheck` |" in prose("how-detaching-works.md")
    assert accesslog.LOOK_EVERY == 1.0
    assert "Once a second it looks" in prose("operating.md")
    for page in ("limits.md", "operating.md"):
        assert f"`recv_bytes = {waitress_defaults.RECV_BYTES}`" in prose(page)
    assert f"{waitress_defaults.STOCK['recv_bytes']}" in section("operating.md", "What waitress is told")
    assert f"at most {waitress_defaults.MOST_CONNECTIONS}" in section("operating.md", "What waitress is told")
    assert f"{lingering.MOST_DROPPED} bytes or two seconds" in prose("accepted-and-refused.md")
    assert lingering.SECONDS == 2.0
    chunks = section("accepted-and-refused.md", "Chunks")
    assert f"over {framing._MAX_LINE} bytes" in chunks
    assert f"over {framing._MAX_TRAILERS} bytes, over {framing._MAX_TRAILER_FIELDS} fields" in chunks
    for phrase in (
        f"waited for {member.PATIENCE * 1000:.0f} milliseconds at most",
        "good for five seconds and is renewed every second",
        "says every two seconds how it is. Who is silent for six seconds",
        "or up to a second after it",
        "tries to join twice a second",
    ):
        assert phrase in " ".join(prose("shared.md").split())
    assert (commands.LEASE, member.BEAT, member.RETRY) == (5.0, 1.0, 0.5)
    assert (listener.REPORT, listener.REPORT_KEPT, listener.GRACE, listener.RETRY) == (2.0, 6.0, 1.0, 0.5)
    assert (commands.MOST_CLOSINGS, commands.CLOSINGS_KEPT) == (10_000, 86_400)
    assert "the last 10 000, for a day" in prose("shared.md")
    most = inspect.signature(head.HeadReader).parameters["max_fields"].default
    assert f"more than {most} fields" in prose("accepted-and-refused.md")


def test_dependencies_are_those_of_the_project() -> None:
    """The page names each dependency of pyproject.toml, and no other."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    headings = {
        "dependencies": "To run", "testing": "To test", "docs": "To build the pages", "release": "To make a release",
        "engines": "To test with engines",
        "recipes": "To run the recipes", "addons": "To test with other add-ons",
    }  # fmt: skip
    for name, heading in headings.items():
        listed = re.search(rf"^{name} = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        assert listed is not None
        wanted = set(re.findall(r'"([\w-]+(?:\[[\w,]+\])?)', listed[1]))
        cells = [row[0] for row in rows(section("dependencies.md", heading))]
        assert {name for cell in cells for name in quoted(cell)} == wanted
