"""What an exchange brings along: where it goes, and how its answer reaches the client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pyramid_threaded_proxy.exchange import Exchange
from pyramid_threaded_proxy.hooks import Hooks
from pyramid_threaded_proxy.http.fields import AnswerFields
from pyramid_threaded_proxy.http.names import Fields
from pyramid_threaded_proxy.http.public import Public
from pyramid_threaded_proxy.http.rules import ResponseRules
from pyramid_threaded_proxy.limits.admission import Limits, Slot
from pyramid_threaded_proxy.relay.destination import Destination
from pyramid_threaded_proxy.settings.table import RouteSettings
from pyramid_threaded_proxy.upstream.tls import Tls

#: Asks whether an exchange may go on. Runs in a thread for such questions.
Check = Callable[[Exchange], bool]


class Timeouts(NamedTuple):
    """How long an exchange waits, in seconds; see the settings of these names."""

    connect: float
    read: float
    send: float
    idle: float
    total: float | None


class Recheck(NamedTuple):
    """How often the permission is asked for again while an exchange lasts, in seconds, and how."""

    interval: float
    check: Check


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """How an upstream is asked, and how its answer reaches the client. Shared by a route's exchanges, never changed."""

    settings: RouteSettings
    timeouts: Timeouts
    tls: Tls
    limits: Limits
    answer_fields: AnswerFields
    rules: ResponseRules
    hooks: Hooks
    #: The field that bears the exchange's id on the answer; empty stands for none.
    request_id_header: str = ""
    #: Whether bodies of answers may be changed on their way.
    filters: bool = field(init=False)

    def __post_init__(self) -> None:
        filters = self.hooks.body is not None or bool(self.settings.response_replace)
        object.__setattr__(self, "filters", filters)


class PreparedExchange:
    """What a `ProxyResponse` stands for: one exchange, and how its answer reaches the client.

    Made in the thread that called the view; the relay owns it from the detach on.
    """

    __slots__ = (
        "accept",
        "application_fields",
        "destination",
        "error_body",
        "exchange",
        "head_only",
        "policy",
        "public",
        "recheck",
        "slot",
        "span_parent",
        "upgrade",
    )

    def __init__(
        self,
        exchange: Exchange,
        policy: AnswerPolicy,
        destination: Destination,
        public: Public,
        *,
        head_only: bool = False,
        accept: str = "",
    ) -> None:
        self.exchange = exchange
        self.policy = policy
        self.destination = destination
        self.public = public
        #: Whether the client asked with HEAD: its answer has no body, whatever its fields say.
        self.head_only = head_only
        #: The client's Accept field: our own errors come in a form that it can read.
        self.accept = accept
        #: The protocols that may be switched to, in lower case, as they were asked for upstream.
        self.upgrade: tuple[str, ...] = ()
        #: Whether and how the permission is asked for again.
        self.recheck: Recheck | None = None
        #: Fields that tweens, callbacks and middleware put on the answer.
        self.application_fields: Fields = []
        #: An error's status of an upstream, and the beginning of its body, where that is to be logged.
        self.error_body: tuple[int, bytes] | None = None
        #: Its slot among the exchanges in flight, once it is admitted; the exchange owns it from the detach on.
        self.slot: Slot | None = None
        #: What its trace's span will be below (`app.tracing`), where it was admitted within a span.
        self.span_parent: Any = None

    def fields_for_client(self, fields: Fields) -> Fields:
        """The upstream's fields that may reach the client, and the exchange's id."""
        policy = self.policy
        kept = policy.answer_fields.select(fields, self.public)
        if policy.request_id_header:
            kept.append((policy.request_id_header, self.exchange.request_id))
        return kept

    def release(self) -> None:
        """Give back its slot, and its leave to try an upstream: it has ended, or there will be none. Any thread."""
        if self.destination.choice is not None:
            self.destination.choice.end_trial()
        if self.slot is not None:
            self.slot.release()
