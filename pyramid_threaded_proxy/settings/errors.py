"""What a user gets whose settings are wrong."""

from __future__ import annotations

from collections.abc import Iterable

from pyramid.exceptions import ConfigurationError

from pyramid_threaded_proxy.exceptions import ProxyError


class SettingsError(ProxyError, ConfigurationError):
    """Settings are wrong; `faults` holds one line for each mistake."""

    def __init__(self, faults: Iterable[str]) -> None:
        # A fault stays on its line whatever key, value or foreign error it quotes.
        self.faults = tuple("".join(c if c.isprintable() else ascii(c)[1:-1] for c in fault) for fault in faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)
