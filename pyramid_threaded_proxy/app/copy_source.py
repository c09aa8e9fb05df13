"""What a request copies from: S3's CopyObject names a second object in a field, as WebDAV names one in Destination.

A client that may write below one route could otherwise copy to there what lies below another, and read it. The object
is named as the upstream knows it, whatever the mount is, so its public path is found first, and that is judged as a GET
by the same client would be. It runs in the thread of the request, before anything is sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from pyramid_threaded_proxy.app.routes import Inner
from pyramid_threaded_proxy.exceptions import TargetRefused
from pyramid_threaded_proxy.http.dav import SimpleRef
from pyramid_threaded_proxy.http.target import rest_below, split_target
from pyramid_threaded_proxy.upstream.balance import Upstream

#: ``bucket/key``, as Amazon S3 has it, and who has taken that over.
SOURCES = {
    f"HTTP_X_{vendor.upper()}_COPY_SOURCE": f"x-{vendor}-copy-source"
    for vendor in ("amz", "bce", "goog", "obs", "oss", "tos")
}
#: Fields of the same kind whose value says too little: it counts from an account or a bucket, names the bucket by a
#: host, or is a URL that the upstream asks.
_OPAQUE = (
    "x-amz-rename-source", "x-copy-from", "x-cos-copy-source", "x-ms-copy-source", "x-ms-file-rename-source",
    "x-ms-rename-source", "x-object-manifest", "x-oss-symlink-target", "x-symlink-target",
)  # fmt: skip
OPAQUE = {f"HTTP_{name.upper().replace('-', '_')}": name for name in _OPAQUE}
#: A bucket and a key. A scheme or an authority would make another path of it, an ARN another bucket.
_BUCKET_AND_KEY = re.compile(r"/[A-Za-z0-9._-]+(/.*)?")
_ESCAPED_SLASH = re.compile("%2F", re.IGNORECASE)
#: What servers drop that merge slashes, or cut path parameters off.
_UNSURE = re.compile("/+(?=/)|;[^/]*")

#: The target of a reference at an upstream, judged.
TargetAt = Callable[[Upstream], str]
Judge = Callable[[SimpleRef], TargetAt]


class SourceRefused(TargetRefused):
    """What is to be copied is not the client's to read, or it can't be known what it is."""

    status = 403


class Place(NamedTuple):
    """Where the request itself goes: below which public path, to whom, and what has routes of its own there."""

    mount: str
    upstreams: Sequence[Upstream]
    inner: tuple[Inner, ...] = ()


class CopySource:
    """One such field, judged. Raises `TargetRefused`, and what the judge does."""

    def __init__(self, name: str, text: str, judge: Judge, place: Place) -> None:
        #: As the client sent it.
        self.text = text
        self._name = name
        #: What must hold at the upstream, besides; each raises what is wrong there.
        self._also: list[TargetAt] = []
        path, self._query = split_target(text if text.startswith("/") else f"/{text}")
        self._path = _ESCAPED_SLASH.sub("/", path)  # SDKs escape the slashes as well
        if _BUCKET_AND_KEY.fullmatch(unquote(self._path)) is None:
            raise SourceRefused(f"{name} does not name a bucket and a key.")
        rest = rest_below(self._path, _base_of(name, place.upstreams))
        self._is_public = rest is None
        if rest is None:
            self._target_at = judge(SimpleRef(None, None, self._path, self._query))
        else:
            self._target_at = judge(SimpleRef(None, None, place.mount + rest or "/", self._query))
            for reading in {rest, rest.replace("+", "%20")}:  # a plus may be a space
                self._look_at(reading, judge, place)

    def _look_at(self, rest: str, judge: Judge, place: Place) -> None:
        """Where the upstream's host name says the bucket, paths there begin with the key."""
        key = rest[rest.find("/", 1) :] if "/" in rest[1:] else ""
        means = _UNSURE.sub("", unquote(key)) + "/"
        readings = {rest} if "%20" in rest else set()
        if any(means.startswith(unquote(inner.rest) + "/") for inner in place.inner):
            readings.add(key)
        self._also += [judge(SimpleRef(None, None, place.mount + one, self._query)) for one in readings]

    def written(self, upstream: Upstream) -> str:
        """The field for this upstream: as it came, where it says what the upstream knows, and else as a public path."""
        for also in self._also:
            also(upstream)
        target = self._target_at(upstream)
        if self._is_public:
            return target if self.text.startswith("/") else target[1:]
        if unquote(target.partition("?")[0]) != unquote(self._path):
            raise SourceRefused(f"{self._name} names what is below no route.")
        return self.text


def _base_of(name: str, upstreams: Sequence[Upstream]) -> str:
    """The path below which all of them are asked."""
    bases = {upstream.base.rstrip("/") for upstream in upstreams}
    if len(bases) != 1 or any(upstream.pattern is not None for upstream in upstreams):
        raise SourceRefused(f"{name} can't be judged: the upstreams of this route have no one path that all is below.")
    return bases.pop()


def copy_sources(
    environ: Mapping[str, Any], judge: Judge, place: Place | None, opaque_pass: bool
) -> dict[str, CopySource]:
    """What a request copies from, by the fields' lower-case names. Without a `place` it may copy from nowhere.

    Raises `TargetRefused`, with the status 403 for what can't be judged, and what `judge` does.
    """
    for key, name in OPAQUE.items():
        if key in environ and not opaque_pass:
            raise SourceRefused(f"{name} names a second object, which can't be judged.")
    found = {name: environ[key].strip(" \t") for key, name in SOURCES.items() if key in environ}
    if found and place is None:
        raise SourceRefused(f"{next(iter(found))} is not below the place that this request is for.")
    return {} if place is None else {name: CopySource(name, text, judge, place) for name, text in found.items()}
