"""How a mistake is told."""

from __future__ import annotations

import pickle
import re

from pyramid.exceptions import ConfigurationError

from pyramid_threaded_proxy.exceptions import ProxyError
from pyramid_threaded_proxy.settings.errors import SettingsError
from tests.support.settings import fault, faults


def test_error_is_both_ours_and_pyramids() -> None:
    """`SettingsError` is caught by Pyramid's name too, prints one line a fault, and survives pickling."""
    error = SettingsError(["one", "two\nlines"])
    assert isinstance(error, ProxyError)
    assert isinstance(error, ConfigurationError)
    assert str(error) == "one\ntwo\\nlines"
    assert pickle.loads(pickle.dumps(error)).faults == error.faults


def test_all_mistakes_at_once() -> None:
    """Mistakes in the process, in two routes and in the YAML file are told together."""
    text = "threads: 0\nroutes:\n  a: {prefix: /a, upstream: 'ftp://x', public: true}"
    found = faults({"proxy.thread": "1", "proxy.routes.b.prefix": "b", "proxy.routes.b.upstream": "http://"}, text)
    assert [re.split("[ =(]", line)[0] for line in found] == [
        "proxy.threads", "proxy.thread", "proxy.routes.a.upstream", "proxy.routes.b.prefix", "proxy.routes.b.upstream",
    ]  # fmt: skip


def test_one_fault_in_full() -> None:
    """A fault names its full key, the value, where it came from, what is wrong and what is allowed."""
    assert fault("read_timeout", "5x") == (
        "proxy.routes.reports.read_timeout = '5x' (the ini settings): is not a duration; "
        "allowed: seconds (`2.5`), or `250ms`, `30s`, `5m`, `1h`"
    )


def test_secrets_are_not_told() -> None:
    """A password in a URL and values of fields that carry secrets do not get into the error, and so into logs."""
    assert "hunter2" not in fault("upstream", "http://me:hunter2@up/")
    assert "hunter2" not in fault("request.set.Authorization", "Basic hunter2 {nobody}")
    assert "plain" in fault("request.set.X-Plain", "plain {nobody}")
