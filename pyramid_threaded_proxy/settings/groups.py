"""How the page of settings puts the keys together, and an example of each.

A new key needs a line here: its value in the example, as it would stand in an ini file. A key that means nothing alone
has several, with those that it goes with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The value of a key, or of several by their paths.
Example = str | dict[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """Keys that belong together, in the order of the page."""

    title: str
    text: str
    #: By the key's path.
    examples: Mapping[str, Example]


#: These three go together.
_VERIFY: Example = {
    "verify.prefix": "/.may-it-pass",
    "verify.engine": "nginx",
    "verify.secret": "a-secret-of-both",
}

PROCESS_GROUPS = (
    Group(
        "The process: `proxy.…`",
        "What holds for the whole process.",
        {
            "file": "%(here)s/proxy.yaml",
            "threads": "16",
            "max_exchanges": "5000",
            "drain_timeout": "30s",
            "via": "library",
            "own_cookies": "library_session auth_tkt",
            "own_fields": "X-API-Key",
            "fetch.allow": "https://api.example.com *.internal 10.0.0.0/8",
            "request_id.header": "X-Correlation-Id",
            "trace": "drop",
        },
    ),
    Group(
        "The status page",
        "See [the status page](status.md).",
        {
            "status.prefix": {"status.prefix": "/proxy-status", "status.permission": "operate"},
            "status.permission": {"status.prefix": "/proxy-status", "status.permission": "operate"},
            "status.control_permission": {
                "status.prefix": "/proxy-status",
                "status.permission": "operate",
                "status.control_permission": "administrate",
            },
        },
    ),
    Group(
        "Many processes",
        "See [many processes, one site](shared.md).",
        {"shared": "redis://redis.internal:6379/0"},
    ),
    Group(
        "Engines",
        "See [engines](engines.md).",
        {
            "engine": {"engine": "accel", "accel.secret": "a-secret-of-both"},
            "accel.secret": {"engine": "accel", "accel.secret": "a-secret-of-both"},
            "verify.prefix": _VERIFY,
            "verify.engine": _VERIFY,
            "verify.secret": _VERIFY,
        },
    ),
)

ROUTE_GROUPS = (
    Group(
        "Mount and access",
        "Where a route stands, where it leads, and who may use it. `upstream`, one of `prefix` and `pattern`, and an "
        "answer to who may use it are required.",
        {
            "prefix": "/reports",
            "pattern": {"pattern": "/years/{year}/report", "upstream": "http://reports.internal:9000/v2/{year}"},
            "upstream": "http://one.internal:9000/v2 http://two.internal:9000/v2",
            "permission": "view",
            "public": "true",
            "require_csrf": "false",
            "factory": "library.resources.Reports",
            "methods": "GET POST",
            "order": "-1",
            "before": "true",
            "host": "reports.example.com",
            "slash": "redirect",
            "preflight": "pass",
        },
    ),
    Group(
        "What goes upstream",
        "Fields and parameters of the request. What a client must not send is dropped whatever is set here: see "
        "[what is accepted](accepted-and-refused.md#the-requests-fields).",
        {
            "request.set": {"request.set.X-Remote-User": "{userid}"},
            "request.add": {"request.add.X-Role": "reader"},
            "request.remove": "Accept-Language User-Agent",
            "request.only": "Accept Content-Type Cookie",
            "request.authorization": "pass",
            "request.origin": "upstream",
            "request.overrides": "pass",
            "request.buffering": "false",
            "query.set": {"query.set.user": "{userid}"},
            "query.remove": "token debug",
            "query.only": "page size",
            "preserve_host": "true",
            "forwarded": "both",
        },
    ),
    Group(
        "What reaches the client",
        "Fields and body of the answer.",
        {
            "response.set": {"response.set.Content-Security-Policy": "sandbox"},
            "response.add": {"response.add.Vary": "Cookie"},
            "response.default": {"response.default.Cache-Control": "no-store"},
            "response.remove": "Server X-Powered-By",
            "response.only": "Content-Type ETag Last-Modified",
            "response.replace": {"response.replace.internal-name": "public-name"},
            "response.encoded": "refuse",
            "rewrite_location": "/app/ -> /reports/",
            "cache": "keep",
        },
    ),
    Group(
        "Cookies",
        "The application's own cookies are named once, for the whole process: `proxy.own_cookies`.",
        {"request.cookies": "theme language", "rewrite_cookies": "/app -> /reports"},
    ),
    Group(
        "Upgrades",
        "See [WebSockets and event streams](upgrades.md).",
        {
            "upgrade": "websocket",
            "origins": "https://www.example.com",
            "idle_timeout": "10m",
        },
    ),
    Group(
        "Hooks",
        "See [hooks](hooks.md) and [filters](filters.md).",
        {
            "hooks.request": "library.hooks.ask",
            "hooks.response": "library.hooks.look",
            "hooks.headers": "library.hooks.name_file",
            "hooks.body": "library.hooks.shorten",
            "hooks.complete": "library.hooks.count",
            "hooks.error": "library.hooks.explain",
        },
    ),
    Group(
        "Time-outs",
        "Each ends the exchange. [Troubleshooting](troubleshooting.md#504-too-late) says what is seen then.",
        {
            "connect_timeout": "2s",
            "read_timeout": "5m",
            "send_timeout": "30s",
            "client_body_timeout": "30s",
            "total_timeout": "10m",
            "recheck": "30s",
        },
    ),
    Group(
        "Limits",
        "How much there may be at once, and how large it may be.",
        {
            "max_exchanges": "200",
            "max_exchanges_per_user": "4",
            "max_body": "20MiB",
            "max_head": "128KiB",
            "buffer": "1MiB",
            "log_error_body": "2KiB",
        },
    ),
    Group(
        "Several upstreams, and health",
        "See [upstreams](upstreams.md).",
        {
            "balance": "user_hash",
            "retries": "2",
            "health.fails": "5",
            "health.pause": "30s",
            "health.path": "/healthy",
            "health.interval": {"health.path": "/healthy", "health.interval": "5s"},
            "keepalive": "64",
            "keepalive_time": "10m",
        },
    ),
    Group(
        "TLS",
        "For upstreams by `https`.",
        {
            "tls.verify": "false",
            "tls.ca_file": "/etc/ssl/internal-ca.pem",
            "tls.cert_file": "/etc/ssl/library.pem",
            "tls.key_file": {"tls.cert_file": "/etc/ssl/library.pem", "tls.key_file": "/etc/ssl/library.key"},
            "tls.server_name": "reports.example.com",
        },
    ),
)
