"""Settings as the tests write them."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import pytest

from pyramid_threaded_proxy.settings.errors import SettingsError
from pyramid_threaded_proxy.settings.load import (
    RouteSettings,
    Settings,
    load_settings,
)

HOME = "proxy.routes.reports."
ROUTE = {f"{HOME}prefix": "/reports", f"{HOME}upstream": "http://up:9000/v2"}


def load(ini: dict[str, Any], text: str | None = None) -> Settings:
    """The settings of these ini keys and of a YAML file with this text."""
    if text is None:
        return load_settings(ini, str)
    descriptor, path = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as stream:
            stream.write(text)
        return load_settings({"proxy.file": path, **ini}, str)
    finally:
        os.unlink(path)


def route_settings(**more: Any) -> RouteSettings:
    """A route with these ini keys, ``__`` for ``.``."""
    ini = {HOME + key.replace("__", "."): value for key, value in more.items()}
    return load({**ROUTE, **ini}).routes[0]


def faults(ini: dict[str, Any], text: str | None = None) -> tuple[str, ...]:
    """What is told about wrong settings."""
    with pytest.raises(SettingsError) as caught:
        load(ini, text)
    return caught.value.faults


def fault(key: str, value: object) -> str:
    """The one fault that this ini key gives a route that is right otherwise."""
    base = {f"{HOME}upstream": ROUTE[f"{HOME}upstream"]} if key == "pattern" else ROUTE
    (found,) = faults({**base, HOME + key: value})
    assert found.startswith(f"{HOME}{key} = ")
    assert "(the ini settings): " in found
    return found
