"""The settings: their values as frozen dataclasses, and the one table that they are read and documented from.

A new setting is one row here and one field of its dataclass. The field bears the row's path with ``_`` for ``.``. Its
example is in `groups.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pyramid_threaded_proxy.settings import urls, values
from pyramid_threaded_proxy.settings.keys import BOOLEAN, DURATION, FIELDS, HOOK, SIZE, TEMPLATE, FieldValues, Hook, Key
from pyramid_threaded_proxy.settings.process_table import ProcessSettings


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """What holds for one route: ``proxy.routes.NAME.…``. Durations are in seconds, sizes in bytes."""

    name: str
    prefix: str | None
    pattern: str | None
    #: The URLs as written; none for `request.proxy_fetch`.
    upstream: tuple[str, ...]
    permission: str | None
    public: bool
    require_csrf: bool | None
    factory: str | Callable[..., Any] | None
    #: None stands for any but CONNECT and TRACE. That GET lets HEAD in is not spelt out here.
    methods: tuple[str, ...] | None
    order: int
    before: bool
    host: str | None
    preflight: Literal["ask", "pass"]
    query_remove: tuple[str, ...]
    query_only: frozenset[str] | None
    query_set: FieldValues
    request_origin: Literal["pass", "upstream"]
    request_set: FieldValues
    request_add: FieldValues
    request_remove: tuple[str, ...]
    #: In lower case; None stands for any, as for `response_only`.
    request_only: frozenset[str] | None
    #: None stands for ``*``.
    request_cookies: frozenset[str] | None
    request_authorization: Literal["drop", "pass"]
    request_overrides: Literal["drop", "pass"]
    request_buffering: bool
    response_set: FieldValues
    response_add: FieldValues
    response_default: FieldValues
    response_remove: tuple[str, ...]
    response_only: frozenset[str] | None
    response_replace: FieldValues
    response_encoded: Literal["decode", "refuse"]
    preserve_host: bool
    forwarded: Literal["x-forwarded", "rfc7239", "both", "none"]
    #: Rules that go before the usual mapping; None stands for false.
    rewrite_location: FieldValues | None
    rewrite_cookies: FieldValues | None
    slash: Literal["redirect", "pass"] | None
    #: In lower case.
    upgrade: tuple[str, ...]
    #: Besides the application's own; ``*`` among them stands for all.
    origins: tuple[str, ...]
    cache: Literal["private", "keep"]
    recheck: float | None
    hooks_request: Hook
    hooks_response: Hook
    hooks_headers: Hook
    hooks_body: Hook
    hooks_complete: Hook
    hooks_error: Hook
    connect_timeout: float
    read_timeout: float
    send_timeout: float
    client_body_timeout: float
    #: None stands for no limit.
    total_timeout: float | None
    idle_timeout: float
    #: None logs none.
    log_error_body: int | None
    #: None stands for no limit; the process has its own.
    max_exchanges: int | None
    max_exchanges_per_user: int | None
    #: None stands for waitress's own limit.
    max_body: int | None
    max_head: int
    buffer: int
    retries: int
    balance: Literal["round_robin", "least_exchanges", "user_hash"]
    #: 0: an upstream never rests.
    health_fails: int
    health_pause: float
    health_path: str | None
    health_interval: float
    keepalive: int
    keepalive_time: float
    tls_verify: bool
    tls_ca_file: str | None
    tls_cert_file: str | None
    tls_key_file: str | None
    tls_server_name: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of an application; the routes are in the order of their declaration."""

    process: ProcessSettings
    routes: tuple[RouteSettings, ...]


