"""The servers that are compared: the application with and without the add-on, HAProxy, nginx, and a Python peer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks import variants
from benchmarks.machine import CORES
from benchmarks.processes import Service, free_port

INI = Path(__file__).with_name("benchmark.ini")
_PATH = os.environ.get("PATH", "") + ":/usr/sbin"
MIB = 1 << 20
#: Files that nginx serves below ``/files`` and ``/secure``, and their sizes.
FILES = {"1k": 1024, "1m": MIB, "32m": 32 * MIB, "64m": 64 * MIB, "256m": 256 * MIB, "1g": 1024 * MIB, "2g": 2048 * MIB}

#: What a server is called in tables.
TITLES = {
    "proxy": "pyramid_threaded_proxy",
    "logged": "pyramid_threaded_proxy, access log on",
    "counted": "pyramid_threaded_proxy, counting on",
    "holding": "pyramid_threaded_proxy, 3,000 exchanges held",
    "bare": "the application without it",
    "haproxy": "HAProxy, splice, one thread",
    "haproxy-mt": "HAProxy, splice, a thread a core",
    "nginx": "nginx, 256k, unbuffered",
    "verify": "nginx that asks pyramid_threaded_proxy",
    "accel": "nginx that pyramid_threaded_proxy hands over to",
    "revproxy": "django-revproxy, gunicorn gthread",
}
#: What ``pyramid.includes`` is for each of the servers that run the application.
ADDONS = {
    "proxy": "pyramid_threaded_proxy",
    "logged": "pyramid_threaded_proxy",
    "counted": "pyramid_threaded_proxy benchmarks.application.counted",
    "holding": "pyramid_threaded_proxy",
    "bare": "",
    **{name: f"pyramid_threaded_proxy benchmarks.variants.{name}" for name in variants.VARIANTS},
}
#: The servers of nginx and the application, which are sections of the ini file as well.
FRONTED = ("verify", "accel")


class Origins(NamedTuple):
    """The upstreams of a run: nginx for files, nginx with TLS, and `benchmarks.origin`; and where things lie."""

    files: int
    secure: int
    stream: int
    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"


def program(name: str) -> str | None:
    """The path of a server from Debian's packages."""
    return shutil.which(name, path=_PATH)


def need_programs() -> None:
    """End with a message where a program is missing without which nothing can be measured."""
    for name, what in (("nginx", "the upstream that serves files"), ("wrk", "the client that asks for small answers")):
        if program(name) is None:
            raise SystemExit(f"{name} is not installed; it is {what}")


def missing() -> dict[str, str]:
    """The servers that can't be run here, each with what is not installed."""
    kinds = {"haproxy": "haproxy", "haproxy-mt": "haproxy", **dict.fromkeys(("nginx", *FRONTED), "nginx")}
    found = {name: f"{needed} is not installed" for name, needed in kinds.items() if program(needed) is None}
    absent = [name for name in ("django", "revproxy", "gunicorn") if importlib.util.find_spec(name) is None]
    if absent:
        found["revproxy"] = f"not installed: {', '.join(absent)}"
    return found


def versions() -> dict[str, str]:
    """What the peers say of themselves."""
    found = {}
    for name in ("haproxy", "nginx"):
        path = program(name)
        if path is not None:
            told = subprocess.run([path, "-v"], capture_output=True, text=True, check=True)
            found[name] = (told.stdout + told.stderr).splitlines()[0]
    return found


def shown_ini() -> str:
    """The ini file of all runs, with ports and paths as they might be."""
    values = {"addon": "pyramid_threaded_proxy", "access_level": "CRITICAL", "access_file": "access.log",
              "http_port": "8080", "files_port": "9001", "stream_port": "9002", "secure_port": "9443",
              "certificate": "certificate.pem"}  # fmt: skip
    return _ini(values)


def _ini(values: Mapping[str, str]) -> str:
    return re.sub(r"%\((\w+)\)s", lambda found: values.get(found[1], found[0]), INI.read_text(encoding="utf-8"))


# Upstreams


def make_files(folder: Path) -> None:
    """The files that are downloaded, full of zeros and without a place on the disk, and a certificate for 127.0.0.1."""
    files = folder / "www" / "files"
    files.mkdir(parents=True)
    (folder / "www" / "secure").symlink_to(files)
    for name, size in FILES.items():
        with (files / name).open("wb") as file:
            file.truncate(size)
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=127.0.0.1",
               "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", f"{folder}/key.pem",
               "-out", f"{folder}/certificate.pem"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)


def nginx_files(folder: Path, port: int, secure: bool) -> Service:
    """An upstream that serves files."""
    tls = f"ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem;" if secure else ""
    server = f"server {{ listen 127.0.0.1:{port}{' ssl' if secure else ''} backlog=4096; {tls} root {folder}/www; }}"
    return _nginx("origin-secure" if secure else "origin", folder, port, server)


def stream_origin(folder: Path, port: int) -> Service:
    return Service("origin-stream", [sys.executable, "-m", "benchmarks.origin", str(port), str(folder)], port, folder)


