"""The page of settings, made of the table."""

from __future__ import annotations

import re

from pyramid_threaded_proxy.settings import table as settings_table
from pyramid_threaded_proxy.settings.load import (
    reference_markdown,
)
from pyramid_threaded_proxy.settings.process_table import PROCESS_KEYS
from tests.support.paths import ROOT
from tests.support.settings import load


def test_reference_page_is_up_to_date() -> None:
    """docs/settings.md is what the table says: run ``python -m pyramid_threaded_proxy.settings > docs/settings.md``."""
    page = ROOT / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == reference_markdown()


def test_reference_names_every_key() -> None:
    """Each key has one row, and the cells of every row are four."""
    rows = [re.split(r"(?<!\\)\|", line) for line in reference_markdown().splitlines() if line.startswith("| `")]
    keys = (*PROCESS_KEYS, *settings_table.ROUTE_KEYS)
    assert [re.sub(r"\.(FIELD|OLD)$", "", row[1].strip(" `")) for row in rows] == [key.path for key in keys]
    assert {len(row) for row in rows} == {6}


def test_examples_of_the_reference_say_the_same() -> None:
    """The page's ini example and its YAML example load, to equal settings."""
    ini, text = re.findall(r"```(?:ini|yaml)\n(.*?)```", reference_markdown(), re.DOTALL)
    pairs = dict(line.split(" = ", 1) for line in ini.splitlines())
    assert load(pairs) == load({}, text)
    assert load(pairs).routes[0].methods == ("GET", "POST")
