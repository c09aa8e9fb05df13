"""Large requests with Content-Length, sent as fast as they are taken."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from typing import Any

from benchmarks.loads import ready
from benchmarks.loads.wire import connect, read_head, request


def upload(port: int, path: str, connections: int, size: int) -> dict[str, Any]:
    """Bytes of all bodies, and the seconds until the last was answered with 200."""
    socks = [connect(port) for _ in range(connections)]
    for sock in socks:
        # sendfile() of a large body, and an answer that comes once all of it has gone upstream.
        sock.settimeout(120)
    asked = request(path, [f"Content-Length: {size}", "Content-Type: application/octet-stream"], "POST")
    failures: list[BaseException] = []
    with tempfile.TemporaryFile() as body:
        os.truncate(body.fileno(), size)

        def send(index: int) -> None:
            try:
                socks[index].sendall(asked)
                with open(body.fileno(), "rb", closefd=False) as shared:
                    _send_file(socks[index].fileno(), shared.fileno(), size)
                read_head(socks[index])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=send, args=(index,)) for index in range(connections)]
        ready()
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return {"bytes": size * connections, "seconds": time.perf_counter() - begin}


def _send_file(target: int, source: int, size: int) -> None:
    os.set_blocking(target, True)
    offset = 0
    while offset < size:
        offset += os.sendfile(target, source, offset, min(size - offset, 1 << 20))
