"""The site as Sphinx builds it, from a copy of the pages with one more that nobody listed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.programs import leave_out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of the pages, and the warnings."""
    if find_spec("sphinx") is None or find_spec("furo") is None:
        leave_out("the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    shutil.copy(ROOT / "CHANGES", folder)
    (folder / "docs/stray.md").write_text("# A page that nobody listed\n", encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(folder / "docs"), str(folder / "html")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return folder / "html", [line for line in done.stderr.splitlines() if "WARNING" in line]


def page(built: tuple[Path, list[str]], name: str) -> str:
    return (built[0] / f"{name}.html").read_text(encoding="utf-8")


def test_the_one_warning_is_of_the_page_that_nobody_listed(built: tuple[Path, list[str]]) -> None:
    """With warnings as errors that fails the build; nothing else does, without a network too."""
    (warning,) = built[1]
    assert "stray.md" in warning
    assert "toctree" in warning


def test_the_four_kinds_are_told_apart(built: tuple[Path, list[str]]) -> None:
    """Beside each page stand the four lists, with a search."""
    text = page(built, "hooks")
    assert re.findall(r'class="caption-text">([^<]+)<', text) == ["Learn", "Do", "Look up", "Understand"]
    assert "search.html" in text
    assert "copybutton.js" in text


def test_names_lead_to_where_they_are_explained(built: tuple[Path, list[str]]) -> None:
    """Settings and what is exported, on our pages; names of waitress and Pyramid, on theirs; plain words nowhere."""
    hooks = page(built, "hooks")
    assert re.search(r'href="api\.html#request-proxy-fetch"[^>]*><code', hooks)
    assert re.search(r'href="settings\.html#request-set-field"[^>]*><code', hooks)
    assert re.search(r'href="https://docs\.pylonsproject\.org/[^"]*waitress[^"]*"><code', page(built, "logs"))
    assert re.search(r'href="https://[^"]*#pyramid\.config\.Configurator\.add_subscriber"><code', page(built, "api"))
    assert not re.search(r"<a [^>]*><code[^>]*><span class=\"pre\">(?:status|body|headers)<", hooks)
