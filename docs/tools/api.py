"""Writes `docs/api.md` from the docstrings, comments and types of what the package exports: `python -m docs.tools.api`.

A generator of our own, because Sphinx's looks for a class in the module that it names, and ours name the package, where
users find them; and because the page is to be readable where no Sphinx is.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyramid_threaded_proxy
from pyramid_threaded_proxy import accesslog, exceptions, hooks, testing
from pyramid_threaded_proxy.app.config import add_proxy_route
from pyramid_threaded_proxy.app.request_methods import proxy_fetch, proxy_forward
from pyramid_threaded_proxy.app.status import proxy_collector
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS

PACKAGE = Path(pyramid_threaded_proxy.__file__).parent

INTRODUCTION = """\
# API

<!-- Made by `python -m docs.tools.api > docs/api.md` from the docstrings; edit those instead. -->

All names here are importable from `pyramid_threaded_proxy`, except where another module is named. Whatever is not on
this page may change in any version.
"""


# What is found in the source


@dataclass
class Attribute:
    """One attribute of a class, or a property."""

    name: str
    type: str
    text: str


@cache
def definitions() -> dict[str, tuple[ast.ClassDef, list[str]]]:
    """Every class of the package, with the lines of its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, (node, source.splitlines()))
    return found


def markdown(docstring: str | None) -> str:
    """A docstring as Markdown: code bears one backtick there."""
    return re.sub(r"``([^`]+)``", r"`\1`", inspect.cleandoc(docstring or ""))


