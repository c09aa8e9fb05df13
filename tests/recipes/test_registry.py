"""The recipe for a registry of images: Debian's docker-registry, whose uploads stream, and skopeo, which pushes."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from waitress.adjustments import Adjustments

from tests.support.recipes import basic, members, settings
from tests.support.site import MakeSite, Site
from tests.support.waiting import wait_until

#: Bytes of the image's one layer, which can't be compressed.
SIZE = 20_000_000
#: skopeo asks by TLS first, and waits until somebody ends that.
QUICK = {"channel_timeout": 1, "cleanup_interval": 1}


@contextmanager
def registry(program: str, folder: Path) -> Iterator[str]:
    """An empty registry that keeps its images in `folder`; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = folder / "config.json"  # JSON is YAML
    storage, http = {"filesystem": {"rootdirectory": str(folder / "images")}}, {"addr": f"127.0.0.1:{port}"}
    config.write_text(json.dumps({"version": 0.1, "log": {"level": "error"}, "storage": storage, "http": http}))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: listens(port), "the registry")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def image(folder: Path) -> str:
    """Write an image of one layer as an OCI layout, by hand; returns the digest of the layer."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    layer = blob("layer.v1.tar", random.Random(1).randbytes(SIZE))
    about = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    config = blob("config.v1+json", json.dumps(about).encode())
    made = {"schemaVersion": 2, "config": config, "layers": [layer]}
    manifest = blob("manifest.v1+json", json.dumps(made).encode())
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return str(layer["digest"])


Push = Callable[[Site, str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def push(tmp_path: Path, need_program: Callable[[str], str]) -> Push:
    """Has skopeo push the image in `tmp_path / "layout"`, as it is, as a user."""
    program = need_program("skopeo")
    options = ["--insecure-policy", "copy", "--dest-tls-verify=false", "--preserve-digests", f"oci:{tmp_path}/layout"]

    def run(where: Site, user: str) -> subprocess.CompletedProcess[str]:
        command = [program, *options, f"--dest-creds={user}:secret", f"docker://{where.authority}/one:latest"]
        return subprocess.run(command, capture_output=True, timeout=60, check=False, text=True)

    return run


@pytest.fixture
def recipe(stack: ExitStack, tmp_path: Path, need_program: Callable[[str], str]) -> dict[str, str]:
    """The settings of the page, with a registry."""
    upstream = stack.enter_context(registry(need_program("docker-registry"), tmp_path))
    return settings("A registry of images", upstream)


def test_skopeo_pushes(site: MakeSite, tmp_path: Path, push: Push, recipe: dict[str, str]) -> None:
    """An image that is pushed arrives whole, past what waitress takes of a body; its layer can be had again."""
    layer = image(tmp_path / "layout")
    where = site(recipe, configure=members, max_request_body_size=SIZE // 2, **QUICK)
    done = push(where, "ann")
    assert done.returncode == 0, done.stderr
    answer = where.get(f"/v2/one/blobs/{layer}", basic("ann"))
    assert hashlib.sha256(answer.body).hexdigest() == layer.removeprefix("sha256:")


@pytest.mark.parametrize(("most", "works"), [(2 * SIZE, True), (SIZE // 2, False)])
def test_with_buffering(
    site: MakeSite, tmp_path: Path, push: Push, recipe: dict[str, str], most: int, works: bool
) -> None:
    """A layer that waitress takes first may be no larger than it takes, 1 GiB unless it is told.

    Waitress closes behind its 413, and a client that still sends may see a reset in its place.
    """
    assert Adjustments().max_request_body_size == 1 << 30
    image(tmp_path / "layout")
    buffered = recipe | {"proxy.routes.registry.request.buffering": "true"}
    done = push(site(buffered, configure=members, max_request_body_size=most, **QUICK), "ann")
    refused = any(word in done.stderr for word in ("413", "connection reset", "broken pipe"))
    assert (done.returncode == 0, refused) == (works, not works), done.stderr


def test_skopeo_is_refused(site: MakeSite, tmp_path: Path, push: Push, recipe: dict[str, str]) -> None:
    """Who may not push is told so, and the registry has nothing."""
    image(tmp_path / "layout")
    done = push(site(recipe, configure=members, **QUICK), "bob")
    assert done.returncode != 0
    assert "403" in done.stderr or "denied" in done.stderr.lower() or "forbidden" in done.stderr.lower()
    assert not (tmp_path / "images").exists()
