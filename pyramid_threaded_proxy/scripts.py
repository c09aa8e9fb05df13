"""``pproxy``: what an application's proxied routes are, whether their upstreams can be reached, and what becomes of a
request.

::

    pproxy site.ini                                   the routes, in the order in which they match
    pproxy site.ini --check                           faults in the settings; then every upstream is connected to,
                                                      and the Redis of `proxy.shared`
    pproxy site.ini --explain URL [--as USER]         what would happen to a request
    pproxy site.ini --expect FILE                     lines such as `GET /reports/1 as bob -> 403` against it
    pproxy site.ini --export ENGINE --listen ADDRESS --app ADDRESS
                                                      a configuration for a server that moves the bytes

Exit status: 0 good or allowed, 1 a fault or a refusal, 2 wrong usage, 3 it can't be exported.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pyramid.interfaces import IRoutesMapper
from pyramid.paster import get_app

from pyramid_threaded_proxy.app.compile import probed
from pyramid_threaded_proxy.app.declared import ENGINE
from pyramid_threaded_proxy.app.engine import Engine
from pyramid_threaded_proxy.app.explain import Asked, CannotRemember, Explainer, Explanation, as_json
from pyramid_threaded_proxy.app.routes import Route
from pyramid_threaded_proxy.app.startup import routes_in_order
from pyramid_threaded_proxy.engines.export import EXPORTERS, export
from pyramid_threaded_proxy.engines.site import fronted_site
from pyramid_threaded_proxy.engines.support import KNOWN
from pyramid_threaded_proxy.exceptions import ExchangeFailed, ProxyError
from pyramid_threaded_proxy.loop.waits import run_here
from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.upstream.balance import Upstream

GOOD, FAULT, USAGE, NOT_HELD = 0, 1, 2, 3
#: Days: a certificate that ends sooner is warned of.
SOON = 14
#: Seconds for each step of asking the Redis of `proxy.shared`.
PATIENCE = 2.0

#: A host's name or address, and a port.
_ADDRESS = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_EXPECTED = re.compile(r"(?P<method>[A-Z]+)\s+(?P<target>\S+)(?:\s+as\s+(?P<user>\S+))?\s+->\s+(?P<outcome>\S+)")


class Usage(Exception):
    """What was asked for can't be read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status. Threads and sockets are opened by `--check` alone."""
    asked = _parser().parse_args(arguments)
    try:
        application = get_app(asked.site)
        engine: Engine = application.registry[ENGINE]
    except SettingsError as error:
        return _show_faults(error, asked.format)
    except KeyError:
        return _complain(f"{asked.site}: the application does not include pyramid_threaded_proxy")
    except (OSError, LookupError, ValueError) as error:
        return _complain(f"{asked.site}: {error}")
    try:
        return _run(asked, application, engine)
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except (Usage, CannotRemember) as error:
        return _complain(str(error))


def _run(asked: argparse.Namespace, application: Any, engine: Engine) -> int:
    if asked.check:
        return _check(engine, asked)
    if asked.export:
        return _export(application.registry.queryUtility(IRoutesMapper), engine, asked)
    if asked.explain:
        found = Explainer(application).explain(_asked_of(asked))
        print(as_json(asdict(found)) if asked.format == "json" else _explained(found))
        if found.hook:
            _warn(found.hook)
        return GOOD if found.allowed else FAULT
    if asked.expect:
        return _expect(Explainer(application), asked)
    rows = list(_routes(application.registry.queryUtility(IRoutesMapper), engine))
    _print(rows, asked.format)
    return GOOD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pproxy", description="An application's proxied routes.")
    parser.add_argument("site", help="the ini file, with #name for another section than app:main")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--check", action="store_true", help="judge the settings, and connect to what they name")
    modes.add_argument("--explain", metavar="URL", help="what would happen to a request for this URL or path")
    modes.add_argument("--expect", metavar="FILE", help="hold lines such as `GET /a as bob -> 403` against that")
    modes.add_argument("--export", metavar="ENGINE", help="a configuration for a server that moves the bytes")
    _add_export_options(parser)
    parser.add_argument("-X", dest="method", default="GET", help="with --explain: the method")
    parser.add_argument(
        "--as", dest="user", metavar="USER", help="with --explain: the user, by the policy's remember()"
    )
    parser.add_argument("--header", action="append", default=[], metavar="FIELD", help="with --explain: 'Name: value'")
    parser.add_argument("--from", dest="address", default="127.0.0.1", help="with --explain: the client's address")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--strict", action="store_true", help="warnings are faults")
    return parser


