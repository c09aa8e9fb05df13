"""``proxy.shared``: what is wrong with it is said at start-up, and never with the password."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pyramid.config import Configurator

from pyramid_threaded_proxy import SettingsError
from tests.support.leaks import own_threads
from tests.support.processes import free_port


def configured(url: Any) -> Any:
    """The engine of an application with this URL."""
    config = Configurator(settings={"proxy.shared": url})
    config.include("pyramid_threaded_proxy")
    config.make_wsgi_app()
    return config.registry["pyramid_threaded_proxy.engine"]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis:/:s3cret@host", "is not such a URL"),
        ("http://:s3cret@host", "is not such a URL"),
        ("redis://:s3c/ret@host", "is not such a URL"),
        ("redis://:s3c@ret@host", "is not such a URL"),
        ("redis://host/s3cret", "is not such a URL"),
        ("redis://:s3cret", "has no good host and port"),
        ("redis://:s3cret@", "has no good host and port"),
        ("redis://:s3cret@host:99999", "has no good host and port"),
        ("redis://host/0?password=s3cret", "has an unknown option"),
        ("redis://host/0?ssl_ca_certs=/ca.pem", "has options for TLS"),
        (5, "must be text"),
        ("", "is not such a URL"),
    ],
)
def test_a_bad_url_is_a_fault(url: Any, problem: str) -> None:
    """It names the setting and what is allowed, and shows nothing of the value."""
    with pytest.raises(SettingsError) as caught:
        configured(url)
    text = str(caught.value)
    assert text.startswith("proxy.shared = (hidden) (the ini settings): " + problem)
    assert "allowed: `redis://" in text
    assert not {"s3cret", "s3c"} & set(text.replace("@", " ").split())
    assert "s3c" not in text


@pytest.mark.parametrize(
    "url", ["redis://host", "redis://host:6380/3", "rediss://a:b@[::1]:1/0?ssl_ca_certs=/ca.pem", "redis://:p%40@h/"]
)
def test_good_urls(url: str) -> None:
    """Nothing is started or connected to by them: threads begin with the first exchange."""
    assert configured(url).settings.shared == url
    assert own_threads("pproxy") == []


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error says what to install."""
    for name in [name for name in sys.modules if name.startswith("pyramid_threaded_proxy.shared")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(SettingsError, match=r"install pyramid_threaded_proxy\[redis\]"):
        configured(f"redis://127.0.0.1:{free_port()}")
