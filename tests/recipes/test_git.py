"""The recipe for git over HTTP: git pushes and clones, and its own server is at the other end."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import under_waitress
from tests.support.programs import program_path
from tests.support.recipes import members, settings
from tests.support.site import MakeSite, Site

#: Bytes of a commit.
SMALL = 1 << 20


def cgi(program: str, folder: Path) -> Callable[[dict[str, Any], Any], list[bytes]]:
    """git's own server, by CGI, as a WSGI application."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        passed = {name: value for name, value in environ.items() if isinstance(value, str) and name.isupper()}
        passed |= {"GIT_PROJECT_ROOT": str(folder), "GIT_HTTP_EXPORT_ALL": "1"}
        passed["REMOTE_USER"] = passed.get("HTTP_X_REMOTE_USER", "")
        body = environ["wsgi.input"].read()
        passed |= {"CONTENT_LENGTH": str(len(body)), "PATH": "/usr/bin:/bin", "REMOTE_ADDR": "127.0.0.1"}
        out = subprocess.run([program, "http-backend"], input=body, env=passed, capture_output=True, check=True).stdout
        head, _, rest = out.partition(b"\r\n\r\n")
        fields = [tuple(line.split(": ", 1)) for line in head.decode().split("\r\n")]
        status = next((value for name, value in fields if name == "Status"), "200 OK")
        start_response(status, [field for field in fields if field[0] != "Status"])
        return [rest]

    return application


def run_git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git in a folder."""
    named = ["-c", "user.name=ann", "-c", "user.email=ann@example.com", "-c", "http.postBuffer=65536"]
    return subprocess.run(
        [program_path("git"), *named, *arguments], cwd=folder, capture_output=True, check=check, timeout=60, text=True
    )


def repository(folder: Path, size: int) -> Path:
    """A repository with one commit of as many bytes, which can't be compressed."""
    folder.mkdir()
    run_git(folder, "init", "-q")
    (folder / "file").write_bytes(random.Random(1).randbytes(size))
    run_git(folder, "-c", "core.compression=0", "add", "file")
    run_git(folder, "commit", "-q", "-m", "one")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a commit of 100 MiB."""
    return repository(tmp_path_factory.mktemp("work") / "large", 100 << 20)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with a small commit."""
    return repository(tmp_path / "small", SMALL)


@pytest.fixture
def recipe(stack: ExitStack, tmp_path: Path) -> dict[str, str]:
    """The settings of the page, with git's own server and an empty repository."""
    run_git(tmp_path, "init", "-q", "--bare", "a.git")
    return settings("git over HTTP", stack.enter_context(under_waitress(cgi(program_path("git"), tmp_path))))


def url(where: Site, user: str) -> str:
    return f"http://{user}:secret@{where.authority}/code/a.git"


def push(where: Site, user: str, work: Path) -> subprocess.CompletedProcess[str]:
    """Push the commit as a user."""
    options = ["-c", "core.compression=0", "push", "-q", url(where, user), "HEAD:refs/heads/main"]
    return run_git(work, *options, check=False)


@pytest.mark.parametrize("buffering", ["true", "false"])
def test_git_pushes(site: MakeSite, tmp_path: Path, large: Path, recipe: dict[str, str], buffering: str) -> None:
    """A push of 100 MiB, which git sends in chunks, reaches git's own server byte for byte."""
    where = site(recipe | {"proxy.routes.push.request.buffering": buffering}, configure=members)
    done = push(where, "ann", large)
    assert done.returncode == 0, done.stderr
    assert run_git(tmp_path / "a.git", "rev-parse", "main").stdout == run_git(large, "rev-parse", "HEAD").stdout
    run_git(tmp_path / "a.git", "fsck")


def test_who_may_what(site: MakeSite, tmp_path: Path, small: Path, recipe: dict[str, str]) -> None:
    """Who may read clones and does not push; who may neither is refused both."""
    run_git(small, "push", "-q", str(tmp_path / "a.git"), "HEAD:refs/heads/main")
    before = run_git(tmp_path / "a.git", "for-each-ref").stdout
    where = site(recipe, configure=members)
    run_git(tmp_path, "clone", "-q", "--branch=main", url(where, "reader"), "cloned")
    assert (tmp_path / "cloned" / "file").stat().st_size == SMALL
    run_git(small, "commit", "-q", "--allow-empty", "-m", "two")
    for user in ("reader", "bob"):
        done = push(where, user, small)
        assert (done.returncode != 0, "403" in done.stderr) == (True, True), done.stderr
    refused = run_git(tmp_path, "clone", "-q", url(where, "bob"), "refused", check=False)
    assert "403" in refused.stderr
    assert run_git(tmp_path / "a.git", "for-each-ref").stdout == before


def test_git_is_told_who_asks(site: MakeSite, small: Path, recipe: dict[str, str]) -> None:
    """git's server takes a push from nobody whom it has no name of."""
    without = {key: value for key, value in recipe.items() if not key.endswith("X-Remote-User")}
    done = push(site(without, configure=members), "ann", small)
    assert (done.returncode != 0, "403" in done.stderr) == (True, True), done.stderr
