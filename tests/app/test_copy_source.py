"""What a request copies from: S3's x-amz-copy-source and its like let nobody read what he may not ask for."""

from __future__ import annotations

import re
from posixpath import normpath
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyramid.authorization import Allow
from pyramid.config import Configurator

from tests.support.origin import MakeOrigin, echo
from tests.support.site import MakeSite, Policy, Site, route, with_policy
from tests.support.wire import Answer, received

AMZ = "x-amz-copy-source"


class Root:
    """Alice may use the store, and nobody but root what is private in it."""

    def __init__(self, request: Any) -> None:
        self.__acl__ = [(Allow, "alice", "use"), (Allow, "root", ["use", "admin"])]


@pytest.fixture
def site(site: MakeSite, mode: dict[str, Any]) -> MakeSite:
    """Sites of one mode."""
    return lambda *arguments, **options: site(*arguments, **mode, **options)


def store(site: MakeSite, url: str, base: str = "", **more: str) -> Site:
    """An object store below /s3, with a bucket of its own permission and one that is elsewhere."""
    made = {
        **route("s3", url + base, permission="use", **more),
        **route("private", f"{url}{base}/private", permission="admin", prefix="/s3/private"),
        **route("drop", f"{url}/drop", permission="use", methods="PUT"),
        **route("far", "http://127.0.0.1:9", permission="use"),
    }

    def configure(config: Configurator) -> None:
        config.set_security_policy(Policy())
        config.set_root_factory(Root)

    return site(made, configure=configure)


def copied(made: Site, source: str, user: str = "alice", name: str = AMZ, path: str = "/s3/mine/new") -> Answer:
    return made.get(path, {"X-User": user, "Host": "site.example", name: source}, "PUT")


@pytest.mark.parametrize("name", ["x-amz-copy-source", "x-oss-copy-source", "X-Bce-Copy-Source"])
@pytest.mark.parametrize(
    "source", ["mine/old", "/mine/old", "mine%2Fold", "/mine/a%20b?versionId=3", "mine/a+b", "other//old", "mine"]
)
def test_a_source_that_the_client_may_read(source: str, name: str, origin: MakeOrigin, site: MakeSite) -> None:
    """It goes up with its own bytes: it says what the upstream knows, whatever the mount is, and may be signed."""
    request = received(copied(store(site, origin(echo).url), source, name=name))
    assert (request.target, request.all(name)) == ("/mine/new", [source])


REFUSED = [
    ("private/x", 403),
    ("/private/x", 403),
    ("private", 403),
    ("%70rivate/x", 403),
    ("private%2Fx", 403),
    ("%2Fprivate/x", 403),
    ("private/x?versionId=1", 403),
    ("b/private/x", 403),  # where the upstream's host name says the bucket, the key is the path
    ("b%2fprivate/x", 403),
    ("b//private/x", 400),
    ("mine/../private/x", 400),
    ("mine/%2e%2e/private/x", 400),
    ("mine/..%2Fprivate/x", 400),
    ("private;a/x", 403),
    ("b/private;a/x", 400),
    ("//host/private/x", 403),
    ("http://host/private/x", 403),
    ("http:private/x", 403),
    ("arn:aws:s3:eu-west-1:123456789012:accesspoint/p/object/x", 403),
    ("arn%3Aaws%3As3:::private/x", 403),
    ("mine/x, private/x", 400),
    ("mine\\private", 400),
    ("", 403),
]


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize(("source", "status"), REFUSED)
def test_a_source_that_the_client_may_not_read(
    source: str, status: int, method: str, origin: MakeOrigin, site: MakeSite
) -> None:
    """What is below an inner mount, could be, or can't be known, is refused, and nothing is sent."""
    upstream = origin(echo)
    made = store(site, upstream.url)
    answer = made.get("/s3/mine/new", {"X-User": "alice", AMZ: source}, method)
    assert answer.status == status
    assert not upstream.accepted


@pytest.mark.parametrize("vendor", ["bce", "goog", "obs", "oss", "tos"])
def test_whoever_has_taken_it_over(vendor: str, origin: MakeOrigin, site: MakeSite) -> None:
    """Other stores' names for the field are judged as S3's is."""
    upstream = origin(echo)
    assert copied(store(site, upstream.url), "/private/x", name=f"x-{vendor}-copy-source").status == 403
    assert not upstream.accepted


def test_a_source_that_is_a_host(origin: MakeOrigin, site: MakeSite) -> None:
    """Tencent's names the bucket in a host name, which is below no mount."""
    upstream = origin(echo)
    source = "private.cos.region.example/x"
    assert copied(store(site, upstream.url), source, name="x-cos-copy-source").status == 403
    assert not upstream.accepted


def test_who_may_read_it_may_copy_it(origin: MakeOrigin, site: MakeSite) -> None:
    """The inner route's own permission counts."""
    made = store(site, origin(echo).url)
    for source in ("private/x", "b/private/x"):
        assert received(copied(made, source, user="root")).one(AMZ) == source
    assert copied(made, "mine/x", user="").status == 403


