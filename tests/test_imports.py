"""Imports point one way: down this table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "pyramid_threaded_proxy"
FOLDER = Path(__file__).parent.parent / PACKAGE

# A module may import what stands below it, and in its own row what stands behind it. So there are no cycles.
LAYERS = (
    ("__init__",),
    # knows Pyramid
    ("config", "views", "request", "tween", "forward", "response", "engine"),
    # moves an exchange
    ("request_source", "detach", "stream", "recheck", "accesslog", "operator_log", "probes"),
    ("relay", "own_answer", "request_body", "tunnel", "body", "client", "transfer", "upstream"),
    # runs what is ready, parks what waits
    ("scheduler", "idle_clients", "tasks", "syscalls", "pool", "poller", "timers"),
    # says what is wanted
    ("route", "settings", "settings_table", "settings_urls", "settings_sources", "settings_values"),
    ("in_flight", "admission", "descriptors", "stopping", "events", "hooks", "rules", "exchange"),
    ("balance", "health", "origin", "tls"),
    # pure bytes: no sockets, clocks, threads, Pyramid
    ("forwarded", "fields", "cookies", "target", "framing", "head", "allow"),
    ("exceptions",),
)
ORDER = [module for layer in LAYERS for module in layer]
# Stand beside the rest and import public names only.
BESIDE = ("demo",)

# Who may know what is not ours.
KNOWS = {
    "pyramid": {"__init__", *LAYERS[1], *(module for module in ORDER if module.startswith("settings"))},
    "waitress": {"detach"},
    "urllib3": {"upstream"},
    "yaml": {"settings_sources"},
}
PURE = {*LAYERS[-2], "rules", "exceptions"}
IMPURE = {"socket", "select", "selectors", "ssl", "threading", "time", "asyncio", "subprocess", "queue", "pyramid"}

MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))
BESIDE_FILES = sorted(path for folder in BESIDE for path in (FOLDER / folder).rglob("*.py"))


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that are carried out, in functions too; what only a type checker reads is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            yield from statements(child)


def imported(path: Path) -> set[str]:
    """The full dotted names that a file imports: of ``from a import b`` it is ``a.b``."""
    parts = path.relative_to(FOLDER.parent).with_suffix("").parts
    names: set[str] = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            names.update(alias.name for alias in statement.names)
        else:
            above = parts[: len(parts) - statement.level] if statement.level else ()
            module = ".".join([*above, *filter(None, [statement.module])])
            names.update(f"{module}.{alias.name}" for alias in statement.names)
    return names


def own_modules(path: Path) -> set[str]:
    """The modules of the package, by their short names, that a file imports."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith(f"{PACKAGE}.")}
    # `from pyramid_threaded_proxy import name`: a name that is no module comes from __init__.
    return {name if name in MODULES or name in BESIDE else "__init__" for name in names}


def foreign(path: Path) -> set[str]:
    """The top-level names of what a file imports from elsewhere."""
    return {name.split(".")[0] for name in imported(path)} - {PACKAGE}


def test_every_module_has_its_place() -> None:
    """A module or folder that the table does not name has no place yet."""
    folders = {path.parent.name for path in FOLDER.glob("*/__init__.py")}
    assert set(MODULES) - set(ORDER) == set()
    assert folders == set(BESIDE)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """A module imports only what the table has below it or behind it."""
    below = set(ORDER[ORDER.index(module) + 1 :])
    assert own_modules(FOLDER / f"{module}.py") - below == set()


@pytest.mark.parametrize("module", MODULES)
def test_foreign_packages_are_known_in_few_places(module: str) -> None:
    """One module knows waitress, one knows urllib3, and only the top layer and the settings know Pyramid."""
    names = foreign(FOLDER / f"{module}.py")
    assert {name for name in names & set(KNOWS) if module not in KNOWS[name]} == set()


@pytest.mark.parametrize("module", sorted(PURE & set(MODULES)))
def test_the_byte_layer_is_pure(module: str) -> None:
    """What reads and writes messages knows no sockets, clocks, threads or Pyramid."""
    assert foreign(FOLDER / f"{module}.py") & IMPURE == set()


@pytest.mark.parametrize("path", BESIDE_FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_what_stands_beside_imports_public_names_only(path: Path) -> None:
    """The demo uses the package as any application would: by what its `__init__` offers."""
    assert own_modules(path) <= {"__init__", path.relative_to(FOLDER).parts[0]}


def test_the_reader_of_imports_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, relative, aliased and nested imports are seen, those for the type checker are not."""
    monkeypatch.setitem(globals(), "FOLDER", tmp_path / PACKAGE)
    path = tmp_path / PACKAGE / "views.py"
    path.parent.mkdir()
    path.write_text(
        "import os.path as p\nfrom . import head\nfrom .fields import x\n"
        f"from {PACKAGE}.target import y\nfrom {PACKAGE} import rules\n"
        "if TYPE_CHECKING:\n    import waitress\ndef f():\n    import urllib3.util\n"
    )
    own = {f"{PACKAGE}.{name}" for name in ("head", "fields.x", "target.y", "rules")}
    assert imported(path) == {"os.path", "urllib3.util"} | own
