"""The pages for operators: what they show is what comes out, and their files are what programs take."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyramid.config import Configurator

from pyramid_threaded_proxy import accesslog
from pyramid_threaded_proxy.status.counts import REASONS
from tests.status.test_metrics import TABLE
from tests.support.docs import BIN, PAGES, blocks, example_modules, quoted, rows, section
from tests.support.origin import Origin, Script, echo
from tests.support.paths import ROOT
from tests.support.site import Anybody, Site, route

DOCS = ROOT / "docs"
ID = re.compile("[0-9a-f]{32}")


def test_pproxy_prints_what_its_page_shows(tmp_path: Path) -> None:
    """Each example is executed, with the demo's settings, and prints what stands there."""
    (expectations,) = blocks("pproxy.md", "text")
    (tmp_path / "who-may.txt").write_text(expectations.text)
    (tmp_path / "development.ini").write_text((ROOT / "development.ini").read_text())
    examples = blocks("pproxy.md", "console")
    assert len(examples) >= 7
    for example in examples:
        command, _, expected = example.text.removeprefix("$ ").partition("\n")
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env={"PATH": BIN}, capture_output=True, text=True, timeout=60
        )
        assert ID.sub("ID", done.stdout) == ID.sub("ID", expected), command
        assert "Traceback" not in done.stderr


def test_alert_rules_are_rules(need_program: Callable[[str], str]) -> None:
    """`promtool` takes them, and they name metrics that there are."""
    program = need_program("promtool")
    checked = subprocess.run(
        [program, "check", "rules", DOCS / "alerts.yml"], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr
    rules = [rule for group in yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    assert names_in(rule["expr"] for rule in rules) <= exposed()


def test_the_scrape_config_is_one(need_program: Callable[[str], str], tmp_path: Path) -> None:
    """Prometheus takes the example."""
    (example,) = blocks("metrics.md", "text")
    (tmp_path / "prometheus.yml").write_text(example.text)
    command = [need_program("promtool"), "check", "config", "--syntax-only", tmp_path / "prometheus.yml"]
    checked = subprocess.run(command, capture_output=True, timeout=60)
    assert checked.returncode == 0, checked.stderr


def exposed() -> set[str]:
    """The names of all samples."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {name + suffix for name, (kind, _) in TABLE.items() for suffix in suffixes[kind]}


def names_in(expressions: Any) -> set[str]:
    """The names of our metrics in expressions."""
    return {name for expression in expressions for name in re.findall(r"\bproxy_\w+", expression)}


def test_the_dashboard_asks_for_what_there_is(need_program: Callable[[str], str], tmp_path: Path) -> None:
    """Its queries are ones that Prometheus understands, of metrics that there are; each panel has one."""
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) == 12
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert names_in(queries) <= exposed()
    written = [query.replace("$__rate_interval", "1m").replace("$route", ".*") for query in queries]
    records = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(written)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    program = need_program("promtool")
    checked = subprocess.run([program, "check", "rules", tmp_path / "rules.yml"], capture_output=True, timeout=60)
    assert checked.returncode == 0, checked.stderr


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    """Names, types and labels; and the reasons of a refusal."""
    found = rows(section("metrics.md", "All metrics"))
    table = {quoted(row[0])[0]: (row[1], set(quoted(row[2]))) for row in found[:18]}
    wanted = {name + ("_total" if kind == "counter" else ""): (kind, labels) for name, (kind, labels) in TABLE.items()}
    assert table == wanted
    reasons = {name for row in found[18:] for name in quoted(row[0])}
    assert reasons == set(REASONS)


def test_the_table_of_the_logs_names_is_that_of_the_code() -> None:
    """Every attribute, and no other."""
    names = [name for row in rows(section("logs.md", "The access log as JSON")) for name in quoted(row[0])]
    assert sorted(names) == sorted(["time", *accesslog.VALUES])


def test_the_page_of_metrics_has_a_view_that_works(
    origin: Callable[[Script], Origin], site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An application that registers the collector itself exposes what it counts, without a status page."""
    (module,) = example_modules("metrics.md", tmp_path, monkeypatch)

    def configure(config: Configurator) -> None:
        config.set_security_policy(Anybody())
        config.include(module.includeme)

    here = site(route("r", origin(echo).url), configure=configure)
    here.get("/r/")
    assert b'proxy_exchanges_total{code="200",ended="whole",method="GET",route="r"} 1.0' in here.get("/metrics").body


def test_the_screenshot_is_shown() -> None:
    """In the README and on the page's own page."""
    assert (DOCS / "status-page.png").read_bytes().startswith(b"\x89PNG")
    assert "docs/status-page.png" in PAGES["README.md"]
    assert "(status-page.png)" in PAGES["status.md"]
