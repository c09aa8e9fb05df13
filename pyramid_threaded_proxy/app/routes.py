"""A proxied route, or a fetch of a view's own, compiled from its settings: what each exchange needs to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from pyramid_threaded_proxy.app.host import is_for
from pyramid_threaded_proxy.exceptions import TargetRefused
from pyramid_threaded_proxy.http.fields import RequestFields
from pyramid_threaded_proxy.http.query import QueryRules
from pyramid_threaded_proxy.http.rules import RequestRules
from pyramid_threaded_proxy.http.target import check_upstream_target, join, rest_below
from pyramid_threaded_proxy.relay.prepared import AnswerPolicy
from pyramid_threaded_proxy.settings.load import RouteSettings
from pyramid_threaded_proxy.upstream.balance import Balancer, Upstream


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """What of a client's request goes upstream. Shared by all exchanges of a route, and never changed."""

    settings: RouteSettings
    fields: RequestFields
    rules: RequestRules
    via: str
    query: QueryRules
    #: The field that bears the exchange's id; empty stands for none.
    request_id_header: str
    upgrade: frozenset[str]
    origins: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the exchanges of one route, or of a view's own fetch, compiled from its settings."""

    name: str
    #: None stands for any that is ever sent.
    methods: frozenset[str] | None
    request: RequestPolicy
    answer: AnswerPolicy
    #: Whether who asks is nobody, whoever that is: a preflight has no user.
    anonymous: bool = False


class Inner(NamedTuple):
    """The mount of another route below one's own, from there on, and the host that it stands for."""

    rest: str
    host: str | None


@dataclass(frozen=True, slots=True)
class Route:
    """A declared route. `mount` is its public path, escaped, without a slash at its end; "" on a pattern route."""

    settings: RouteSettings
    rules: Rules
    mount: str
    balancer: Balancer
    #: Mounts of other routes below this one's, from there on.
    inner: tuple[Inner, ...] = ()
    #: What holds for a CORS preflight that needs no permission; None where it does.
    preflight: Rules | None = None
    #: Whether a page at the mount without its slash would miss what it names relative to itself.
    wants_slash: bool = False
    #: The lower-case names of fields that a front server is told of (`settled`).
    settled: frozenset[str] = frozenset()

    @property
    def is_prefix(self) -> bool:
        """Whether it has a mount point, rather than a pattern."""
        return self.settings.pattern is None

    def target(
        self, path: str, query: str | None, public: str, matched: Mapping[str, Any], host: str, upstream: Upstream
    ) -> str:
        """The target at `upstream` for a client's raw path and query; `public` is SCRIPT_NAME and mount, escaped.
        `host` is the client's, which may say which other routes there are.

        Raises `TargetRefused`, or `ValueRefused` where a value can't be written.
        """
        if upstream.pattern is not None:
            target = upstream.pattern.expand(matched, query)
        else:
            rest = rest_below(path, public)
            if rest is None:
                raise TargetRefused("the path as it was sent is not below the mount")
            if self.inner:
                self._check_inner(path, public, host)
            target = join(upstream.base, rest, query)
        check_upstream_target(target)
        return target

    def _check_inner(self, path: str, public: str, host: str) -> None:
        """Upstreams that merge slashes or drop parameters could take the path for one that another route guards."""
        means = _SLASHES.sub("/", _PARAMETERS.sub("", unquote(path)))
        for inner in self.inner:
            mount = unquote(public + inner.rest)
            if (means == mount or means.startswith(mount + "/")) and is_for(inner.host, host):
                raise TargetRefused("the path could mean another resource, which has a route of its own")


_SLASHES = re.compile("/{2,}")
_PARAMETERS = re.compile(";[^/]*")
