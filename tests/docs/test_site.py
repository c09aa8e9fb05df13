"""The site that Sphinx makes of the pages, and the page of the API; `make docs` builds both."""

from __future__ import annotations

import ast
import inspect
import re
import zlib

import pytest

import pyramid_threaded_proxy
from docs.tools import api, inventories, messages, pages
from tests.support.docs import DOCS, PAGES
from tests.support.paths import ROOT


def test_each_page_is_in_one_kind() -> None:
    """Tutorials, how-tos, reference and explanation are told apart: each page is listed below one of the four."""
    kinds = pages.kinds(PAGES["index.md"])
    assert list(kinds) == ["Learn", "Do", "Look up", "Understand"]
    listed = [name for names in kinds.values() for name in names]
    assert sorted(listed) == sorted({path.stem for path in DOCS} - {"index"} | {"changes"})


def test_the_index_becomes_tables_of_contents() -> None:
    """The lists of the index are what Sphinx builds the navigation from, and what lies outside is no link there."""
    source = [PAGES["index.md"]]
    pages.read(None, "index", source)  # type: ignore[arg-type]
    assert source[0].count("```{toctree}") == 4
    assert "README (`README.md` in the repository)" in source[0]
    other = ["[a](b.md) [c](../d/e.ini)"]
    pages.read(None, "other", other)  # type: ignore[arg-type]
    assert other == ["[a](b.md) c (`d/e.ini` in the repository)"]


def test_shipped_inventories_are_sphinx_s_own_form() -> None:
    """What stands in for a project's inventory has its head and a line for each name."""
    data = inventories.inventory("webob", {"a.B": ("py:class", "api/a.html#$")})
    head, text = data.split(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory version 2\n# Project: webob\n")
    assert zlib.decompress(text) == b"a.B py:class 1 api/a.html#$ -\n"


def test_names_of_others_are_known_as_the_pages_write_them() -> None:
    """In full, a class by its own name, a directive with `config`; a plain word is never taken for one of them."""
    names = inventories.written()
    assert names["AuthTktCookieHelper"] == "pyramid.authentication.AuthTktCookieHelper"
    assert names["config.add_subscriber"] == "pyramid.config.Configurator.add_subscriber"
    assert names["trusted_proxy"] == "trusted_proxy"
    assert not {"Request", "Response", "Configurator", "add_subscriber"} & names.keys()


def test_what_the_tests_import_needs_no_sphinx() -> None:
    """The suite runs without the extra `docs`."""
    for module in (api, inventories, messages, pages):
        source = ast.parse(inspect.getsource(module))
        imported = [node for node in source.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any("sphinx" in ast.unparse(node) or "docutils" in ast.unparse(node) for node in imported)


def test_the_page_of_the_api_is_up_to_date() -> None:
    """docs/api.md is what the docstrings say: `make docs` writes it."""
    assert PAGES["api.md"] == api.page()


@pytest.mark.parametrize("name", pyramid_threaded_proxy.__all__)
def test_each_public_name_is_on_the_page_of_the_api(name: str) -> None:
    """With a heading of its own and a sentence; a class whose attributes are for users has them with their meaning."""
    found = re.search(rf"^### `{name}`\n(.*?)(?=^##|\Z)", PAGES["api.md"], re.MULTILINE | re.DOTALL)
    assert found is not None
    assert re.search(r"^[A-Z`].*[.:]$|[.,]", found[1], re.MULTILINE)
    for row in re.findall(r"^\| `.*$", found[1], re.MULTILINE):
        assert not row.endswith("|  |"), row


def test_directives_and_request_methods_are_on_the_page_of_the_api() -> None:
    """What `include` adds to Pyramid: whatever stands there as a name."""
    tree = ast.parse((ROOT / "pyramid_threaded_proxy/app/config.py").read_text(encoding="utf-8"))
    added = {"add_directive": "config.", "add_request_method": "request."}
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in added:
            name = next(one.value for one in node.args if isinstance(one, ast.Constant))
            names.append(added[node.func.attr] + str(name))
    assert len(names) == 5
    for name in names:
        assert f"### `{name}`" in PAGES["api.md"]


def test_each_exception_says_its_status_and_what_a_hook_can_do() -> None:
    """Each that ends an exchange has its status, the log's word, and whether the `error` hook may answer instead."""
    for name, error in api.errors().items():
        text = api.exception(name, error)
        assert "hook" in text
        if (ended := getattr(error, "ended", None)) is not None:
            assert f"Status: {error.status}. The access log's word: `{ended}`." in text  # type: ignore[attr-defined]
