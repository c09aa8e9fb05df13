"""A registry of images whose uploads stream: Debian's docker-registry, and skopeo, which pushes to it."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.site import MakeSite, with_policy
from tests.support.uploads import streaming
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
        yield f"http://127.0.0.1:{port}/v2"
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


def push(program: str, layout: Path, authority: str) -> subprocess.CompletedProcess[bytes]:
    """Have skopeo push the image, as it is."""
    return subprocess.run(
        [program, "--insecure-policy", "copy", "--dest-tls-verify=false", "--preserve-digests",
         f"oci:{layout}", f"docker://{authority}/one:latest"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("buffering", ["true", "false"])
def test_skopeo_pushes(
    site: MakeSite, tmp_path: Path, need_program: Callable[[str], str], stack: Any, buffering: str
) -> None:
    """An image that is pushed arrives whole, with and without buffering; its layer can be had again."""
    layer = image(tmp_path / "layout")
    upstream = stack.enter_context(registry(need_program("docker-registry"), tmp_path))
    where = site(streaming(upstream, prefix="/v2", preserve_host="true", request__buffering=buffering), **QUICK)
    done = push(need_program("skopeo"), tmp_path / "layout", where.authority)
    assert done.returncode == 0, done.stderr
    answer = where.get(f"/v2/one/blobs/{layer}")
    assert hashlib.sha256(answer.body).hexdigest() == layer.removeprefix("sha256:")


def test_skopeo_is_refused(site: MakeSite, tmp_path: Path, need_program: Callable[[str], str], stack: Any) -> None:
    """Who may not push is told so, and the registry has nothing."""
    image(tmp_path / "layout")
    upstream = stack.enter_context(registry(need_program("docker-registry"), tmp_path))
    where = site(streaming(upstream, prefix="/v2", permission="view"), configure=with_policy, **QUICK)
    done = push(need_program("skopeo"), tmp_path / "layout", where.authority)
    assert done.returncode != 0
    assert b"403" in done.stderr or b"denied" in done.stderr.lower() or b"forbidden" in done.stderr.lower()
    assert not (tmp_path / "images").exists()
