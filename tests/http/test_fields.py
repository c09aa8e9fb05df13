"""Fields: what passes towards the upstream and towards the client, and what never does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyramid_threaded_proxy.exceptions import FieldRefused
from pyramid_threaded_proxy.http.fields import (
    AnswerFields,
    AnswerRules,
    RequestFields,
    check_host,
    merge_application_fields,
)
from pyramid_threaded_proxy.http.names import HOP_BY_HOP, Fields, connection_options
from pyramid_threaded_proxy.http.public import NOTHING_TOLD, Public

OWN = frozenset({"session"})
NAMES = st.sampled_from([
    *HOP_BY_HOP, "content-length", "host", "x-forwarded-for", "forwarded", "x-real-ip", "proxy", "via", "x-custom",
    "accept", "cookie", "authorization", "x-user", "set-cookie", "cache-control", "x-accel-redirect", "x-sendfile",
    "clear-site-data", "location", "vary",
]).flatmap(lambda name: st.sampled_from([name, name.upper(), name.title()]))  # fmt: skip
VALUES = st.sampled_from(["", "x", "close", "session=1", "/v2/a", "\xe9", "public", ", X-Custom", "X-User, Vary"])
NEVER_UP = HOP_BY_HOP | {
    "content-length", "host", "x-forwarded-for", "forwarded", "x-real-ip", "proxy", "x-user", "authorization",
}  # fmt: skip
NEVER_DOWN = HOP_BY_HOP | {"content-length", "x-accel-redirect", "x-sendfile", "clear-site-data"}


def request_fields(
    environ: dict[str, object], authorization: bool = False, drop: frozenset[str] = frozenset()
) -> Fields:
    rules = RequestFields(own_cookies=OWN, cookies=None, authorization=authorization, drop=drop)
    return rules.select(environ)


def answer_fields(fields: Fields, mount: str | None = "/m", private: bool = False, **keys: None) -> Fields:
    switches = {"rewrite_cookies": (), "rewrite_location": (), **keys}
    rules = AnswerFields(
        AnswerRules(
            own_cookies=OWN,
            bases=("http://up.example/v2",),
            private=private,
            told=NOTHING_TOLD,
            dropped_cookie=print,
            **switches,
        )
    )
    return rules.select(fields, Public("https://site.example", mount))


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([], set()),
        (["close"], {"close"}),
        (["", "X-A"], {"x-a"}),
        ([", X-A ,,\tKeep-Alive"], {"x-a", "keep-alive"}),
        (["Close", "close, B"], {"close", "b"}),
    ],
)
def test_connection_options(values: list[str], options: set[str]) -> None:
    """Every member of every Connection field counts, also behind an empty one (RFC 9110 5.6.1, 7.6.1)."""
    assert connection_options(values) == options


def test_hop_by_hop() -> None:
    """The fields of RFC 9110 7.6.1, 10.1.1 and 11.7, RFC 7540 3.2.1; Proxy-Connection is in 7.6.1 too."""
    assert {
        "connection", "expect", "http2-settings", "keep-alive", "proxy-authenticate", "proxy-authentication-info",
        "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    } == HOP_BY_HOP  # fmt: skip


def test_request_fields_keep_their_values() -> None:
    """End-to-end fields go up as they came, in their order, and Content-Type is among them."""
    environ = {
        "REQUEST_METHOD": "GET", "wsgi.input": object(), "HTTP_ACCEPT": "a, b;q=0.5", "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "3", "HTTP_X_REQUEST_ID": "1", "HTTP_VIA": "1.1 a", "HTTP_X_EMPTY": "",
        "HTTP_X_LATIN": "\xe9\t.",
    }  # fmt: skip
    assert request_fields(environ) == [
        ("Accept", "a, b;q=0.5"), ("X-Request-Id", "1"), ("Via", "1.1 a"), ("X-Empty", ""), ("X-Latin", "\xe9\t."),
        ("Content-Type", "text/plain"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *sorted(NEVER_UP - {"x-user"}), "x-forwarded-host", "x-forwarded-anything", "content-type", "cookie",
        "bad name", "", "\xe9",
    ],
)  # fmt: skip
def test_request_fields_that_stay(name: str) -> None:
    """Hop-by-hop (RFC 9110 7.6.1), framing, routing and forwarded fields of the client never go up."""
    assert request_fields({"HTTP_" + name.upper().replace("-", "_"): "x" if name != "cookie" else "session=x"}) == []


def test_request_fields_named_by_connection() -> None:
    """Whatever Connection names stays, Content-Type and Cookie too; an empty first member changes nothing."""
    environ = {
        "HTTP_CONNECTION": ", X-A, Content-Type,COOKIE", "HTTP_X_A": "1", "HTTP_X_B": "2", "HTTP_COOKIE": "a=1",
        "CONTENT_TYPE": "text/plain",
    }  # fmt: skip
    assert request_fields(environ) == [("X-B", "2")]


def test_authorization() -> None:
    """Authorization goes up only where the route passes it."""
    assert request_fields({"HTTP_AUTHORIZATION": "Basic x"}) == []
    assert request_fields({"HTTP_AUTHORIZATION": "Basic x"}, authorization=True) == [("Authorization", "Basic x")]


def test_dropped_names() -> None:
    """Names that the application sets itself are deleted from the client's request."""
    environ = {"HTTP_X_USER": "admin", "HTTP_COOKIE": "a=1", "CONTENT_TYPE": "x", "HTTP_X_USERS": "1"}
    assert request_fields(environ, drop=frozenset({"x-user", "cookie", "content-type"})) == [("X-Users", "1")]


