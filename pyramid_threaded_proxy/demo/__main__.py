"""What ``make serve`` runs: pserve, once the demo's two ports are known to be free.

Waitress would end with a traceback, and the backend would be missed only when somebody asks for it.
"""

from __future__ import annotations

import configparser
import os
import socket
import sys
from urllib.parse import urlsplit


def addresses(ini: str) -> list[tuple[str, int]]:
    """Where the demo and its backend are to listen."""
    parser = configparser.RawConfigParser()
    parser.read(ini, encoding="utf-8")
    own = urlsplit("//" + parser["server:main"]["listen"])
    upstream = urlsplit(parser["app:main"]["proxy.routes.reports.upstream"])
    return [(url.hostname or "127.0.0.1", url.port or 80) for url in (own, upstream)]


def check_free(host: str, port: int) -> None:
    """End the process with one line if somebody listens there."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        sys.exit(f"The demo can't listen on {host}:{port}: {os.strerror(error.errno or 0)}. Does another demo run?")


def main(ini: str) -> None:
    """Become pserve."""
    for host, port in addresses(ini):
        check_free(host, port)
    os.execv(sys.executable, [sys.executable, "-m", "pyramid.scripts.pserve", ini])


if __name__ == "__main__":
    main(sys.argv[1])
