"""The texts that the package may say at start-up and in the log, as they stand in its source.

`docs/troubleshooting.md` has a remedy for each of them, and a test fails for one that it lacks. What is filled in when
a text is said stands as `…` here and there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyramid_threaded_proxy

PACKAGE = Path(pyramid_threaded_proxy.__file__).parent

LEVELS = ("info", "warning", "error", "exception", "critical")
#: Calls whose first text is a fault of the settings.
FAULTS = ("ValueFault", "TlsFileRefused", "_hook_fault", "fault", "_field_fault")
#: Exceptions whose texts end an exchange, and are told in the log and to hooks. Those of an answer's syntax, made in
#: `http/`, are rules, which have a page of their own.
ENDINGS = (
    "AnswerRefused", "BodyRefused", "BodyTooLarge", "ConnectFailed", "ConnectTimedOut", "DescriptorsExhausted",
    "ExchangeClosed", "FieldRefused", "HookFailed", "PermissionWithdrawn", "ProtocolRefused", "ReadTimedOut",
    "RelayFailed", "TargetRefused", "ThreadsExhausted", "TooManyExchanges", "TotalTimedOut", "UpstreamGone",
)  # fmt: skip
#: Exceptions of Pyramid's whose texts a client sees.
PAGES = ("HTTPForbidden", "HTTPBadGateway", "ProxyTargetRefused")
#: Modules whose generators yield faults, as texts or as pairs of a key and a text.
YIELDING = ("settings/", "app/startup.py", "app/config.py", "app/status.py", "upstream/tls.py")


@dataclass(frozen=True)
class Message:
    """One text, and where it stands."""

    kind: str
    text: str
    place: str


def template(node: ast.AST | None) -> str | None:
    """What a text looks like when it is said, with `…` for what is filled in; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%(?:\(\w+\))?[.\d]*[a-z]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
        return "".join(map(str, parts))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = template(node.left), template(node.right)
        return None if sides == (None, None) else "".join(side or "…" for side in sides)
    return None


def shown(text: str) -> str:
    """As it stands on the page: code there can hold no backticks, and of several `…` in a row one is enough."""
    return re.sub(r"…(?:\W?…)+", "…", text.replace("`", "'")).strip()


class _Reader(ast.NodeVisitor):
    """Goes through one module."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[Message] = []
        self.unseen: list[str] = []
        self._assigned: list[dict[str, list[ast.expr]]] = []

    def visit_Module(self, node: ast.Module) -> None:
        self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside(node)

    def _inside(self, node: ast.Module | ast.FunctionDef) -> None:
        values: dict[str, list[ast.expr]] = {}
        for one in ast.walk(node):
            if isinstance(one, ast.Assign) and len(one.targets) == 1:
                target, value = one.targets[0], one.value
                pairs = [(target, value)]
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs = list(zip(target.elts, value.elts, strict=True))
                for name, text in pairs:
                    if isinstance(name, ast.Name):
                        values.setdefault(name.id, []).append(text)
        self._assigned.append(values)
        self.generic_visit(node)
        self._assigned.pop()

    def _texts(self, node: ast.expr) -> list[str]:
        """Of a name: all that it may stand for."""
        if isinstance(node, ast.Name):
            values = next((one[node.id] for one in reversed(self._assigned) if node.id in one), [])
            return [text for value in values if (text := template(value)) is not None]
        if isinstance(node, ast.IfExp):
            return self._texts(node.body) + self._texts(node.orelse)
        text = template(node)
        return [] if text is None else [text]

    def _note(self, kind: str, node: ast.expr, number: int) -> None:
        texts = self._texts(node)
        if not texts:
            self.unseen.append(f"{self.name}: {ast.unparse(node)}")
        self.found += [Message(kind, said, f"{self.name}:{number}") for text in texts if (said := shown(text)) != "…"]

    def _is_a_rule(self, name: str) -> bool:
        """Whether it is one of the rules of messages, which stand on `docs/accepted-and-refused.md`."""
        return name == "AnswerRefused" and self.name.startswith("http/")

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in LEVELS and isinstance(function, ast.Attribute) and ast.unparse(function.value).endswith("log"):
            self._note("log", node.args[0], node.lineno)
        elif name in FAULTS and node.args:
            self._note("start", node.args[0 if name in ("ValueFault", "fault") else -1], node.lineno)
        elif (
            name == "append" and isinstance(function, ast.Attribute) and ast.unparse(function.value).endswith("faults")
        ):
            if not isinstance(node.args[0], ast.Call):
                self._note("start", node.args[0], node.lineno)

        elif name in ENDINGS + PAGES and node.args and not self._is_a_rule(name):
            self._note("ended", node.args[0], node.lineno)

    def visit_Yield(self, node: ast.Yield) -> None:
        self.generic_visit(node)
        if not self.name.startswith(YIELDING) or node.value is None:
            return
        value = node.value.elts[-1] if isinstance(node.value, ast.Tuple) else node.value
        if (text := template(value)) is not None and " " in text:
            self.found.append(Message("start", shown(text), f"{self.name}:{node.lineno}"))


def read(source: str, name: str) -> tuple[list[Message], list[str]]:
    """The messages of a module, and what is said there but is no text that can be read."""
    reader = _Reader(name)
    reader.visit(ast.parse(source))
    return reader.found, reader.unseen


def modules() -> Iterator[tuple[str, str]]:
    """Name and source of what users run; the demo, and what writes a page of this documentation, are none of it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("demo/", "settings/reference.py")):
            yield name, path.read_text(encoding="utf-8")


@cache
def collected() -> tuple[list[Message], list[str]]:
    """Of the whole package."""
    found: list[Message] = []
    unseen: list[str] = []
    for name, source in modules():
        messages, hidden = read(source, name)
        found += messages
        unseen += hidden
    return found, unseen


if __name__ == "__main__":
    messages, hidden = collected()
    for message in messages:
        print(message.kind, message.place, message.text, sep="\t")
    print("not seen:", *hidden, sep="\n")