def test_cookies_are_filtered() -> None:
    """Own cookies are taken out, and without any other the field is gone."""
    assert request_fields({"HTTP_COOKIE": "session=S; a=1"}) == [("Cookie", "a=1")]
    assert request_fields({"HTTP_COOKIE": "session=S"}) == []


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\x00b", "\x7f", "a\x0bb", "\u0100"])
@pytest.mark.parametrize("key", ["HTTP_X_A", "HTTP_COOKIE", "CONTENT_TYPE"])
def test_request_values_with_controls(key: str, value: str) -> None:
    """A value with a control character is refused (RFC 9110 5.5)."""
    with pytest.raises(FieldRefused, match="control"):
        request_fields({key: value})


@given(st.dictionaries(NAMES, VALUES))
def test_no_hop_by_hop_field_goes_up(headers: dict[str, str]) -> None:
    """No hop-by-hop, forwarded or own field goes up, nor what Connection names, however the client puts it."""
    environ: dict[str, object] = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}
    names = {name.lower() for name, _ in request_fields(environ, drop=frozenset({"x-user"}))}
    assert not names & NEVER_UP
    assert not names & connection_options([str(environ.get("HTTP_CONNECTION", ""))])


def test_names_are_remembered_within_bounds() -> None:
    """A client that invents names can't make a route remember more than 1,024 of them, nor long ones; nor more than 64
    sets of names, nor large ones."""
    rules = RequestFields(own_cookies=OWN, cookies=None, authorization=False, drop=frozenset())
    for number in range(2000):
        assert rules.select({f"HTTP_X_{number}": "1"}) == [(f"X-{number}", "1")]
    assert (len(rules._of_strangers._names), len(rules._of_strangers)) == (1024, 64)
    rules = RequestFields(own_cookies=OWN, cookies=None, authorization=False, drop=frozenset())
    for environ in ({"HTTP_" + "A" * 1000: "1"}, {f"HTTP_{number}": "1" for number in range(300)}):
        assert len(rules.select(environ)) == len(environ)
    assert (len(rules._of_strangers._names), len(rules._of_strangers)) == (300, 1)


def test_the_same_names_in_another_order() -> None:
    """What was remembered for one set of names holds for that one alone."""
    rules = RequestFields(own_cookies=OWN, cookies=None, authorization=False, drop=frozenset())
    for _ in range(2):
        assert rules.select({"HTTP_A": "1", "HTTP_B": "2"}) == [("A", "1"), ("B", "2")]
        assert rules.select({"HTTP_B": "2", "HTTP_A": "1"}) == [("B", "2"), ("A", "1")]
        assert rules.select({"HTTP_REMOTE_USER": "x"}) == []
        assert rules.select({"HTTP_REMOTE_USER": "x"}, trusted=True) == [("Remote-User", "x")]


@pytest.mark.parametrize(
    "value",
    [
        "example.com", "example.com:8080", "EXAMPLE.com.", "127.0.0.1:1", "[::1]", "[2001:db8::1]:443",
        "[::ffff:1.2.3.4]", "a_b", "a%20b", "x!$&'()*+;=~", "example.com:", "h:65535", "a" * 255,
    ],
)  # fmt: skip
def test_host_accepted(value: str) -> None:
    """A host name or address with an optional port (RFC 9110 7.2, RFC 3986 3.2.2)."""
    check_host(value, "HTTP/1.1")


