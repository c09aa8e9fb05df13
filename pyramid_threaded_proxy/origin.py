"""Where an upstream listens."""

from __future__ import annotations

from typing import NamedTuple


class Origin(NamedTuple):
    """Where an upstream listens (RFC 9110 4.3.1)."""

    scheme: str
    host: str
    port: int
    #: The address to connect to where a name was looked up, and judged, before.
    address: str | None = None

    @property
    def authority(self) -> str:
        """As the Host field has it: the port only where it is not the scheme's own."""
        return self.host if self.port == 80 else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"
