"""Opens many slow requests at once with one user's cookie, and says how they ended.

``python -m pyramid_threaded_proxy.demo.client URL COUNT SECONDS``, the cookie as the first line of standard input.
A browser opens six connections to a host and queues the rest, so it can't show this.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from urllib.parse import urlsplit

from .children import exit_with_parent


async def slow_request(url: str, cookie: str, seconds: str) -> bool:
    """One request on a connection of its own; whether the answer was 200."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        target = f"{parts.path}?seconds={seconds}"
        head = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode("latin-1"))
        return (await reader.read()).startswith(b"HTTP/1.1 200 ")
    finally:
        writer.close()


async def slow_requests(url: str, cookie: str, count: int, seconds: str) -> int:
    """`count` requests at the same time; how many were answered with 200."""
    requests = (slow_request(url, cookie, seconds) for _ in range(count))
    answers = await asyncio.gather(*requests, return_exceptions=True)
    return answers.count(True)


def read_line(descriptor: int) -> str:
    """The first line, one byte at a time: nothing behind it is taken away."""
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"\n", b""):
        line += byte
    return line.decode("latin-1")


def main(url: str, count: str, seconds: str) -> None:
    cookie = read_line(0)
    exit_with_parent()
    begin = time.monotonic()
    answered = asyncio.run(slow_requests(url, cookie, int(count), seconds))
    print(f"demo: {answered} of {count} slow requests answered in {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
