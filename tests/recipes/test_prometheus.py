"""The recipe for Prometheus's own page: it leads to itself, with all that belongs to it, and answers a query."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.recipes import basic, members, program, settings
from tests.support.site import MakeSite
from tests.support.waiting import PATIENCE


def read(url: str, user: str) -> tuple[str, str]:
    """Where it leads, and the page there."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=basic(user)), timeout=PATIENCE) as answer:
        return answer.geturl(), answer.read().decode("utf-8", "replace")


def test_prometheus(site: MakeSite, stack: ExitStack, tmp_path: Path, need_program: Callable[[str], str]) -> None:
    """Every script and style of the page is there, below the mount."""
    (tmp_path / "prometheus.yml").write_text("{}", encoding="utf-8")
    command = [need_program("prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command += ["--web.listen-address=127.0.0.1:{port}", "--web.external-url=https://www.example.com/prometheus/"]
    url = stack.enter_context(program(tmp_path, *command, ready="/prometheus/-/ready"))
    made = site(settings("Prometheus", url), configure=members)
    at, page = read(f"{made.url}/prometheus", "ann")
    assert at.startswith(f"{made.url}/prometheus/")
    parts = re.findall(r"<(?:link|script)[^>]* (?:href|src)=\"?([^\">\s]+)", page)
    assert len(parts) > 3
    for part in parts:
        where = urllib.parse.urljoin(at, part)
        assert where.startswith(f"{made.url}/prometheus/")
        assert read(where, "ann")[1]
    answer = json.loads(read(f"{made.url}/prometheus/api/v1/query?query=vector(42)", "ann")[1])
    assert answer["data"]["result"][0]["value"][1] == "42"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        read(f"{made.url}/prometheus/graph", "bob")
