"""Sphinx's inventories of other projects, and what is shipped in their place where they can't be had.

A build must not depend on somebody else's server. So the names that our pages use stand here with the place that they
have in the other project's documentation, and a build without a network links to the same pages as one with it.
"""

from __future__ import annotations

import zlib
from pathlib import Path

#: Project: its documentation, and its names: kind and page by name. `$` stands for the name.
SHIPPED: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "pyramid": (
        "https://docs.pylonsproject.org/projects/pyramid/en/latest/",
        {
            "pyramid.config.Configurator": ("py:class", "api/config.html#$"),
            "pyramid.config.Configurator.add_subscriber": ("py:method", "api/config.html#$"),
            "pyramid.config.Configurator.set_default_csrf_options": ("py:method", "api/config.html#$"),
            "pyramid.config.Configurator.set_security_policy": ("py:method", "api/config.html#$"),
            "pyramid.request.Request": ("py:class", "api/request.html#$"),
            "pyramid.response.Response": ("py:class", "api/response.html#$"),
            "pyramid.authentication.AuthTktCookieHelper": ("py:class", "api/authentication.html#$"),
            "pyramid.authentication.SessionAuthenticationHelper": ("py:class", "api/authentication.html#$"),
            "pyramid.exceptions.ConfigurationError": ("py:exception", "api/exceptions.html#$"),
            "pyramid.httpexceptions.HTTPBadGateway": ("py:exception", "api/httpexceptions.html#$"),
            "pyramid.httpexceptions.HTTPBadRequest": ("py:exception", "api/httpexceptions.html#$"),
            "pyramid.threadlocal.get_current_request": ("py:function", "api/threadlocal.html#$"),
        },
    ),
    "webob": (
        "https://docs.pylonsproject.org/projects/webob/en/stable/",
        {"webob.response.Response": ("py:class", "api/response.html#$")},
    ),
    "waitress": (
        "https://docs.pylonsproject.org/projects/waitress/en/stable/",
        {"trusted_proxy": ("std:label", "arguments.html"), "asyncore_use_poll": ("std:label", "arguments.html")},
    ),
    "urllib3": ("https://urllib3.readthedocs.io/en/stable/", {"urllib3": ("std:label", "index.html")}),
}


def written() -> dict[str, str]:
    """The names by the ways in which our pages write them: in full, a class by its own, a directive with `config`."""
    found: dict[str, str] = {}
    for name in (name for _, names in SHIPPED.values() for name in names):
        last = name.rpartition(".")[2]
        found[name] = name
        if last[0].isupper() and len(last) > len("Configurator"):
            found[last] = name
        if name.startswith("pyramid.config.Configurator."):
            found[f"config.{last}"] = name
    return found


def mapping(folder: Path) -> dict[str, tuple[str, tuple[str | None, str]]]:
    """Sphinx's `intersphinx_mapping`: the project's own inventory, or else the one that is written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[str, tuple[str | None, str]]] = {}
    for project, (url, names) in SHIPPED.items():
        path = folder / f"{project}.inv"
        path.write_bytes(inventory(project, names))
        found[project] = (url, (None, str(path)))
    return found


def inventory(project: str, names: dict[str, tuple[str, str]]) -> bytes:
    """The names in Sphinx's own form, version 2."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    lines = [f"{name} {kind} 1 {place} -\n" for name, (kind, place) in names.items()]
    compressed = zlib.compress("".join(lines).encode())
    return head.encode() + b"# The remainder of this file is compressed using zlib.\n" + compressed
