"""Tests stand in the rooms of what they test: each module has a test file of its name, or one that is named here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "pyramid_threaded_proxy"
TESTS = ROOT / "tests"

#: For modules without a test file of their own, the one that fails first when such a module is wrong.
COVERED_BY = {
    "__init__.py": "docs/test_pages.py",
    "events.py": "relay/test_threads.py",
    "exceptions.py": "relay/test_errors.py",
    "hooks.py": "relay/test_hooks.py",
    "tween.py": "limits/test_admission.py",
    "app/admit.py": "limits/test_admission.py",
    "app/compile.py": "app/test_config.py",
    "app/declared.py": "app/test_config.py",
    "app/engine.py": "upstream/test_health.py",
    "app/environ.py": "app/test_forward.py",
    "app/explain.py": "test_scripts.py",
    "app/host.py": "app/test_hosts_and_queries.py",
    "app/mounts.py": "detach/test_turns.py",
    "app/observed.py": "status/test_page.py",
    "app/own_origin.py": "site/test_traffic.py",
    "app/prepare.py": "app/test_forward.py",
    "app/refusals.py": "status/test_status.py",
    "app/request_methods.py": "app/test_fetch.py",
    "app/second_target.py": "site/test_traffic.py",
    "app/sent_body.py": "app/test_streamed.py",
    "app/startup.py": "app/test_config.py",
    "app/status.py": "status/test_page.py",
    "app/upgrade.py": "relay/test_tunnel.py",
    "app/views.py": "app/test_authorization.py",
    "app/accel.py": "engines/test_fronts.py",
    "demo/__init__.py": "site/test_demo.py",
    "demo/__main__.py": "site/test_demo.py",
    "demo/children.py": "site/test_demo.py",
    "demo/client.py": "site/test_demo.py",
    "demo/security.py": "site/test_demo.py",
    "demo/upstream.py": "site/test_demo.py",
    "demo/views.py": "site/test_demo.py",
    "detach/access.py": "detach/test_middleware.py",
    "detach/applications.py": "app/test_streamed.py",
    "detach/epilogue.py": "detach/test_waitress_contract.py",
    "detach/server.py": "loop/test_idle_clients.py",
    "detach/tables.py": "detach/test_crowd.py",
    "detach/task.py": "detach/test_waitress_contract.py",
    "engines/__main__.py": "engines/test_support.py",
    "engines/caddy.py": "engines/test_same_upstream.py",
    "engines/envoy.py": "engines/test_same_upstream.py",
    "engines/export.py": "engines/test_support.py",
    "engines/haproxy.py": "engines/test_fronts.py",
    "engines/lua.py": "engines/test_support.py",
    "engines/nginx.py": "engines/test_fronts.py",
    "engines/site.py": "engines/test_support.py",
    "engines/traefik.py": "engines/test_same_upstream.py",
    "http/names.py": "http/test_fields.py",
    "http/template.py": "settings/test_values.py",
    "loop/endpoint.py": "loop/test_task.py",
    "loop/lingering.py": "detach/test_closing.py",
    "loop/promise.py": "upstream/test_names.py",
    "loop/waits.py": "loop/test_task.py",
    "relay/answer_head.py": "relay/test_errors.py",
    "relay/client_body.py": "site/test_streamed_uploads.py",
    "relay/client.py": "relay/test_errors.py",
    "relay/destination.py": "upstream/test_balance.py",
    "relay/own_answer.py": "relay/test_errors.py",
    "relay/answer_source.py": "relay/test_body_filter.py",
    "relay/passing_on.py": "relay/test_body_filter.py",
    "relay/prepared.py": "relay/test_hooks.py",
    "relay/relay.py": "relay/test_errors.py",
    "relay/stream.py": "site/test_other_servers.py",
    "relay/switching.py": "relay/test_tunnel.py",
    "relay/upload.py": "relay/test_duplex.py",
    "settings/__main__.py": "settings/test_reference.py",
    "settings/groups.py": "settings/test_reference.py",
    "settings/keys.py": "settings/test_table.py",
    "settings/process_table.py": "settings/test_table.py",
    "shared/commands.py": "shared/test_member.py",
    "shared/notice.py": "shared/test_member.py",
    "shared/site.py": "shared/test_listener.py",
    "status/document.py": "status/test_page.py",
    "status/numbers.py": "status/test_metrics.py",
    "status/plots.py": "status/test_page.py",
    "status/published.py": "status/test_metrics.py",
    "status/report.py": "status/test_page.py",
    "status/ticker.py": "status/test_page.py",
    "status/units.py": "status/test_page.py",
    "status/views.py": "status/test_page.py",
    "upstream/origin.py": "upstream/test_connecting.py",
    "upstream/probes.py": "upstream/test_health.py",
    "upstream/urls.py": "upstream/test_connecting.py",
}


def says_something(module: Path) -> bool:
    """Whether there is anything to test: a room's `__init__` may hold its docstring alone."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(module.read_text(encoding="utf-8")).body)


def own_file(name: str) -> Path:
    """Where a module's own tests would stand."""
    return (TESTS / name).with_name(f"test_{Path(name).name}")


def has_tests(path: Path) -> bool:
    nodes = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    return any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in nodes)


MODULES = [str(path.relative_to(PACKAGE)) for path in sorted(PACKAGE.rglob("*.py")) if says_something(path)]


@pytest.mark.parametrize("name", MODULES)
def test_each_module_has_its_tests(name: str) -> None:
    """In the file of its name, or in the one that the table names; not in both, so that the table grows no moss."""
    assert has_tests(own_file(name)) or name in COVERED_BY, f"no {own_file(name)}"
    assert not (has_tests(own_file(name)) and name in COVERED_BY), f"there is {own_file(name)} by now"


@pytest.mark.parametrize("name", sorted(COVERED_BY))
def test_the_table_names_what_exists(name: str) -> None:
    """A module of the package, and a file with tests."""
    assert name in MODULES
    assert has_tests(TESTS / COVERED_BY[name])


def test_a_file_without_tests_is_told_from_one_with() -> None:
    """An empty file, one of helpers, and one that is not there cover nothing."""
    assert has_tests(Path(__file__))
    assert not any(map(has_tests, (TESTS / "conftest.py", TESTS / "__init__.py", TESTS / "test_nothing.py")))
