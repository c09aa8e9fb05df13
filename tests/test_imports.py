"""The rooms of the house: which may know which, and who may know what is not ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = "pyramid_threaded_proxy"
FOLDER = ROOT / PACKAGE

#: Values, and what users name by dotted path. Everything else stands in a room.
ROOT = {"__init__", "scripts", "tween", "accesslog", "exceptions", "exchange", "hooks", "events", "testing"}
#: Stand beside the rest and import public names only.
BESIDE = {"demo"}

#: What each room, or module of the root, may import; besides, all may import `exceptions`.
MAY_IMPORT: dict[str, set[str]] = {
    "app": {
        "settings", "relay", "detach", "upstream", "loop", "limits", "http", "accesslog", "exchange", "hooks", "events",
        "status", "shared",
    },
    "status": {"upstream", "loop", "accesslog", "exchange"},
    "shared": set(),
    "relay": {"upstream", "loop", "limits", "http", "settings.table", "exchange", "hooks"},
    "detach": {"loop", "limits", "exchange", "http.names"},
    "upstream": {"loop", "http"},
    "settings": {"http"},
    "limits": {"exchange"},
    "loop": set(),
    "http": set(),
    "accesslog": {"loop", "exchange"},
    "hooks": {"exchange"},
    "events": {"exchange"},
    "exchange": {"http.names"},
    "exceptions": set(),
    "testing": set(),
    "tween": {"app", "http"},
    "scripts": {"app", "settings", "upstream", "engines", "loop.waits"},
    "engines": {"app", "settings", "upstream", "http"},
    "__init__": {"app", "settings", "limits", "exchange", "events"},
}  # fmt: skip
ROOMS = set(MAY_IMPORT) - ROOT

#: Who may know what is not ours, by room or by module.
KNOWS = {
    "pyramid": {"app", "tween", "scripts", "settings", "status.views", "__init__"},
    "zope": {"app"},
    "waitress": {"detach"},
    "urllib3": {"upstream"},
    "yaml": {"settings.sources"},
    "prometheus_client": {"status.metrics"},
    "redis": {"shared.store"},
    "opentelemetry": {"app.tracing"},
    "webob": {"app", "exchange", "hooks", "relay.relay", "relay.own_answer", "http.cookies"},
}
#: Bytes and text alone.
PURE = {"http", "exceptions"}
IMPURE = {"socket", "select", "selectors", "ssl", "threading", "time", "asyncio", "subprocess", "queue", "pyramid"}


def dotted(path: Path) -> str:
    """A file's name below the package, such as ``relay.client``; a room's own ``__init__`` is the room."""
    name = ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    return name if name == "__init__" else name.removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """The full dotted names that a file imports: of ``from a import b`` it is ``a.b``. A type checker's count too."""
    parts = path.relative_to(FOLDER.parent).with_suffix("").parts
    names: set[str] = set()
    for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names.update(alias.name for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            above = parts[: len(parts) - statement.level] if statement.level else ()
            module = ".".join([*above, *filter(None, [statement.module])])
            names.update(f"{module}.{alias.name}" for alias in statement.names)
    return names


FILES = {dotted(path): path for path in sorted(FOLDER.rglob("*.py"))}
HOUSE = sorted(name for name in FILES if name.split(".")[0] not in BESIDE)


def own_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports."""
    found: set[str] = set()
    for name in imported(path):
        tail = name.removeprefix(f"{PACKAGE}.")
        if tail == name:
            continue
        while tail and tail not in FILES:
            tail = tail.rpartition(".")[0]
        found.add(tail or "__init__")  # a name that is no module comes from __init__
    return found


def foreign(path: Path) -> set[str]:
    """The top-level names of what a file imports from elsewhere."""
    return {name.split(".")[0] for name in imported(path)} - {PACKAGE}


def room_of(module: str) -> str:
    return module.split(".")[0]


def breaches(module: str) -> set[str]:
    """What a module imports from rooms that its own may not know."""
    room = room_of(module)
    allowed = MAY_IMPORT.get(room, set()) | {room, "exceptions"}
    return {other for other in own_modules(FILES[module]) if other not in allowed and room_of(other) not in allowed}


def test_every_module_has_its_place() -> None:
    """A module stands in a room, or is one of the root's few."""
    assert {name for name in HOUSE if room_of(name) not in ROOMS and name not in ROOT} == set()


def test_imports_follow_the_directions() -> None:
    """A room knows those that the plan lets it know, and no others."""
    assert {(name, other) for name in HOUSE for other in breaches(name)} == set()


def circle(module: str, inside: dict[str, set[str]], way: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A way along imports that comes back to where it has been; empty if there is none."""
    if module in way:
        return (*way[way.index(module) :], module)
    return next((found for other in sorted(inside[module]) if (found := circle(other, inside, (*way, module)))), ())


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_circle_inside_a_room(room: str) -> None:
    """The modules of a room can be read one after the other."""
    modules = {name for name in HOUSE if room_of(name) == room}
    inside = {name: (own_modules(FILES[name]) & modules) - {name} for name in modules}
    assert [found for name in sorted(modules) if (found := circle(name, inside))] == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_exports_nothing(room: str) -> None:
    """A room's ``__init__`` says what it is for; names are imported from where they stand."""
    init = FOLDER / room / "__init__.py"
    if init.exists():
        assert [node for node in ast.parse(init.read_text()).body if not isinstance(node, ast.Expr)] == []


@pytest.mark.parametrize("module", HOUSE)
def test_foreign_packages_are_known_in_few_places(module: str) -> None:
    """One room knows waitress, one knows urllib3, and only three know Pyramid."""
    names = foreign(FILES[module]) & set(KNOWS)
    assert {name for name in names if not {module, room_of(module)} & KNOWS[name]} == set()


@pytest.mark.parametrize("module", [name for name in HOUSE if room_of(name) in PURE])
def test_the_byte_layer_is_pure(module: str) -> None:
    """What reads and writes messages knows no sockets, clocks, threads or Pyramid."""
    assert foreign(FILES[module]) & IMPURE == set()


@pytest.mark.parametrize("module", [name for name in FILES if room_of(name) in BESIDE])
def test_what_stands_beside_imports_public_names_only(module: str) -> None:
    """The demo uses the package as any application would: by what its `__init__` offers."""
    assert {room_of(name) for name in own_modules(FILES[module])} <= {"__init__", room_of(module)}


def test_the_reader_of_imports_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, relative, aliased and nested imports are seen, and those for the type checker."""
    monkeypatch.setitem(globals(), "FOLDER", tmp_path / PACKAGE)
    path = tmp_path / PACKAGE / "app" / "views.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import os.path as p\nfrom . import head\nfrom .fields import x\n"
        f"from {PACKAGE}.target import y\nfrom {PACKAGE} import rules\n"
        "if TYPE_CHECKING:\n    import waitress\ndef f():\n    import urllib3.util\n"
    )
    own = {f"{PACKAGE}.{name}" for name in ("app.head", "app.fields.x", "target.y", "rules")}
    assert imported(path) == {"os.path", "urllib3.util", "waitress"} | own


def test_a_circle_is_found() -> None:
    """The search for circles follows imports of imports."""
    assert circle("a", {"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ("b", "c", "b")
    assert circle("a", {"a": {"b", "c"}, "b": {"c"}, "c": set()}) == ()


def test_nothing_in_the_tables_is_made_up() -> None:
    """What is named there exists, and each foreign package is known by somebody who may know it."""
    assert set(MAY_IMPORT) == {room_of(name) for name in HOUSE}
    for package, who in KNOWS.items():
        assert any(package in foreign(FILES[name]) for name in HOUSE if {name, room_of(name)} & who), package
