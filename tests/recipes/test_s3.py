"""The recipe for a store that speaks S3: boto3 signs what it sends, and moto looks at the signatures."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from tests.support.names import NameServer
from tests.support.recipes import members, need_recipe, program, settings
from tests.support.site import MakeSite

#: As many requests as `administrator` sends are taken unsigned; from then on moto calculates each signature anew.
UNSIGNED = "4"
ANYTHING = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'


ROUTE = "proxy.routes.books."


def client(service: str, url: str, key: str = "none", secret: str = "none", config: Any = None) -> Any:
    return import_module("boto3").client(
        service,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=config,
    )


def administrator(url: str) -> dict[str, str]:
    """Makes the bucket and a key for it, at the store itself."""
    with closing(client("s3", url)) as store:
        store.create_bucket(Bucket="books")
    with closing(client("iam", url)) as users:
        users.create_user(UserName="site")
        users.put_user_policy(UserName="site", PolicyName="all", PolicyDocument=ANYTHING)
        made = users.create_access_key(UserName="site")["AccessKey"]
    return {"key": made["AccessKeyId"], "secret": made["SecretAccessKey"]}


def tell(request: Any, member: str) -> None:
    """Say who asks, on a request that is about to be sent."""
    request.headers["X-Member"] = member


class Store:
    """moto, a bucket and its key, and clients of sites before it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        environ = {"INITIAL_NO_AUTH_ACTION_COUNT": UNSIGNED}
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}"]
        self.url = stack.enter_context(program(folder, *command, ready="/moto-api/", **environ))
        self.key = administrator(self.url)
        self.stack = stack

    def client(self, url: str, member: str, event: str = "before-send", **other: Any) -> Any:
        """boto3 at a site, as a member of it; by default it says who that is after the signature is made."""
        connected = self.stack.enter_context(closing(client("s3", url, **{**self.key, **other})))
        connected.meta.events.register(f"{event}.s3", lambda request, **kw: tell(request, member))
        return connected


@pytest.fixture
def store(stack: ExitStack, tmp_path: Path) -> Store:
    """The store of a test."""
    need_recipe("moto", "boto3")
    return Store(tmp_path, stack)


def refused(store: Any, body: bytes = b"text") -> str:
    """Why an object is not put."""
    with pytest.raises(import_module("botocore.exceptions").ClientError) as error:
        store.put_object(Bucket="books", Key="refused", Body=body)
    return str(error.value)


def put_and_read(store: Any, body: bytes) -> None:
    """An object with a name that has to be quoted is put, listed and read."""
    expected: list[Any] = []
    store.meta.events.register("before-send.s3.PutObject", lambda request, **kw: expected.append(request.headers))
    store.put_object(Bucket="books", Key="a b/ü.bin", Body=body)
    assert expected[0]["Expect"] == b"100-continue"
    assert [one["Key"] for one in store.list_objects_v2(Bucket="books")["Contents"]] == ["a b/ü.bin"]
    with closing(store.get_object(Bucket="books", Key="a b/ü.bin")["Body"]) as read:
        assert read.read() == body


@pytest.mark.parametrize("buffering", ["true", "false"])
def test_boto3(store: Store, site: MakeSite, buffering: str) -> None:
    """A large object is put and read; the store finds the signature right, and a wrong one wrong."""
    where = site(settings("S3", store.url) | {f"{ROUTE}request.buffering": buffering}, configure=members)
    body = bytes(range(256)) * 20_000
    ann = store.client(where.url, "ann")
    put_and_read(ann, body)
    assert "SignatureDoesNotMatch" in refused(store.client(where.url, "ann", secret="wrong"))
    assert "403" in refused(store.client(where.url, "bob"), body)
    assert ann.list_objects_v2(Bucket="books")["KeyCount"] == 1


def test_what_a_signature_needs(store: Store, site: MakeSite) -> None:
    """The host and the path as they were signed, `Authorization`, and no signed field that stays here."""
    page = settings("S3", store.url)

    def why(mount: str = "", event: str = "before-send", **keys: str) -> str:
        where = site(
            page | {f"{ROUTE}{key.replace('__', '.')}": value for key, value in keys.items()}, configure=members
        )
        return refused(store.client(where.url + mount, "ann", event))

    assert "SignatureDoesNotMatch" in why(preserve_host="false")
    assert "SignatureDoesNotMatch" in why(mount="/s3", prefix="/s3", upstream=store.url)
    assert "SignatureDoesNotMatch" in why(event="before-sign")
    assert "PutObject" in why(request__authorization="drop")


def test_by_host(store: Store, site: MakeSite, names: NameServer) -> None:
    """The bucket is named in the host, which has a route; another host of the site's has none."""
    names.known = {f"{name}.example.com": repeat(["127.0.0.1"]) for name in ("books.store", "others.store")}
    where = site(settings("S3 by host", store.url), configure=members)
    endpoint = f"http://store.example.com:{where.port}"
    virtual = import_module("botocore.config").Config(s3={"addressing_style": "virtual"})
    ann = store.client(endpoint, "ann", config=virtual)
    put_and_read(ann, b"text")
    assert "403" in refused(store.client(endpoint, "bob", config=virtual))
    with pytest.raises(import_module("botocore.exceptions").ClientError, match="404"):
        ann.put_object(Bucket="others", Key="a", Body=b"text")
