"""The recipe for Prometheus's own page: it leads to itself, with all that belongs to it, and answers in Chromium."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.browser import DEADLINE, Browser
from tests.support.recipes import basic, members, program, settings
from tests.support.site import MakeSite, Site
from tests.support.waiting import PATIENCE, wait_until


def read(url: str, user: str) -> tuple[str, str]:
    """Where it leads, and the page there."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=basic(user)), timeout=PATIENCE) as answer:
        return answer.geturl(), answer.read().decode("utf-8", "replace")


@pytest.fixture
def prometheus(site: MakeSite, stack: ExitStack, tmp_path: Path, need_program: Callable[[str], str]) -> Site:
    """A site with Prometheus behind it, which measures nothing."""
    (tmp_path / "prometheus.yml").write_text("{}", encoding="utf-8")
    command = [need_program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command += ["--web.listen-address=127.0.0.1:{port}", "--web.external-url=https://www.example.com/prometheus/"]
    url = stack.enter_context(program(tmp_path, *command, ready="/prometheus/-/ready"))
    return site(settings("Prometheus", url), configure=members)


def test_all_parts_are_there(prometheus: Site) -> None:
    """Every script and style of the page is there, below the mount; who may not is refused it."""
    at, page = read(f"{prometheus.url}/prometheus", "ann")
    assert at.startswith(f"{prometheus.url}/prometheus/")
    parts = re.findall(r"<(?:link|script)[^>]* (?:href|src)=\"?([^\">\s]+)", page)
    assert len(parts) > 3
    for part in parts:
        where = urllib.parse.urljoin(at, part)
        assert where.startswith(f"{prometheus.url}/prometheus/")
        assert read(where, "ann")[1]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        read(f"{prometheus.url}/prometheus/graph", "bob")


def test_the_page(prometheus: Site, browser: Browser) -> None:
    """Chromium shows it, and it has asked Prometheus what the expression is worth."""
    browser.open(f"{prometheus.url}/prometheus/graph?g0.expr=vector(42)&g0.tab=1", "auth_tkt=ann")
    wait_until(lambda: re.search(r"\{\}\s+42\s", browser.page()), "the value", DEADLINE)
    assert "Alerts" in browser.page()