def in_one_line(text: str) -> str:
    """For a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def _comment(lines: list[str], number: int) -> str:
    """The `#:` lines above a line, or else the comment at its end. `number` counts from 1."""
    above: list[str] = []
    while (line := lines[number - 2 - len(above)].strip()).startswith("#:"):
        above.insert(0, line[2:].strip())
    behind = re.search(r"  # (.*)$", lines[number - 1])
    return " ".join(above) or (behind[1] if behind else "")


def attributes(name: str) -> Iterator[Attribute]:
    """The public attributes of a class, in the order of its source."""
    node, lines = definitions()[name]
    given: dict[str, str] = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield from _attribute(item.target.id, ast.unparse(item.annotation), _comment(lines, item.lineno))
        elif isinstance(item, ast.FunctionDef) and item.name == "__init__":
            given = {one.arg: ast.unparse(one.annotation) for one in item.args.args if one.annotation is not None}
            for statement in item.body:
                yield from _assigned(statement, given, lines)
        elif isinstance(item, ast.FunctionDef) and any(ast.unparse(one) == "property" for one in item.decorator_list):
            kind = ast.unparse(item.returns) if item.returns is not None else ""
            yield from _attribute(item.name, kind, markdown(ast.get_docstring(item)))


def _assigned(statement: ast.stmt, given: dict[str, str], lines: list[str]) -> Iterator[Attribute]:
    if isinstance(statement, ast.AnnAssign):
        target, kind = ast.unparse(statement.target), ast.unparse(statement.annotation)
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, kind = ast.unparse(statement.targets[0]), _type_of(statement.value, given)
    else:
        return
    if target.startswith("self."):
        yield from _attribute(target.removeprefix("self."), kind, _comment(lines, statement.lineno))


def _type_of(value: ast.expr, given: dict[str, str]) -> str:
    """The type of what is assigned: that of a parameter, of a constant, or what a call of a class makes."""
    if isinstance(value, ast.Name):
        return given.get(value.id, "")
    if isinstance(value, ast.Constant):
        return type(value.value).__name__
    return ast.unparse(value.func) if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""


def _attribute(name: str, kind: str, text: str) -> Iterator[Attribute]:
    if not name.startswith("_"):
        yield Attribute(name, kind, text)


#: Attributes that rooms of the package use among themselves.
INTERNAL = {
    "ProxyResponse": {"headerlist", "prepared"},
    "UpstreamRequest": {"origin", "target", "fields", "changed_url"},
    "UpstreamAnswer": {"fields", "reader", "reason"},
    "Exchange": {"log_values"},
}


# What is written


def signature(name: str, function: Callable[..., Any], without: str = "") -> str:
    """A call as it is written, with types; `without` is the parameter that Pyramid gives."""
    found = inspect.signature(function)
    parameters = [one for one in found.parameters.values() if one.name not in (without, "self")]
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(found.replace(parameters=parameters)))
    lines = textwrap.fill(name + text, 100, subsequent_indent="    ", break_long_words=False)
    return f"```text\n{lines}\n```\n"


def function(name: str, found: Callable[..., Any], without: str) -> str:
    return f"### `{name}`\n\n{signature(name, found, without)}\n{markdown(found.__doc__)}\n"


def table(name: str) -> str:
    """The attributes of a class, or nothing where it has none."""
    shown = [one for one in attributes(name) if one.name not in INTERNAL.get(name, ())]
    lines = [f"| `{one.name}` | {_code(one.type)} | {in_one_line(one.text)} |" for one in shown]
    return "\n".join(["| attribute | type | meaning |", "| --- | --- | --- |", *lines]) + "\n" if lines else ""


def _code(text: str) -> str:
    return f"`{in_one_line(text)}`" if text else ""


def methods_of(name: str) -> tuple[str, ...]:
    """The public methods of a class, in the order of its source."""
    functions = [one for one in definitions()[name][0].body if isinstance(one, ast.FunctionDef)]
    return tuple(one.name for one in functions if not one.name.startswith("_") and not one.decorator_list)


def kind(name: str, found: type, methods: tuple[str, ...] = ()) -> str:
    """A class with its attributes, and the methods that are for users."""
    parts = [f"### `{name}`\n", markdown(found.__doc__) + "\n", table(name)]
    for method in methods:
        one = getattr(found, method)
        parts.append(f"{signature(f'{name}.{method}', one)}\n{markdown(one.__doc__)}\n")
    return "\n".join(part for part in parts if part)


# Exceptions


def bases(error: type) -> str:
    names = [base.__name__ for base in error.__bases__ if base is not object]
    return ", ".join(f"`{name}`" for name in names)


def who_sees_it(error: type[Exception]) -> str:
    """Where an exception shows, and what an `error` hook can do about it."""
    if issubclass(error, exceptions.ClientGone | exceptions.ClientTimedOut):
        return "The `error` hook is called, and can only take note: the client can't be reached any more."
    if issubclass(error, exceptions.TunnelIdle):
        return "The `error` hook is called, and can only take note: the head of the answer, a 101, is out."
    if issubclass(error, exceptions.ExchangeFailed):
        if issubclass(error, exceptions.RequestRefused):
            return "Before the detach it is rendered by an exception view. Later the `error` hook may answer instead."
        return "The `error` hook may answer instead, while the head is not out."
    if issubclass(error, pyramid_threaded_proxy.SettingsError):
        return "Raised while the application is configured, or from a view that gives a bad key: no hook sees it."
    if issubclass(error, exceptions.RequestRefused):
        return "The client's fault, found in the thread of the request: no hook sees it. " + _RENDERED
    return "Raised in the thread of the request: an exception view can render it, and no hook sees it."


_RENDERED = "What an exception view gets is Pyramid's exception with that status, such as `HTTPBadRequest`."


def exception(name: str, error: type[Exception]) -> str:
    """An exception: when it is raised, the status and the log's word, and who sees it."""
    facts = [f"- A subclass of {bases(error)}."]
    status, ended = getattr(error, "status", None), getattr(error, "ended", None)
    if name == "TooManyExchanges":
        status = "503, or 429 where it is the limit of one user"
    elif name == "ProxyTargetRefused":
        status = 502
    elif name in ("ProxyResponseError", "ValueRefused"):
        status = "500, unless an exception view says otherwise"
    if status is not None:
        facts.append(f"- Status: {status}." + (f" The access log's word: `{ended}`." if ended else ""))
    facts.append(f"- {who_sees_it(error)}")
    return f"### `{name}`\n\n{markdown(error.__doc__)}\n\n" + "\n".join(facts) + "\n"


