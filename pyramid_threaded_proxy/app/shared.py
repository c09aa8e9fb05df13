"""What an application shares with its other processes (`proxy.shared`), and the error where it can't."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pyramid_threaded_proxy.limits.in_flight import InFlight
from pyramid_threaded_proxy.settings.errors import SettingsError

if TYPE_CHECKING:
    from pyramid_threaded_proxy.shared.site import SharedSite


def shared_site(url: str | None, in_flight: InFlight, report: Callable[[str], str | None]) -> SharedSite | None:
    """The other processes, by way of `url`; None for None. Nothing is started, and nothing is connected to.

    Raises `SettingsError` without the package `redis` (extra ``redis``).
    """
    if url is None:
        return None
    try:
        from pyramid_threaded_proxy.shared.site import SharedSite
    except ImportError as error:
        missing = "proxy.shared: needs the package redis: install pyramid_threaded_proxy[redis]"
        raise SettingsError([f"{missing} ({error})"]) from error
    return SharedSite(url, in_flight.end, report)
