"""Bytes to send, and the pieces in which they come."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any


def content(size: int) -> bytes:
    """Bytes that show every shift and swap, the same for the same size."""
    return random.Random(size).randbytes(size)


def bytewise(data: bytes) -> list[bytes]:
    """Each byte by itself."""
    return [data[at : at + 1] for at in range(len(data))]


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    """Cut at any positions, which are taken modulo the length."""
    edges = [0, *sorted(at % (len(data) + 1) for at in positions), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


class Chunks:
    """An iterable, not an iterator, that notes how often it is begun and closed."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks
        self.closed = 0
        self.begun = 0

    def __iter__(self) -> Iterator[Any]:
        for number, chunk in enumerate(self.chunks):
            self.begun += number == 0
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def close(self) -> None:
        self.closed += 1
