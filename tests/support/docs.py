"""What the tests of the documentation share: the pages, and what is found on them."""

from __future__ import annotations

import configparser
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from tests.support.paths import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *DOCS]}
#: Made from the settings table, and from docstrings; tests hold them to that.
GENERATED = {"settings.md", "api.md"}
BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


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
    """The examples in one language, as parameters of a test; those of the settings' page have a test of their own."""
    found = [block for page in PAGES if page not in GENERATED for block in blocks(page, language)]
    return [pytest.param(block, id=f"{block.page}-{index}") for index, block in enumerate(found)]


def prose(page: str) -> str:
    """A page without its examples."""
    return _FENCE.sub("", PAGES[page])


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
    """What stands in backticks."""
    return re.findall(r"`([^`]*)`", cell)


def ini() -> configparser.RawConfigParser:
    """A reader of ini files that leaves `%` and the case of keys alone."""
    parser = configparser.RawConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    return parser


def example_modules(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[ModuleType]:
    """The Python examples of a page, each a module in `folder` that is loaded as it stands there."""
    made = []
    for block in blocks(page, "python"):
        module = ModuleType(f"example_{len(made)}_of_{page.partition('.')[0]}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        path = folder / f"{module.__name__}.py"  # Pyramid looks for an included module's file
        path.write_text(block.text, encoding="utf-8")
        module.__file__ = str(path)
        exec(compile(block.text, path, "exec"), module.__dict__)
        made.append(module)
    return made
