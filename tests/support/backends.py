"""Real backends to stand behind a site, and what their real clients say."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import waitress
from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator
from waitress import wasyncore

from tests.support.site import Policy, route
from tests.support.waiting import PATIENCE


@contextmanager
def under_waitress(application: Any, clear_untrusted_proxy_headers: bool = False) -> Iterator[str]:
    """A WSGI application as an upstream that is told what its proxy says, unless waitress clears it; gives its URL."""
    told = {"clear_untrusted_proxy_headers": clear_untrusted_proxy_headers}
    server = waitress.create_server(application, listen="127.0.0.1:0", threads=2, **told)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map, ignore_all=True))
        thread.join(PATIENCE)
        server.task_dispatcher.shutdown()


@contextmanager
def under_uvicorn(application: Any) -> Iterator[str]:
    """An ASGI application as an upstream that believes its proxy; gives its URL."""
    config = uvicorn.Config(
        application, port=0, log_config=None, lifespan="off", proxy_headers=True, forwarded_allow_ips="127.0.0.1"
    )
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def started(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = started  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


class Root:
    """Everybody may use /dav, and nobody /dav/private."""

    def __init__(self, request: Any) -> None:
        self.__acl__ = [(Allow, Everyone, "use")]


def dav_users(config: Configurator) -> None:
    """The application that knows them."""
    config.set_security_policy(Policy())
    config.set_root_factory(Root)


def dav_settings(url: str, mount: str) -> dict[str, str]:
    """A share /dav at a mount, and what is private in it at a mount of its own."""
    return {
        **route("dav", url + "/dav", prefix=mount, permission="use"),
        **route("private", url + "/dav/private", prefix=f"{mount}/private", permission="admin"),
    }


def litmus_summaries(program: str, url: str, suites: str, folder: Path) -> dict[str, str]:
    """litmus's summary of each suite."""
    environ = {**os.environ, "TESTS": suites}
    done = subprocess.run(
        [program, "-k", url], env=environ, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("<- summary")]
    return {line.split("`")[1].split("'")[0]: line for line in lines}
