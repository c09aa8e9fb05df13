"""The backend of the demo: an HTTP/1.1 server in one asyncio loop, which holds thousands of slow requests cheaply.

``python -m pyramid_threaded_proxy.demo.upstream HOST PORT``; prints a line when it listens. `INDEX` says what it
offers. It is made for one client, the relay: it trusts what comes.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from .children import exit_with_parent

INDEX = """\
/slow             answers after ?seconds= (5)
/download         ?bytes= (1073741824) of a pattern
/download.sha256  the SHA-256 of that download
/events           an event stream, one event a second
/echo             the request as it came: request line, fields and body
/held             how many /slow requests wait at this moment
"""
BLOCK = random.Random(0).randbytes(1 << 20)
MOST_SECONDS = 3600
MOST_BYTES = 1 << 40


@dataclass(frozen=True)
class Request:
    """A request as it came; `head` is its request line and fields."""

    head: str
    body: bytes
    method: str
    path: str
    query: dict[str, list[str]]
    keep_alive: bool

    def number(self, name: str, default: int, most: int) -> float:
        """A number of the query. Raises `ValueError` unless it is one from 0 to `most`."""
        number = float(self.query.get(name, [str(default)])[0])
        if not 0 <= number <= most:
            raise ValueError(f"{name} must be from 0 to {most}")
        return number

    def size(self) -> int:
        return int(self.number("bytes", 1 << 30, MOST_BYTES))


class Connection:
    """One client connection; `held` counts the slow requests of all of them."""

    held = 0

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def serve(self) -> None:
        """Answer requests until one side has enough."""
        try:
            while True:
                request = await self.read_request()
                if not await self.answer(request) or not request.keep_alive:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # The client is gone, or is no HTTP client.
        finally:
            self.writer.close()

    async def read_request(self) -> Request:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = request_line.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(fields.get("content-length", "0")))
        url = urlsplit(target)
        keep_alive = fields.get("connection", "").lower() != "close"
        return Request(head, body, method, url.path, parse_qs(url.query), keep_alive)

    async def answer(self, request: Request) -> bool:
        """Answer; whether the connection may be used again."""
        try:
            match request.path:
                case "/slow":
                    return await self.slow(request)
                case "/download":
                    return await self.download(request)
                case "/events":
                    return await self.events()
                case _:
                    return await self.text(request, *await document(request))
        except ValueError as error:
            return await self.text(request, f"{error}\n", status="400 Bad Request")

    async def slow(self, request: Request) -> bool:
        seconds = request.number("seconds", 5, MOST_SECONDS)
        Connection.held += 1
        try:
            if await self.gone_within(seconds):
                return False
        finally:
            Connection.held -= 1
        return await self.text(request, f"This took {seconds:g} seconds.\n")

    async def download(self, request: Request) -> bool:
        size = request.size()
        name = f'attachment; filename="{size}.bin"'
        self.write_head("200 OK", "application/octet-stream", f"Content-Length: {size}\r\nContent-Disposition: {name}")
        for piece in pieces(size) if request.method != "HEAD" else ():
            self.writer.write(piece)
            await self.writer.drain()
        return True

    async def events(self) -> bool:
        self.write_head("200 OK", "text/event-stream", "Cache-Control: no-store\r\nTransfer-Encoding: chunked")
        for number in itertools.count(1):
            event = f"id: {number}\ndata: event {number} at {time.strftime('%H:%M:%S')}\n\n".encode()
            self.writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await self.writer.drain()
            if await self.gone_within(1):
                break
        return False

    async def text(self, request: Request, text: str, kind: str = "text/plain", status: str = "200 OK") -> bool:
        body = text.encode("latin-1")
        self.write_head(status, f"{kind}; charset=iso-8859-1", f"Content-Length: {len(body)}")
        if request.method != "HEAD":
            self.writer.write(body)
        await self.writer.drain()
        return True

    async def gone_within(self, seconds: float) -> bool:
        """Wait; whether the client went meanwhile. One that sends more before its answer counts as gone."""
        try:
            await asyncio.wait_for(self.reader.read(1), seconds)
        except asyncio.TimeoutError:
            return False
        return True

    def write_head(self, status: str, content_type: str, fields: str) -> None:
        head = f"HTTP/1.1 {status}\r\nServer: demo\r\nContent-Type: {content_type}\r\n{fields}\r\n\r\n"
        self.writer.write(head.encode("latin-1"))


async def document(request: Request) -> tuple[str, str, str]:
    """What is answered at once and as a whole: text, media type, status."""
    match request.path:
        case "/":
            return INDEX, "text/plain", "200 OK"
        case "/echo":
            return request.head + request.body.decode("latin-1"), "text/plain", "200 OK"
        case "/held":
            return json.dumps({"held": Connection.held}), "application/json", "200 OK"
        case "/download.sha256":
            # Off the loop: a gigabyte takes a second.
            return await asyncio.to_thread(sha256, request.size()) + "\n", "text/plain", "200 OK"
        case _:
            return "Nothing here.\n", "text/plain", "404 Not Found"


def pieces(size: int) -> Iterator[bytes | memoryview]:
    """`size` bytes: the same block over and over, the last one cut."""
    yield from itertools.repeat(BLOCK, size // len(BLOCK))
    yield memoryview(BLOCK)[: size % len(BLOCK)]


@functools.lru_cache
def sha256(size: int) -> str:
    digest = hashlib.sha256()
    for piece in pieces(size):
        digest.update(piece)
    return digest.hexdigest()


async def serve(host: str, port: int) -> None:
    """Listen, say so, and serve until the process ends."""
    server = await asyncio.start_server(lambda *streams: Connection(*streams).serve(), host, port, backlog=1024)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"demo upstream listening on {host}:{port}", flush=True)
    await server.serve_forever()


def main(host: str, port: str) -> None:
    exit_with_parent()
    try:
        asyncio.run(serve(host, int(port)))
    except OSError as error:
        sys.exit(f"demo upstream: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