@pytest.mark.parametrize(
    ("source", "seen"),
    [("team/a", "team/a"), ("/team/a?versionId=1", "/team/a?versionId=1"), ("s3/a", "team/a"), ("/s3/a", "/team/a")],
)
def test_a_store_with_a_base(source: str, seen: str, origin: MakeOrigin, site: MakeSite) -> None:
    """What is below the upstream's base stays; a client that takes the mount for a bucket is understood."""
    request = received(copied(store(site, origin(echo).url, "/team"), source, path="/s3/new"))
    assert (request.target, request.one(AMZ)) == ("/team/new", seen)


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("other/a", 502),
        ("team/private/x", 403),
        ("s3/private/x", 403),
        ("drop/x", 403),
        ("far/x", 502),
        ("teams/x", 502),
    ],
)
def test_what_is_not_below_the_base(source: str, status: int, origin: MakeOrigin, site: MakeSite) -> None:
    """Another bucket of the same server is nobody's through this route; where one may only write nobody reads."""
    upstream = origin(echo)
    assert copied(store(site, upstream.url, "/team"), source).status == status
    assert not upstream.accepted


@pytest.mark.parametrize(
    "keys", [{"prefix": "/p", "upstream": "UP/a UP/b"}, {"pattern": "/p/{name}", "upstream": "UP/{name}"}]
)
def test_a_route_whose_public_paths_are_not_known(keys: dict[str, str], origin: MakeOrigin, site: MakeSite) -> None:
    """Where several bases or a pattern stand between a source and its public path, it can't be judged."""
    upstream = origin(echo)
    values = {key: value.replace("UP", upstream.url) for key, value in keys.items()}
    settings = {f"proxy.routes.r.{key}": value for key, value in {"public": "true", **values}.items()}
    assert site(settings).get("/p/x", {AMZ: "a/x"}, "PUT").status == 403
    assert not upstream.accepted


OPAQUE = (
    "X-Copy-From", "x-ms-copy-source", "X-Object-Manifest", "x-amz-rename-source", "x-ms-rename-source",
    "x-ms-file-rename-source", "x-oss-symlink-target", "x-cos-copy-source",
)  # fmt: skip


@pytest.mark.parametrize("name", OPAQUE)
def test_sources_that_say_too_little(name: str, origin: MakeOrigin, site: MakeSite) -> None:
    """They are refused: to drop them would write an empty object. A site that knows better lets them pass."""
    upstream = origin(echo)
    made = site({**route("r", upstream.url), **route("open", upstream.url, request__overrides="pass")})
    assert made.get("/r/x", {name: "/c/o"}, "PUT").status == 403
    assert not upstream.accepted
    assert received(made.get("/open/x", {name: "/c/o"}, "PUT")).one(name) == "/c/o"


def test_overrides_let_no_source_pass(origin: MakeOrigin, site: MakeSite) -> None:
    """What can be judged is judged."""
    made = store(site, origin(echo).url, request__overrides="pass")
    assert copied(made, "private/x").status == 403


def test_the_next_upstream(origin: MakeOrigin, site: MakeSite) -> None:
    """The source is judged for whoever is asked instead, too."""
    upstream = origin(echo)
    settings = route("s3", f"http://127.0.0.1:9/team {upstream.url}/team")
    assert received(site(settings).get("/s3/x", {AMZ: "team/y"}, "PUT")).one(AMZ) == "team/y"


def test_where_a_view_forwards(origin: MakeOrigin, site: MakeSite) -> None:
    """A view that says what is public of an upstream lets it be below that; others let it be nowhere."""
    upstream = origin(echo)

    def configure(config: Configurator) -> None:
        with_policy(config)
        for name, to, keys in (
            ("with", "r", {"mount": "/with"}), ("without", "r", {}), ("url", upstream.url, {"mount": "/url"}),
        ):  # fmt: skip
            config.add_route(name, f"/{name}/*rest")
            config.add_view(
                lambda request, to=to, keys=keys: request.proxy_forward(to, request.matchdict["rest"][0], **keys),
                route_name=name,
            )

    made = site(route("r", upstream.url + "/base"), configure=configure)
    assert received(made.get("/with/a", {AMZ: "base/b"}, "PUT")).one(AMZ) == "base/b"
    assert made.get("/with/a", {AMZ: "other/b"}, "PUT").status == 403
    assert made.get("/without/a", {AMZ: "base/b"}, "PUT").status == 403
    assert made.get("/url/a", {AMZ: "base/b"}, "PUT").status == 403


PIECES = ["mine", "b", "/", "//", "%2F", "..", ".", "%2e", ";", "?", "+", "%20", ":", "http:", "@", "x", "%"]


def meanings(source: str) -> set[str]:
    """What lenient servers could take a source for."""
    found = {source, urlsplit(source).path}
    for text in list(found):
        found |= {unquote(text), unquote_plus(text), text.partition("?")[0], unquote(text.partition("?")[0])}
    cut = {re.sub(";[^/]*", "", text) for text in found} | found
    paths = {normpath("/" + text.replace("\\", "/")).lstrip("/") for text in cut if "\0" not in text}
    return paths | {path.partition("/")[2] for path in paths}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(st.sampled_from(PIECES), max_size=4), behind=st.lists(st.sampled_from(PIECES), max_size=2))
def test_no_reading_of_a_source_is_private(before: list[str], behind: list[str], asked: Site) -> None:
    """Whatever passes for alice is below the private bucket in no reading that a server may have of it."""
    source = "".join([*before, "private", *behind])
    if copied(asked, source).status == 200:
        assert not [path for path in meanings(source) if (path + "/").startswith("private/")], source


@pytest.fixture
def asked(origin: MakeOrigin, site: MakeSite) -> Site:
    """A store that many requests are made to."""
    return store(site, origin(echo).url)
