"""The page of settings, made of the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyramid_threaded_proxy.settings import table as settings_table
from pyramid_threaded_proxy.settings.groups import PROCESS_GROUPS, ROUTE_GROUPS
from pyramid_threaded_proxy.settings.keys import Key
from pyramid_threaded_proxy.settings.load import reference_markdown
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from pyramid_threaded_proxy.settings.table import ROUTE_KEYS, Settings
from tests.support.paths import ROOT
from tests.support.settings import load

PAGE = reference_markdown()
#: What a route of the examples has besides, unless the example is about one of these.
COMPANY = {"prefix": "/reports", "upstream": "http://reports.internal:9000", "permission": "view"}
#: Keys that stand in place of others.
IN_PLACE_OF = {"pattern": "prefix", "public": "permission"}


def test_reference_page_is_up_to_date() -> None:
    """docs/settings.md is what the table says: run ``python -m pyramid_threaded_proxy.settings > docs/settings.md``."""
    page = ROOT / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == reference_markdown()


def test_every_key_is_in_a_group_and_has_an_example() -> None:
    """A key that is missing here needs a line in `settings/groups.py`: its example, in the group that it belongs to."""
    for groups, keys in ((PROCESS_GROUPS, PROCESS_KEYS), (ROUTE_GROUPS, ROUTE_KEYS)):
        paths = [path for group in groups for path in group.examples]
        assert sorted(paths) == sorted(key.path for key in keys)


def test_every_key_has_a_heading_of_its_own() -> None:
    """So that it can be linked to; what stands below it says its default, what is allowed and since when."""
    headings = re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    assert len(headings) == len(set(headings))
    written = [f"`{key.path}{f'.{key.name}' if key.names else ''}`" for key in ROUTE_KEYS]
    assert {f"`proxy.{key.path}`" for key in PROCESS_KEYS} | set(written) <= set(headings)
    for entry in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        assert re.search(r"^- Default: .+\n- Allowed: .+\n- Since \d+\.\d+$", entry, re.MULTILINE)


def test_tables_lead_to_the_keys() -> None:
    """The table at a group's beginning links each of its keys, and shows the default."""
    links = re.findall(r"^\| \[`([^`]+)`\]\(#([\w-]+)\) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(links) == len(PROCESS_KEYS) + len(ROUTE_KEYS)
    anchors = {re.sub(r"[^\w-]", "", heading) for heading in re.findall(r"^### `(.*)`$", PAGE.lower(), re.MULTILINE)}
    assert {anchor for _, anchor, _ in links} == anchors


def test_examples_of_the_introduction_say_the_same() -> None:
    """The page's first ini example and its first YAML example load, to equal settings."""
    ini, text = re.findall(r"```(?:ini|yaml)\n(.*?)```", PAGE, re.DOTALL)[:2]
    pairs = pairs_of(ini)
    assert load(pairs) == load({}, text)
    assert load(pairs).routes[0].methods == ("GET", "POST")


def pairs_of(ini: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in ini.splitlines())


def examples(key: Key, of_route: bool) -> tuple[dict[str, str], str]:
    """What the page shows of a key: ini, and YAML or nothing."""
    heading = f"{key.path}{f'.{key.name}' if key.names else ''}" if of_route else f"proxy.{key.path}"
    found = re.search(rf"^### `{re.escape(heading)}`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    shown = dict(re.findall(r"^```(ini|yaml)\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL))
    return pairs_of(shown["ini"]), shown.get("yaml", "")


def with_company(pairs: dict[str, str]) -> dict[str, str]:
    """The rest of what a route needs, as ini settings beside the example."""
    given = {key.removeprefix("proxy.routes.reports.") for key in pairs}
    needed = COMPANY.keys() - given - {other for key, other in IN_PLACE_OF.items() if key in given}
    return {f"proxy.routes.reports.{key}": COMPANY[key] for key in needed}


@pytest.mark.parametrize("key", ROUTE_KEYS, ids=lambda key: key.path)
def test_examples_of_a_routes_key_load(key: Key) -> None:
    """Its ini and its YAML load, to equal settings, in which this key is not at its default unless that is shown."""
    ini, yaml = examples(key, of_route=True)
    company = with_company(ini)
    loaded = load({**company, **ini})
    assert loaded == load(company, yaml)
    shown = [value for name, value in ini.items() if name == f"proxy.routes.reports.{key.path}"]
    value = getattr(loaded.routes[0], key.attribute)
    assert value != key.unread() or shown == [key.default]


@pytest.mark.parametrize("key", PROCESS_KEYS, ids=lambda key: key.path)
def test_examples_of_the_process_s_keys_load(key: Key, tmp_path: Path) -> None:
    """Likewise; a YAML file can't name another, so that key has no YAML."""
    ini, yaml = examples(key, of_route=False)
    if key.path == "file":
        (tmp_path / "proxy.yaml").write_text("threads: 3", encoding="utf-8")
        assert load({"proxy.file": ini["proxy.file"].replace("%(here)s", str(tmp_path))}).process.threads == 3
        return
    loaded: Settings = load(ini)
    assert loaded == load({}, yaml)
    assert loaded.process != load({}).process


def test_the_table_of_settings_is_the_one_that_the_page_is_made_of() -> None:
    """A version that knows a key is written beside it."""
    assert all(re.fullmatch(r"\d+\.\d+", key.since) for key in (*PROCESS_KEYS, *settings_table.ROUTE_KEYS))
