"""A server that is two: the application, and nginx in front of it as ``pproxy --export nginx`` configures it.

``python -m benchmarks.fronted INI SECTION PORT FOLDER`` runs both until SIGTERM, as one tree of processes, so that what
is placed and accounted for is both of them. The application listens where the ini file says.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

from benchmarks.processes import Service
from benchmarks.servers import program

#: What the ini file has for other rows, and no engine can hold.
_ACCEPTED = "hooks.body"


def exported(ini: str, section: str, port: int, application: str, folder: Path) -> Path:
    """nginx's configuration as it is exported, but that it logs no requests, since no server of a run does."""
    command = [sys.executable, "-m", "pyramid_threaded_proxy.scripts", f"{ini}#{section}", "--export", "nginx",
               "--listen", f"127.0.0.1:{port}", "--app", application, "--accept", _ACCEPTED,
               "--output", str(folder)]  # fmt: skip
    subprocess.run(command, check=True)
    path = folder / "nginx.conf"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("http {\n", "http {\n    access_log off;\n", 1), encoding="utf-8")
    return path


def run(ini: str, section: str, port: int, folder: Path) -> None:
    """Both of them, until this process is told to end."""
    parser = RawConfigParser()
    parser.read(ini, encoding="utf-8")
    application = parser["server:main"]["listen"]
    path = exported(ini, section, port, application, folder)
    pserve = [sys.executable, "-m", "pyramid.scripts.pserve", "--server-name", "fronted", "--app-name", section, ini]
    commands = f"daemon off; pid {folder}/nginx.pid;"
    nginx = [program("nginx") or "nginx", "-c", str(path), "-p", str(folder), "-e", "stderr", "-g", commands]
    with (
        Service("application", pserve, int(application.rpartition(":")[2]), folder),
        Service("front", nginx, port, folder),
    ):
        signal.pause()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    run(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
