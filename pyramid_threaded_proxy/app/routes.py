"""A proxied route, or a fetch of a view's own, compiled from its settings: what each exchange needs to know."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, unquote

from pyramid_threaded_proxy.exceptions import RequestRefused, TargetRefused, ValueRefused
from pyramid_threaded_proxy.exchange import Exchange, Fields
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.fields import AnswerFields, RequestFields
from pyramid_threaded_proxy.http.rules import RequestRules, ResponseRules
from pyramid_threaded_proxy.http.target import check_upstream_target, join, rest_below
from pyramid_threaded_proxy.limits.admission import Limits, Place
from pyramid_threaded_proxy.settings.load import ProcessSettings, RouteSettings
from pyramid_threaded_proxy.upstream.balance import Balance, Choice, Upstream
from pyramid_threaded_proxy.upstream.origin import UNIX, Origin
from pyramid_threaded_proxy.upstream.tls import Tls, new_context

log = logging.getLogger("pyramid_threaded_proxy.route")


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """What of a client's request goes upstream. Shared by all exchanges of a route, and never changed."""

    request_fields: RequestFields
    rules: RequestRules
    via: str
    preserve_host: bool
    forwarded: Literal["x-forwarded", "rfc7239", "both", "none"]
    upgrade: frozenset[str]
    origins: frozenset[str]
    max_body: int | None


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """How an upstream's answer reaches the client. Shared by all exchanges of a route, and never changed."""

    retries: int
    keepalive: int
    tls: Tls
    connect_timeout: float
    read_timeout: float
    send_timeout: float
    idle_timeout: float
    max_head: int
    buffer: int
    total_timeout: float | None
    limits: Limits
    answer_fields: AnswerFields
    rules: ResponseRules
    hooks: Hooks


def request_policy(settings: RouteSettings, process: ProcessSettings, drop: frozenset[str]) -> RequestPolicy:
    """Compile the request's side; `drop` are lower-case names that stay home besides. Raises `ValueRefused`."""
    rules = RequestRules.compile(settings.request_set, settings.request_add, settings.request_remove)
    return RequestPolicy(
        request_fields=RequestFields(
            own_cookies=process.own_cookies,
            cookies=settings.request_cookies,
            authorization=settings.request_authorization == "pass",
            drop=drop | rules.names,
        ),
        rules=rules,
        via=f"1.1 {process.via}" if process.via else "",
        preserve_host=settings.preserve_host,
        forwarded=settings.forwarded,
        upgrade=frozenset(settings.upgrade),
        origins=frozenset(settings.origins),
        max_body=settings.max_body,
    )


def answer_policy(
    settings: RouteSettings, process: ProcessSettings, hooks: Hooks, bases: tuple[str, ...], private: bool
) -> AnswerPolicy:
    """Compile the answer's side; `bases` are the URLs whose Location is mapped back. Raises `ValueRefused`."""
    return AnswerPolicy(
        retries=settings.retries,
        keepalive=settings.keepalive,
        tls=tls_of(settings),
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        send_timeout=settings.send_timeout,
        idle_timeout=settings.idle_timeout,
        max_head=settings.max_head,
        buffer=settings.buffer,
        total_timeout=settings.total_timeout,
        limits=Limits(settings.max_exchanges, settings.max_exchanges_per_user),
        answer_fields=AnswerFields(
            own_cookies=process.own_cookies,
            rewrite_cookies=settings.rewrite_cookies,
            rewrite_location=settings.rewrite_location,
            bases=bases,
            private=private,
        ),
        rules=ResponseRules.compile(
            settings.response_set, settings.response_add, settings.response_default, settings.response_remove
        ),
        hooks=hooks,
    )


def location_bases(settings: RouteSettings, balance: Balance) -> tuple[str, ...]:
    """The URLs that a route's upstreams may have in their Location; none where paths don't map one to one."""
    if settings.pattern is not None:
        return ()
    # A Unix socket has no name that a Location could hold, but the one in its Host field.
    return tuple(
        f"http://{one.origin.authority}{one.base}" if one.origin.scheme == UNIX else one.url
        for one in balance.upstreams
    )


def tls_of(settings: RouteSettings) -> Tls:
    """What the settings say of TLS, with the files looked into now. Raises `ValueRefused`."""
    tls = Tls(
        settings.tls_verify,
        settings.tls_ca_file,
        settings.tls_cert_file,
        settings.tls_key_file,
        settings.tls_server_name,
    )
    if tls.ca_file is not None or tls.cert_file is not None:
        new_context(tls)
    if not tls.verify:
        log.warning("%s: tls.verify is false: whoever answers in an upstream's place is believed", settings.name)
    return tls