ROUTE_KEYS: tuple[Key, ...] = (
    Key(
        "prefix", urls.prefix, None,
        "a path from `/` on, without placeholders, dot segments or a last slash; escaped where a URL needs it",
        "mount point: `/reports` matches itself and all under it; the rest is appended to `upstream`. "
        "A route has either `prefix` or `pattern`",
        fetch=False,
    ),
    Key(
        "pattern", urls.pattern, None, "a Pyramid route pattern",
        "matches as any Pyramid route does; `upstream` may use its `{placeholders}`",
        fetch=False,
    ),
    Key(
        "upstream", urls.upstreams, None,
        "`http://host[:port][/path]`, `https://…` or `http+unix://%2Fpath%2Fsocket[/path]`, without credentials, or a "
        "list of these; with `pattern` also placeholders and a query",
        "the server that the route points at, and the base that paths are joined to; a list balances over several",
        unset="required", fetch=False,
    ),
    Key(
        "permission", values.permission, None, "a permission's name",
        "the Pyramid permission that a request needs", fetch=False,
    ),
    Key(
        "public", values.boolean, "false", BOOLEAN,
        "`true` says that no permission is wanted; not beside `permission`", fetch=False,
    ),
    Key(
        "require_csrf", values.boolean, None, BOOLEAN,
        "Pyramid's view option of that name; where CSRF is checked, its header does not go upstream",
        unset="the application's default", fetch=False,
    ),
    Key(
        "factory", values.dotted, None, HOOK, "the context factory whose ACL is asked",
        unset="the application's root factory", fetch=False,
    ),
    Key(
        "methods", values.methods, None, "names of methods in upper case, without CONNECT and TRACE",
        "allowed methods (GET implies HEAD); others get, after authorization and CSRF, 405 with `Allow`",
        unset="any but CONNECT, TRACE", fetch=False,
    ),
    Key(
        "order", values.integer(-(10**6), 10**6), "0", "a whole number, -1000000 to 1000000",
        "where the route stands among proxied routes, which all come after the application's own; among equals "
        "patterns go before prefixes, and longer prefixes before shorter ones",
        fetch=False,
    ),
    Key(
        "before", values.boolean, "false", BOOLEAN,
        "`true` puts the route in front of the application's own, for an application with a catch-all; the "
        "application's routes below it are then never reached",
        fetch=False,
    ),
    Key(
        "host", values.host, None, "a host's name or address without a port, or `*.example.com` for all below it",
        "the Host that this route stands for, as waitress trusts it; `prefix` is `/` then, where neither it nor "
        "`pattern` is given",
        unset="any", fetch=False,
    ),
    Key(
        "preflight", values.choice("ask", "pass"), "ask", "`ask` or `pass`",
        "`pass` lets a CORS preflight go upstream without the permission, and without cookies, body or identity",
        fetch=False,
    ),
    Key(
        "query.remove", values.list_of(values.parameter), "", "names of query parameters",
        "the client's parameters that do not go upstream, in whatever case and form",
    ),
    Key(
        "query.only", values.parameters, None, "names of query parameters; empty lets none through",
        "the client's parameters that may go upstream at all",
        unset="any",
    ),
    Key(
        "query.set", values.template, None, TEMPLATE,
        "this parameter goes upstream with this value, instead of the client's", names=values.parameter,
    ),
    Key(
        "request.origin", values.choice("pass", "upstream"), "pass", "`pass` or `upstream`",
        "`upstream` tells a backend that compares `Origin` and `Referer` with its own Host that it is itself; only our "
        "own origin and those of `origins` are rewritten so. Not beside `preserve_host`",
    ),
    Key(
        "request.set", values.template, None, TEMPLATE,
        "this field is sent upstream with this value, instead of the client's", names=values.request_field,
    ),
    Key(
        "request.add", values.template, None, TEMPLATE,
        "this field is sent upstream beside those of its name that `request.set` or we ourselves give; what the client "
        "sent under the name is dropped",
        names=values.request_field,
    ),
    Key(
        "request.remove", values.list_of(values.request_field), "", f"{FIELDS}, and without underscores",
        "fields that are not sent upstream",
    ),
    Key(
        "request.only", values.request_fields, None, "names of fields; empty lets none through",
        "the client's fields that may go upstream at all, `Cookie` and `Content-Type` included; Host, framing, the "
        "fields of an allowed upgrade and those that are set here go besides",
        unset="any",
    ),
    Key(
        "request.cookies", values.cookies_let_up, "*", "names of cookies, or `*`",
        "cookies that may go upstream, besides `own_cookies`, which never do; empty sends none",
    ),
    Key(
        "request.authorization", values.choice("drop", "pass"), "drop", "`drop` or `pass`",
        "`pass` sends the client's `Authorization` upstream",
    ),
    Key(
        "request.overrides", values.choice("drop", "pass"), "drop", "`drop` or `pass`",
        "`pass` sends the client's `X-Original-URL`, `X-Rewrite-URL`, `X-HTTP-Method-Override`, `X-HTTP-Method` and "
        "`X-Method-Override` upstream: some servers read another path or method in them than was permitted. "
        "Sources of a copy that can't be judged (`X-Copy-From`, `x-ms-copy-source`) then go up too",
    ),
    Key(
        "request.buffering", values.boolean, "true", BOOLEAN,
        "`false` lets request bodies stream: the permission is asked as soon as the head is there, and the body then "
        "goes from the client to the upstream without being stored (see [Uploads](uploads.md))",
    ),
    Key(
        "response.set", values.field_value, None, "text", "this field is sent to the client, instead of the upstream's",
        names=values.response_field,
    ),
    Key(
        "response.add", values.field_value, None, "text", "this field is sent to the client beside those of its name",
        names=values.added_response_field,
    ),
    Key(
        "response.default", values.field_value, None, "text",
        "this field is sent to the client where the upstream sent none of its name", names=values.added_response_field,
    ),
    Key(
        "response.remove", values.list_of(values.response_field), "", FIELDS,
        "the upstream's fields that are not sent to the client",
    ),
    Key(
        "response.only", values.response_fields, None, "names of fields; empty lets none through",
        "the upstream's fields that may reach the client at all, `Content-Type` and `Set-Cookie` included; framing, "
        "the fields of an allowed upgrade and those that are set here go besides",
        unset="any",
    ),
    Key(
        "response.replace", values.text, None, "text",
        "this text stands in the body wherever the upstream's has the text behind the last dot, in HTML, JSON, XML, "
        "scripts and all of `text/`; several go one after the other",
        names=values.path, name="OLD",
    ),
    Key(
        "response.encoded", values.choice("decode", "refuse"), "decode", "`decode` or `refuse`",
        "where a body is filtered, by `hooks.body` or `response.replace`, and comes with a content coding though none "
        "was asked for: `decode` undoes gzip and deflate, and br and zstd where urllib3 can; `refuse` is a 502, as "
        "are all other codings",
    ),
    Key(
        "preserve_host", values.boolean, "false", BOOLEAN,
        "`true` sends the client's `Host` upstream instead of the upstream's own",
    ),
    Key(
        "forwarded", values.choice("x-forwarded", "rfc7239", "both", "none"), "x-forwarded",
        "`x-forwarded`, `rfc7239`, `both` or `none`",
        "which fields tell the upstream who asked. What the client sent under these names never survives unless "
        "waitress trusts that peer",
    ),
    Key(
        "rewrite_location", values.rewriting(urls=True), "true", f"{BOOLEAN}; or rules such as `/app/ -> /tool/`",
        "map the upstream's own URL in `Location`, `Content-Location` and `Refresh` to the public one. Rules go before "
        "that: of a value that begins with the first, that is replaced by the second; both are a path or a URL",
    ),
    Key(
        "rewrite_cookies", values.rewriting(urls=False), "true", f"{BOOLEAN}; or rules such as `/app -> /tool`",
        "drop the `Domain` of the upstream's cookies and confine their `Path` to the mount. Rules for paths go before "
        "that, and may lead out of the mount",
    ),
    Key(
        "slash", values.choice("redirect", "pass"), None, "`redirect` or `pass`",
        "what a GET or HEAD for the mount without a slash behind it gets: `redirect` is a 301 to the mount with its "
        "slash, so that relative links lead below it; `pass` asks the upstream for its base",
        unset="`redirect` where the upstream's base is its root or ends in a slash, otherwise `pass`", fetch=False,
    ),
    Key(
        "upgrade", values.list_of(values.protocol), "", "names of protocols, such as `websocket`; never HTTP's own",
        "protocols that a connection may be switched to (RFC 9110 7.8)",
    ),
    Key(
        "origins", values.list_of(values.origin), "", "origins such as `https://www.example.com`, or `*`",
        "for upgrades: `Origin` values that are let in besides the application's own; `*` lets all in",
    ),
    Key(
        "cache", values.choice("private", "keep"), "private", "`private` or `keep`",
        "on a route with a permission, `Cache-Control` of an answer that a shared cache may keep is made private; "
        "`keep` leaves it",
    ),
    Key(
        "recheck", values.duration_or_off, "off", f"{DURATION}; or `off`",
        "ask for the permission again every so long while an exchange lasts, and close it when the answer is no",
    ),
    Key("hooks.request", values.dotted, None, HOOK, "called before anything is sent"),
    Key("hooks.response", values.dotted, None, HOOK, "called with the upstream's head, before anything is written"),
    Key("hooks.headers", values.dotted, None, HOOK, "called after the overrides, before the head is written"),
    Key(
        "hooks.body", values.dotted, None, HOOK,
        "called with the answer's body as it comes: a generator of bytes over an iterator of bytes",
    ),
    Key("hooks.complete", values.dotted, None, HOOK, "called after the last byte was written"),
    Key("hooks.error", values.dotted, None, HOOK, "called when anything failed"),
    Key(
        "connect_timeout", values.duration, "5s", DURATION,
        "for each try to connect, from the moment that a connection is wanted: look-up, all addresses and TLS",
    ),
    Key(
        "read_timeout", values.duration, "60s", DURATION,
        "between two reads from the upstream, the first byte included",
    ),
    Key(
        "send_timeout", values.duration, "60s", DURATION,
        "between two writes that the client or the upstream takes",
    ),
    Key(
        "client_body_timeout", values.duration, "60s", DURATION,
        "for the next bytes of a request body that streams; then the client gets 408",
    ),
    Key("total_timeout", values.duration, None, DURATION, "for the whole exchange, from its admission", unset="none"),
    Key(
        "idle_timeout", values.duration, "1h", DURATION,
        "how long a switched (upgraded) connection may be idle: then both sides are closed",
    ),
    Key(
        "log_error_body", values.size(1), None, SIZE,
        "how much of the body is logged, escaped, where an upstream answers with a status of 400 or more: once in ten "
        "seconds for each upstream and status. Such a body may hold private data", unset="off",
    ),
    Key(
        "max_exchanges", values.integer(1, 10**6), None, "1 to 1000000",
        "exchanges in flight on this route; above it 503 with `Retry-After`", unset="none",
    ),
    Key(
        "max_exchanges_per_user", values.integer(1, 10**6), None, "1 to 1000000",
        "exchanges in flight on this route for one authenticated user; above it 429 with `Retry-After`", unset="none",
    ),
    Key("max_body", values.size(0), None, SIZE, "largest request body; above it 413", unset="waitress's"),
    Key(
        "max_head", values.size(1024), "64KiB", f"{SIZE}; at least `1KiB`",
        "largest head of an answer; above it 502",
    ),
    Key(
        "buffer", values.size(4096), "256KiB", f"{SIZE}; at least `4KiB`",
        "most bytes that the relay holds in memory for one exchange, either way",
    ),
    Key(
        "retries", values.integer(0, 100), "1", "0 to 100",
        "further tries. Where a connection can't be made, the next upstream is asked, whatever the method; where there "
        "is no other, the same after a short pause, and as often as `connect_timeout` lets while one that has "
        "accepted connections starts anew. Once the "
        "request was sent, only methods that RFC 9110 calls idempotent are tried again, and only before any byte of "
        "the answer; never after a read, send or total time-out. A kept connection that turns out to be closed is "
        "replaced besides, unless this is 0",
    ),
    Key(
        "balance", values.choice("round_robin", "least_exchanges", "user_hash"), "round_robin",
        "`round_robin`, `least_exchanges` or `user_hash`",
        "which of several upstreams is asked: each in turn, the one with the fewest exchanges in flight, or for each "
        "user (where nobody is logged in: each client address) always the same",
        fetch=False,
    ),
    Key(
        "health.fails", values.integer(0, 10**6), "3", "0 to 1000000",
        "after so many failures in a row one of several upstreams is marked down: no connection, closed without an "
        "answer, or silent for `read_timeout` while others had no answer either. Where all are down, one request at "
        "a time tries the one whose pause ends first; others get 503 with `Retry-After`. 0 marks none down",
        fetch=False,
    ),
    Key(
        "health.pause", values.duration, "10s", DURATION,
        "how long it is left alone; then one request tries it", fetch=False,
    ),
    Key(
        "health.path", urls.health_path, None, "a path from `/` on, with or without a query",
        "an active probe asks the upstream for this, whatever its base path; 2xx and 3xx are healthy. With a probe no "
        "request has to try an upstream that is down, and one that is alone is marked down by its probe only",
        unset="off", fetch=False,
    ),
    Key("health.interval", values.duration, "10s", DURATION, "how often the active probe asks", fetch=False),
    Key(
        "keepalive", values.integer(0, 10**6), "32", "0 to 1000000",
        "idle connections kept for each upstream; 0 gives each exchange a connection of its own",
    ),
    Key("keepalive_time", values.duration, "1h", DURATION, "how old a connection may become and still be used again"),
    Key(
        "tls.verify", values.boolean, "true", BOOLEAN,
        "with `false` whoever answers an `https` request is believed, and the log says so",
    ),
    Key(
        "tls.ca_file", values.path, None, "a path", "certificates, in PEM, of the authorities that are trusted",
        unset="the system's",
    ),
    Key(
        "tls.cert_file", values.path, None, "a path",
        "our own certificate, in PEM, for upstreams that ask for one; its key too, where there is no `tls.key_file`",
    ),
    Key("tls.key_file", values.path, None, "a path", "the key of `tls.cert_file`, in PEM and without a password"),
    Key(
        "tls.server_name", values.server_name, None, "a host name",
        "the name that the upstream's certificate must have, and that is asked for (RFC 6066 3)",
        unset="the upstream's host",
    ),
)  # fmt: skip
