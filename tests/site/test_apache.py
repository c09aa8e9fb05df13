"""Apache behind a site: its WebDAV with litmus, and the redirects that it makes of the Host it gets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.backends import dav_settings, dav_users, litmus_summaries
from tests.support.processes import free_port, listening
from tests.support.site import MakeSite, Site, route

CONFIGURATION = """
ServerRoot {folder}
ServerName apache.internal
Listen 127.0.0.1:{port}
PidFile {folder}/pid
ErrorLog {folder}/error.log
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule dir_module {modules}/mod_dir.so
LoadModule dav_module {modules}/mod_dav.so
LoadModule dav_fs_module {modules}/mod_dav_fs.so
DavLockDB {folder}/locks
DocumentRoot {folder}/www
<Location />
  Require all granted
</Location>
<Location /dav>
  Dav On
</Location>
"""
MODULES = "/usr/lib/apache2/modules"


class Apache:
    """One that serves `folder`/www, and its share /dav by WebDAV."""

    def __init__(self, folder: Path, port: int) -> None:
        self.share = folder / "www" / "dav"
        self.url = f"http://127.0.0.1:{port}"


@pytest.fixture
def apache(need_program: Callable[[str], str], stack: ExitStack) -> Iterator[Apache]:
    """The server, as nobody in particular: run by root it would need to read where pytest lets only root read."""
    program, port = need_program("apache2"), free_port()
    folder = Path(tempfile.mkdtemp(prefix="apache-"))
    stack.callback(shutil.rmtree, folder)
    (folder / "www" / "dav" / "private").mkdir(parents=True)
    (folder / "www" / "dav" / "a.txt").write_text("a")
    (folder / "www" / "docs").mkdir()
    (folder / "www" / "docs" / "index.html").write_text("docs")
    (folder / "apache.conf").write_text(CONFIGURATION.format(folder=folder, port=port, modules=MODULES))
    user = "www-data" if os.geteuid() == 0 else None
    for path in (folder, *folder.rglob("*")):
        if user:
            shutil.chown(path, user, user)
    with listening([program, "-f", folder / "apache.conf", "-DFOREGROUND"], port, user=user, group=user):
        yield Apache(folder, port)


def dav_site(site: MakeSite, apache: Apache, mount: str) -> Site:
    return site(dav_settings(apache.url, mount), configure=dav_users)


@pytest.mark.parametrize("mount", ["/dav", "/files"])
def test_litmus_at_apache(
    mount: str, site: MakeSite, apache: Apache, tmp_path: Path, need_program: Callable[[str], str]
) -> None:
    """litmus finds of Apache behind the proxy what it finds of Apache alone, where the mount is the share's path; where
    it is not, what concerns COPY and MOVE. All of it passes."""
    program = need_program("litmus")
    made = dav_site(site, apache, mount)
    suites = "basic copymove props locks http" if mount == "/dav" else "basic copymove"
    through = litmus_summaries(program, f"{made.url}{mount}/", suites, tmp_path)
    assert through == litmus_summaries(program, f"{apache.url}/dav/", suites, tmp_path)
    assert set(through) == set(suites.split())
    assert {line.rpartition(" ")[2] for name, line in through.items() if name in ("basic", "copymove")} == {"100.0%"}


@pytest.mark.parametrize("mount", ["/dav", "/files"])
def test_copy_and_move_at_apache(mount: str, site: MakeSite, apache: Apache) -> None:
    """They arrive where they are meant to, and below the inner mount they do not."""
    made = dav_site(site, apache, mount)
    for destination in (f"{made.url}{mount}/private/x", f"{mount}/%70rivate/x", f"{mount}/x/../private/x"):
        for method in ("COPY", "MOVE"):
            assert made.get(f"{mount}/a.txt", {"Destination": destination}, method).status in (400, 403)
    assert (os.listdir(apache.share / "private"), (apache.share / "a.txt").read_text()) == ([], "a")
    assert made.get(f"{mount}/a.txt", {"Destination": f"{made.url}{mount}/b%20c.txt"}, "COPY").status == 201
    assert made.get(f"{mount}/a.txt", {"Destination": f"{made.url}{mount}/d.txt"}, "MOVE").status == 201
    assert sorted(os.listdir(apache.share)) == ["b c.txt", "d.txt", "private"]


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
@pytest.mark.parametrize("preserve", ["true", "false"])
@pytest.mark.parametrize(("mount", "base"), [("/httpdp", ""), ("/httpdp", "/"), ("/d", "/docs"), ("/", "")])
def test_a_directory_without_its_slash(
    mount: str, base: str, preserve: str, poll: bool, site: MakeSite, apache: Apache
) -> None:
    """Apache redirects to the host that it was asked by; the client stays on the site, below the mount."""
    keys = {"prefix": mount, "preserve_host": preserve}
    made = site(route("r", apache.url + base, **keys), asyncore_use_poll=poll)
    path = mount if base == "/docs" else mount.rstrip("/") + "/docs"
    answer = made.get(path, {"Host": "site.example"})
    assert (answer.status, answer.one("Location")) == (301, f"http://site.example{path}/")
    assert made.get(f"{path}/", {"Host": "site.example"}).body == b"docs"
