"""What can go wrong: whose fault it is, and which status the client gets for it.

::

    ProxyError
    ├── ProxyResponseError          our caller's fault: a ProxyResponse was read or written like an ordinary one
    ├── RequestRefused              the client's fault, found before anything is sent        400
    │   ├── TargetRefused           the request target means, or could mean, something else  400
    │   ├── FieldRefused            a request field can't be passed on                       400
    │   ├── ProtocolRefused         a request's framing or version is faulty                 400
    │   ├── BodyTooLarge            its body is over `max_body`                              413
    │   └── BodyRefused             its body, which streams, is faulty                       400
    ├── TooManyExchanges            a limit is reached; 429 where it is that of one user     503
    ├── UpstreamsResting            all upstreams of a route have failed lately              503
    ├── ValueRefused                a value of ours or the application's can't be sent       500
    └── ExchangeFailed              an exchange ended early
        ├── ConnectFailed           refused, unresolved, unreachable, TLS failure            502
        │   └── ConnectTimedOut     no connection within `connect_timeout`                   504
        ├── UpstreamGone            closed or reset before the end of its answer             502
        ├── AnswerRefused           its answer breaks a rule of RFC 9112                     502
        ├── SendTimedOut            it took no bytes for `send_timeout`                      504
        ├── TotalTimedOut           the exchange took longer than `total_timeout`            504
        ├── ReadTimedOut            it sent no bytes for `read_timeout`                      504
        ├── TunnelIdle              nothing moved on a switched connection                   504
        ├── DescriptorsExhausted    too many files are open                                  503
        ├── ThreadsExhausted        the system lets no thread be started                     503
        ├── HookFailed              a hook of the application raised                         500
        ├── ExchangeClosed          the application, or a stopping process, ended it         503
        │   └── PermissionWithdrawn it was asked for again, and the answer was no            403
        ├── RelayFailed             a fault of our own                                       500
        ├── ClientTimedOut          the client took no bytes for `send_timeout`              408
        ├── ClientBodyTimedOut      it sent no bytes of its body for `client_body_timeout`   408
        └── ClientGone              the client closed its connection                         499

`ClientTimedOut` and `ClientGone` are for the log alone: the client that would get them can't be reached any more.
"""

from __future__ import annotations


class ProxyError(Exception):
    """The root of everything that this package raises on purpose."""


class ProxyResponseError(ProxyError):
    """A ``ProxyResponse`` has no body or status yet: it says what to fetch, it is not the fetched thing."""


class RequestRefused(ProxyError):
    """The client's request can't be forwarded; nothing has been sent upstream.

    `rule` names the rule that it breaks, in words that may be shown to the client.
    """

    status = 400

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class TargetRefused(RequestRefused):
    """The request target could mean another resource to the upstream than to the application."""


class FieldRefused(RequestRefused):
    """A field of the client's request can't be passed on."""


class ProtocolRefused(RequestRefused):
    """The request's version or framing is faulty (RFC 9112)."""


class TooManyExchanges(ProxyError):
    """An exchange was not admitted: `limit` is the setting that is reached. `retry_after` is in seconds."""

    def __init__(self, limit: str, status: int = 503, retry_after: int = 1) -> None:
        super().__init__(f"the limit is reached: {limit}")
        self.limit = limit
        self.status = status
        self.retry_after = retry_after


class UpstreamsResting(ProxyError):
    """All upstreams of a route are marked down after failures: nothing is sent. `retry_after` is in seconds."""

    status = 503

    def __init__(self, route: str, retry_after: int) -> None:
        super().__init__(f"all upstreams of {route} are marked down")
        self.retry_after = retry_after


class ValueRefused(ProxyError, ValueError):
    """A name or value that an override, a hook or a view gave can't be written into a message."""


class ExchangeFailed(ProxyError):
    """An admitted exchange ended before its answer was whole.

    `status` is what the client gets while the head is not out yet, and what the log shows. `ended` is the
    log's word for it. The text of the exception is for the log: it may name the upstream, never a secret.
    """

    status = 502
    ended = "failed"


class BodyTooLarge(RequestRefused, ExchangeFailed):
    """The request body is larger than ``max_body``. One of unknown length shows it only while it is sent."""

    status = 413
    ended = "body-too-large"


class BodyRefused(RequestRefused, ExchangeFailed):
    """The chunked coding of a request body that streams breaks RFC 9112 7.1; the upstream saw a part of it."""

    status = 400
    ended = "body-refused"


class ConnectFailed(ExchangeFailed):
    """No connection to the upstream could be made: refused, unresolved, unreachable, or TLS failed.

    `temporary` says that it may be otherwise in a moment: an upstream that starts anew refuses for so long.
    """

    ended = "connect-failed"
    temporary = False


class ConnectTimedOut(ConnectFailed):
    """No connection to the upstream was made within ``connect_timeout``."""

    status = 504
    ended = "connect-timeout"


class UpstreamGone(ExchangeFailed):
    """The upstream closed or reset its connection before its answer was whole."""

    ended = "upstream-gone"
    #: Whether it was a reset.
    reset = False


class AnswerRefused(ExchangeFailed):
    """The upstream's answer breaks a rule of message syntax or framing (RFC 9112), so it is not passed on."""

    ended = "answer-refused"


class SendTimedOut(ExchangeFailed):
    """The upstream took no bytes of the request for ``send_timeout``."""

    status = 504
    ended = "send-timeout"


class ReadTimedOut(ExchangeFailed):
    """The upstream sent no bytes for ``read_timeout``."""

    status = 504
    ended = "read-timeout"


class TotalTimedOut(ExchangeFailed):
    """The exchange took longer than ``total_timeout``."""

    status = 504
    ended = "total-timeout"


class TunnelIdle(ExchangeFailed):
    """Nothing moved on a switched connection for ``idle_timeout``."""

    status = 504
    ended = "idle-timeout"


class DescriptorsExhausted(ExchangeFailed):
    """So many files are open that the application would soon have none for its own pages."""

    status = 503
    ended = "no-descriptor"


class ThreadsExhausted(ExchangeFailed):
    """There is no thread for what may block, and the system lets none be started."""

    status = 503
    ended = "no-thread"


class HookFailed(ExchangeFailed):
    """A hook raised; its traceback is in the log and is never sent."""

    status = 500
    ended = "hook-failed"


class ExchangeClosed(ExchangeFailed):
    """The application or the stopping process ended the exchange."""

    status = 503
    ended = "closed"


class PermissionWithdrawn(ExchangeClosed):
    """The permission was asked for again, and the answer was no."""

    status = 403
    ended = "permission-withdrawn"


class RelayFailed(ExchangeFailed):
    """Something unforeseen broke in the relay itself; the traceback is in the log."""

    status = 500
    ended = "relay-failed"


class ClientTimedOut(ExchangeFailed):
    """The client took no bytes of the answer for ``send_timeout``; its connection is reset."""

    status = 408
    ended = "client-timeout"


class ClientBodyTimedOut(ExchangeFailed):
    """The client sent nothing of a request body that streams for ``client_body_timeout``."""

    status = 408
    ended = "client-body-timeout"


class ClientGone(ExchangeFailed):
    """The client closed its connection, or its half of it, before the answer was whole."""

    status = 499
    ended = "client-gone"
