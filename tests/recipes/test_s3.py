"""The recipe for a store that speaks S3: boto3 signs what it sends, and moto looks at the signatures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.recipes import members, need_recipe, program, settings
from tests.support.site import MakeSite, Site

#: As many requests as `administrator` sends are taken unsigned; from then on moto calculates each signature anew.
UNSIGNED = "4"
ANYTHING = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'


def client(service: str, url: str, key: str = "none", secret: str = "none") -> Any:
    return import_module("boto3").client(
        service, endpoint_url=url, region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret
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


Store = Callable[..., Any]


@pytest.fixture
def store(site: MakeSite, stack: ExitStack, tmp_path: Path) -> Store:
    """Makes clients of the store through the site, as a member of it."""
    need_recipe("moto", "boto3")
    environ = {"INITIAL_NO_AUTH_ACTION_COUNT": UNSIGNED}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "{port}"]
    url = stack.enter_context(program(tmp_path, *command, ready="/moto-api/", **environ))
    key = administrator(url)
    made: Site = site(settings("S3", url), configure=members)

    def connect(member: str, **other: str) -> Any:
        connected = stack.enter_context(closing(client("s3", made.url, **{**key, **other})))
        # After the signature is made: what is added before would be signed, and the site keeps it for itself.
        connected.meta.events.register("before-send.s3", lambda request, **kw: tell(request, member))
        return connected

    return connect


def test_boto3(store: Store) -> None:
    """A large object is put and read; the store finds the signature right, and a wrong one wrong."""
    body = bytes(range(256)) * 20_000
    ann = store("ann")
    ann.put_object(Bucket="books", Key="a b/ü.bin", Body=body)
    assert [one["Key"] for one in ann.list_objects_v2(Bucket="books")["Contents"]] == ["a b/ü.bin"]
    with closing(ann.get_object(Bucket="books", Key="a b/ü.bin")["Body"]) as read:
        assert read.read() == body
    errors = import_module("botocore.exceptions")
    with pytest.raises(errors.ClientError, match="SignatureDoesNotMatch"):
        store("ann", secret="wrong").put_object(Bucket="books", Key="b", Body=b"")
    with pytest.raises(errors.ClientError, match="403"):
        store("bob").put_object(Bucket="books", Key="c", Body=body)
    assert ann.list_objects_v2(Bucket="books")["KeyCount"] == 1
