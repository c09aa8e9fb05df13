"""Django behind a site: an administrator logs in, as a browser does, below a prefix that Django knows of."""

from __future__ import annotations

import http.cookiejar
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.programs import applications_module
from tests.support.site import MakeSite, route
from tests.support.waiting import PATIENCE


@contextmanager
def django(folder: Path, prefix: str, cookie_path: str) -> Iterator[str]:
    """The URL of a Django with its admin."""
    applications_module("django")
    command = [sys.executable, "-m", "tests.support.django_backend", str(folder), prefix, cookie_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()
            process.wait(PATIENCE)


class Person:
    """A browser's way through forms: it keeps cookies, follows redirects, and says where a form stood."""

    def __init__(self) -> None:
        self.jar = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))

    def open(self, url: str, form: dict[str, str] | None = None, **fields: str) -> tuple[str, str]:
        """Where it leads, and the page there."""
        data = None if form is None else urllib.parse.urlencode(form).encode()
        with self._opener.open(urllib.request.Request(url, data, fields)) as answer:
            return answer.geturl(), answer.read().decode()


@pytest.mark.parametrize("cookie_path", ["/", "/tool"])
@pytest.mark.parametrize("preserve", ["true", "false"])
def test_an_administrator_logs_in(
    preserve: str, cookie_path: str, site: MakeSite, stack: ExitStack, tmp_path: Path
) -> None:
    """The admin leads to its login, takes its token and its cookies back, and leads to itself."""
    url = stack.enter_context(django(tmp_path, "/tool", cookie_path))
    made = site(route("tool", url, preserve_host=preserve))
    person = Person()
    at, page = person.open(f"{made.url}/tool/admin/")
    assert at == f"{made.url}/tool/admin/login/?next=/tool/admin/"
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token is not None
    form = {"csrfmiddlewaretoken": token[1], "username": "root", "password": "secret", "next": "/tool/admin/"}
    at, page = person.open(at, form, Origin=made.url, Referer=at)
    assert at == f"{made.url}/tool/admin/"
    assert "Site administration" in page
    assert 'href="/tool/admin/auth/user/"' in page
    assert {(cookie.name, cookie.path) for cookie in person.jar} == {("csrftoken", "/tool"), ("sessionid", "/tool")}
    assert person.open(f"{made.url}/tool/admin/auth/user/")[1].count("root@example.org") == 1
    assert person.open(f"{made.url}/tool/admin")[0] == f"{made.url}/tool/admin/"


def test_a_form_of_another_site_is_refused(site: MakeSite, stack: ExitStack, tmp_path: Path) -> None:
    """Django's own check of Origin still sees where a form stood."""
    url = stack.enter_context(django(tmp_path, "/tool", "/"))
    made = site(route("tool", url))
    person = Person()
    at, page = person.open(f"{made.url}/tool/admin/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token is not None
    form = {"csrfmiddlewaretoken": token[1], "username": "root", "password": "secret"}
    with pytest.raises(urllib.error.HTTPError, match="403"):
        person.open(at, form, Origin="http://evil.example")
