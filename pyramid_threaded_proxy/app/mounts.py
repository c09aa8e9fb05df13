"""What stands where: which requests may be for a proxied route, told from path and Host before Pyramid was asked."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from pyramid_threaded_proxy.app.declared import Declared
from pyramid_threaded_proxy.app.host import is_for

#: SCRIPT_NAMEs that are remembered.
_MOST_NAMES = 16


class Mounts:
    """The mounts of an application's proxied routes, under each SCRIPT_NAME that it has heard of (`detach.Mounted`).

    The path where front servers ask about such requests (`verify`) is one of them. Any thread: what is looked at is
    replaced as one.
    """

    def __init__(self, every: Iterable[Declared], verify_prefix: str | None = None) -> None:
        # Bytes as WSGI has them.
        declared = [(unquote_to_bytes(one.mount).decode("latin-1"), one.settings.host) for one in every]
        self._for_any = {mount for mount, host in declared if host is None}
        if verify_prefix is not None:
            self._for_any.add(unquote_to_bytes(verify_prefix).decode("latin-1"))
        self._for_hosts = {(mount, host) for mount, host in declared if host is not None}
        self._names: tuple[str, ...] = ("",)
        self._settle()

    def learn(self, script_name: str) -> None:
        """The application hears of requests under this SCRIPT_NAME."""
        if script_name not in self._names:
            self._names = (*self._names[:1], script_name, *self._names[1 : _MOST_NAMES - 1])
            self._settle()

    def close(self) -> None:
        """The application ends: nothing is for it any more."""
        self._for_any, self._for_hosts = set(), set()
        self._settle()

    def _settle(self) -> None:
        self._anywhere = tuple(name + mount for name in self._names for mount in self._for_any)
        self._somewhere = tuple((name + mount, host) for name in self._names for mount, host in self._for_hosts)

    def is_proxied(self, path_info: str, host: str | None) -> bool:
        """Whether a path begins as those of a proxied route do; a host of None may be any."""
        if path_info.startswith(self._anywhere):
            return True
        if not self._somewhere:
            return False
        return any(
            path_info.startswith(mount) and (host is None or is_for(wanted, host)) for mount, wanted in self._somewhere
        )

    def rests(self, path_info: str) -> list[str]:
        """A path as routes match it, without each SCRIPT_NAME that it may begin with; none where no route can."""
        try:
            return [
                path_info[len(name) :].encode("latin-1").decode("utf-8")
                for name in self._names
                if path_info.startswith(name)
            ]
        except UnicodeDecodeError:
            return []
