"""A private certificate authority, made with the openssl command for the tests that need one."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path


class Authority:
    """A certificate authority in `folder`; `openssl` is the path of the program."""

    def __init__(self, folder: Path, openssl: str) -> None:
        self._folder = folder
        self._openssl = openssl
        self.ca_file = self._make("ca", "test authority", ["-addext", "basicConstraints=critical,CA:TRUE"])[0]

    def _make(self, name: str, subject: str, more: list[str]) -> tuple[str, str]:
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        command = [
            self._openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={subject}", *more,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        return str(certificate), str(key)

    def issue(self, name: str, *alternative: str) -> tuple[str, str]:
        """The files of a certificate for these alternative names (``DNS:…``, ``IP:…``) and of its key."""
        names = ",".join(alternative) or f"DNS:{name}"
        signing = ["-CA", self.ca_file, "-CAkey", str(self._folder / "ca.key"), "-addext", f"subjectAltName={names}"]
        return self._make(name, name, [*signing, "-addext", "basicConstraints=critical,CA:FALSE"])

    def server(
        self,
        *alternative: str,
        maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        wants_client: bool = False,
    ) -> Callable[[socket.socket], socket.socket]:
        """Makes the TLS server's end of an accepted connection; a handshake that fails ends it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue("server", *(alternative or ("DNS:localhost", "IP:127.0.0.1"))))
        context.maximum_version = maximum
        if wants_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca_file)

        def wrap(sock: socket.socket) -> socket.socket:
            try:
                return context.wrap_socket(sock, server_side=True)
            except OSError as error:
                raise ConnectionError(str(error)) from None

        return wrap
