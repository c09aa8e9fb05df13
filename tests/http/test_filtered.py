"""What fields say of a filtered body, and how one is asked for."""

from __future__ import annotations

import pytest

from pyramid_threaded_proxy.http.filtered import fields_asking_plainly, fields_of_filtered


@pytest.mark.parametrize(("etag", "wanted"), [('"a"', 'W/"a"'), ('W/"a"', 'W/"a"'), ('""', 'W/""')])
def test_an_etag_is_weak(etag: str, wanted: str) -> None:
    """Equal bytes are promised no more."""
    assert fields_of_filtered([("etag", etag)]) == [("etag", wanted)]


def test_what_does_not_hold_any_more_is_gone() -> None:
    """Length, coding, digests and ranges; whatever else is said stays."""
    gone = ["Accept-Ranges", "Content-Encoding", "Content-Length", "content-md5", "Digest", "Content-Digest"]
    fields = [(name, "x") for name in (*gone, "Repr-Digest", "Content-Type", "Last-Modified", "Set-Cookie")]
    assert [name for name, _ in fields_of_filtered(fields)] == ["Content-Type", "Last-Modified", "Set-Cookie"]


def test_the_whole_is_asked_for() -> None:
    """Without a coding and without ranges, but on the client's other conditions."""
    fields = [(name, "x") for name in ("Host", "accept-encoding", "Range", "If-Range", "If-None-Match")]
    assert fields_asking_plainly(fields) == [("Host", "x"), ("If-None-Match", "x"), ("Accept-Encoding", "identity")]