def _add_export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--listen", metavar="ADDRESS", help="with --export: where the server listens, host:port")
    parser.add_argument("--app", metavar="ADDRESS", help="with --export: where the application does, host:port")
    parser.add_argument(
        "--accept", action="append", default=[], metavar="KEY", help="with --export: a key that it may lack"
    )
    parser.add_argument("--output", metavar="FOLDER", help="with --export: where to write its files")


def _complain(text: str) -> int:
    print(f"pproxy: {text}", file=sys.stderr)
    return USAGE


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _show_faults(error: SettingsError, form: str) -> int:
    if form == "json":
        print(as_json({"faults": list(error.faults)}))
    else:
        for fault in error.faults:
            print(fault)
    return FAULT


# Tables


def _print(rows: Sequence[dict[str, Any]], form: str) -> None:
    if form == "json":
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif rows:
        for line in _lines([list(rows[0]), *([str(value) for value in row.values()] for row in rows)]):
            print(line)


def _lines(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _routes(mapper: Any, engine: Engine) -> Iterator[dict[str, Any]]:
    """In matching order: as Pyramid's own list has them."""
    for route in routes_in_order(mapper, engine):
        settings = route.settings
        hooks = [each for each in _HOOKS if getattr(settings, f"hooks_{each}") is not None]
        yield {
            "name": settings.name,
            "mount": (route.mount or "/") if route.is_prefix else settings.pattern,
            "upstream": " ".join(settings.upstream),
            "permission": "(public)" if settings.public else settings.permission or "(default)",
            "limits": _limits(route),
            "hooks": " ".join(hooks) or "-",
        }


_HOOKS = ("request", "response", "headers", "body", "complete", "error")


def _limits(route: Route) -> str:
    settings = route.settings
    limits = {"": settings.max_exchanges, "/user": settings.max_exchanges_per_user}
    return " ".join(f"{limit}{of}" for of, limit in limits.items() if limit is not None) or "-"


# Checking


def _check(engine: Engine, asked: argparse.Namespace) -> int:
    try:
        rows = [_reach(engine, route, upstream) for route in engine.routes.values() for upstream in _upstreams(route)]
        if engine.shared is not None:
            rows.append(_reach_shared(engine.shared))
    finally:
        engine.close()
    _print(rows, asked.format)
    warned = [row for row in rows if row["warning"]]
    for row in warned:
        _warn(f"{row['route']}: {row['upstream']}: {row['warning']}")
    return FAULT if any(row["result"] != "ok" for row in rows) or (asked.strict and warned) else GOOD


def _upstreams(route: Route) -> Iterable[Upstream]:
    return route.balancer.upstreams


def _reach(engine: Engine, route: Route, upstream: Upstream) -> dict[str, Any]:
    """Look up, connect, TLS, and the probe where there is one."""
    row = {"route": route.settings.name, "upstream": upstream.url, "result": "ok", "connect": "-", "tls": "-"}
    row |= {"probe": "-", "warning": ""}
    begun = time.monotonic()
    try:
        pool = engine.upstreams.pool(upstream.origin, False, route.rules.answer.tls)
        connection = run_here(pool.connect(route.settings.connect_timeout))
        try:
            row["connect"] = f"{(time.monotonic() - begun) * 1000:.0f} ms"
            row["tls"], row["warning"] = _certificate(connection.sock)
        finally:
            connection.close()
        row |= _probe(engine, route, upstream)
    except (ExchangeFailed, OSError) as error:
        row["result"] = str(error)
    return row


def _reach_shared(shared: Any) -> dict[str, Any]:
    """Whether the Redis of `proxy.shared` (`shared.site.SharedSite`) takes what a process of the site says to it."""
    row = {"route": "-", "upstream": shared.place, "result": "ok", "connect": "-", "tls": "-", "probe": "-"}
    row["warning"] = ""
    begun = time.monotonic()
    try:
        shared.check(PATIENCE)
        row["connect"] = f"{(time.monotonic() - begun) * 1000:.0f} ms"
    except ProxyError as error:
        row["result"] = f"proxy.shared: {error}"
    return row


def _certificate(sock: Any) -> tuple[str, str]:
    """The protocol and the days that the certificate is still good for, and a warning where these are few."""
    if not isinstance(sock, ssl.SSLSocket):
        return "-", ""
    ends = (sock.getpeercert() or {}).get("notAfter")
    if not isinstance(ends, str):
        return f"{sock.version()}, not verified", "its certificate is not verified"
    days = int((ssl.cert_time_to_seconds(ends) - time.time()) // 86400)
    return f"{sock.version()}, {days} days", f"its certificate ends in {days} days" if days < SOON else ""


def _probe(engine: Engine, route: Route, upstream: Upstream) -> dict[str, str]:
    asking = probed(route)
    if asking is None:
        return {}
    status = run_here(engine.probes.status(asking, upstream))
    well = 200 <= status < 400
    return {"probe": str(status)} | ({} if well else {"result": f"its probe was answered with {status}"})


# Exporting


def _export(mapper: Any, engine: Engine, asked: argparse.Namespace) -> int:
    """The files of an engine, on standard output where there is one; what it can't hold is told on standard error."""
    _check_export(engine, asked)
    site = fronted_site(engine, routes_in_order(mapper, engine), asked.listen, asked.app)
    made = export(asked.export, site, asked.accept)
    if asked.format == "json":
        said = {"warnings": list(map(str, made.warnings)), "refused": list(map(str, made.refused))}
        print(as_json({"files": dict(made.files), **said}))
    else:
        for finding in made.warnings:
            _warn(str(finding))
        for finding in made.refused:
            print(f"can't be exported: {finding}; --accept {finding.key} leaves it out", file=sys.stderr)
        _write(made.files, asked.output)
    if made.refused:
        return NOT_HELD
    return FAULT if asked.strict and made.warnings else GOOD


def _check_export(engine: Engine, asked: argparse.Namespace) -> None:
    if asked.export not in EXPORTERS:
        raise Usage(f"--export {asked.export}: it is one of {', '.join(EXPORTERS)}")
    for option, value in (("--listen", asked.listen), ("--app", asked.app)):
        if value is None or not _ADDRESS.fullmatch(value):
            raise Usage(f"--export needs {option} host:port")
    unknown = set(asked.accept) - KNOWN
    if unknown:
        raise Usage(f"--accept {min(unknown)}: there is no such key")
    if engine.settings.verify_engine != asked.export and not (engine.settings.engine, asked.export) == (
        "accel",
        "nginx",
    ):
        raise Usage(f"--export {asked.export}: the site would not answer it: set proxy.verify.engine = {asked.export}")


def _write(files: Mapping[str, str], folder: str | None) -> None:
    """They hold the secret: nobody else is to read them."""
    if folder is None and len(files) > 1:
        raise Usage(f"--export: there are several files ({', '.join(files)}), so it needs --output FOLDER")
    for name, text in files.items():
        if folder is None:
            sys.stdout.write(text)
            continue
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        print(path)


# Explaining


def _asked_of(asked: argparse.Namespace) -> Asked:
    fields = [_field(text) for text in asked.header]
    return Asked(asked.method.upper(), asked.explain, fields, asked.user, asked.address)


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise Usage(f"--header {text!r}: 'Name: value' is wanted")
    return name.strip(), value.strip()


def _explained(found: Explanation) -> str:
    """Line by line, as it is decided; what says nothing is left out."""
    rows = [[key, str(value)] for key, value in asdict(found).items() if value and not isinstance(value, list)]
    lines = list(_lines(rows))
    for title, block in (("goes up", found.head), ("rules for the answer", found.answer)):
        if block:
            lines += [f"{title}:", *(f"    {line}" for line in block)]
    return "\n".join(lines)


def _expect(explainer: Explainer, asked: argparse.Namespace) -> int:
    """Each line of the file against what would happen."""
    try:
        with open(asked.expect, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise Usage(str(error)) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _EXPECTED.fullmatch(line.strip())
        if match is None:
            raise Usage(
                f"{asked.expect}, line {number}: METHOD TARGET [as USER] -> pass, application or a status is wanted"
            )
        found = explainer.explain(Asked(match["method"], match["target"], userid=match["user"]))
        good = found.outcome == match["outcome"]
        rows.append({"line": number, "request": found.request, "expected": match["outcome"], "found": found.outcome})
        rows[-1] |= {"": "ok" if good else f"WRONG: {found.why}"} if asked.format == "table" else {"ok": good}
    _print(rows, asked.format)
    return GOOD if all(row["expected"] == row["found"] for row in rows) else FAULT


if __name__ == "__main__":
    sys.exit(main())