@dataclass(frozen=True, slots=True)
class Route:
    """A declared route. `mount` is its public path, escaped, without a slash at its end; "" on a pattern route."""

    name: str
    settings: RouteSettings
    mount: str
    balance: Balance
    methods: frozenset[str] | None
    request: RequestPolicy
    answer: AnswerPolicy
    #: Mounts of other routes below this one's, from there on.
    inner: tuple[str, ...] = ()

    @property
    def is_prefix(self) -> bool:
        """Whether it has a mount point, rather than a pattern."""
        return self.settings.pattern is None

    def target(
        self, upstream: Upstream, path: str, query: str | None, public: str, matched: Mapping[str, Any]
    ) -> str:
        """The target at `upstream` for a client's raw path and query; `public` is SCRIPT_NAME and mount, escaped.

        Raises `TargetRefused`, or `ValueRefused` where a value can't be written.
        """
        if upstream.pattern is not None:
            target = upstream.pattern.expand(matched, query)
        else:
            rest = rest_below(path, public)
            if rest is None:
                raise TargetRefused("the path as it was sent is not below the mount")
            if self.inner:
                self._check_inner(path, public)
            target = join(upstream.base, rest, query)
        check_upstream_target(target)
        return target


    def _check_inner(self, path: str, public: str) -> None:
        """Upstreams that merge slashes or drop parameters could take the path for one that another route guards."""
        means = _SLASHES.sub("/", _PARAMETERS.sub("", unquote(path)))
        for rest in self.inner:
            mount = unquote(public + rest)
            if means == mount or means.startswith(mount + "/"):
                raise TargetRefused("the path could mean another resource, which has a route of its own")


_SLASHES = re.compile("/{2,}")
_PARAMETERS = re.compile(";[^/]*")
#: What may stand unescaped in a path (RFC 3986 3.3): a made path differs from a sent one as little as it can.
_PATH_SAFE = "/~!$&'()*+,;=:@"


def escaped_path(path: str) -> str:
    """A path as PEP 3333 holds it (bytes in text), escaped as it stands in a target."""
    return quote(path.encode("latin-1"), safe=_PATH_SAFE)


class Fetch:
    """What a `ProxyResponse` stands for: one exchange, and how its answer reaches the client.

    Made in the thread that called the view; the relay owns it from the detach on.
    """

    __slots__ = (
        "accept",
        "application_fields",
        "choice",
        "exchange",
        "head_only",
        "mount",
        "origin",
        "place",
        "policy",
        "public_url",
        "recheck",
        "upgrade",
    )

    def __init__(
        self,
        exchange: Exchange,
        origin: Origin,
        policy: AnswerPolicy,
        *,
        head_only: bool,
        accept: str,
        public_url: str,
        mount: str | None,
        upgrade: tuple[str, ...] = (),
        recheck: tuple[float, Callable[[Exchange], bool]] | None = None,
        choice: Choice | None = None,
    ) -> None:
        self.exchange = exchange
        #: Where it goes.
        self.origin = origin
        #: Which of a route's upstreams that is; None where it is none of them.
        self.choice = choice
        self.policy = policy
        #: Whether the client asked with HEAD: its answer has no body, whatever its fields say.
        self.head_only = head_only
        #: The client's Accept field: our own errors come in a form that it can read.
        self.accept = accept
        #: Scheme and authority that the client sees.
        self.public_url = public_url
        #: The path that the upstream's own URLs are mapped to; None: nothing is rewritten.
        self.mount = mount
        #: The protocols that may be switched to, in lower case, as they were asked for upstream.
        self.upgrade = upgrade
        #: Seconds between two questions whether the exchange may go on, and how to ask.
        self.recheck = recheck
        #: Fields that tweens, callbacks and middleware put on the answer.
        self.application_fields: Fields = []
        #: Its place among the exchanges in flight, once it is admitted.
        self.place: Place | None = None

    def move_on(self) -> bool:
        """Turn to another upstream of the route's; whether there is one that may be asked."""
        choice = self.choice
        if choice is None or not choice.move_on():
            return False
        assert choice.target_of is not None
        request, old, new = self.exchange.request, self.origin.authority, choice.upstream.origin
        try:
            request.target = choice.target_of(choice.upstream)
        except (RequestRefused, ValueRefused):
            return False  # its own base makes another path of it
        self.origin, request.origin = new, str(new)
        if not choice.keep_host:
            fields, host = request.fields, ("Host", old)
            request.fields = [("Host", new.authority) if field == host else field for field in fields]
        return True


def make_hooks(settings: RouteSettings, resolve: Callable[[str, Any], Any]) -> Hooks:
    """The hooks of a route; `resolve` turns a dotted name into what it names, and is told the setting's key."""
    return Hooks(
        request=resolve("hooks.request", settings.hooks_request),
        response=resolve("hooks.response", settings.hooks_response),
        headers=resolve("hooks.headers", settings.hooks_headers),
        complete=resolve("hooks.complete", settings.hooks_complete),
        error=resolve("hooks.error", settings.hooks_error),
    )