@pytest.mark.parametrize(
    "value",
    [
        "", ":80", "a,b", "a, a", "a b", "user@h", "http://h", "h/", "h?", "h#", "h:80:80", "h:x", "h:-1", "h:65536",
        "h:123456", "[::1", "::1", "[::1]x", "[:::]", "[1.2.3.4]", "[fe80::1%25eth0]", "[v1.x]", "a%2", "a\\b", "a\x00",
        "\xe9", "h\t", "a" * 300, "h\n",
    ],
)  # fmt: skip
def test_host_refused(value: str) -> None:
    """Anything else, a second Host and an empty one are refused."""
    with pytest.raises(FieldRefused, match="Host"):
        check_host(value, "HTTP/1.1")


def test_host_missing() -> None:
    """Only HTTP/1.0 may leave Host out (RFC 9112 3.2)."""
    check_host(None, "HTTP/1.0")
    check_host(None, "1.0")
    with pytest.raises(FieldRefused, match="missing"):
        check_host(None, "HTTP/1.1")


@given(st.text())
def test_host_never_fails_otherwise(value: str) -> None:
    """Any text is accepted or refused by `FieldRefused`; what is accepted has no delimiter of a URL in it."""
    try:
        check_host(value, "HTTP/1.1")
    except FieldRefused:
        return
    assert not set(value) & set("/?#@\\, \t\r\n\0")


def test_answer_fields_keep_their_values() -> None:
    """End-to-end fields go down as they came, and several Set-Cookie stay several."""
    fields = [("ETag", '"x"'), ("set-cookie", "a=1"), ("Vary", "A"), ("Set-Cookie", "b=2"), ("Vary", "B")]
    assert answer_fields(fields) == [
        ("ETag", '"x"'), ("set-cookie", "a=1; Path=/m"), ("Vary", "A"), ("Set-Cookie", "b=2; Path=/m"), ("Vary", "B"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        *sorted(HOP_BY_HOP), "Content-Length", "X-Accel-Redirect", "x-accel-anything", "X-Sendfile", "X-Sendfile2",
        "X-LIGHTTPD-send-file", "Clear-Site-Data", "Service-Worker-Allowed",
    ],
)  # fmt: skip
def test_answer_fields_that_stay(name: str) -> None:
    """Hop-by-hop and framing fields, commands to a front server, and what acts on the whole origin never go down."""
    assert answer_fields([(name, "x"), ("A", "1")]) == [("A", "1")]


@pytest.mark.parametrize("value", ["close", "Keep-Alive", "upgrade", ""])
def test_usual_connection_options(value: str) -> None:
    """A Connection field that names no field takes none away."""
    assert answer_fields([("A", "1"), ("Connection", value), ("B", "2")]) == [("A", "1"), ("B", "2")]
    assert request_fields({"HTTP_CONNECTION": value, "HTTP_A": "1"}) == [("A", "1")]


def test_answer_fields_named_by_connection() -> None:
    """What any Connection field of the upstream names is dropped, wherever it stands."""
    fields = [("X-A", "1"), ("Connection", ""), ("X-B", "2"), ("connection", "x-a, Location"), ("Location", "/v2")]
    assert answer_fields(fields) == [("X-B", "2")]


def test_location_is_rewritten() -> None:
    """Location and Content-Location below the upstream's base become public; without a mount or the switch, not."""
    fields = [("Location", "http://up.example/v2/x"), ("content-location", "/v2/y")]
    assert answer_fields(fields) == [("Location", "https://site.example/m/x"), ("content-location", "/m/y")]
    assert answer_fields(fields, mount=None) == fields
    assert answer_fields(fields, rewrite_location=None) == fields


def test_own_cookies_are_never_set() -> None:
    """An upstream can't set an own cookie, with rewriting or without."""
    fields = [("Set-Cookie", "session=evil"), ("Set-Cookie", "a=1; Path=/")]
    assert answer_fields(fields) == [("Set-Cookie", "a=1; Path=/m")]
    assert answer_fields(fields, rewrite_cookies=None) == [("Set-Cookie", "a=1; Path=/")]


