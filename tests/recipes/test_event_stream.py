"""The recipe for a server of events: each arrives when it is sent, and a stranger's request never reaches it."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tests.support.backends import under_uvicorn
from tests.support.recipes import basic, members, settings
from tests.support.site import MakeSite
from tests.support.waiting import PATIENCE


def test_events(site: MakeSite, stack: ExitStack) -> None:
    """The first event is read while the second has not been sent."""
    asked: list[str] = []
    first_read = threading.Event()

    async def events(request: Request) -> StreamingResponse:
        asked.append(request.headers["X-Remote-User"])

        async def lines() -> AsyncIterator[str]:
            yield "data: one\n\n"
            assert await asyncio.to_thread(first_read.wait, PATIENCE)
            yield "data: two\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    url = stack.enter_context(under_uvicorn(Starlette(routes=[Route("/events/{name}", events)])))
    made = site(settings("A server of events", url), configure=members)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(f"{made.url}/news/all", headers=basic("bob")))
    asking = urllib.request.Request(f"{made.url}/news/all", headers=basic("ann"))
    with urllib.request.urlopen(asking, timeout=PATIENCE) as answer:
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert (answer.readline(), answer.readline()) == (b"data: one\n", b"\n")
        first_read.set()
        assert answer.read() == b"data: two\n\n"
    assert asked == ["ann"]
