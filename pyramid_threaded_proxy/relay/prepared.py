"""What an exchange brings along: where it goes, and how its answer reaches the client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyramid_threaded_proxy.exceptions import RequestRefused, ValueRefused
from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.fields import AnswerFields
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.http.rules import ResponseRules
from pyramid_threaded_proxy.limits.admission import Limits, Slot
from pyramid_threaded_proxy.upstream.balance import UpstreamChoice
from pyramid_threaded_proxy.upstream.origin import Origin
from pyramid_threaded_proxy.upstream.tls import Tls


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


class PreparedExchange:
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
        "policy",
        "public_url",
        "recheck",
        "slot",
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
        choice: UpstreamChoice | None = None,
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
        #: Its slot among the exchanges in flight, once it is admitted.
        self.slot: Slot | None = None

    def move_on(self) -> bool:
        """Turn to another upstream of the route's; whether there is one that may be asked."""
        choice = self.choice
        if choice is None or not choice.next_upstream():
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