@pytest.mark.parametrize(
    ("came", "sent"),
    [
        ([], "private"),
        (["max-age=60"], "private, max-age=60"),
        (["public, max-age=60, s-maxage=9"], "private, max-age=60"),
        (["PUBLIC", "S-MaxAge = 9, no-transform"], "private, no-transform"),
        (["no-cache"], "private, no-cache"),
        (['private="X-A, X-B", max-age=1'], "private, max-age=1"),
        (['no-cache="a, private", max-age=1'], 'private, no-cache="a, private", max-age=1'),
        (["no-store, must-understand"], "private, no-store, must-understand"),
        (['x="a, private'], "private"),
        (["publicly=1"], "private, publicly=1"),
        (["private, max-age=60"], "private, max-age=60"),
        (["Private"], "Private"),
        (["no-store"], "no-store"),
        (["max-age=0, No-Store"], "max-age=0, No-Store"),
    ],
)
def test_private_caching(came: list[str], sent: str) -> None:
    """What a shared cache may keep is made private, and all else is left (RFC 9111 3, 5.2.2)."""
    fields = [("cache-control", value) for value in came]
    assert answer_fields(fields, private=True) == [("Cache-Control", sent)]


def test_caching_is_left_alone_elsewhere() -> None:
    """Without `private` the upstream's fields for caches go through; with it those for shared ones don't."""
    fields = [("Cache-Control", "public"), ("CDN-Cache-Control", "a"), ("Surrogate-Control", "b")]
    fields.append(("Some-CDN-Cache-Control", "c"))
    assert answer_fields(fields) == fields
    assert answer_fields(fields, private=True) == [("Cache-Control", "private")]


def test_connection_can_not_make_an_answer_public() -> None:
    """Cache-Control that Connection names is gone, and the answer is private all the same."""
    fields = [("Connection", "Cache-Control"), ("Cache-Control", "no-store")]
    assert answer_fields(fields, private=True) == [("Cache-Control", "private")]


@given(st.lists(st.tuples(NAMES, VALUES)), st.booleans())
def test_no_hop_by_hop_field_goes_down(fields: Fields, private: bool) -> None:
    """No hop-by-hop field, no command and nothing that Connection names goes down, in whatever order and case."""
    named = connection_options(value for name, value in fields if name.lower() == "connection")
    sent = answer_fields(fields, private=private)
    names = {name.lower() for name, _ in sent}
    assert not names & NEVER_DOWN
    assert not (names - {"cache-control"}) & named
    caching = [value.split(", ")[0] for name, value in sent if name.lower() == "cache-control"]
    assert not private or caching == ["private"]


def test_application_fields() -> None:
    """The application's fields replace the upstream's, but Set-Cookie, Vary and Link, which are added."""
    answer = [("A", "1"), ("set-cookie", "a=1"), ("X-Frame-Options", "ALLOW"), ("x-frame-options", "2"), ("Vary", "A")]
    application = [("X-Frame-Options", "DENY"), ("Set-Cookie", "session=S"), ("vary", "B"), ("Link", "<x>")]
    assert merge_application_fields(answer, application) == [
        ("A", "1"), ("set-cookie", "a=1"), ("Vary", "A"), *application,
    ]  # fmt: skip


def test_application_framing_is_ignored() -> None:
    """Framing and hop-by-hop fields of the application change nothing (PEP 3333)."""
    answer = [("Content-Length", "3"), ("A", "1")]
    application = [("Content-Length", "0"), ("Connection", "A"), ("Transfer-Encoding", "chunked")]
    assert merge_application_fields(answer, application) == answer


IDENTITY = [
    "True-Client-IP", "X-Client-IP", "X-Cluster-Client-IP", "CF-Connecting-IP", "Remote-User", "X-Remote-User",
]  # fmt: skip


@pytest.mark.parametrize("name", IDENTITY)
def test_who_asks_is_said_by_trusted_peers_alone(name: str) -> None:
    """A client could be anybody in these; of a front server that is trusted they go up, unless the application's
    own override bears the name."""
    rules = RequestFields(own_cookies=OWN, cookies=None, authorization=False, drop=frozenset())
    environ = {"HTTP_" + name.upper().replace("-", "_"): "admin", "HTTP_X_KEPT": "1"}
    assert rules.select(environ) == [("X-Kept", "1")]
    assert tuple(value for _, value in rules.select(environ, trusted=True)) == ("admin", "1")
    ours = RequestFields(own_cookies=OWN, cookies=None, authorization=False, drop=frozenset({name.lower()}))
    assert ours.select(environ, trusted=True) == [("X-Kept", "1")]
