"""Applications under each WSGI server, for tests that are the same under all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import webtest
from waitress import create_server, wasyncore

from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE
from tests.support.wire import Answer, over_http

ENGINE = "pyramid_threaded_proxy.engine"

#: Makes an application that proxies to an upstream's URL; in a test module, where gunicorn imports it from.
Application = Callable[[str], Any]
Ask = Callable[..., Answer]


@contextmanager
def under_webtest(application: Application, upstream: str, folder: Path) -> Iterator[Ask]:
    made = application(upstream)
    browser = webtest.TestApp(made)

    def ask(path: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        sent = dict(headers or {})
        answer = browser.request(path, method=method, body=body, headers=sent, expect_errors=True)
        code, _, reason = answer.status.partition(" ")
        return Answer(int(code), reason, list(answer.headerlist), answer.body)

    yield ask
    made.registry[ENGINE].close()


@contextmanager
def under_waitress(application: Application, upstream: str, folder: Path) -> Iterator[Ask]:
    made = application(upstream)
    server = create_server(made, listen="127.0.0.1:0", threads=4)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield partial(over_http, server.effective_port)
    finally:
        made.registry[ENGINE].close()
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map, ignore_all=True))
        thread.join()
        server.task_dispatcher.shutdown()


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def under_wsgiref(application: Application, upstream: str, folder: Path) -> Iterator[Ask]:
    made = application(upstream)
    server = make_server("127.0.0.1", 0, validator(made), handler_class=QuietHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield partial(over_http, server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        made.registry[ENGINE].close()


@contextmanager
def under_gunicorn(worker: str, application: Application, upstream: str, folder: Path) -> Iterator[Ask]:
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / f"{worker}.log").open("wb") as log:
        # With more than one thread gunicorn makes a threaded worker of the sync one.
        threads = "2" if worker == "gthread" else "1"
        command = [
            sys.executable, "-m", "gunicorn", "--worker-class", worker, "--threads", threads,
            "--bind", f"fd://{listener.fileno()}", "--pythonpath", str(ROOT),
            "--worker-tmp-dir", str(folder), f"{application.__module__}:{application.__name__}({upstream!r})",
        ]  # fmt: skip
        environ = {**os.environ, "HOME": str(folder)}
        process = subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdout=log, stderr=log, cwd=folder, env=environ
        )
        try:
            yield partial(over_http, listener.getsockname()[1])
        finally:
            process.terminate()
            process.wait(PATIENCE)


#: Those whose connections can't be detached.
SERVERS: dict[str, Any] = {
    "webtest": under_webtest,
    "wsgiref": under_wsgiref,
    "gunicorn-sync": lambda *arguments: under_gunicorn("sync", *arguments),
    "gunicorn-gthread": lambda *arguments: under_gunicorn("gthread", *arguments),
}
