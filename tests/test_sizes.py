"""How much a function may be handed, and how long a class or a module may become: what is over that is cut anew."""

from __future__ import annotations

import ast

import pytest

from tests.support.paths import ROOT

FOLDER = ROOT / "pyramid_threaded_proxy"
FILES = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.py"))}

MOST_PARAMETERS = 7
LONGEST_CLASS = 250
LONGEST_MODULE = 450
LONGEST_FUNCTION = 60


def count_of(function: ast.FunctionDef) -> int:
    """Its parameters, without the object that a method belongs to."""
    given = function.args
    names = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return len([name for name in names if name.arg not in ("self", "cls")])


def too_much(source: str) -> list[str]:
    """What of a module's source is over a limit."""
    found = [f"{source.count(chr(10))} lines"] if source.count("\n") > LONGEST_MODULE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > (LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION):
                found.append(f"{node.name}: {length} lines")
        if isinstance(node, ast.FunctionDef) and (count := count_of(node)) > MOST_PARAMETERS:
            found.append(f"{node.name}: {count} parameters")
    return found


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_too_much(name: str) -> None:
    """Seven parameters, sixty lines of a function, 250 of a class, 450 of a module."""
    assert too_much(FILES[name].read_text(encoding="utf-8")) == []


def test_too_much_is_found() -> None:
    """Each of the limits is looked at."""
    parameters = ", ".join(f"p{number}" for number in range(MOST_PARAMETERS + 1))
    long = "    pass\n" * (LONGEST_CLASS + 1)
    source = f"class C:\n{long}\ndef f(self, {parameters}):\n{long}" + "\n" * LONGEST_MODULE
    assert [fault.partition(":")[0] for fault in too_much(source)][1:] == ["C", "f", "f"]
