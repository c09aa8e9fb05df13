"""Real servers as upstreams: nginx, gunicorn, and the standard library's."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import Authority
from tests.support.processes import free_port
from tests.support.site import MakeSite, Site, route
from tests.support.waiting import PATIENCE, wait_until

#: Sends back the SHA-256 of the request's body, then the size that the query asks for.
APPLICATION = """
import hashlib
def application(environ, start_response):
    digest = hashlib.sha256(environ["wsgi.input"].read()).hexdigest()
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Digest", digest), ("X-Path", environ["PATH_INFO"])])
    return [b"x" * 10000] * int(environ["QUERY_STRING"] or 0)
"""

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    server {{
        listen 127.0.0.1:{port}; listen 127.0.0.1:{tls} ssl; listen unix:{folder}/nginx.sock;
        ssl_certificate {certificate}; ssl_certificate_key {key};
        location / {{ root {folder}/files; dav_methods PUT; create_full_put_path on; client_max_body_size 0; }}
        location /here {{ return 302 /there; }}
    }}
}}
"""


def answers(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        return sock.connect_ex(address) == 0


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts a server's process, and waits until it listens; ends it with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], *addresses: tuple[str, int] | str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        processes.append(process)
        for address in addresses:
            wait_until(lambda address=address: process.poll() is not None or answers(address), f"{command[0]}")
        assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
        return process

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(PATIENCE)


@pytest.fixture
def nginx(tmp_path: Path, serve: Callable[..., Any], need_program: Callable[[str], str]) -> dict[str, str]:
    """The URLs of one nginx: plain, TLS and Unix; `ca` is the file of its authority, `digest` that of its big file."""
    program = need_program("nginx")
    authority = Authority(tmp_path, need_program("openssl"))
    certificate, key = authority.issue("nginx", "IP:127.0.0.1")
    (tmp_path / "files").mkdir()
    body = os.urandom(2 << 20)
    (tmp_path / "files" / "big").write_bytes(body)
    port, tls, path = free_port(), free_port(), str(tmp_path / "nginx.sock")
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(NGINX.format(folder=tmp_path, port=port, tls=tls, certificate=certificate, key=key))
    serve([program, "-c", str(configuration), "-p", str(tmp_path)], ("127.0.0.1", port), ("127.0.0.1", tls), path)
    return {
        "http": f"http://127.0.0.1:{port}", "https": f"https://127.0.0.1:{tls}",
        "unix": "http+unix://" + path.replace("/", "%2F"),
        "ca": authority.ca_file, "digest": hashlib.sha256(body).hexdigest(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["http", "https", "unix"])
def test_nginx(nginx: dict[str, str], site: MakeSite, kind: str) -> None:
    """A big file, a part of it, an error page and a redirect come over kept connections, by every scheme."""
    where = site(route("r", nginx[kind], **({"tls__ca_file": nginx["ca"]} if kind == "https" else {})))
    for _ in range(3):
        assert hashlib.sha256(where.get("/r/big").body).hexdigest() == nginx["digest"]
        kept(where)  # a client has its last byte a moment before
    part = where.get("/r/big", {"Range": "bytes=100-199"})
    assert (part.status, len(part.body)) == (206, 100)
    assert where.get("/r/none").status == 404
    assert where.get("/r/here").one("Location") in (f"{where.url}/r/there", "/r/there")
    kept(where)


def kept(where: Site) -> None:
    """Wait until the one connection is idle."""
    wait_until(lambda: where.idle() == 1, "the connection")


def test_all_of_them_as_one_set(nginx: dict[str, str], site: MakeSite) -> None:
    """One route may balance over upstreams of all three schemes, and one that is gone is passed over."""
    urls = " ".join([nginx["http"], nginx["https"], nginx["unix"], "http://127.0.0.1:9"])
    where = site(route("r", urls, tls__ca_file=nginx["ca"], health__fails="1"))
    assert {where.get("/r/big").status for _ in range(8)} == {200}


@pytest.mark.parametrize("bind", ["tcp", "unix"])
def test_gunicorn(tmp_path: Path, serve: Callable[..., Any], site: MakeSite, bind: str) -> None:
    """Bodies with a length go up and chunks come down, whether gunicorn keeps connections or closes them."""
    (tmp_path / "upstream_application.py").write_text(APPLICATION)
    port, path = free_port(), str(tmp_path / "gunicorn.sock")
    listen, address = (f"unix:{path}", path) if bind == "unix" else (f"127.0.0.1:{port}", ("127.0.0.1", port))
    url = "http+unix://" + path.replace("/", "%2F") if bind == "unix" else f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gunicorn", "-b", listen, "-k", "gthread", "upstream_application:application"]
    serve(command, address)
    where = site(route("r", url + "/base"))
    body = os.urandom(300_000)
    for _ in range(3):
        answer = where.get("/r/a%20b?50", method="POST", body=body)
        assert answer.one("X-Digest") == hashlib.sha256(body).hexdigest()
        assert answer.one("X-Path") == "/base/a b"
        assert answer.body == b"x" * 500_000


def test_the_standard_librarys_server(tmp_path: Path, serve: Callable[..., Any], site: MakeSite) -> None:
    """A server that speaks HTTP/1.0 and closes after each answer: bodies are whole, and nothing is kept."""
    body = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(body)
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    serve(command, ("127.0.0.1", port))
    where = site(route("r", f"http://127.0.0.1:{port}"))
    assert [where.get("/r/file").body == body for _ in range(3)] == [True] * 3
    assert where.get("/r/none").status == 404


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, serve: Callable[..., Any], site: MakeSite) -> None:
    """Killed, each request is 502, because a lone upstream is always asked; started again, all is well at once."""
    (tmp_path / "upstream_application.py").write_text(APPLICATION)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "upstream_application:application"]
    process = serve(command, ("127.0.0.1", port))
    where = site(route("r", f"http://127.0.0.1:{port}", health__fails="2", health__pause="1s"))
    assert where.get("/r/").status == 200
    process.kill()
    process.wait(PATIENCE)
    wait_until(lambda: not answers(("127.0.0.1", port)), "the end of its worker too")
    assert [where.get("/r/").status for _ in range(3)] == [502, 502, 502]
    serve(command, ("127.0.0.1", port))
    assert where.get("/r/").status == 200