def errors() -> dict[str, type[Exception]]:
    """The exceptions that the package exports, the general ones before the special ones."""
    found = {name: getattr(pyramid_threaded_proxy, name) for name in pyramid_threaded_proxy.__all__}
    classes = {name: one for name, one in found.items() if isinstance(one, type) and issubclass(one, Exception)}
    order = [name for name, one in vars(exceptions).items() if isinstance(one, type)]
    return {name: classes[name] for name in [*order, *(name for name in classes if name not in order)]}


def _tree() -> str:
    drawing = inspect.cleandoc(exceptions.__doc__ or "").partition("::\n\n")[2]
    return "```text\n" + textwrap.dedent(re.split(r"\n(?=\S)", drawing)[0]).rstrip() + "\n```\n"


_EXCEPTIONS = """\
## Exceptions

What goes wrong before the detach is raised in the thread of the request, so that the application's exception views
render it. What goes wrong later is in `exchange.error`, and the `error` hook is called. As long as the head of the
answer is not out, the hook may return a response, or raise one of Pyramid's HTTP exceptions, and the client gets that
instead of our error page. Once the head is out nothing can be said any more: the connection is closed, so that the
client can tell that the answer is not whole. [Troubleshooting](troubleshooting.md) has a remedy for each.
"""


# Hooks

_CALLED = {"request": "request, exchange", "body": "exchange, pieces"}


def hook_table() -> str:
    lines = ["| key | called as | when, and what it may do |", "| --- | --- | --- |"]
    for one in attributes("Hooks"):
        called = f"`{one.name}({_CALLED.get(one.name, 'exchange')})`"
        lines.append(f"| `hooks.{one.name}` | {called} | {in_one_line(markdown(one.text))} |")
    return "\n".join(lines) + "\n"


# The page


def page() -> str:
    """The whole of `docs/api.md`."""
    public = pyramid_threaded_proxy
    routes = len(ROUTE_KEYS)
    parts = [
        INTRODUCTION,
        "## Configuration\n",
        function("includeme", public.includeme, ""),
        function("config.add_proxy_route", add_proxy_route, "config"),
        f"The {routes} keys are those of the [settings page](settings.md).\n",
        function("config.proxy_collector", proxy_collector, "config"),
        "## In a view\n",
        function("request.proxy_fetch", proxy_fetch, "request"),
        function("request.proxy_forward", proxy_forward, "request"),
        kind("ProxyResponse", public.ProxyResponse),
        "Its `proxy_exchange` is the `Exchange` that its call will begin.\n",
        "### `request.proxy_exchanges`\n\nThe one `InFlight` of the process.\n",
        kind("InFlight", public.InFlight, ("close",)),
        "## What is known of an exchange\n",
        *(kind(name, getattr(public, name)) for name in ("Exchange", "UpstreamRequest")),
        kind("UpstreamAnswer", public.UpstreamAnswer, ("read",)),
        kind("Stats", public.Stats),
        "## Hooks\n",
        markdown(hooks.Hooks.__doc__) + "\n",
        hook_table(),
        "A declared route names its hooks by dotted names; `config.add_proxy_route` takes callables as well\n"
        "(`hooks_response=…`), and so do the two request methods (`on_response=…`). [Hooks](hooks.md) has examples.\n",
        "## Events\n\nFor `config.add_subscriber`.\n",
        *(kind(name, getattr(public, name)) for name in _EVENTS),
        _EXCEPTIONS,
        _tree(),
        *(exception(name, error) for name, error in errors().items()),
        "## For the log\n\nFrom `pyramid_threaded_proxy.accesslog`, by their dotted names in an ini file.\n",
        *(kind(name, getattr(accesslog, name)) for name in ("JsonFormatter", "BufferedFileHandler")),
        "## For tests\n\nFrom `pyramid_threaded_proxy.testing`. [Testing](testing.md) shows how they are used.\n",
        kind("ScriptedUpstream", testing.ScriptedUpstream, methods_of("ScriptedUpstream")),
        kind("ReceivedRequest", testing.ReceivedRequest),
    ]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


_EVENTS = ("ExchangeStarted", "ExchangeFinished", "UpstreamDown", "UpstreamUp")


if __name__ == "__main__":
    print(page(), end="")
