"""Questions of a front server, put by hand; and real front servers with their exported configurations."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyramid.authorization import Allow, Authenticated
from pyramid.config import Configurator
from pyramid.interfaces import IRoutesMapper

from pyramid_threaded_proxy.engines.export import export
from pyramid_threaded_proxy.engines.site import FrontedSite, fronted_site
from tests.support.closing import Closing
from tests.support.processes import free_port
from tests.support.programs import program_path
from tests.support.site import Policy, Site
from tests.support.waiting import PATIENCE, wait_until
from tests.support.wire import Answer, Wire, over_http

KEY = "the-key-of-the-front"
PREFIX = "/_verify"


class Root:
    """alice may view; everybody who is known may look."""

    __acl__ = ((Allow, "alice", "view"), (Allow, Authenticated, "look"))

    def __init__(self, request: Any) -> None:
        self.request = request


def with_root(config: Configurator) -> None:
    """An application with users and an ACL."""
    config.set_security_policy(Policy())
    config.set_root_factory(Root)


def verifying(engine: str = "nginx") -> dict[str, str]:
    """The settings of an endpoint."""
    return {
        "proxy.verify.prefix": PREFIX, "proxy.verify.engine": engine, "proxy.verify.secret": KEY,
        "proxy.own_cookies": "session auth_tkt",
    }  # fmt: skip


#: waitress believes the front who its clients are.
TRUSTED: dict[str, Any] = {
    "trusted_proxy": "127.0.0.1",
    "trusted_proxy_headers": "x-forwarded-for x-forwarded-host x-forwarded-proto",
}


def question(site: Site, route: str, target: str, method: str = "GET", engine: str = "nginx") -> dict[str, str]:
    """The fields of a good question; Envoy's target goes elsewhere."""
    fields = {"X-Proxy-Key": KEY, "X-Proxy-Digest": site.engine.digest, "X-Proxy-Route": route}
    if engine == "envoy":
        return fields
    kind = "Original" if engine in ("nginx", "haproxy") else "Forwarded"
    return fields | {f"X-{kind}-Method": method, f"X-{kind}-Uri": target}


def ask(site: Site, route: str, target: str, method: str = "GET", **fields: str | None) -> Answer:
    """The answer to a question of nginx's, as alice if nothing else is said; None leaves a field out."""
    sent: dict[str, str | None] = {**question(site, route, target, method), "X-User": "alice"}
    sent |= {name.replace("_", "-"): value for name, value in fields.items()}
    return site.get(PREFIX, {name: value for name, value in sent.items() if value is not None})


def told(answer: Answer) -> dict[str, str]:
    """The fields of an answer by lower-case name, but those of the answer itself; with each name once."""
    found: dict[str, str] = {}
    for name, value in answer.fields:
        assert name.lower() not in found, name
        found[name.lower()] = value
    return {name: value for name, value in found.items() if name not in ("date", "server", "content-length")}


def fronted(site: Site, port: int) -> FrontedSite:
    """What a configuration of `site` is made of, for a front that listens on `port`."""
    mapper = site.registry.queryUtility(IRoutesMapper)
    routes = [site.engine.routes[route.name] for route in mapper.routelist if route.name in site.engine.routes]
    return fronted_site(site.engine, routes, f"127.0.0.1:{port}", site.authority)


class StartedFront(Closing):
    """A real server, in a process of its own, with the files of an export that lie in a folder."""

    def __init__(self, engine: str, folder: Path, port: int) -> None:
        self.port = port
        self._log = folder / f"{engine}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                COMMANDS[engine](folder), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                cwd=folder if engine in IN_THEIR_FOLDER else "/",
                env={**os.environ, "HOME": str(folder)}, start_new_session=True,
            )  # fmt: skip
        try:
            wait_until(lambda: self._process.poll() is not None or self._answers(), f"{engine}")
            assert self._process.poll() is None, self.log
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        """Traefik listens before it has its routes."""
        try:
            return over_http(self.port, "/").body != b"404 page not found\n"
        except ConnectionError:
            return False

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def url(self) -> str:
        """Its own origin."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: Any = None) -> Answer:
        """One request on a connection of its own, as alice."""
        return over_http(self.port, path, method, body, {"X-User": "alice", **(headers or {})})

    def client(self) -> Wire:
        """A raw connection."""
        return Wire(socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE))

    def close(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE / 2)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class RealFront(StartedFront):
    """A real server with the configuration of a site. `spoil` changes the text of a file."""

    def __init__(
        self, site: Site, engine: str, folder: Path, spoil: Callable[[str], str] = str, accepted: tuple[str, ...] = ()
    ) -> None:
        port = free_port()
        made = export(engine, fronted(site, port), accepted)
        assert not made.refused, made.refused
        for name, text in made.files.items():
            (folder / name).write_text(spoil(text), encoding="utf-8")
        super().__init__(engine, folder, port)


def _nginx(folder: Path) -> list[str]:
    commands = f"daemon off; pid {folder}/nginx.pid;"
    return [program_path("nginx"), "-c", f"{folder}/nginx.conf", "-p", str(folder), "-e", "stderr", "-g", commands]


def _haproxy(folder: Path) -> list[str]:
    return [program_path("haproxy"), "-db", "-f", f"{folder}/haproxy.cfg"]


def _envoy(folder: Path) -> list[str]:
    few = ["--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
    return [program_path("envoy"), "-c", f"{folder}/envoy.yaml", *few]


def _caddy(folder: Path) -> list[str]:
    return [program_path("caddy"), "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]


def _traefik(folder: Path) -> list[str]:
    return [program_path("traefik"), f"--configFile={folder}/traefik.yaml"]


#: Their configuration names its other file as beside where it was started; all others are started anywhere.
IN_THEIR_FOLDER = ("traefik",)
#: Keys that an engine does not hold, and that are left out.
ACCEPTED: dict[str, tuple[str, ...]] = {"traefik": ("rewrite_location", "rewrite_cookies", "cache")}
#: How each is started with its files in a folder.
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "nginx": _nginx, "haproxy": _haproxy, "envoy": _envoy, "caddy": _caddy, "traefik": _traefik,
}  # fmt: skip