def _nginx(name: str, folder: Path, port: int, servers: str) -> Service:
    temporary = "".join(
        f"{kind}_temp_path {folder}/{name}-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = folder / f"{name}.conf"
    path.write_text(
        f"daemon off; master_process off; pid {folder}/{name}.pid; error_log stderr error;\n"
        "events { worker_connections 30000; }\n"
        f"http {{ access_log off; sendfile on; keepalive_requests 100000000; client_max_body_size 0; {temporary}\n"
        f"{servers} }}\n",
        encoding="utf-8",
    )
    return Service(name, [program("nginx") or "nginx", "-c", str(path), "-p", str(folder)], port, folder)


# Servers


def start(name: str, origins: Origins, secure: bool = False) -> Service:
    """The server of that name on a port of its own; `secure` gives the application its route to the TLS upstream."""
    port = free_port()
    if name in ADDONS:
        return _pyramid(name, origins, port, secure)
    if name in FRONTED:
        return _fronted(name, origins, port)
    if name in ("haproxy", "haproxy-mt"):
        return _haproxy(origins, port, threads=1 if name == "haproxy" else len(CORES))
    return {"nginx": _nginx_peer, "revproxy": _revproxy}[name](origins, port)


def _pyramid(name: str, origins: Origins, port: int, secure: bool) -> Service:
    command = [sys.executable, "-m", "pyramid.scripts.pserve", "--server-name", "main",
               "--app-name", "secure" if secure else "main", str(INI)]  # fmt: skip
    variables = _variables(name, origins, port).items()
    return Service(name, [*command, *(f"{key}={value}" for key, value in variables)], port, origins.folder)


def _variables(name: str, origins: Origins, port: int) -> dict[str, str]:
    """What the ini file leaves open."""
    return {
        "addon": ADDONS[name],
        "access_level": "INFO" if name == "logged" else "CRITICAL",
        "access_file": f"{origins.folder}/access-{port}.log",
        "http_port": str(port),
        "files_port": str(origins.files),
        "stream_port": str(origins.stream),
        "secure_port": str(origins.secure),
        "certificate": str(origins.certificate),
    }


def _fronted(name: str, origins: Origins, port: int) -> Service:
    """nginx on `port`, and the application behind it on one of its own."""
    folder = origins.folder / f"{name}-{port}"
    folder.mkdir()
    ini = folder / "site.ini"
    ini.write_text(_ini(_variables("proxy", origins, free_port())), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.fronted", str(ini), name, str(port), str(folder)]
    return Service(name, command, port, origins.folder)


def _haproxy(origins: Origins, port: int, threads: int) -> Service:
    path = origins.folder / f"haproxy-{port}.cfg"
    path.write_text(
        f"""global
  maxconn 9200
  maxpipes 400
  nbthread {threads}
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option splice-request
  option splice-response
  http-reuse always
frontend front
  bind 127.0.0.1:{port} backlog 4096
  http-response set-header X-Frame-Options DENY
  use_backend stream if {{ path_beg /stream/ /streamed/ }}
  default_backend files
backend files
  server files 127.0.0.1:{origins.files}
backend stream
  server stream 127.0.0.1:{origins.stream}
""",
        encoding="utf-8",
    )
    return Service("haproxy", [program("haproxy") or "haproxy", "-db", "-f", str(path)], port, origins.folder)


def _nginx_peer(origins: Origins, port: int) -> Service:
    ports = {"files": ("http", origins.files), "stream": ("http", origins.stream), "secure": ("https", origins.secure)}
    upstreams = "".join(
        f"upstream {name} {{ server 127.0.0.1:{at}; keepalive 64; }}\n" for name, (_, at) in ports.items()
    )
    locations = "".join(
        f"location /{name}/ {{ proxy_pass {scheme}://{name}; }}\n" for name, (scheme, _) in ports.items()
    )
    locations += "location /streamed/ { proxy_pass http://stream; proxy_request_buffering off; }\n"
    server = f"""{upstreams} server {{ listen 127.0.0.1:{port} backlog=4096;
proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_buffer_size 256k;
proxy_buffers 8 256k;
client_body_buffer_size 256k; proxy_request_buffering on; proxy_ssl_verify on; proxy_ssl_name localhost;
proxy_ssl_trusted_certificate {origins.certificate}; add_header X-Frame-Options DENY;
{locations} }}"""
    return _nginx("nginx", origins.folder, port, server)


def _revproxy(origins: Origins, port: int) -> Service:
    os.environ["BENCHMARK_UPSTREAM"] = f"http://127.0.0.1:{origins.files}/files/"
    command = [sys.executable, "-m", "gunicorn", "-k", "gthread", "--threads", "16", "--keep-alive", "75",
               "-b", f"127.0.0.1:{port}", "--log-level", "error", "benchmarks.django_peer:application"]  # fmt: skip
    return Service("revproxy", command, port, origins.folder)
